"""A server that is stopped at any moment goes on with the very round it was in."""

import hashlib
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from secagg import (
    CountSegment,
    FixedSegment,
    Identity,
    Layout,
    Mode,
    Policy,
    Roster,
    SigningKey,
    Stage,
    open_client,
    open_restartable_server,
    restore_server,
    ring,
    sessions,
)
from secagg.errors import (
    BadSeal,
    ConfigurationError,
    CorruptState,
    Equivocation,
    Latched,
    TooFewSurvivors,
    UnknownIdentity,
    WrongRound,
    WrongStage,
)
from secagg.roster import COORDINATOR_ID
from secagg.roundlog import RoundLog
from secagg.sealed_state import Vault
from secagg.server_snapshot import ServerSnapshot, ServerStore, unseal_server
from secagg.transcript import verify_transcript

STATE_KEY = bytes(range(100, 132))
STORED = json.loads((Path(__file__).parent / "vectors/snapshot_v1.json").read_text())


class Machine:
    """A server with a disk; `restart` loses everything but the disk."""

    def __init__(self, world, params=None):
        self.world, self.disk, self.saves = world, b"", 0
        self.session = open_restartable_server(params or world.params(), **self.options())

    def options(self):
        return {
            "coordinator": self.world.coordinator,
            "roster": self.world.roster,
            "state_key": STATE_KEY,
            "save": self.write,
        }

    def write(self, state):
        self.disk, self.saves = state, self.saves + 1

    def restart(self, saved=None, **changes):
        options = {**self.options(), **changes}
        self.session = restore_server(self.disk if saved is None else saved, **options)
        return self.session


def assert_sum(world, aggregate, clients):
    assert aggregate.survivors == tuple(clients)
    for name, total in world.total(clients).items():
        assert np.array_equal(aggregate.sums[name], total)


def finish(world, clients, server, step):
    while isinstance(step, dict):
        for client, request in step.items():
            server.receive(client, world.answer(clients[client], request))
        step = server.close_stage()
    return step


@pytest.fixture(params=[Mode.PLAIN, Mode.MASKING], ids=lambda mode: mode.name)
def world(request, federation):
    return federation(4, mode=request.param)


@pytest.fixture
def masking(federation):
    return federation(4)


STAGES = [(Mode.MASKING, stage) for stage in Stage] + [(Mode.PLAIN, Stage.UPLOAD)]


@pytest.mark.parametrize(("mode", "stage"), STAGES)
def test_a_server_restarted_at_the_opening_of_any_stage_sends_the_same_requests_again(
    federation, mode, stage
):
    """Replies that arrived since are given again by the clients, byte for byte."""
    world = federation(4, mode=mode)
    machine, clients = Machine(world), world.clients()
    requests = world.run_until(stage, clients, machine.session)
    for client in (10, 20):
        machine.session.receive(client, world.answer(clients[client], requests[client]))
    server = machine.restart()
    assert server.stage is stage
    assert server.pending() == requests
    assert_sum(world, finish(world, clients, server, server.pending()), world.ids)


@pytest.mark.parametrize(("mode", "stage"), STAGES)
def test_a_server_restarted_within_any_stage_keeps_what_arrived_and_awaits_the_rest(
    federation, mode, stage
):
    world = federation(4, mode=mode)
    machine, clients = Machine(world), world.clients()
    requests = world.run_until(stage, clients, machine.session)
    replies = {client: world.answer(clients[client], r) for client, r in requests.items()}
    for client in (10, 20):
        machine.session.receive(client, replies[client])
    server = machine.restart(machine.session.snapshot())
    assert set(server.pending()) == {30, 40}
    server.receive(10, replies[10])  # an exact duplicate is still ignored, and not added twice
    with pytest.raises(Latched):
        server.receive(20, replies[20][:-1] + bytes([replies[20][-1] ^ 1]))
    for client in (30, 40):
        server.receive(client, replies[client])
    assert not server.pending()
    step = server.close_stage()
    assert_sum(world, finish(world, clients, server, step), world.ids)


