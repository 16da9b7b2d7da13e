"""Public logs of CKKS: honest ones are accepted, edits refused, and what they cannot show is shown.

Edits are made by whoever could make them: the server signs its requests again after each, with the
coordinator's key, and colluders sign what they like with their own.
"""

import contextlib
import hashlib
from dataclasses import dataclass

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import Mode, SharedKey, Stage
from secagg.ckks_client import decryptors_in_order, survivors_of
from secagg.ckks_keys import KeyMembers
from secagg.ckks_log import KeyedLog, KeySetupLog
from secagg.ckks_server import CKKSServer
from secagg.ckks_transcript import verify_key_setup, verify_keyed
from secagg.digests import (
    asked_digest,
    confirm_statement,
    decrypted_statement,
    key_ack_statement,
    key_made_statement,
    request_statement,
    upload_statement,
)
from secagg.errors import (
    BadSignature,
    Equivocation,
    Malformed,
    NonCanonical,
    Oversized,
    SecAggError,
    TooFewClients,
    TooFewReplies,
    TooFewSurvivors,
    UnknownIdentity,
    UnsupportedSuite,
    UnsupportedVersion,
    ViewMismatch,
    WrongRound,
)
from secagg.keys import AgreementKey, verify
from secagg.messages import AnswerRow, BoxRow, ConfirmRow, SurvivorRow, from_table, to_table
from secagg.roundlog import max_log_bytes
from secagg.transcript import main, verify_run, verify_transcript
from tests.secagg.logedits import changed, damaged, rows_edit, with_noise

replace = msgspec.structs.replace
LOST = {10: "upload", 20: "confirm"}
OTHER = b"o" * 32


@dataclass
class Logged:
    """A finished round of six: five uploaded; with verified sums four confirmed, two decrypted."""

    world: object
    log: KeyedLog
    raw: bytes

    @classmethod
    def of(cls, world, lost, **options):
        raw = world.run(lost, **options).transcript.log
        return cls(world, KeyedLog.from_bytes(raw, members=world.n), raw)

    def sign(self, client, statement):
        return self.world.identities[client].key.sign(statement)

    def survivors(self, log):
        return survivors_of(log.params, from_table(SurvivorRow, log.uploads))

    def asked(self, log):
        return asked_digest(self.survivors(log).digest, log.ciphertexts)

    def resigned(self, log):
        """The log with requests that the coordinator signed for what it says now."""
        final = (Stage.CONFIRM, self.survivors(log).digest)
        stages = [(Stage.ADVERTISE, log.params.digest), (Stage.REVEAL, self.asked(log))]
        stages[1:1] = [final] * log.params.verify_sum
        signatures = tuple(
            self.world.coordinator.sign(request_statement(log.params.digest, stage, one))
            for stage, one in stages
        )
        return replace(log, requests=signatures)

    def verify(self, log):
        return verify_transcript(log.to_bytes(), self.world.roster)


@pytest.fixture(scope="module")
def plain_sum(federation):
    return Logged.of(federation(6, mode=Mode.CKKS), LOST)


@pytest.fixture(scope="module")
def verified_sum(federation):
    return Logged.of(federation(6, mode=Mode.CKKS, verify_sum=True), LOST)


@pytest.fixture(params=["plain_sum", "verified_sum"])
def logged(request):
    return request.getfixturevalue(request.param)


# Honest logs --------------------------------------------------------------------------------


def test_an_honest_log_says_who_did_what(logged):
    found = logged.verify(logged.log)
    checked = logged.log.params.verify_sum
    assert found.cohort == found.sharers == found.survivors == (20, 30, 40, 50, 60)
    assert found.confirmed == ((30, 40, 50, 60) if checked else ())
    assert found.threshold == (4 if checked else 0)
    assert len(found.revealed) == 2
    assert set(found.revealed) <= set(found.confirmed or found.survivors)
    assert not set(found.passed_over) - {20}  # its turn may have come before it was missed
    said = found.describe()
    assert "5 of 6 invited clients are in the sum" in said
    assert logged.world.epoch.key.fingerprint.hex()[:16] in said
    assert ("4 confirmed this list (4 needed)" in said) is checked
    assert ("is the server's word" in said) is not checked


