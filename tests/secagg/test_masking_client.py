"""One answer to each stage, whatever is sent again, twice, too early or by a stranger."""

import os

import numpy as np
import pytest

from secagg import Mode, Stage, Update
from secagg.api import InputWanted
from secagg.errors import (
    BadSignature,
    CorruptState,
    Equivocation,
    Latched,
    Malformed,
    NonFiniteInput,
    StaleState,
    UnknownIdentity,
    WrongRound,
    WrongStage,
)
from secagg.inprocess import STAGES
from secagg.marks import Marks
from secagg.masking_client import MaskingClient
from secagg.messages import Kind, read_header
from secagg.sessions import open_client, open_server


@pytest.fixture
def world(federation):
    return federation(5)


def record(world, client_id=10):
    """An honest round; the requests and replies of one client, by stage."""
    clients, server = world.clients(), world.server()
    requests, replies = {}, {}
    step = server.open()
    for stage in Stage:
        for client, request in step.items():
            reply = world.answer(clients[client], request)
            server.receive(client, reply)
            if client == client_id:
                requests[stage], replies[stage] = request, reply
        step = server.close_stage()
    return clients[client_id], requests, replies, step


def test_the_identical_request_gets_the_identical_reply(world):
    clients, server = world.clients(), world.server()
    step = server.open()
    for _ in Stage:
        for client, request in step.items():
            reply = world.answer(clients[client], request)
            assert clients[client].handle(request).message == reply
            server.receive(client, reply)
            server.receive(client, reply)
        step = server.close_stage()
    assert step.survivors == world.ids


def test_the_request_for_an_input_may_be_repeated_before_the_input_is_there(world):
    clients, server = world.clients(), world.server()
    request = world.run_until(Stage.UPLOAD, clients, server)[10]
    first, second = (clients[10].handle(request) for _ in range(2))
    assert isinstance(first, InputWanted)
    assert first == second
    assert first.contributors == world.ids
    assert (first.threshold, first.guaranteed_honest) == (4, 3)


def test_replies_of_earlier_stages_are_not_kept(world):
    client, requests, replies, _ = record(world)
    assert client.handle(requests[Stage.REVEAL]).message == replies[Stage.REVEAL]
    for stage in (Stage.SHARE, Stage.UPLOAD, Stage.CONFIRM):
        with pytest.raises(Latched):
            client.handle(requests[stage])


@pytest.mark.parametrize("stage", list(Stage))
def test_without_kept_replies_a_repeated_request_is_refused(world, stage):
    def forgetful(participant, **options):
        return MaskingClient(participant, keep_replies=False, **options)

    clients, server = world.clients(forgetful), world.server()
    request = world.run_until(stage, clients, server)[10]
    world.answer(clients[10], request)
    with pytest.raises(Latched):
        clients[10].handle(request)


def test_a_second_input_is_refused(world):
    clients, server = world.clients(), world.server()
    world.answer(clients[10], world.run_until(Stage.UPLOAD, clients, server)[10])
    with pytest.raises(Latched):
        clients[10].submit(world.update(10), world.params().context)


def test_an_input_that_cannot_be_encoded_may_be_corrected(world):
    clients, server = world.clients(), world.server()
    clients[10].handle(world.run_until(Stage.UPLOAD, clients, server)[10])
    values = {**world.values(10), "delta": np.full(5, np.nan)}
    with pytest.raises(NonFiniteInput) as caught:
        clients[10].submit(Update(values=values), world.params().context)
    assert caught.value.refusal is None
    clients[10].submit(world.update(10), world.params().context)


@pytest.mark.parametrize("early", list(Stage)[1:])
def test_a_request_that_comes_too_early_is_refused_and_changes_nothing(world, early):
    _, requests, _, _ = record(world)
    client = world.client(10)
    with pytest.raises(WrongRound):
        client.handle(requests[early])