def test_a_server_restarted_at_every_stage_counts_bytes_and_losses_as_if_it_never_stopped(masking):
    aggregates = []
    for restarting in (False, True):
        machine, clients = Machine(masking), masking.clients()
        step = machine.session.open()
        while isinstance(step, dict):
            for client, request in step.items():
                if (client, machine.session.stage) != (40, Stage.CONFIRM):
                    reply = masking.answer(clients[client], request)
                    machine.session.receive(client, reply)
                if restarting:
                    machine.restart(machine.session.snapshot())
            step = machine.session.close_stage()
        assert_sum(masking, step, masking.ids)
        aggregates.append(step)
    one, other = aggregates
    assert one.dropped == {40: Stage.CONFIRM}
    assert (other.dropped, other.bytes_up) == (one.dropped, one.bytes_up)
    assert other.bytes_down == one.bytes_down
    logs = [RoundLog.from_bytes(each.transcript.log, members=4) for each in aggregates]
    assert [len(log.reveals) for log in logs] == [3, 3]
    assert [len(log.requests) for log in logs] == [5, 5]
    for each in aggregates:
        assert verify_transcript(each.transcript.log, masking.roster)


def test_clients_and_server_restarted_at_every_stage_go_on_with_the_same_ring(federation):
    """The order of a ring follows from the cohort, and both are computed anew from what is stored."""
    world, saved = federation(9, colluders=1), {}

    def session(client):
        return open_client(
            Mode.MASKING,
            identity=world.identities[client],
            roster=world.roster,
            policy=world.policy(),
            save=lambda state: saved.update({client: state}),
            saved=saved.get(client, b""),
            state_key=STATE_KEY,
        )

    machine = Machine(world, world.params(graph_degree=6))
    step = machine.session.open()
    while isinstance(step, dict):
        for client, request in step.items():
            if (client, machine.session.stage) != (90, Stage.UPLOAD):
                reply = world.answer(session(client), request)
                machine.session.receive(client, reply)
            machine.restart(machine.session.snapshot())
        step = machine.session.close_stage()
        if machine.session.stage is Stage.UPLOAD:
            assert len(machine.session.cohort.neighbours(10)) == 6
    assert_sum(world, step, world.ids[:-1])


def test_reasons_of_clients_that_left_survive_a_restart(masking):
    machine, clients = Machine(masking), masking.clients()
    requests = masking.run_until(Stage.UPLOAD, clients, machine.session)
    for client in (10, 20):
        with pytest.raises(Exception, match="model or plan") as caught:
            masking.answer(clients[client], requests[client], context=bytes(32))
        machine.session.receive(client, caught.value.refusal)
    server = machine.restart(machine.session.snapshot())
    with pytest.raises(TooFewSurvivors, match="ViewMismatch x2"):
        server.close_stage()


# Save before send ---------------------------------------------------------------------------


def test_the_state_is_saved_before_the_requests_of_a_stage_are_handed_over(masking):
    machine, clients = Machine(masking), masking.clients()
    step, saves = machine.session.open(), 1
    while isinstance(step, dict):
        assert machine.saves == saves
        assert restore_server(machine.disk, **machine.options()).pending() == step
        for client, request in step.items():
            machine.session.receive(client, masking.answer(clients[client], request))
        step, saves = machine.session.close_stage(), saves + 1
    assert machine.saves == len(Stage)


def full(state):
    raise OSError("disk full")


def test_if_the_state_cannot_be_saved_no_request_leaves_and_the_round_is_over(masking):
    machine, clients = Machine(masking), masking.clients()
    requests = masking.run_until(Stage.UPLOAD, clients, machine.session)
    for client, request in requests.items():
        machine.session.receive(client, masking.answer(clients[client], request))
    machine.session._store = ServerStore(machine.session._store.vault, full)
    with pytest.raises(OSError, match="disk full"):
        machine.session.close_stage()
    assert not machine.session.pending()
    with pytest.raises(WrongStage):
        machine.session.close_stage()


def test_forgotten_requests_control_a_server_put_back_signs_a_second_list(masking):
    """Why requests leave only after they are saved: this is what clients take for a lie."""
    machine, clients = Machine(masking), masking.clients()
    requests = masking.run_until(Stage.UPLOAD, clients, machine.session)
    old = machine.disk
    replies = {client: masking.answer(clients[client], r) for client, r in requests.items()}
    for client in masking.ids:
        machine.session.receive(client, replies[client])
    clients[10].handle(machine.session.close_stage()[10])
    server = machine.restart(old)
    for client in masking.ids[:-1]:
        server.receive(client, replies[client])
    with pytest.raises(Equivocation):
        clients[10].handle(server.close_stage()[10])


# Half a sum ---------------------------------------------------------------------------------


