"""A client that is stopped at any moment goes on from what it saved, and never answers twice."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from secagg import Mode, Stage, marks_of, open_client
from secagg.api import InputWanted
from secagg.client_snapshot import seal_client, unseal_client
from secagg.errors import (
    BadSeal,
    ConfigurationError,
    CorruptState,
    Equivocation,
    Latched,
    StaleState,
    WrongStage,
)
from secagg.marks import Mark, Marks
from secagg.masking_states import Ended
from secagg.messages import Reveal, Upload, decode
from secagg.sealed_state import HEADER as STATE_HEADER
from secagg.sealed_state import Vault

STATE_KEY = bytes(range(100, 132))
STORED = json.loads((Path(__file__).parent / "vectors/snapshot_v1.json").read_text())
LIMIT = 1 << 20


class Machine:
    """A client with a disk; `restart` loses everything but the disk."""

    def __init__(self, world, client_id, **options):
        self.world, self.client_id, self.disk, self.saves = world, client_id, b"", 0
        self.options = {"state_key": STATE_KEY, **options}
        self.restart()

    def write(self, state):
        self.disk, self.saves = state, self.saves + 1

    def restart(self, **options):
        self.session = open_client(
            Mode.MASKING,
            **{
                "identity": self.world.identities[self.client_id],
                "roster": self.world.roster,
                "policy": self.world.policy(),
                "save": self.write,
                "saved": self.disk,
                **self.options,
                **options,
            },
        )
        return self

    def handle(self, request):
        return self.session.handle(request)

    def submit(self, update, context):
        return self.session.submit(update, context)

    @property
    def state(self):
        return self.session._round.state


def machines(world, **options):
    return {client: Machine(world, client, **options) for client in world.ids}


def finish(world, clients, server, step):
    """Runs on from these requests of the running stage to the sum."""
    while isinstance(step, dict):
        for client, request in step.items():
            server.receive(client, world.answer(clients[client], request))
        step = server.close_stage()
    return step


def assert_sum(world, aggregate, clients):
    assert aggregate.survivors == tuple(clients)
    for name, total in world.total(clients).items():
        assert np.array_equal(aggregate.sums[name], total)


@pytest.fixture
def world(federation):
    return federation(4)


# Going on -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", list(Stage))
def test_a_client_restarted_after_any_reply_repeats_it_byte_for_byte_and_goes_on(world, stage):
    clients, server = machines(world), world.server()
    requests = world.run_until(stage, clients, server)
    first = {client: world.answer(clients[client], r) for client, r in requests.items()}
    clients[10].restart()
    assert clients[10].handle(requests[10]).message == first[10]
    for client, reply in first.items():
        server.receive(client, reply)
    assert_sum(world, finish(world, clients, server, server.close_stage()), world.ids)


@pytest.mark.parametrize("stage", list(Stage)[1:])
def test_a_client_restarted_before_any_reply_makes_it_then(world, stage):
    clients, server = machines(world), world.server()
    requests = world.run_until(stage, clients, server)
    clients[10].restart()
    assert_sum(world, finish(world, clients, server, requests), world.ids)


def test_a_client_restarted_while_it_trains_is_asked_again_and_counts_once(world):
    clients, server = machines(world), world.server()
    requests = world.run_until(Stage.UPLOAD, clients, server)
    assert isinstance(clients[10].handle(requests[10]), InputWanted)
    clients[10].restart()
    assert_sum(world, finish(world, clients, server, requests), world.ids)


def test_all_clients_restarted_between_all_stages_give_the_exact_sum_over_two_rounds(world):
    clients = machines(world)
    for sequence in (1, 2):
        server = world.server(world.params(sequence))
        step = server.open()
        while isinstance(step, dict):
            for client, request in step.items():
                server.receive(client, world.answer(clients[client].restart(), request))
            step = server.close_stage()
        assert_sum(world, step, world.ids)


@pytest.mark.parametrize("stage", list(Stage)[1:])
def test_after_a_restart_another_request_for_an_answered_stage_is_refused(world, liar, stage):
    """Latches are part of the state: the coordinator that signs two requests is still caught."""
    clients, server = machines(world), world.server()
    requests = world.run_until(stage, clients, server)
    world.answer(clients[10], requests[10])
    clients[10].restart()
    lie = liar(world, server.params)
    rows = list(server.cohort.adverts.values())
    if stage is Stage.SHARE:
        other = lie.cohort(rows[:-1])[1]
    elif stage is Stage.UPLOAD:
        other = lie.collect(server.cohort, world.ids[:-1], bytes(92 * 2))[1]
    elif stage is Stage.CONFIRM:
        other = lie.survivors(server.sharers, list(server._uploads.values())[:-1])[1]
    else:
        other = lie.reveal(server.survivors, list(server._confirmations.values()))
    with pytest.raises(Latched) as caught:
        clients[10].handle(other)
    assert isinstance(caught.value, Equivocation) == (stage is not Stage.REVEAL)
    with pytest.raises(WrongStage):
        clients[10].submit(world.update(20), server.params.context)


def test_after_a_restart_a_second_input_is_refused(world):
    clients, server = machines(world), world.server()
    world.answer(clients[10], world.run_until(Stage.UPLOAD, clients, server)[10])
    with pytest.raises(Latched):
        clients[10].restart().submit(world.update(20), server.params.context)


# Save before send ---------------------------------------------------------------------------


@pytest.mark.parametrize("stage", list(Stage))
def test_the_state_is_saved_before_every_reply_is_handed_over(world, stage):
    """What was last saved already gives the very reply that is about to leave."""
    clients, server = machines(world), world.server()
    request = world.run_until(stage, clients, server)[10]
    before = clients[10].saves
    reply = world.answer(clients[10], request)
    assert clients[10].saves > before
    assert clients[10].restart().handle(request).message == reply


@pytest.mark.parametrize("stage", list(Stage))
def test_if_the_state_cannot_be_saved_nothing_leaves_then_or_later(world, stage):
    clients, server = machines(world), world.server()
    request = world.run_until(stage, clients, server)[10]
    disk, calls = clients[10].disk, []

    def full(state):
        calls.append(state)
        if len(calls) > (stage is Stage.ADVERTISE):  # the mark is saved, the keys are not
            raise OSError("disk full")

    clients[10].session._participant = world.participant(10, save=full)
    with pytest.raises(OSError, match="disk full"):
        world.answer(clients[10], request)
    assert isinstance(clients[10].state, Ended)
    with pytest.raises((Latched, WrongStage)):
        clients[10].handle(request)
    with pytest.raises(WrongStage):
        clients[10].submit(world.update(10), server.params.context)
    assert clients[10].disk == disk


def test_two_time_pad_control_a_client_whose_state_is_not_durable_uploads_twice(world):
    """With the save before the upload taken out, a restart gives the difference of two inputs."""
    clients, server = machines(world), world.server()
    request = world.run_until(Stage.UPLOAD, clients, server)[10]
    plan, lanes = server.params.plan, []
    clients[10].session._participant = world.participant(10)  # its save does nothing
    for client in (10, 20):  # the input of 10, then, after a restart, that of 20
        clients[10].handle(request)
        message = clients[10].submit(world.update(client), server.params.context).message
        lanes.append(plan.zeros())
        plan.add_body(lanes[-1], decode(message, Upload, limit=LIMIT).body)
        clients[10].restart()
    found = plan.decode({lane: lanes[1][lane] - lanes[0][lane] for lane in lanes[0]}, 4)
    for name, values in world.values(20).items():
        assert np.array_equal(found[name], values - world.values(10)[name])


# The end of a round -------------------------------------------------------------------------


def test_a_failed_check_ends_the_round_for_the_next_process_too(world):
    clients, server = machines(world), world.server()
    request = world.run_until(Stage.UPLOAD, clients, server)[10]
    with pytest.raises(Exception, match="model or plan"):
        world.answer(clients[10], request, context=bytes(32))
    with pytest.raises(WrongStage):
        clients[10].restart().handle(request)


@pytest.mark.parametrize("stage", list(Stage))
def test_an_abandoned_round_answers_nothing_more_in_this_process_or_the_next(world, stage):
    """Not even the reply it gave before, which it would otherwise repeat."""
    clients, server = machines(world), world.server()
    request = world.run_until(stage, clients, server)[10]
    world.answer(clients[10], request)
    clients[10].session.abandon()
    for _ in range(2):
        with pytest.raises((Latched, WrongStage)):
            clients[10].handle(request)
        with pytest.raises(WrongStage):
            clients[10].submit(world.update(10), server.params.context)
        clients[10].restart()


def test_after_its_last_reply_the_state_holds_that_reply_and_no_other_secret(world):
    """What the reply opens is the server's by then; keys, seed and all other shares are gone."""
    clients, server = machines(world), world.server()
    requests = world.run_until(Stage.REVEAL, clients, server)
    held, own_seed = dict(clients[10].state.held), clients[10].state.seed.reveal()
    not_opened = [shares.mask_key.reveal() for shares in held.values()]
    reply = decode(world.answer(clients[10], requests[10]), Reveal, limit=LIMIT)
    content = Vault(STATE_KEY, 10).unseal(clients[10].disk).content
    assert own_seed == reply.seed
    assert content.count(own_seed) == 1
    assert len(not_opened) == 3
    for share in not_opened:
        assert share not in content
    clients[10].session.abandon()
    content = Vault(STATE_KEY, 10).unseal(clients[10].disk).content
    assert own_seed not in content


