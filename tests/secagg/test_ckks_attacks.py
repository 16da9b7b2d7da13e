"""Servers and clients of mode CKKS that lie. What is documented to succeed is shown to succeed."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import tenseal

from secagg import Mode, Stage
from secagg import ckks_scheme as scheme
from secagg.ckks_client import CKKSClient, survivors_of
from secagg.ckks_presets import PRESETS
from secagg.digests import (
    confirm_statement,
    decryption_digest,
    request_statement,
    sum_statement,
    upload_digest,
    upload_statement,
)
from secagg.errors import (
    AnswersDiffer,
    BadSignature,
    Equivocation,
    KeyMissing,
    Latched,
    Malformed,
    MarginExceeded,
    Oversized,
    RoundAborted,
    SecAggError,
    SumOutOfRange,
    TooFewReplies,
    TooFewSurvivors,
    ViewMismatch,
    WrongRound,
    WrongStage,
)
from secagg.messages import (
    Confirm,
    ConfirmRow,
    Decrypt,
    Sum,
    SurvivorRow,
    SurvivorsRequest,
    Upload,
    decode,
    encode,
    to_table,
)
from secagg.params import KeyedParams
from secagg.roster import COORDINATOR_ID

LIMIT = 2**30


class Round:
    """A round up to all uploads, from where a server may go on as it likes."""

    def __init__(self, world, kind=CKKSClient):
        self.world, self.params = world, world.params()
        self.clients = world.clients(kind)
        self.rows, self.bodies = {}, {}
        for client, request in world.server(self.params).open().items():
            message = world.answer(self.clients[client], request)
            upload = decode(message, Upload, limit=LIMIT)
            hashed = upload_digest(self.params.digest, client, upload.body)
            self.rows[client] = SurvivorRow(client, hashed, upload.signature)
            self.bodies[client] = upload.body

    def sign(self, stage, digest):
        statement = request_statement(self.params.digest, stage, digest)
        return self.world.coordinator.sign(statement)

    def encode(self, message):
        return encode(message, params=self.params.digest, sender=COORDINATOR_ID)

    def listed(self, ids):
        return [self.rows[client] for client in sorted(ids)]

    def survivors_request(self, ids):
        digest = survivors_of(self.params, self.listed(ids)).digest
        table = to_table(self.listed(ids))
        return self.encode(SurvivorsRequest(table, self.sign(Stage.CONFIRM, digest)))

    def confirm(self, client, ids):
        reply = self.clients[client].handle(self.survivors_request(ids)).message
        return ConfirmRow(client, decode(reply, Confirm, limit=LIMIT).signature)

    def decrypt_request(self, ids, ciphertexts, confirmations=()):
        survivors = survivors_of(self.params, self.listed(ids))
        digest = decryption_digest(survivors.digest, ciphertexts)
        table = to_table(self.listed(ids))
        signature = self.sign(Stage.REVEAL, digest)
        request = Decrypt(table, to_table(sorted(confirmations)), ciphertexts, signature)
        return self.encode(request)

    def all_bodies(self, ids):
        return b"".join(self.bodies[client] for client in sorted(ids))

    def opened(self, message, contributors):
        """What a decryptor's answer says."""
        lanes = self.params.plan.zeros()
        self.params.plan.add_body(lanes, decode(message, Sum, limit=LIMIT).body)
        return self.params.plan.decode(lanes, contributors)


@pytest.fixture(scope="module")
def world(federation):
    return federation(5, mode=Mode.CKKS)


@pytest.fixture(scope="module")
def verified(federation):
    return federation(5, mode=Mode.CKKS, verify_sum=True)


def is_update_of(world, opened, client):
    return all(np.array_equal(opened[name], v) for name, v in world.values(client).items())


# A single upload passed off as the sum --------------------------------------------------------


def test_a_lying_server_gets_a_single_update_decrypted_unless_sums_are_verified(world):
    """The documented limit of CKKS, and the control of the two tests below."""
    play = Round(world)
    reply = play.clients[10].handle(play.decrypt_request(world.ids, play.bodies[30])).message
    assert is_update_of(world, play.opened(reply, 5), 30)