def breaks_off(world, monkeypatch, protected):
    """An upload whose second segment cannot be added, sent once more afterwards."""
    clients, server = world.clients(), world.server()
    requests = world.run_until(Stage.UPLOAD, clients, server)
    replies = {client: world.answer(clients[client], r) for client, r in requests.items()}
    real, calls = ring.add_packed, []

    def short_of_memory(words, body, width):
        calls.append(width)
        if len(calls) == 2:
            raise MemoryError
        real(words, body, width)

    with monkeypatch.context() as patch:
        patch.setattr(ring, "add_packed", short_of_memory)
        with pytest.raises(MemoryError):
            server.receive(10, replies[10])
    if not protected:
        server._book.running = True
    for client, reply in replies.items():
        server.receive(client, reply)
    return clients, server


def test_half_a_sum_control_without_the_stop_a_segment_is_added_twice(federation, monkeypatch):
    world = federation(4, mode=Mode.PLAIN)
    _, server = breaks_off(world, monkeypatch, protected=False)
    extra = server.close_stage().sums["delta"] - world.total(world.ids)["delta"]
    assert np.array_equal(extra, world.values(10)["delta"])


@pytest.mark.parametrize("mode", [Mode.PLAIN, Mode.MASKING])
def test_a_server_that_failed_in_the_middle_of_an_addition_gives_no_sum(
    federation, monkeypatch, mode
):
    with pytest.raises(WrongStage):
        breaks_off(federation(4, mode=mode), monkeypatch, protected=True)


# States that are not to be used -------------------------------------------------------------


@pytest.fixture
def stopped(masking):
    machine, clients = Machine(masking), masking.clients()
    requests = masking.run_until(Stage.CONFIRM, clients, machine.session)
    machine.session.receive(10, masking.answer(clients[10], requests[10]))
    return machine


@pytest.mark.parametrize("place", [5, 9, 25, 60, 70, 500, -17, -1])
def test_a_state_with_one_bit_changed_is_refused(stopped, place):
    damaged = bytearray(stopped.disk)
    damaged[place] ^= 1
    with pytest.raises((BadSeal, CorruptState)):
        stopped.restart(bytes(damaged))


@pytest.mark.parametrize("keep", [0, 3, 64, 65, 90, -1])
def test_a_truncated_state_is_refused(stopped, keep):
    with pytest.raises((BadSeal, CorruptState)):
        stopped.restart(stopped.disk[:keep])


def test_a_state_of_an_unknown_version_or_under_another_key_is_refused(stopped):
    for version in (0, 2):
        with pytest.raises(CorruptState, match=f"version {version}"):
            stopped.restart(stopped.disk[:4] + bytes([version]) + stopped.disk[5:])
    with pytest.raises(BadSeal):
        stopped.restart(state_key=bytes(32))
    with pytest.raises(ConfigurationError):
        stopped.restart(state_key=b"short")


def test_a_clients_state_is_not_a_servers(stopped, masking):
    label = {"run_id": bytes(16), "sequence": 1}
    with pytest.raises(CorruptState, match="participant 10"):
        stopped.restart(Vault(STATE_KEY, 10).seal(b"", **label))
    with pytest.raises(CorruptState):
        stopped.restart(Vault(STATE_KEY, COORDINATOR_ID).seal(b"\x90", **label))


def test_another_coordinator_or_roster_cannot_go_on_with_a_round(stopped, federation):
    other = federation(4)
    with pytest.raises(UnknownIdentity):
        stopped.restart(coordinator=other.coordinator)
    with pytest.raises(WrongRound):
        stopped.restart(roster=msgspec.structs.replace(stopped.world.roster, version=2))


def test_what_does_not_fit_together_is_corrupt_though_the_seal_holds(stopped):
    """Control: the same content, sealed again, is taken."""
    vault = Vault(STATE_KEY, COORDINATOR_ID)
    good = unseal_server(vault, stopped.disk)
    page = good.page

    def sealed(**changes):
        changed = msgspec.structs.replace(good, **changes)
        params = changed.params
        return vault.seal(
            msgspec.msgpack.encode(changed), run_id=params.run_id, sequence=params.sequence
        )

    def turned(**changes):
        return sealed(page=msgspec.structs.replace(page, **changes))

    stopped.restart(sealed())
    bad = [
        sealed(lanes={}),
        sealed(lanes={lane: words[:-1] for lane, words in good.lanes.items()}),
        sealed(lanes={**good.lanes, 16: b""}),
        sealed(uploads=b""),
        sealed(adverts=good.adverts[:-1]),
        sealed(uploads=good.uploads + good.uploads),
        sealed(dealt=good.dealt[:-1]),
        turned(sent={**page.sent, 70: 0}),
        turned(sent={**page.sent, 10: 9}),
        turned(requests=[]),
        turned(answered={70: (99, bytes(64))}),
        turned(bytes_up={}),
        turned(bytes_down={}),
        turned(dropped={70: Stage.SHARE}),
        turned(refusals={70: "ViewMismatch"}),
    ]
    for saved in bad:
        with pytest.raises(CorruptState):
            stopped.restart(saved)
    content = msgspec.msgpack.encode(good)
    with pytest.raises(CorruptState, match="labelled"):
        stopped.restart(vault.seal(content, run_id=bytes(16), sequence=1))