def test_the_log_names_the_sum_that_was_published(logged):
    """Whoever is given the sums packs them and compares; another sum has another digest."""
    plan, layout = logged.log.params.plan, logged.log.params.layout
    sums = logged.world.total((20, 30, 40, 50, 60))
    clips = {one.name: np.zeros(2, np.int64) for one in layout.wire_segments[2:]}
    lanes = plan.to_lanes({**sums, **clips})
    found = logged.verify(logged.log).sums
    assert found == hashlib.sha256(plan.pack(lanes)).digest()
    sums["delta"][0] += 1
    assert found != hashlib.sha256(plan.pack(plan.to_lanes({**sums, **clips}))).digest()


@pytest.mark.parametrize("verify_sum", [False, True])
@pytest.mark.parametrize("lost", [{}, {60: "advertise"}, {10: "upload", 30: "reveal"}])
def test_every_honest_log_is_accepted(federation, verify_sum, lost):
    world = federation(5, mode=Mode.CKKS, verify_sum=verify_sum)
    one = Logged.of(world, lost)
    assert one.verify(one.log).survivors == tuple(i for i in world.ids if i not in lost or i == 30)
    assert verify_keyed(one.raw, world.roster) == one.verify(one.log)


@pytest.mark.parametrize("verify_sum", [False, True])
def test_decryptors_that_gave_no_answer_are_named(federation, verify_sum):
    world = federation(5, mode=Mode.CKKS, verify_sum=verify_sum)
    clients, server = world.clients(), world.server()
    requests = world.run_until(Stage.REVEAL, clients, server)
    silent = decryptors_in_order(server._survivors, world.ids)[0]
    assert silent in requests
    step = requests
    while isinstance(step, dict):
        for client, request in step.items():
            if client != silent:
                server.receive(client, world.answer(clients[client], request))
        step = server.close_stage()
    found = verify_transcript(step.transcript.log, world.roster)
    assert found.passed_over == (silent,)
    assert f"({silent}, whose turn was before, gave no answer" in found.describe()


def test_a_log_holds_no_ciphertext_sum_or_key(logged, federation):
    """Control: what stands for them, their digests, is there."""
    world = federation(4, mode=Mode.CKKS, verify_sum=logged.log.params.verify_sum)
    server = world.server()
    raw = world.run(server=server).transcript.log
    key = world.held[10].key.to_bytes()
    shown = server._request.ciphertexts
    body = next(iter(server._answers.values())).body
    for log in (raw, world.epoch.log):
        for secret in (key[200:232], key[-232:-200], shown[1200:1216], shown[-1300:-1284], body):
            assert secret not in log
    for digested in (shown, body):
        assert hashlib.sha256(digested).digest() in raw


def test_a_log_without_its_surplus_confirmations_still_verifies(federation):
    """A log proves that a quorum agreed; it cannot prove that nobody else did."""
    one = Logged.of(federation(6, mode=Mode.CKKS, verify_sum=True), {})
    two = one.verify(one.log).revealed
    rows = from_table(ConfirmRow, one.log.confirmations)
    others = [row for row in rows if row.client not in two][:2]
    fewer = sorted([*others, *(row for row in rows if row.client in two)])
    assert len(fewer) == 4
    assert one.verify(replace(one.log, confirmations=to_table(fewer))).threshold == 4


def test_signing_the_requests_again_is_no_edit(logged):
    assert logged.verify(logged.resigned(logged.log)) == logged.verify(logged.log)


# What a log cannot show ---------------------------------------------------------------------


class Substituting(CKKSServer):
    """Shows decryptors one upload in place of the sum."""

    def _add(self, client, body):
        super()._add(client, body)
        self._bodies[client] = body

    def _framed_sum(self):
        return self._bodies[30]