def test_only_the_state_saved_with_the_upload_is_as_long_as_an_upload(federation):
    world = federation(3, colluders=0)
    world.layout = type(world.layout)(
        (
            msgspec.structs.replace(world.layout.segments[0], length=50_000),
            world.layout.segments[1],
        )
    )
    world.values = lambda client: {
        "delta": np.zeros(50_000, np.int64),
        "samples": np.array([client], np.int64),
    }
    clients, server = machines(world), world.server()
    body, sizes = server.params.plan.body_bytes, {}
    step = server.open()
    for stage in Stage:
        for client, request in step.items():
            server.receive(client, world.answer(clients[client], request))
        sizes[stage], step = len(clients[10].disk), server.close_stage()
    assert body < sizes.pop(Stage.UPLOAD) < body + 2_000
    assert max(sizes.values()) < 2_000 < body


# States that are not to be used -------------------------------------------------------------


@pytest.fixture
def stopped(world):
    """A client stopped after its shares are out."""
    clients, server = machines(world), world.server()
    world.answer(clients[10], world.run_until(Stage.SHARE, clients, server)[10])
    return clients[10]


@pytest.mark.parametrize("place", [5, 9, 24, 25, 30, 33, 60, STATE_HEADER.size, 200, -17, -1])
def test_a_state_with_one_bit_changed_is_refused(stopped, place):
    damaged = bytearray(stopped.disk)
    damaged[place] ^= 1
    with pytest.raises((BadSeal, CorruptState)):
        stopped.restart(saved=bytes(damaged))