def test_without_a_state_key_there_is_no_snapshot_and_without_a_stage_nothing_to_go_on_with(world):
    with pytest.raises(ConfigurationError, match="without a state key"):
        world.server().snapshot()
    machine = Machine(world)
    with pytest.raises(WrongStage):
        machine.session.snapshot()
    clients = world.clients()
    aggregate = finish(world, clients, machine.session, machine.session.open())
    assert_sum(world, aggregate, world.ids)
    with pytest.raises(WrongStage):
        machine.session.snapshot()
    with pytest.raises(WrongStage):
        machine.restart().open()


def test_a_mode_that_cannot_be_restarted_is_not_taken_for_another(masking, monkeypatch):
    monkeypatch.delitem(sessions._RESTARTABLE, Mode.MASKING)
    with pytest.raises(ConfigurationError, match="MASKING cannot be restarted"):
        Machine(masking)


def test_shares_that_were_sent_on_are_not_stored_again(masking):
    machine, clients = Machine(masking), masking.clients()
    requests = masking.run_until(Stage.SHARE, clients, machine.session)
    for client, request in requests.items():
        machine.session.receive(client, masking.answer(clients[client], request))
    vault = Vault(STATE_KEY, COORDINATOR_ID)
    sealed = machine.session._bundles[10].sealed[:92]
    assert vault.unseal(machine.session.snapshot()).content.count(sealed) == 1
    machine.session.close_stage()
    assert vault.unseal(machine.disk).content.count(sealed) == 1


# Stored for ever ----------------------------------------------------------------------------


def stored_world():
    def word(text):
        return hashlib.sha256(text.encode()).digest()

    layout = Layout(
        (
            FixedSegment(name="delta", length=3, clip=1.0, bits=12),
            CountSegment(name="samples", bound=2**40),
        )
    )
    identities = [Identity(i, SigningKey(word(f"client {i}"))) for i in (1, 2, 3)]
    coordinator = SigningKey(word("coordinator"))
    roster = Roster(
        coordinator=coordinator.public, members=tuple(one.member() for one in identities)
    )
    policy = Policy(layout=layout, modes=(Mode.MASKING,), n_min=3, survivors_min=3, colluders=0)
    return identities, coordinator, roster, policy, word("state key")


def test_a_round_stored_by_version_1_still_ends_with_its_exact_sum():
    """Server and clients stopped after the uploads, restored from the file."""
    identities, coordinator, roster, policy, state_key = stored_world()
    midway = STORED["midway"]
    assert state_key.hex() == STORED["state_key"]
    server = restore_server(
        bytes.fromhex(midway["server"]),
        coordinator=coordinator,
        roster=roster,
        state_key=state_key,
        save=lambda state: None,
    )
    clients = {
        one.id: open_client(
            Mode.MASKING,
            identity=one,
            roster=roster,
            policy=policy,
            save=lambda state: None,
            saved=bytes.fromhex(midway["clients"][str(one.id)]),
            state_key=state_key,
        )
        for one in identities
    }
    step = server.close_stage()
    while isinstance(step, dict):
        for client, request in step.items():
            server.receive(client, clients[client].handle(request).message)
        step = server.close_stage()
    assert {name: sums.tolist() for name, sums in step.sums.items()} == STORED["sums"]


@pytest.mark.parametrize("stage", [stage.name for stage in Stage])
def test_a_state_stored_by_version_1_is_read_for_ever(stage):
    vault = Vault(bytes.fromhex(STORED["state_key"]), COORDINATOR_ID)
    snapshot = unseal_server(vault, bytes.fromhex(STORED["server"][stage]))
    assert isinstance(snapshot, ServerSnapshot)
    assert snapshot.page.stage is Stage[stage]
    assert snapshot.params.digest.hex() == STORED["params_digest"]