def test_a_log_cannot_show_that_the_decrypted_ciphertext_was_the_sum(federation):
    """The documented limit: every signature is genuine, and the "sum" is client 30's update."""
    world = federation(5, mode=Mode.CKKS)
    server = Substituting(world.params(), world.coordinator, world.roster)
    aggregate = world.run(server=server)
    assert np.array_equal(aggregate.sums["delta"], world.values(30)["delta"])
    found = verify_transcript(aggregate.transcript.log, world.roster)
    assert len(found.survivors) == 5
    assert "is the server's word" in found.describe()


def test_with_verified_sums_such_a_server_is_left_without_a_log(federation):
    world = federation(5, mode=Mode.CKKS, verify_sum=True)
    server = world.server()
    requests = world.run_until(Stage.CONFIRM, clients := world.clients(), server)
    for client, request in requests.items():
        server.receive(client, world.answer(clients[client], request))
    server._bodies = dict.fromkeys(world.ids, server._bodies[30])
    step = server.close_stage()
    with pytest.raises(TooFewReplies):
        refused_to_the_end(server, clients, step)


def refused_to_the_end(server, clients, step):
    while isinstance(step, dict):
        for client, request in step.items():
            with pytest.raises(ViewMismatch, match="not the upload it signed"):
                clients[client].handle(request)
        step = server.close_stage()


# Edits of a round ---------------------------------------------------------------------------


def params_edit(**changes):
    return lambda one: replace(one.log, params=replace(one.log.params, **changes))


def uploads_edit(edit):
    return rows_edit("uploads", SurvivorRow, edit)


def confirmations_edit(edit):
    return rows_edit("confirmations", ConfirmRow, edit)


def answers_edit(edit):
    return rows_edit("answers", AnswerRow, edit)


def late_upload(one, rows):
    """Client 10 uploaded nothing in time; a colluder, it signs an upload afterwards."""
    statement = upload_statement(one.log.params.digest, 10, OTHER)
    return [SurvivorRow(10, OTHER, one.sign(10, statement)), *rows]


def outsider_confirmation(one, rows):
    """Client 10 is no survivor; a colluder, it signs the right list."""
    statement = confirm_statement(one.survivors(one.log).digest)
    return [ConfirmRow(10, one.sign(10, statement)), *rows]


def answer_of(client):
    """A colluder signs the very sum, though it was not asked or must not be."""

    def apply(one, rows):
        statement = decrypted_statement(one.asked(one.log), client, one.log.sums)
        kept = rows[1:] if len(rows) > 1 else rows
        return sorted([AnswerRow(client, one.sign(client, statement)), *kept])

    return apply


def third_answer(one, rows):
    spare = next(i for i in (30, 40, 50, 60) if i not in {row.client for row in rows})
    statement = decrypted_statement(one.asked(one.log), spare, one.log.sums)
    return sorted([AnswerRow(spare, one.sign(spare, statement)), *rows])


def half_signed_sum(one):
    """One of the two decryptors, a colluder, signs another sum; the other does not."""
    rows = from_table(AnswerRow, one.log.answers)
    statement = decrypted_statement(one.asked(one.log), rows[0].client, OTHER)
    signed = changed(rows, 0, signature=one.sign(rows[0].client, statement))
    return replace(one.log, sums=OTHER, answers=to_table(signed))


def answers_for_another_request(one):
    """Both decryptors are genuine, for the same list, and were shown another ciphertext."""
    rows = from_table(AnswerRow, one.log.answers)
    asked = asked_digest(one.survivors(one.log).digest, OTHER)
    signed = [
        row._replace(
            signature=one.sign(row.client, decrypted_statement(asked, row.client, one.log.sums))
        )
        for row in rows
    ]
    return replace(one.log, answers=to_table(signed))