@pytest.mark.parametrize("keep", [1, 4, 40, STATE_HEADER.size, STATE_HEADER.size + 27, -16, -1])
def test_a_truncated_state_is_refused(stopped, keep):
    with pytest.raises((BadSeal, CorruptState)):
        stopped.restart(saved=stopped.disk[:keep])


def test_a_state_under_another_key_or_without_a_key_is_refused(stopped):
    with pytest.raises(BadSeal):
        stopped.restart(state_key=bytes(32))
    with pytest.raises(CorruptState, match="give the state key"):
        stopped.restart(state_key=None)


def test_a_state_of_an_unknown_version_is_refused(stopped):
    for version in (0, 2, 255):
        with pytest.raises(CorruptState, match=f"version {version}"):
            stopped.restart(saved=stopped.disk[:4] + bytes([version]) + stopped.disk[5:])


def test_the_state_of_another_client_is_refused_whatever_its_label(world, stopped):
    """Even by a client that was given the same state key."""
    with pytest.raises(CorruptState, match="participant 10: this is 20"):
        Machine(world, 20).restart(saved=stopped.disk)
    relabelled = bytearray(stopped.disk)
    relabelled[5:9] = (20).to_bytes(4, "little")
    with pytest.raises(BadSeal):
        Machine(world, 20).restart(saved=bytes(relabelled))