@pytest.mark.parametrize("disguise", ["alone", "repeated", "with zeros"])
def test_a_single_upload_passed_off_as_the_sum_is_refused_when_sums_are_verified(
    verified, disguise
):
    play = Round(verified)
    confirmations = [play.confirm(client, verified.ids) for client in verified.ids[:3]]
    empty = bytes(len(play.bodies[30]))
    ciphertexts = {
        "alone": play.bodies[30],
        "repeated": play.bodies[30] * 5,
        "with zeros": empty * 2 + play.bodies[30] + empty * 2,
    }[disguise]
    request = play.decrypt_request(verified.ids, ciphertexts, confirmations)
    with pytest.raises((ViewMismatch, Malformed)):
        play.clients[10].handle(request)


def test_verified_sums_are_answered_for_the_confirmed_list(verified):
    play = Round(verified)
    confirmations = [play.confirm(client, verified.ids) for client in verified.ids[:3]]
    bodies = play.all_bodies(verified.ids)
    reply = play.clients[10].handle(play.decrypt_request(verified.ids, bodies, confirmations))
    opened = play.opened(reply.message, 5)
    for name, total in verified.total(verified.ids).items():
        assert np.array_equal(opened[name], total)


# Two survivor lists, whose difference is one update -------------------------------------------


class Unconfirming(CKKSClient):
    """Adds up itself, but does not ask who else confirmed the list."""

    def _check_confirmations(self, params, survivors, table):
        pass


def test_without_confirmations_two_verified_sums_differ_by_one_update(verified):
    """The control: why verified sums have a stage of confirmation."""
    play = Round(verified, Unconfirming)
    fewer = [client for client in verified.ids if client != 30]
    opened = [
        play.opened(
            play.clients[client].handle(play.decrypt_request(ids, play.all_bodies(ids))).message,
            len(ids),
        )
        for client, ids in ((10, verified.ids), (20, fewer))
    ]
    difference = {name: opened[0][name] - opened[1][name] for name in opened[0]}
    assert is_update_of(verified, difference, 30)


def test_no_two_survivor_lists_are_both_confirmed_by_a_majority(verified):
    play = Round(verified)
    fewer = [client for client in verified.ids if client != 30]
    first = [play.confirm(client, verified.ids) for client in (10, 30, 40)]
    second = [play.confirm(client, fewer) for client in (20, 50)]
    bodies = play.all_bodies(verified.ids)
    play.clients[10].handle(play.decrypt_request(verified.ids, bodies, first))
    few = play.decrypt_request(fewer, play.all_bodies(fewer), second)
    with pytest.raises(TooFewReplies):
        play.clients[20].handle(few)
    forged = [*second, ConfirmRow(40, first[2].signature)]
    with pytest.raises(BadSignature):
        play.clients[20].handle(play.decrypt_request(fewer, play.all_bodies(fewer), forged))
    with pytest.raises(Equivocation):
        play.confirm(40, fewer)


def test_a_list_this_client_did_not_confirm_is_not_decrypted(verified):
    play = Round(verified)
    confirmations = [play.confirm(client, verified.ids) for client in (20, 30, 40)]
    request = play.decrypt_request(verified.ids, play.all_bodies(verified.ids), confirmations)
    with pytest.raises(ViewMismatch):
        play.clients[10].handle(request)


def test_confirmations_of_strangers_do_not_count(verified):
    play = Round(verified)
    ids = verified.ids[:4]
    digest = survivors_of(play.params, play.listed(ids)).digest
    outside = verified.identities[50].key.sign(confirm_statement(digest))
    rows = [play.confirm(10, ids), play.confirm(20, ids), ConfirmRow(50, outside)]
    with pytest.raises(ViewMismatch, match="50"):
        play.clients[10].handle(play.decrypt_request(ids, play.all_bodies(ids), rows))


# What a decryptor insists on ------------------------------------------------------------------