EDITS = {
    "another sequence": (params_edit(sequence=2), BadSignature),
    "another run": (params_edit(run_id=b"another-run-id.."), BadSignature),
    "another context": (params_edit(context=OTHER), BadSignature),
    "fewer survivors wanted": (params_edit(survivors_min=2), BadSignature),
    "another key": (params_edit(shared_key=SharedKey(1, OTHER)), BadSignature),
    "another preset": (lambda one: with_preset(one, 2), BadSignature),
    "another roster digest": (params_edit(roster_digest=OTHER), WrongRound),
    "another suite": (params_edit(suite=2), UnsupportedSuite),
    "fewer invited": (params_edit(invited=b"\x3d"), UnknownIdentity),
    "an upload exchanged": (
        uploads_edit(lambda one, rows: changed(rows, 0, upload=OTHER)),
        BadSignature,
    ),
    "an upload of another client": (
        uploads_edit(
            lambda one, rows: changed(rows, 0, upload=rows[1].upload, signature=rows[1].signature)
        ),
        BadSignature,
    ),
    "a survivor left out": (uploads_edit(lambda one, rows: rows[:-1]), BadSignature),
    "most survivors left out": (uploads_edit(lambda one, rows: rows[:2]), TooFewSurvivors),
    "a survivor invented": (
        uploads_edit(lambda one, rows: [rows[0]._replace(client=10), *rows]),
        BadSignature,
    ),
    "a stranger among the survivors": (
        uploads_edit(lambda one, rows: [rows[0]._replace(client=5), *rows]),
        UnknownIdentity,
    ),
    "a survivor added afterwards": (uploads_edit(late_upload), BadSignature),
    "a survivor twice": (
        lambda one: replace(one.log, uploads=one.log.uploads[:100] + one.log.uploads),
        NonCanonical,
    ),
    "uploads cut": (lambda one: replace(one.log, uploads=one.log.uploads[:-1]), Malformed),
    "other ciphertexts shown": (lambda one: replace(one.log, ciphertexts=OTHER), BadSignature),
    "another sum": (lambda one: replace(one.log, sums=OTHER), BadSignature),
    "another sum that one decryptor signed": (half_signed_sum, BadSignature),
    "answers to another request": (answers_for_another_request, BadSignature),
    "an answer of another client": (
        answers_edit(lambda one, rows: changed(rows, 0, signature=rows[1].signature)),
        BadSignature,
    ),
    "one answer": (answers_edit(lambda one, rows: rows[:1]), TooFewReplies),
    "no answer": (answers_edit(lambda one, rows: []), TooFewReplies),
    "three answers": (answers_edit(third_answer), Malformed),
    "an answer twice": (
        lambda one: replace(one.log, answers=one.log.answers[:68] * 2),
        NonCanonical,
    ),
    "an answer by one that is no survivor": (answers_edit(answer_of(10)), ViewMismatch),
    "an answer by a stranger": (
        answers_edit(lambda one, rows: changed(rows, 0, client=5)),
        UnknownIdentity,
    ),
}

CONFIRMATION_EDITS = {
    "verified sums turned off": (params_edit(verify_sum=False), BadSignature),
    "too few confirmations": (confirmations_edit(lambda one, rows: rows[:3]), TooFewReplies),
    "no confirmations": (confirmations_edit(lambda one, rows: []), TooFewReplies),
    "a confirmation of another client": (
        confirmations_edit(lambda one, rows: changed(rows, 0, signature=rows[1].signature)),
        BadSignature,
    ),
    "a confirmation by one that is no survivor": (
        confirmations_edit(outsider_confirmation),
        ViewMismatch,
    ),
    "an answer by one that did not confirm": (answers_edit(answer_of(20)), ViewMismatch),
}


def with_preset(one, code):
    key = SharedKey(code, one.log.params.shared_key.fingerprint)
    return replace(one.log, params=replace(one.log.params, shared_key=key))


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_refused_though_the_server_signs_its_requests_again(logged, name):
    edit, error = EDITS[name]
    refused(logged, edit, error)