def test_a_state_labelled_as_another_run_or_sequence_does_not_open(stopped):
    other_run, other_sequence = bytearray(stopped.disk), bytearray(stopped.disk)
    other_run[9:25] = b"some other run.."
    other_sequence[25] ^= 3
    for relabelled in (other_run, other_sequence):
        with pytest.raises(BadSeal):
            stopped.restart(saved=bytes(relabelled))


def test_a_state_below_marks_kept_in_a_second_place_is_stale(world, stopped):
    old, marks = stopped.disk, []
    stopped.handle(world.server(world.params(2)).open()[10])
    marks = marks_of(stopped.disk, client_id=10, state_key=STATE_KEY)
    assert Marks.from_bytes(marks).runs == {world.params().run_id: Mark(2, 2)}
    with pytest.raises(StaleState, match="an old state was put back"):
        stopped.restart(saved=old, marks=marks)
    stopped.restart(marks=marks)
    stopped.restart(saved=marks)  # the remedy: go on without the round
    with pytest.raises(StaleState):
        stopped.handle(world.server(world.params(2)).open()[10])


def test_marks_without_their_round_or_above_it_are_refused_inside_a_state(stopped):
    running, vault = stopped.session._round, Vault(STATE_KEY, 10)
    run = running.params.run_id
    for marks, error in (
        (Marks(), CorruptState),
        (Marks(runs={run: Mark(0, 1)}), CorruptState),
        (Marks(runs={run: Mark(2, 1)}), StaleState),
    ):
        with pytest.raises(error):
            stopped.restart(saved=seal_client(vault, marks, running))


def test_what_does_not_fit_together_is_corrupt_though_the_seal_holds(stopped):
    """Control: the same content, sealed again, opens."""
    vault, running = Vault(STATE_KEY, 10), stopped.session._round
    opened = vault.unseal(stopped.disk)
    label = {"run_id": opened.run_id, "sequence": opened.sequence}
    marks, params, secrets, answered, adverts, sharers, survivors = msgspec.msgpack.decode(
        opened.content
    )

    def sealed(*fields):
        return vault.seal(msgspec.msgpack.encode(fields), **label)

    good = (marks, params, secrets, answered, adverts, sharers, survivors)
    unseal_client(vault, sealed(*good), 10)
    kind, mask_key, seed, read_keys = secrets
    bad = [
        (*good, None),
        good[:-1],
        (marks, params, secrets, answered, None, sharers, survivors),
        (marks, params, secrets, answered, adverts[:-1], sharers, survivors),
        (marks, params, secrets, answered, adverts[132:], sharers, survivors),
        (marks, params, secrets, answered, adverts, b"\x0f", survivors),
        (marks, params, secrets, answered, adverts, b"\xff\x01", survivors),
        (marks, params, [kind, mask_key[:-1], seed, read_keys], *good[3:]),
        (marks, params, [kind, mask_key, seed, {20: seed}], *good[3:]),
        (marks, params, [7, mask_key, seed, read_keys], *good[3:]),
        (marks, params, [2, seed, {20: [seed, b"\xff" * 32]}, seed], *good[3:]),
        (marks, [*params[:3], 5, *params[4:]], *good[2:]),
    ]
    for fields in bad:
        with pytest.raises(CorruptState):
            unseal_client(vault, sealed(*fields), 10)
    other = vault.seal(opened.content, run_id=opened.run_id, sequence=5)
    with pytest.raises(CorruptState, match="labelled"):
        unseal_client(vault, other, 10)
    assert running.params.sequence == 1


