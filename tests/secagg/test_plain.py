import os

import numpy as np
import pytest

from secagg import Mode, Stage, Update, run_round
from secagg.digests import upload_digest, upload_statement
from secagg.errors import (
    BadSignature,
    Latched,
    Malformed,
    NonCanonical,
    StaleState,
    TooFewSurvivors,
    ViewMismatch,
    WrongRound,
    WrongStage,
)
from secagg.marks import Marks
from secagg.messages import Upload, encode


def test_all_modes_return_the_same_integers_bit_for_bit(federation, context):
    """Real inputs, the same rounding stream for all, some clients lost."""
    generator = np.random.default_rng(7)
    keys = {client: os.urandom(32) for client in range(0, 100, 10)}
    vectors = {client: generator.normal(0, 0.8, 5).astype(np.float32) for client in keys}

    def inputs(client):
        values = {"delta": vectors[client], "samples": np.array([client])}
        return Update(values=values, rounding_key=keys[client])

    results = []
    for mode in Mode:
        world = federation(9, mode=mode)
        lost = {20: "share", 50: "upload", 60: "reveal"}
        results.append(
            run_round(world.server(), world.clients(), inputs, context=context, lost=lost)
        )
    plain, *protected = results
    assert len(protected) == 2
    for other in protected:
        assert plain.survivors == other.survivors
        assert plain.clip_counts == other.clip_counts
        for name, sums in plain.sums.items():
            assert sums.dtype == other.sums[name].dtype == np.int64
            assert np.array_equal(sums, other.sums[name])


@pytest.fixture(scope="module")
def world(federation):
    return federation(4, mode=Mode.PLAIN)


def test_the_plain_sum_is_the_integer_sum(world):
    aggregate = world.run({20: "upload"})
    assert aggregate.survivors == (10, 30, 40)
    assert aggregate.dropped == {20: Stage.UPLOAD}
    for name, sums in world.total((10, 30, 40)).items():
        assert np.array_equal(aggregate.sums[name], sums)


def test_too_few_uploads_abort(world):
    with pytest.raises(TooFewSurvivors):
        world.run({20: "upload", 30: "upload"})


def test_a_repeated_request_gets_the_same_upload_and_never_a_second_one(world):
    client = world.client(10)
    request = world.server().open()[10]
    first = world.answer(client, request)
    assert client.handle(request).message == first
    with pytest.raises(Latched):
        client.submit(world.update(10), world.params().context)


def test_an_upload_of_another_client_or_with_another_body_is_refused(world):
    server = world.server()
    request = server.open()[10]
    message = bytearray(world.answer(world.client(10), request))
    with pytest.raises(BadSignature):
        server.receive(20, bytes(message))
    message[60] ^= 1
    with pytest.raises(BadSignature):
        server.receive(10, bytes(message))
    server.receive(10, world.answer(world.client(10), request))


def test_a_sequence_is_answered_once_across_restarts(world):
    saved = []
    request = world.server().open()[10]
    world.answer(world.client(10, save=saved.append), request)
    restarted = world.client(10, marks=Marks.from_bytes(saved[-1]))
    with pytest.raises(StaleState) as caught:
        restarted.handle(request)
    assert caught.value.refusal is not None


def test_another_context_ends_the_round_for_this_client(world):
    client = world.client(10)
    client.handle(world.server().open()[10])
    with pytest.raises(ViewMismatch) as caught:
        client.submit(world.update(10), b"x" * 32)
    assert caught.value.refusal is not None
    with pytest.raises(WrongStage):
        client.submit(world.update(10), world.params().context)


def test_a_session_serves_one_round_after_another(world):
    clients = world.clients()
    for sequence in (1, 2, 5):
        world.run(clients=clients, server=world.server(world.params(sequence)))


def test_a_request_of_another_mode_is_no_request_here(world, federation):
    masked = federation(4)
    clients, server = masked.clients(), masked.server()
    requests = masked.run_until(Stage.SHARE, clients, server)
    with pytest.raises(WrongStage):
        world.client(10).handle(requests[10])


def test_the_server_opens_and_closes_once(world):
    server = world.server()
    with pytest.raises(WrongStage):
        server.close_stage()
    server.open()
    with pytest.raises(WrongStage):
        server.open()


def test_an_upload_with_padding_bits_or_of_another_length_is_refused(world):
    server = world.server()
    server.open()
    view, size = server.params.digest, server.params.plan.body_bytes
    for body, error in ((b"\xff" * size, NonCanonical), (bytes(size - 1), Malformed)):
        hashed = upload_digest(view, 10, body)
        signature = world.identities[10].key.sign(upload_statement(view, 10, hashed))
        with pytest.raises(error):
            server.receive(10, encode(Upload(body, signature), params=view, sender=10))


def test_a_header_that_names_another_round_than_the_parameters_is_refused(world):
    request = world.server().open()[10]
    moved = request[:8] + b"\x33" * 32 + request[40:]
    with pytest.raises(WrongRound):
        world.client(10).handle(moved)