@pytest.mark.parametrize("name", CONFIRMATION_EDITS)
def test_an_edited_confirmation_is_refused_though_the_server_signs_again(verified_sum, name):
    edit, error = CONFIRMATION_EDITS[name]
    refused(verified_sum, edit, error)


def test_there_are_over_fifty_edits():
    assert len(EDITS) + len(CONFIRMATION_EDITS) + len(SETUP_EDITS) > 50


def refused(one, edit, error):
    edited = edit(one)
    with contextlib.suppress(NonCanonical, Malformed):  # of a table that cannot be read, nothing is
        edited = one.resigned(edited)
    with pytest.raises(error) as caught:
        one.verify(edited)
    assert type(caught.value) is error
    assert "coordinator" not in str(caught.value)  # it is the members' word that is missing


def test_confirmations_in_a_round_without_verified_sums_are_refused(plain_sum):
    statement = confirm_statement(plain_sum.survivors(plain_sum.log).digest)
    row = ConfirmRow(30, plain_sum.sign(30, statement))
    with pytest.raises(Malformed, match="no confirmations"):
        plain_sum.verify(replace(plain_sum.log, confirmations=to_table([row])))


def test_a_request_that_the_coordinator_did_not_sign_is_refused(logged):
    names = ["ADVERTISE", "CONFIRM", "REVEAL"] if logged.log.params.verify_sum else None
    for place, name in enumerate(names or ["ADVERTISE", "REVEAL"]):
        requests = list(logged.log.requests)
        requests[place] = requests[place - 1]
        with pytest.raises(BadSignature, match=f"coordinator \\({name}\\)"):
            logged.verify(replace(logged.log, requests=tuple(requests)))


@pytest.mark.parametrize("count", [0, 1, 4])
def test_a_log_without_all_requests_or_with_more_is_refused(logged, count):
    requests = (logged.log.requests * 2)[:count]
    with pytest.raises(Malformed, match=f"{count} requests"):
        logged.verify(replace(logged.log, requests=requests))


# Key set-ups --------------------------------------------------------------------------------


@dataclass
class Dealt:
    """A finished set-up of six: client 60 advertised nothing, client 50 acknowledged nothing."""

    world: object
    log: KeySetupLog
    raw: bytes

    def sign(self, client, statement):
        return self.world.identities[client].key.sign(statement)

    def members(self, log):
        return KeyMembers.of(log.terms, from_table(BoxRow, log.adverts))

    def resigned(self, log):
        terms, members = log.terms.digest, self.members(log).digest
        signatures = tuple(
            self.world.coordinator.sign(request_statement(terms, stage, digest))
            for stage, digest in (
                (Stage.ADVERTISE, terms),
                (Stage.SHARE, members),
                (Stage.CONFIRM, members),
            )
        )
        return replace(log, requests=signatures)

    def verify(self, log):
        return verify_key_setup(log.to_bytes(), self.world.roster)


@pytest.fixture(scope="module")
def dealt(federation):
    world = federation(6, mode=Mode.CKKS)
    raw = world.set_up_key(lost={60: "advertise", 50: "confirm"}).log
    return Dealt(world, KeySetupLog.from_bytes(raw, members=6), raw)


def test_the_log_of_a_set_up_says_who_holds_the_key(dealt):
    found = dealt.verify(dealt.log)
    assert found.key == dealt.world.epoch.key
    assert found.members == (10, 20, 30, 40, 50)
    assert found.holders == dealt.world.epoch.holders == (10, 20, 30, 40)
    assert "client 10 made the key" in found.describe()
    assert "5 clients 10, 20, 30, 40, 50, and 4 acknowledged it" in found.describe()
    assert dealt.verify(dealt.resigned(dealt.log)) == found


def terms_edit(**changes):
    return lambda one: replace(one.log, terms=replace(one.log.terms, **changes))


def box_edit(edit):
    return rows_edit("adverts", BoxRow, edit)