def test_a_round_that_roster_or_policy_would_no_longer_let_begin_is_over(federation, world):
    for options in ({"policy": federation(4).policy(n_min=4)}, {"roster": "changed"}):
        clients, server = machines(world), world.server()
        request = world.run_until(Stage.SHARE, clients, server)[10]
        if options.get("roster"):
            changed = msgspec.structs.replace(world.roster, version=2)
            options = {"roster": changed}
        clients[10].restart(**options)
        assert isinstance(clients[10].state, Ended)
        with pytest.raises(WrongStage):
            clients[10].handle(request)


def test_state_keys_are_32_bytes_and_need_kept_replies(world):
    for key in (b"", b"password", bytes(31), bytes(33)):
        with pytest.raises(ConfigurationError, match="state key"):
            Machine(world, 10, state_key=key)
    with pytest.raises(ConfigurationError, match="keep_replies"):
        Machine(world, 10, keep_replies=False)


def test_a_state_too_long_for_one_seal_is_refused(monkeypatch):
    monkeypatch.setattr("secagg.sealed_state.MAX_CONTENT_BYTES", 100)
    vault = Vault(STATE_KEY, 1)
    vault.seal(bytes(100), run_id=bytes(16), sequence=1)
    with pytest.raises(ConfigurationError, match="101 bytes"):
        vault.seal(bytes(101), run_id=bytes(16), sequence=1)


# From one way of storing to the other -------------------------------------------------------


def test_marks_alone_are_continued_with_a_state_key_and_sealed_states_without_their_round(world):
    marks_only = Machine(world, 10, state_key=None)
    marks_only.handle(world.server(world.params(3)).open()[10])
    Marks.from_bytes(marks_only.disk)
    sealing = Machine(world, 10).restart(saved=marks_only.disk)
    with pytest.raises(StaleState):
        sealing.handle(world.server(world.params(3)).open()[10])
    sealing.handle(world.server(world.params(4)).open()[10])
    plain = open_client(
        Mode.PLAIN,
        identity=world.identities[10],
        roster=world.roster,
        policy=world.policy(),
        save=marks_only.write,
        saved=sealing.disk,
        state_key=STATE_KEY,
    )
    with pytest.raises(StaleState):
        plain.handle(world.server(world.params(4, mode=Mode.PLAIN), mode=Mode.PLAIN).open()[10])


def test_marks_only_stays_the_default_and_stores_nothing_but_marks(world):
    clients, server = machines(world, state_key=None), world.server()
    assert_sum(world, finish(world, clients, server, server.open()), world.ids)
    for client in clients.values():
        assert client.saves == 1
        assert Marks.from_bytes(client.disk).runs == {server.params.run_id: Mark(1, 1)}


def test_joined_marks_are_the_higher_ones():
    one = Marks(runs={b"a" * 16: Mark(3, 2), b"b" * 16: Mark(1, 1)})
    other = Marks(runs={b"a" * 16: Mark(2, 2), b"c" * 16: Mark(9, 4)})
    expected = {b"a" * 16: Mark(3, 2), b"b" * 16: Mark(1, 1), b"c" * 16: Mark(9, 4)}
    assert one.joined(other).runs == other.joined(one).runs == expected


# Stored for ever ----------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["ADVERTISE", "SHARE", "UPLOAD", "CONFIRM", "REVEAL"])
def test_a_state_stored_by_version_1_is_read_for_ever(stage):
    case = STORED["client"][stage]
    vault = Vault(bytes.fromhex(STORED["state_key"]), STORED["client_id"])
    marks, running = unseal_client(vault, bytes.fromhex(case["saved"]), STORED["client_id"])
    assert type(running.state).__name__ == case["state"]
    assert marks.runs == {running.params.run_id: Mark(1, 1)}
    assert running.params.digest.hex() == STORED["params_digest"]
    assert running.latches.answered[-1].stage.name == stage
    reply = running.latches.answered[-1].reply
    assert reply.hex() == case["reply"]