def test_a_list_without_this_clients_own_upload_is_refused(world):
    play = Round(world)
    request = play.decrypt_request((20, 30, 40), play.bodies[20])
    with pytest.raises(ViewMismatch):
        play.clients[10].handle(request)


def test_a_list_of_fewer_survivors_than_the_floor_is_refused(world):
    play = Round(world)
    with pytest.raises(TooFewSurvivors):
        play.clients[10].handle(play.decrypt_request((10, 20), play.bodies[20]))


def test_invented_survivors_are_refused(world):
    play = Round(world)
    play.rows[30] = SurvivorRow(30, bytes(32), play.rows[30].signature)
    with pytest.raises(BadSignature):
        play.clients[10].handle(play.decrypt_request(world.ids, play.bodies[20]))
    play.rows[15] = SurvivorRow(15, bytes(32), play.rows[30].signature)
    with pytest.raises(ViewMismatch):
        play.clients[10].handle(play.decrypt_request((10, 15, 20), play.bodies[20]))


def test_a_request_that_the_coordinator_did_not_sign_is_refused(world):
    play = Round(world)
    play.sign = lambda stage, digest: bytes(64)
    with pytest.raises(BadSignature):
        play.clients[10].handle(play.decrypt_request(world.ids, play.bodies[20]))


def test_a_second_decryption_in_one_sequence_is_refused(world):
    play = Round(world)
    first = play.decrypt_request(world.ids, play.bodies[20])
    reply = play.clients[10].handle(first)
    assert play.clients[10].handle(first) == reply
    with pytest.raises(Equivocation):
        play.clients[10].handle(play.decrypt_request(world.ids, play.bodies[30]))
    client = play.clients[20]
    client._latches._keep_replies = False
    client.handle(first)
    with pytest.raises(Latched):
        client.handle(first)


def test_a_decryption_of_another_or_an_abandoned_round_is_refused(world):
    play = Round(world)
    request = play.decrypt_request(world.ids, play.bodies[20])
    play.clients[10].abandon()
    with pytest.raises(WrongRound):
        play.clients[10].handle(request)
    with pytest.raises(WrongRound):
        world.client(20).handle(request)


def test_nothing_is_confirmed_in_a_round_without_verified_sums(world):
    play = Round(world)
    with pytest.raises(WrongStage):
        play.clients[10].handle(play.survivors_request(world.ids))


# Sums off the grid ----------------------------------------------------------------------------


def uploaded(play, client, vectors):
    """Replaces a client's upload by these serialised ciphertexts, signed by it."""
    body = play.params.slots.frame(vectors)
    hashed = upload_digest(play.params.digest, client, body)
    play.clients[client]._upload = hashed
    statement = upload_statement(play.params.digest, client, hashed)
    signature = play.world.identities[client].key.sign(statement)
    return encode(Upload(body, signature), params=play.params.digest, sender=client)


def encrypted(world, values, scale=None):
    context = world.held[10].key._context
    return [tenseal.ckks_vector(context, list(values), scale).serialize()]


def run_with(world, forged):
    """A whole round in which client 30 uploads what `forged` makes."""
    play = Round(world)
    server = world.server(play.params)
    server.open()
    for client, body in play.bodies.items():
        message = Upload(body, play.rows[client].signature)
        message = encode(message, params=play.params.digest, sender=client)
        server.receive(client, forged(play) if client == 30 else message)
    requests = server.close_stage()
    for client, request in requests.items():
        try:
            server.receive(client, play.clients[client].handle(request).message)
        except RoundAborted as error:
            server.receive(client, error.refusal)
    return play, requests, server


def test_a_sum_off_the_grid_stops_the_run_and_the_key_is_not_used_again(world):
    slots = PRESETS["compact"].slots

    def forged(play):
        return uploaded(play, 30, encrypted(world, np.full(slots, 0.4 / 2**19)))

    play, requests, server = run_with(world, forged)
    with pytest.raises(MarginExceeded):
        server.close_stage()
    for client in requests:
        with pytest.raises(KeyMissing):
            play.clients[client].handle(world.server(world.params(2)).open()[client])