def ack_edit(edit):
    return rows_edit("acknowledgements", ConfirmRow, edit)


def outsider_ack(one, rows):
    """Client 60 is no member; a colluder, told the key by another, it says that it holds it."""
    statement = key_ack_statement(one.members(one.log).digest, one.log.fingerprint, 60)
    return [*rows, ConfirmRow(60, one.sign(60, statement))]


def remade_by(client):
    """Another member than the leader, a colluder, signs a key of its own."""

    def apply(one):
        statement = key_made_statement(
            one.members(one.log).digest, OTHER, one.log.ephemeral, one.log.sealed, one.log.boxes
        )
        return replace(one.log, fingerprint=OTHER, signature=one.sign(client, statement))

    return apply


SETUP_EDITS = {
    "another sequence": (terms_edit(sequence=1), BadSignature),
    "another run": (terms_edit(run_id=b"another-run-id.."), BadSignature),
    "another library": (terms_edit(library="0.0.0"), BadSignature),
    "another preset": (terms_edit(preset=2), BadSignature),
    "a smaller least number": (terms_edit(n_min=1), BadSignature),
    "another roster digest": (terms_edit(roster_digest=OTHER), WrongRound),
    "another suite": (terms_edit(suite=2), UnsupportedSuite),
    "fewer invited": (terms_edit(invited=b"\x3e"), UnknownIdentity),
    "a box key exchanged": (
        box_edit(lambda one, rows: changed(rows, 1, box_key=AgreementKey(OTHER).public)),
        BadSignature,
    ),
    "a member left out": (box_edit(lambda one, rows: rows[:-1]), BadSignature),
    "the leader left out": (box_edit(lambda one, rows: rows[1:]), BadSignature),
    "most members left out": (box_edit(lambda one, rows: rows[:2]), TooFewClients),
    "a member invented": (
        box_edit(lambda one, rows: [*rows, rows[-1]._replace(client=60)]),
        BadSignature,
    ),
    "another fingerprint": (lambda one: replace(one.log, fingerprint=OTHER), BadSignature),
    "another ephemeral key": (lambda one: replace(one.log, ephemeral=OTHER), BadSignature),
    "another sealed key": (lambda one: replace(one.log, sealed=OTHER), BadSignature),
    "other boxes": (lambda one: replace(one.log, boxes=OTHER), BadSignature),
    "a key of the leader that nobody acknowledged": (remade_by(10), BadSignature),
    "a key of another maker": (remade_by(20), BadSignature),
    "an acknowledgement of another client": (
        ack_edit(lambda one, rows: changed(rows, 0, signature=rows[1].signature)),
        BadSignature,
    ),
    "an acknowledgement invented": (
        ack_edit(lambda one, rows: [*rows, rows[-1]._replace(client=50)]),
        BadSignature,
    ),
    "an acknowledgement by one that is no member": (ack_edit(outsider_ack), ViewMismatch),
    "too few acknowledgements": (ack_edit(lambda one, rows: rows[:2]), TooFewReplies),
}


@pytest.mark.parametrize("name", SETUP_EDITS)
def test_an_edited_set_up_is_refused_though_the_server_signs_its_requests_again(dealt, name):
    edit, error = SETUP_EDITS[name]
    edited = dealt.resigned(edit(dealt))
    with pytest.raises(error) as caught:
        dealt.verify(edited)
    assert type(caught.value) is error
    assert "coordinator" not in str(caught.value)


@pytest.mark.parametrize("stage", [Stage.ADVERTISE, Stage.SHARE, Stage.CONFIRM])
def test_a_set_up_request_that_the_coordinator_did_not_sign_is_refused(dealt, stage):
    place = {Stage.ADVERTISE: 0, Stage.SHARE: 1, Stage.CONFIRM: 2}[stage]
    requests = list(dealt.log.requests)
    requests[place] = requests[place - 1]
    with pytest.raises(BadSignature, match=f"coordinator \\({stage.name}\\)"):
        dealt.verify(replace(dealt.log, requests=tuple(requests)))