def test_without_a_round_there_is_nothing_to_submit_or_to_abandon(world):
    client = world.client(10)
    client.abandon()
    with pytest.raises(WrongStage):
        client.submit(world.update(10), world.params().context)


def test_stages_cannot_be_skipped(world, liar):
    clients, server = world.clients(), world.server()
    world.run_until(Stage.UPLOAD, clients, server)
    lie = liar(world, server.params)
    survivors, request = lie.survivors(server.sharers, [])
    for skipping in (request, lie.reveal(survivors, [])):
        with pytest.raises(WrongStage):
            clients[10].handle(skipping)


def test_only_requests_are_answered(world):
    client, _, replies, _ = record(world)
    for reply in replies.values():
        with pytest.raises(WrongStage):
            client.handle(reply)


@pytest.mark.parametrize("stage", list(Stage))
def test_a_stranger_cannot_use_up_an_answer(federation, liar, stage):
    """Requests without the coordinator's signature are refused, and the genuine one still counts."""
    world, stranger = federation(5), federation(5)
    clients, server = world.clients(), world.server()
    genuine = world.run_until(stage, clients, server)[10]
    forged = bytearray(genuine)
    forged[-1] ^= 1
    for message in (bytes(forged), b"", b"noise" * 30, genuine[:-1], genuine + b"\x00"):
        with pytest.raises((BadSignature, Malformed)):
            clients[10].handle(message)
    lie = liar(stranger, stranger.params())
    with pytest.raises((BadSignature, WrongRound)):
        clients[10].handle(lie.open())
    world.answer(clients[10], genuine)


def test_a_second_cohort_proves_equivocation_and_ends_the_round(world, liar):
    clients, server = world.clients(), world.server()
    genuine = world.run_until(Stage.SHARE, clients, server)[10]
    clients[10].handle(genuine)
    rows = list(server.cohort.adverts.values())
    _, second = liar(world, server.params).cohort(rows[:-1])
    with pytest.raises(Equivocation) as caught:
        clients[10].handle(second)
    one, other = caught.value.evidence
    assert one != other
    assert read_header(caught.value.refusal).kind is Kind.REFUSE
    with pytest.raises(WrongStage):
        clients[10].submit(world.update(10), server.params.context)


def test_two_sets_of_parameters_for_one_sequence_prove_equivocation(world):
    client = world.client(10)
    client.handle(world.server().open()[10])
    other = world.server(world.params(context=b"o" * 32)).open()[10]
    with pytest.raises(Equivocation) as caught:
        client.handle(other)
    for statement in caught.value.evidence:
        assert len(statement) == 32 + 64


def test_a_sequence_at_or_below_the_mark_is_refused_for_ever(world):
    saved = []
    client = world.client(10, save=saved.append)
    client.handle(world.server(world.params(5)).open()[10])
    restarted = world.client(10, marks=Marks.from_bytes(saved[-1]))
    for sequence in (1, 4, 5):
        with pytest.raises(StaleState):
            restarted.handle(world.server(world.params(sequence)).open()[10])
    restarted.handle(world.server(world.params(6)).open()[10])


def test_the_mark_is_durable_before_a_key_leaves(world):
    """If saving fails, nothing is answered; control: when it works, the answer comes after it."""

    def broken(state):
        raise OSError("disk full")

    request, order = world.server().open()[10], []
    with pytest.raises(OSError, match="disk full"):
        world.client(10, save=broken).handle(request)
    client = world.client(10, save=lambda state: order.append("saved"))
    client.handle(request)
    order.append("answered")
    assert order == ["saved", "answered"]


def test_a_newer_sequence_replaces_an_unfinished_one(world):
    clients = world.clients()
    world.run_until(Stage.CONFIRM, clients, world.server(world.params(1)))
    aggregate = world.run(clients=clients, server=world.server(world.params(2)))
    assert aggregate.survivors == world.ids