def test_a_ciphertext_under_a_foreign_key_gives_no_sum(world):
    foreign = scheme.SecretKey.generate(PRESETS["compact"])
    slots = np.zeros((1, foreign.preset.slots), np.int64)
    _, _, server = run_with(world, lambda play: uploaded(play, 30, foreign.encrypt(slots)))
    with pytest.raises(MarginExceeded):
        server.close_stage()


def test_a_sum_beyond_the_public_bounds_is_not_released(world):
    slots = np.zeros(PRESETS["compact"].slots)
    slots[0] = 1.0  # a segment of 8 bits that holds 2^19
    _, _, server = run_with(world, lambda play: uploaded(play, 30, encrypted(world, slots)))
    with pytest.raises(SumOutOfRange):
        server.close_stage()


# Uploads that are refused ---------------------------------------------------------------------


@pytest.fixture
def parsed(monkeypatch):
    """Whether SEAL's parser was reached."""
    seen = []
    parse = scheme._parse
    monkeypatch.setattr(scheme, "_parse", lambda *args: seen.append(1) or parse(*args))
    return seen


def test_a_changed_ciphertext_is_refused_by_its_signature_before_it_is_parsed(world, parsed):
    play = Round(world)
    server = world.server(play.params)
    server.open()
    honest = Upload(play.bodies[30], play.rows[30].signature)
    message = bytearray(encode(honest, params=play.params.digest, sender=30))
    del parsed[:]
    for place in range(60, len(message) - 2000, 9001):
        changed = bytearray(message)
        changed[place] ^= 1
        with pytest.raises((BadSignature, Malformed)):
            server.receive(30, bytes(changed))
    assert not parsed
    server.receive(30, bytes(message))
    assert parsed


def test_ciphertexts_of_wrong_number_or_size_are_refused_before_they_are_parsed(world, parsed):
    play = Round(world)
    server = world.server(play.params)
    server.open()
    del parsed[:]
    good = play.bodies[30]
    length = int.from_bytes(good[:4], "little")
    bodies = {
        "short": good[:-1],
        "long": good + b"\0",
        "no blob": (0).to_bytes(4, "little") + good[4:],
        "too long a blob": (length + 1500).to_bytes(4, "little") + good[4:],
    }
    for body in bodies.values():
        hashed = upload_digest(play.params.digest, 30, body)
        statement = upload_statement(play.params.digest, 30, hashed)
        upload = Upload(body, world.identities[30].key.sign(statement))
        with pytest.raises(Malformed):
            server.receive(30, encode(upload, params=play.params.digest, sender=30))
    huge = Upload(bytes(2 * len(good)), bytes(64))
    with pytest.raises(Oversized):
        server.receive(30, encode(huge, params=play.params.digest, sender=30))
    assert not parsed


def test_ciphertexts_of_another_scale_or_preset_are_refused(world):
    play = Round(world)
    server = world.server(play.params)
    server.open()
    slots = np.zeros(PRESETS["compact"].slots)
    with pytest.raises(Malformed, match="parameters"):
        server.receive(30, uploaded(play, 30, encrypted(world, slots, 2.0**30)))
    wide = scheme.SecretKey.generate(PRESETS["wide"])
    blobs = wide.encrypt(np.zeros((1, wide.preset.slots), np.int64))
    with pytest.raises(Malformed):
        server.receive(30, uploaded(play, 30, blobs))
    with pytest.raises(Malformed, match="parameters"):  # fewer values than slots
        server.receive(30, uploaded(play, 30, encrypted(world, slots[:7])))
    honest = Upload(play.bodies[30], play.rows[30].signature)
    server.receive(30, encode(honest, params=play.params.digest, sender=30))