def test_acknowledgements_of_another_set_up_do_not_count(dealt):
    """Same members and terms but for the sequence; every signature is genuine somewhere."""
    other = dealt.world.set_up_key(sequence=1, lost={60: "advertise", 50: "confirm"}).log
    other = KeySetupLog.from_bytes(other, members=6)
    fields = ("fingerprint", "ephemeral", "sealed", "boxes", "signature", "acknowledgements")
    mixed = replace(dealt.log, **{name: getattr(other, name) for name in fields})
    with pytest.raises(BadSignature, match="client 10"):
        dealt.verify(mixed)
    assert dealt.verify(other).sequence == 1


# Runs ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(federation):
    world = federation(4, mode=Mode.CKKS)
    clients = world.clients()
    servers = [world.server(world.params(sequence)) for sequence in (1, 3)]
    logs = [world.run(clients=clients, server=server).transcript.log for server in servers]
    return world, [world.epoch.log, *logs]


def test_a_run_is_verified_from_the_set_up_of_its_key_on(run):
    world, logs = run
    found = verify_run(logs, world.roster)
    assert [one.sequence for one in found.setups] == [0]
    assert [one.sequence for one in found.rounds] == [1, 3]
    assert found.missing == (2,)
    assert verify_run(logs[1:], world.roster).setups == ()


def test_a_second_decryption_in_one_sequence_is_found_and_proven_to_anybody(run):
    """Two sums that differ by one client give its update away; the pair of signatures says so."""
    world, logs = run
    second = world.run({40: "upload"}, server=world.server(world.params(1))).transcript.log
    assert verify_transcript(second, world.roster).survivors == (10, 20, 30)
    with pytest.raises(Equivocation, match="two sums") as caught:
        verify_run([logs[0], logs[1], second], world.roster)
    params = world.params(1).digest
    asked = [evidence[:32] for evidence in caught.value.evidence]
    assert asked[0] != asked[1]
    for evidence in caught.value.evidence:
        statement = request_statement(params, Stage.REVEAL, evidence[:32])
        verify(world.roster.coordinator, evidence[32:], statement, author="the coordinator")
    with pytest.raises(WrongRound, match="sequence"):
        verify_run([logs[0], logs[1], logs[1]], world.roster)


def test_a_round_under_a_key_whose_set_up_is_not_logged_is_found(federation):
    world = federation(4, mode=Mode.CKKS)
    first = world.epoch.log
    second = world.set_up_key(sequence=1).log
    log = world.run(server=world.server(world.params(2))).transcript.log
    assert len(verify_run([first, second, log], world.roster).setups) == 2
    with pytest.raises(ViewMismatch, match="another key"):
        verify_run([first, log], world.roster)


def test_a_survivor_that_was_not_dealt_the_key_is_found(federation):
    """A holder told it the key beside the protocol; its upload is as good as any."""
    world = federation(4, mode=Mode.CKKS)
    setup = world.set_up_key(lost={40: "advertise"}).log
    world.held[40] = world.held[10]
    log = world.run().transcript.log
    with pytest.raises(ViewMismatch, match="client 40, listed as a survivor"):
        verify_run([setup, log], world.roster)


def test_the_command_prints_set_up_and_rounds_and_what_they_do_not_show(run, tmp_path, capsys):
    world, logs = run
    (tmp_path / "roster.json").write_bytes(world.roster.to_json())
    names = ["key-setup.bin", "round-0001.bin", "round-0002.bin"]
    for name, log in zip(names, logs, strict=True):
        (tmp_path / name).write_bytes(log)
    paths = [str(tmp_path / name) for name in names]
    assert main([*paths, "--roster", str(tmp_path / "roster.json")]) == 0
    said = capsys.readouterr().out
    assert "key-setup.bin: sequence 0, ckks key set-up: client 10 made the key" in said
    assert "round-0001.bin: sequence 1, ckks: 4 of 4 invited clients are in the sum" in said
    assert "Verified: 2 round(s) and 1 key set-up(s)" in said
    assert "Sequences without a log (aborted, or withheld): 2" in said
    assert "it is the server's word that what they decrypted was the sum" in said
    assert main([*paths[1:], "--roster", str(tmp_path / "roster.json")]) == 0
    assert "who holds the key is not shown" in capsys.readouterr().out
    assert main([*reversed(paths), "--roster", str(tmp_path / "roster.json")]) == 1
    assert "REFUSED: WrongRound" in capsys.readouterr().err