def test_an_abandoned_round_answers_nothing_more(world):
    clients, server = world.clients(), world.server()
    request = world.run_until(Stage.CONFIRM, clients, server)[10]
    clients[10].abandon()
    with pytest.raises(WrongStage):
        clients[10].handle(request)


def secrets_of(state):
    """Every secret byte string that a state still names."""
    found = [state.seed.reveal()]
    for shares in state.held.values():
        found += [shares.seed.reveal(), shares.mask_key.reveal()]
    return found


@pytest.mark.parametrize("end", ["reveal", "abandon", "failure"])
def test_secrets_are_overwritten_when_a_round_ends(world, liar, end):
    clients, server = world.clients(), world.server()
    request = world.run_until(Stage.REVEAL, clients, server)[10]
    state = clients[10]._round.state
    assert all(secrets_of(state))
    if end == "reveal":
        clients[10].handle(request)
    elif end == "abandon":
        clients[10].abandon()
    else:
        with pytest.raises(Exception, match="confirmations"):
            clients[10].handle(liar(world, server.params).reveal(server.survivors, []))
    assert not any(secrets_of(state))


def test_no_secret_is_sent_before_its_time_or_printed(world):
    """Every random byte string of a client is marked, and looked for in all it shows."""
    drawn = []

    def recording(size):
        drawn.append(os.urandom(size))
        return drawn[-1]

    clients, server = world.clients(), world.server()
    clients[10] = world.client(10, random=recording)
    step, shown = server.open(), []
    for stage in Stage:
        for client, request in step.items():
            reply = world.answer(clients[client], request)
            server.receive(client, reply)
            if client == 10 and stage < Stage.REVEAL:
                shown.append(reply)
        step = server.close_stage()
    shown += [repr(vars(clients[10])).encode(), repr(step.transcript).encode()]
    secrets = [value for value in drawn if len(value) == 32]
    assert len(secrets) > 4
    for secret in secrets:
        assert not any(secret in text or secret.hex().encode() in text for text in shown)


def test_sessions_are_opened_by_mode_and_continue_from_saved_marks(world):
    saved = []
    identity = world.identities[10]
    options = {
        "identity": identity,
        "roster": world.roster,
        "policy": world.policy(),
        "save": saved.append,
    }
    for mode in (Mode.PLAIN, Mode.MASKING):
        params = world.params(mode + 1, mode=mode)
        server = open_server(params, coordinator=world.coordinator, roster=world.roster)
        stored = saved[-1] if saved else b""
        client = open_client(mode, saved=stored, **options)
        client.handle(server.open()[10])
        assert client.client_id == 10
    with pytest.raises(CorruptState):
        open_client(Mode.MASKING, saved=b"rubbish", **options)


def test_an_identity_that_is_not_the_rosters_cannot_open_a_session(federation, world):
    other = federation(5)
    with pytest.raises(UnknownIdentity, match="client 10"):
        open_client(
            Mode.MASKING,
            identity=other.identities[10],
            roster=world.roster,
            policy=world.policy(),
            save=lambda state: None,
        )
    with pytest.raises(UnknownIdentity):
        open_server(world.params(), coordinator=other.coordinator, roster=world.roster)


@pytest.mark.parametrize("stage", list(STAGES)[1:])
def test_messages_of_one_round_are_worthless_in_the_next(world, stage):
    """Control: the same messages were all accepted in their own round."""
    _, requests, replies, aggregate = record(world)
    assert aggregate.survivors == world.ids
    clients, server = world.clients(), world.server(world.params(2))
    world.run_until(STAGES[stage], clients, server)
    for request in list(requests.values())[1:]:
        with pytest.raises(WrongRound):
            clients[10].handle(request)
    with pytest.raises(StaleState):
        clients[10].handle(requests[Stage.ADVERTISE])
    for reply in replies.values():
        with pytest.raises(WrongRound):
            server.receive(10, reply)