def test_an_upload_of_another_sequence_is_refused(world):
    old = Round(world)
    server = world.server(world.params(2))
    server.open()
    message = Upload(old.bodies[30], old.rows[30].signature)
    with pytest.raises(WrongRound):
        server.receive(30, encode(message, params=old.params.digest, sender=30))
    with pytest.raises(BadSignature):
        server.receive(30, encode(message, params=server.params.digest, sender=30))


# Decryptors that lie --------------------------------------------------------------------------


class Lying(CKKSClient):
    """Decrypts, and adds one to the first value."""

    def _decrypt(self, params: KeyedParams, upload, request):
        signed, message = super()._decrypt(params, upload, request)
        body = bytes([message.body[0] ^ 1]) + message.body[1:]
        survivors = survivors_of(params, self._survivors(params, upload, request.uploads))
        digest = decryption_digest(survivors.digest, request.ciphertexts)
        statement = sum_statement(digest, self.client_id, body)
        return signed, Sum(body, self._participant.identity.key.sign(statement))


def test_a_decryptor_that_lies_ends_the_round(world):
    """Client by client: the round is exact if the liar is not asked, and ends if it is."""
    outcomes = []
    for liar in world.ids:
        clients = world.clients()
        clients[liar] = world.client(liar, Lying)
        try:
            aggregate = world.run(clients=clients)
        except AnswersDiffer as error:
            outcomes.append(str(liar) in str(error))
        else:
            for name, total in world.total(world.ids).items():
                assert np.array_equal(aggregate.sums[name], total)
    assert all(outcomes)


def test_two_honest_answers_are_needed_and_an_answer_of_another_request_does_not_count(world):
    clients, server = world.clients(), world.server()
    requests = world.run_until(Stage.REVEAL, clients, server)
    one, other = requests
    reply = clients[one].handle(requests[one]).message
    with pytest.raises(BadSignature):
        server.receive(other, reply)
    body = decode(reply, Sum, limit=LIMIT).body
    statement = sum_statement(bytes(32), other, body)
    forged = Sum(body, world.identities[other].key.sign(statement))
    with pytest.raises(BadSignature):
        server.receive(other, encode(forged, params=server.params.digest, sender=other))
    server.receive(one, reply)
    again = server.close_stage()
    assert len(again) == 1
    assert not set(again) & {one, other}


def test_a_decryptor_that_lies_is_found_when_it_is_asked(world):
    clients, server = world.clients(Lying), world.server()
    requests = world.run_until(Stage.REVEAL, clients, server)
    honest, liar = requests
    clients[honest].__class__ = CKKSClient
    for client in (honest, liar):
        server.receive(client, clients[client].handle(requests[client]).message)
    with pytest.raises(AnswersDiffer, match=str(liar)):
        server.close_stage()


# Damaged messages -----------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [Stage.UPLOAD, Stage.CONFIRM, Stage.REVEAL])
def test_damaged_messages_raise_only_errors_of_this_package(verified, stage):
    """At clients and server; and the round still ends with the exact sum."""
    clients, server = verified.clients(), verified.server()
    requests = verified.run_until(stage, clients, server)
    some = min(requests)
    replies = {client: verified.answer(clients[client], r) for client, r in requests.items()}
    fresh = verified.client(some)
    random = np.random.default_rng(int(stage))
    for message, take in (
        (requests[some], clients[some].handle),
        (requests[some], fresh.handle),
        (replies[some], lambda damaged: server.receive(some, damaged)),
    ):
        for _ in range(25):
            near = random.random() < 0.5
            damaged = bytearray(message)
            damaged[random.integers(min(110, len(message)) if near else len(message))] ^= (
                random.integers(1, 256)
            )
            if random.random() < 0.3:
                del damaged[random.integers(len(damaged)) :]
            with contextlib.suppress(SecAggError):
                take(bytes(damaged))
    for client, reply in replies.items():
        server.receive(client, reply)
    step = server.close_stage()
    while isinstance(step, dict):
        for client, request in step.items():
            server.receive(client, verified.answer(clients[client], request))
        step = server.close_stage()
    for name, total in verified.total(verified.ids).items():
        assert np.array_equal(step.sums[name], total)