def test_the_command_says_of_verified_sums_that_decryptors_add_up(verified_sum, tmp_path, capsys):
    (tmp_path / "roster.json").write_bytes(verified_sum.world.roster.to_json())
    (tmp_path / "round.bin").write_bytes(verified_sum.raw)
    assert main([str(tmp_path / "round.bin"), "--roster", str(tmp_path / "roster.json")]) == 0
    said = capsys.readouterr().out
    assert "4 confirmed this list (4 needed)" in said
    assert "the server's word" not in said


# Bytes that are no log ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda raw: raw[:3], Malformed),
        (lambda raw: raw[:4] + b"\x02" + raw[5:], UnsupportedVersion),
        (lambda raw: b"FMTL" + raw[4:], Malformed),
        (lambda raw: raw[:-1], Malformed),
        (lambda raw: raw + b"\x00", Malformed),
        (lambda raw: raw + bytes(10**6), Oversized),
        (lambda raw: raw[:5] + b"\xdc\x00\x07" + raw[6:], NonCanonical),
    ],
    ids=["short", "version", "a masking log", "cut", "longer", "oversized", "longer array head"],
)
def test_bytes_that_are_no_log_are_refused(logged, damage, error):
    with pytest.raises(error):
        verify_transcript(damage(logged.raw), logged.world.roster)


def test_a_set_up_is_no_round_and_a_round_no_set_up(dealt, plain_sum):
    with pytest.raises(Malformed):
        verify_transcript(dealt.raw, dealt.world.roster)
    with pytest.raises(Malformed):
        verify_key_setup(plain_sum.raw, plain_sum.world.roster)


def test_no_honest_log_is_longer_than_the_limit(plain_sum, verified_sum, dealt):
    for one in (plain_sum, verified_sum, dealt):
        assert len(one.raw) <= max_log_bytes(6)


def test_logs_grow_by_what_the_page_says(federation):
    def sizes(n, verify_sum):
        world = federation(n, mode=Mode.CKKS, verify_sum=verify_sum)
        return len(world.run().transcript.log), len(world.epoch.log)

    for verify_sum, a_survivor in ((False, 100), (True, 168)):
        small, large = sizes(4, verify_sum), sizes(6, verify_sum)
        assert large[0] - small[0] == pytest.approx(2 * a_survivor, abs=3)  # length prefixes
        assert large[1] - small[1] == pytest.approx(2 * 168, abs=3)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_damage_raises_an_error_of_this_package(plain_sum, verified_sum, dealt, data):
    one = data.draw(st.sampled_from([plain_sum, verified_sum, dealt]))
    cut = damaged(one.raw, data, first=0)
    if cut != one.raw:
        with pytest.raises(SecAggError):
            verify_run([cut], one.world.roster)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", b"FMTC\x01", b"FMTK\x01"]))
def test_random_bytes_raise_an_error_of_this_package(plain_sum, noise, prefix):
    with pytest.raises(SecAggError):
        verify_run([prefix + noise], plain_sum.world.roster)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_structures_of_the_wrong_kind_raise_an_error_of_this_package(verified_sum, dealt, data):
    """Any field of a log or of its parameters is replaced by something else."""
    one = data.draw(st.sampled_from([verified_sum, dealt]))
    raw = with_noise(one.raw, data)
    if raw != one.raw:
        with pytest.raises(SecAggError):
            verify_run([raw], one.world.roster)
