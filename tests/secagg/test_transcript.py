"""Public logs: every honest one is accepted, every edit is refused, rubbish raises only our errors.

Edits are made by whoever could make them: the server signs its requests again after each, with the
coordinator's key, and colluders sign what they like with their own.
"""

import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import Mode, Roster, RoundParams, SigningKey, Stage
from secagg.digests import (
    advert_statement,
    confirm_statement,
    opened_statement,
    request_statement,
)
from secagg.errors import (
    BadAdvert,
    BadSignature,
    Malformed,
    NonCanonical,
    Oversized,
    PolicyViolation,
    SecAggError,
    ThinRing,
    TooFewClients,
    TooFewReplies,
    TooFewSurvivors,
    UnknownIdentity,
    UnsupportedSuite,
    UnsupportedVersion,
    ViewMismatch,
    WrongRound,
)
from secagg.graph import Ring
from secagg.keys import AgreementKey
from secagg.messages import (
    AdvertRow,
    BundleRow,
    ConfirmRow,
    OpenedRow,
    SurvivorRow,
    from_table,
    to_table,
)
from secagg.roundlog import RoundLog, max_log_bytes
from secagg.transcript import check_order, main, verify_run, verify_transcript
from secagg.views import Cohort, ShareKind, Sharers, Survivors
from tests.secagg.logedits import changed, damaged, rows_edit, with_noise

LOST = {10: "share", 20: "upload", 30: "confirm", 40: "reveal"}
OTHER_KEY = AgreementKey(b"k" * 32).public


def replace(struct, **changes):
    fields = {name: getattr(struct, name) for name in struct.__struct_fields__}
    return type(struct)(**{**fields, **changes})


@dataclass
class Logged:
    """A finished round of ten: nine dealt shares, eight are in the sum, seven confirmed."""

    world: object
    log: RoundLog
    raw: bytes

    @classmethod
    def of(cls, world, lost, params=None):
        raw = world.run(lost, server=world.server(params)).transcript.log
        return cls(world, RoundLog.from_bytes(raw, members=len(world.ids)), raw)

    def sign(self, client, statement):
        return self.world.identities[client].key.sign(statement)

    def views(self, log):
        cohort = Cohort.of(log.params, from_table(AdvertRow, log.adverts))
        dealt = [row.client for row in from_table(BundleRow, log.bundles)]
        sharers = Sharers.of(cohort, [i for i in dealt if i in cohort.ids])
        rows = from_table(SurvivorRow, log.uploads)
        view = sharers.digest if log.params.mode is Mode.MASKING else log.params.digest
        return cohort, sharers, Survivors.of(view, [(row.client, row.upload) for row in rows])

    def resigned(self, log):
        """The log with requests that the coordinator signed for what it says now."""
        cohort, sharers, survivors = self.views(log)
        p = log.params.digest
        final = survivors.digest
        digests = [p, cohort.digest, sharers.digest, final, final][: len(log.requests)]
        signatures = tuple(
            self.world.coordinator.sign(request_statement(p, stage, one))
            for stage, one in zip(Stage, digests, strict=False)
        )
        return replace(log, requests=signatures)

    def verify(self, log):
        return verify_transcript(log.to_bytes(), self.world.roster)


@pytest.fixture(scope="module")
def logged(federation):
    return Logged.of(federation(10, colluders=1), LOST)


@pytest.fixture(scope="module")
def ringed(federation):
    world = federation(20, colluders=1)
    return Logged.of(world, {10: "upload"}, world.params(graph_degree=12))


@pytest.fixture(scope="module")
def plain(federation):
    return Logged.of(federation(6, mode=Mode.PLAIN), {10: "upload"})


# Honest logs --------------------------------------------------------------------------------


def test_an_honest_log_says_who_did_what(logged):
    found = logged.verify(logged.log)
    assert found.cohort == logged.world.ids
    assert found.sharers == logged.world.ids[1:]
    assert found.survivors == logged.world.ids[2:]
    rows = from_table(SurvivorRow, logged.log.uploads)
    assert found.uploads == {row.client: row.upload for row in rows}
    assert found.confirmed == logged.world.ids[3:]
    assert found.revealed == logged.world.ids[4:]
    assert found.threshold == 6
    assert "8 are in the sum; 7 confirmed" in found.describe()


@pytest.mark.parametrize(
    "lost", [{}, {10: "advertise"}, {30: "upload"}, {20: "share", 50: "reveal"}]
)
@pytest.mark.parametrize("degree", [0, 12])
def test_every_honest_log_is_accepted(federation, lost, degree):
    world = federation(20, colluders=1)
    one = Logged.of(world, lost, world.params(graph_degree=degree))
    assert len(one.verify(one.log).survivors) == 20 - (20 in lost or 30 in lost or 10 in lost)
    assert ("ring of degree 12" in one.verify(one.log).describe()) is bool(degree)


def test_an_honest_log_of_a_plain_round_is_accepted_and_says_what_plain_means(plain):
    found = plain.verify(plain.log)
    assert found.survivors == plain.world.ids[1:]
    assert "the server saw every update" in found.describe()


def test_a_log_holds_no_secret_and_no_upload(federation):
    """Whatever the clients opened or sent is looked for in the log; control: their keys are there."""
    world = federation(8)
    server = world.server()
    raw = world.run({10: "upload", 20: "reveal"}, server=server).transcript.log
    secrets = [*server._seeds.values()]
    secrets += [share for shares in server._opened.values() for share in shares.values()]
    assert len(secrets) == 6 + 2 * 6
    assert not any(secret in raw for secret in secrets)
    assert all(row.mask_key in raw for row in server.cohort.adverts.values())


def test_a_log_without_its_surplus_confirmations_and_reveals_still_verifies(federation):
    """A log proves that a quorum agreed; it cannot prove that nobody else did."""
    one = Logged.of(federation(10, colluders=1), {})
    fewer = one.log.confirmations[: 68 * 7]
    assert (
        len(one.verify(replace(one.log, confirmations=fewer, reveals=one.log.reveals[:7])).revealed)
        == 7
    )


def test_signing_the_requests_again_is_no_edit(logged):
    assert logged.verify(logged.resigned(logged.log)).threshold == 6


# Edits --------------------------------------------------------------------------------------


def params_edit(**changes):
    return lambda one: replace(one.log, params=replace(one.log.params, **changes))


def stranger_advert(one, rows):
    return [rows[0]._replace(client=5), *rows]


def double_key(one, rows):
    """Client 20, a colluder, signs the key of client 10 as its own."""
    row = rows[1]._replace(mask_key=rows[0].mask_key)
    statement = advert_statement(one.log.params.digest, 20, row.mask_key, row.share_key)
    return [rows[0], row._replace(signature=one.sign(20, statement)), *rows[2:]]


def outsider_bundle(one, rows):
    return [rows[0]._replace(client=10), *rows]


def invented_upload(one, rows):
    forged = SurvivorRow(20, b"h" * 32, one.world.coordinator.sign(b"anything"))
    return [forged, *rows]


def unsharing_upload(one, rows):
    """Client 10 dealt no shares; a colluder, it signs an upload under the right view."""
    from secagg.digests import upload_statement

    _, sharers, _ = one.views(one.log)
    statement = upload_statement(sharers.digest, 10, b"h" * 32)
    return [SurvivorRow(10, b"h" * 32, one.sign(10, statement)), *rows]


def outsider_confirmation(one, rows):
    """Client 20 is no survivor; a colluder, it signs the right list."""
    _, _, survivors = one.views(one.log)
    return [ConfirmRow(20, one.sign(20, confirm_statement(survivors.digest))), *rows]


def reveal_edit(edit, *, colluding=True):
    """Changes the first reveal; the client, a colluder, signs what it says now."""

    def apply(one):
        _, _, survivors = one.views(one.log)
        first = one.log.reveals[0]
        rows = edit(from_table(OpenedRow, first.opened))
        opened = b"".join(to_table([row]) for row in rows)
        statement = opened_statement(survivors.digest, first.client, opened, first.values)
        signature = one.sign(first.client, statement) if colluding else first.signature
        changed_entry = replace(first, opened=opened, signature=signature)
        return replace(one.log, reveals=(changed_entry, *one.log.reveals[1:]))

    return apply


def flipped(rows, owner):
    return [r._replace(kind=1 - r.kind) if r.client == owner else r for r in rows]


def silent_about(owner):
    """Every client, all colluding, leaves out its share of one owner."""

    def apply(one):
        _, _, survivors = one.views(one.log)
        entries = []
        for entry in one.log.reveals:
            rows = from_table(OpenedRow, entry.opened)
            opened = to_table(row for row in rows if row.client != owner)
            statement = opened_statement(survivors.digest, entry.client, opened, entry.values)
            signature = one.sign(entry.client, statement)
            entries.append(replace(entry, opened=opened, signature=signature))
        return replace(one.log, reveals=tuple(entries))

    return apply


def early_reveal(one):
    """Client 30 did not confirm; a colluder, it signs a reveal."""
    _, _, survivors = one.views(one.log)
    first = one.log.reveals[0]
    statement = opened_statement(survivors.digest, 30, b"", first.values)
    entry = replace(first, client=30, opened=b"", signature=one.sign(30, statement))
    return replace(one.log, reveals=(entry, *one.log.reveals))


EDITS = {
    "another sequence": (params_edit(sequence=2), BadSignature),
    "another run": (params_edit(run_id=b"another-run-id.."), BadSignature),
    "another context": (params_edit(context=b"c" * 32), BadSignature),
    "fewer colluders": (params_edit(colluders=0), BadSignature),
    "a smaller least cohort": (params_edit(n_min=1), BadSignature),
    "a larger least cohort": (params_edit(n_min=10, survivors_min=9), BadSignature),
    "plain instead of masking": (params_edit(mode=Mode.PLAIN), Malformed),
    "another roster digest": (params_edit(roster_digest=b"r" * 32), WrongRound),
    "another suite": (params_edit(suite=2), UnsupportedSuite),
    "fewer invited": (params_edit(invited=b"\xfe\x03"), UnknownIdentity),
    "a stranger advertises": (
        rows_edit("adverts", AdvertRow, stranger_advert),
        (BadAdvert, UnknownIdentity),
    ),
    "a mask key exchanged": (
        rows_edit("adverts", AdvertRow, lambda one, rows: changed(rows, 0, mask_key=OTHER_KEY)),
        BadSignature,
    ),
    "a share key exchanged": (
        rows_edit("adverts", AdvertRow, lambda one, rows: changed(rows, 0, share_key=OTHER_KEY)),
        BadSignature,
    ),
    "an advert left out": (
        rows_edit("adverts", AdvertRow, lambda one, rows: rows[1:]),
        BadSignature,
    ),
    "one key for two clients": (rows_edit("adverts", AdvertRow, double_key), BadAdvert),
    "all adverts left out": (rows_edit("adverts", AdvertRow, lambda one, rows: []), TooFewClients),
    "a commitment exchanged": (
        rows_edit("bundles", BundleRow, lambda one, rows: changed(rows, 0, commitment=b"c" * 32)),
        BadSignature,
    ),
    "sealed shares exchanged": (
        rows_edit("bundles", BundleRow, lambda one, rows: changed(rows, 0, sealed=b"s" * 32)),
        BadSignature,
    ),
    "a sharer left out": (
        rows_edit("bundles", BundleRow, lambda one, rows: rows[1:]),
        BadSignature,
    ),
    "most sharers left out": (
        rows_edit("bundles", BundleRow, lambda one, rows: rows[-3:]),
        TooFewClients,
    ),
    "a sharer added": (rows_edit("bundles", BundleRow, outsider_bundle), BadSignature),
    "an upload exchanged": (
        rows_edit("uploads", SurvivorRow, lambda one, rows: changed(rows, 0, upload=b"u" * 32)),
        BadSignature,
    ),
    "a survivor left out": (
        rows_edit("uploads", SurvivorRow, lambda one, rows: rows[1:]),
        BadSignature,
    ),
    "most survivors left out": (
        rows_edit("uploads", SurvivorRow, lambda one, rows: rows[-3:]),
        TooFewSurvivors,
    ),
    "a survivor invented": (rows_edit("uploads", SurvivorRow, invented_upload), BadSignature),
    "a survivor that dealt no shares": (
        rows_edit("uploads", SurvivorRow, unsharing_upload),
        ViewMismatch,
    ),
    "an upload of another client": (
        rows_edit(
            "uploads",
            SurvivorRow,
            lambda one, rows: changed(rows, 0, upload=rows[1].upload, signature=rows[1].signature),
        ),
        BadSignature,
    ),
    "a confirmation of another client": (
        rows_edit(
            "confirmations",
            ConfirmRow,
            lambda one, rows: changed(rows, 0, signature=rows[1].signature),
        ),
        BadSignature,
    ),
    "too few confirmations": (
        rows_edit("confirmations", ConfirmRow, lambda one, rows: rows[:5]),
        TooFewReplies,
    ),
    "a confirmation by one that is no survivor": (
        rows_edit("confirmations", ConfirmRow, outsider_confirmation),
        ViewMismatch,
    ),
    "a survivor's mask key opened": (
        reveal_edit(lambda rows: flipped(rows, 30)),
        ViewMismatch,
    ),
    "a lost client's seed opened": (reveal_edit(lambda rows: flipped(rows, 20)), ViewMismatch),
    "a share of one that dealt none": (
        reveal_edit(lambda rows: [OpenedRow(10, ShareKind.MASK_KEY), *rows]),
        ViewMismatch,
    ),
    "both shares of one client": (
        reveal_edit(lambda rows: [rows[0], rows[0]._replace(kind=1 - rows[0].kind), *rows[1:]]),
        NonCanonical,
    ),
    "a share not mentioned": (
        reveal_edit(lambda rows: rows[1:], colluding=False),
        BadSignature,
    ),
    "other values opened": (
        lambda one: replace(
            one.log,
            reveals=(replace(one.log.reveals[0], values=b"v" * 32), *one.log.reveals[1:]),
        ),
        BadSignature,
    ),
    "too few reveals": (
        lambda one: replace(one.log, reveals=one.log.reveals[:5]),
        TooFewReplies,
    ),
    "a reveal twice": (
        lambda one: replace(one.log, reveals=(one.log.reveals[0], *one.log.reveals)),
        NonCanonical,
    ),
    "a reveal without confirmation": (early_reveal, ViewMismatch),
    "no shares of a lost client": (silent_about(20), TooFewReplies),
    "no shares of a silent survivor": (silent_about(30), TooFewReplies),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_refused_though_the_server_signs_its_requests_again(logged, name):
    edit, error = EDITS[name]
    edited = logged.resigned(edit(logged))
    with pytest.raises(error) as caught:
        logged.verify(edited)
    assert "coordinator" not in str(caught.value)  # it is the members' word that is missing


def test_there_are_at_least_twenty_edits():
    assert len(EDITS) >= 20


@pytest.mark.parametrize("stage", list(Stage))
def test_a_request_that_the_coordinator_did_not_sign_is_refused(logged, stage):
    requests = list(logged.log.requests)
    requests[stage] = requests[stage - 1]
    with pytest.raises(BadSignature, match=f"coordinator \\({stage.name}\\)"):
        logged.verify(replace(logged.log, requests=tuple(requests)))


@pytest.mark.parametrize("count", [0, 1, 4])
def test_a_log_without_all_requests_is_refused(logged, count):
    with pytest.raises(Malformed, match=f"{count} requests"):
        logged.verify(replace(logged.log, requests=logged.log.requests[:count]))


def test_a_log_under_another_roster_is_refused(logged, federation):
    with pytest.raises(WrongRound, match="roster"):
        verify_transcript(logged.raw, federation(10).roster)


PLAIN_EDITS = {
    "an upload exchanged": lambda log: replace(
        log, uploads=log.uploads[:4] + b"u" * 32 + log.uploads[36:]
    ),
    "an upload of another client": lambda log: replace(log, uploads=b"\x0a" + log.uploads[1:]),
    "too few uploads": lambda log: replace(log, uploads=log.uploads[:200]),
    "uploads cut": lambda log: replace(log, uploads=log.uploads[:-1]),
    "confirmations added": lambda log: replace(log, confirmations=bytes(68)),
}


@pytest.mark.parametrize("name", PLAIN_EDITS)
def test_an_edited_log_of_a_plain_round_is_refused(plain, name):
    with pytest.raises((BadSignature, TooFewSurvivors, Malformed)):
        plain.verify(PLAIN_EDITS[name](plain.log))


def test_a_log_of_a_ring_weaker_than_clients_accept_is_refused(federation, monkeypatch):
    """All members are made to accept it; the log is genuine in every signature."""
    world = federation(20, colluders=1)
    monkeypatch.setattr("secagg.params.MIN_WINDOW", 1)
    monkeypatch.setattr("secagg.params.least_window", lambda *_: 1)
    monkeypatch.setattr("secagg.policy.check_strength", lambda *_, **__: None)
    raw = world.run({}, server=world.server(world.params(graph_degree=6))).transcript.log
    with pytest.raises(PolicyViolation, match="graph_window=1"):
        verify_transcript(raw, world.roster)


def test_a_log_of_a_ring_that_cut_a_group_off_is_refused(federation, monkeypatch):
    """Nobody kept the window rule; the log is genuine in every signature."""
    world = federation(20, colluders=1)
    server, clients = world.server(world.params(graph_degree=6)), world.clients()
    with monkeypatch.context() as patch:
        patch.setattr(Ring, "check_windows", lambda *_: None)
        requests = world.run_until(Stage.UPLOAD, clients, server)
        for client, request in requests.items():
            if client not in server.cohort.ring.order[3:6]:
                server.receive(client, world.answer(clients[client], request))
        step = server.close_stage()
        while isinstance(step, dict):
            for client, request in step.items():
                server.receive(client, world.answer(clients[client], request))
            step = server.close_stage()
        verify_transcript(step.transcript.log, world.roster)
    with pytest.raises(ThinRing, match="survivors: only 0 in some 3"):
        verify_transcript(step.transcript.log, world.roster)


# Bytes that are no log ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda raw: b"", Malformed),
        (lambda raw: raw[:3], Malformed),
        (lambda raw: b"FMSA" + raw[4:], Malformed),
        (lambda raw: raw[:4] + b"\x02" + raw[5:], UnsupportedVersion),
        (lambda raw: raw[:-1], Malformed),
        (lambda raw: raw + b"\x00", Malformed),
        (lambda raw: raw + bytes(10**6), Oversized),
        (lambda raw: raw[:5] + b"\xdc\x00\x07" + raw[6:], NonCanonical),
    ],
    ids=["empty", "short", "magic", "version", "cut", "longer", "oversized", "longer array head"],
)
def test_bytes_that_are_no_log_are_refused(logged, damage, error):
    with pytest.raises(error):
        verify_transcript(damage(logged.raw), logged.world.roster)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_damage_raises_an_error_of_this_package(logged, data):
    cut = damaged(logged.raw, data, first=5)
    if cut != logged.raw:
        with pytest.raises(SecAggError):
            verify_transcript(cut, logged.world.roster)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_raise_an_error_of_this_package(logged, noise):
    for raw in (noise, b"FMTL\x01" + noise):
        with pytest.raises(SecAggError):
            verify_transcript(raw, logged.world.roster)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_structures_of_the_wrong_kind_raise_an_error_of_this_package(logged, data):
    """Any field of the log or of its parameters is replaced by something else."""
    raw = with_noise(logged.raw, data)
    if raw != logged.raw:
        with pytest.raises(SecAggError):
            verify_transcript(raw, logged.world.roster)


def test_no_honest_log_is_longer_than_the_limit(logged, ringed, plain):
    for one in (logged, ringed, plain):
        assert len(one.raw) <= max_log_bytes(len(one.world.ids)) < len(one.raw) + 80_000


# Runs ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(federation):
    world = federation(5)
    clients = world.clients()
    rounds = [world.server(world.params(sequence)) for sequence in (1, 2, 4)]
    logs = [world.run(clients=clients, server=server).transcript.log for server in rounds]
    return world, logs


def test_a_run_is_verified_and_sequences_without_a_log_are_named(run):
    world, logs = run
    found = verify_run(logs, world.roster)
    assert [one.params.sequence for one in found.rounds] == [1, 2, 4]
    assert found.missing == (3,)


@pytest.mark.parametrize("order", [(1, 0), (0, 0), (0, 2, 1)])
def test_rounds_out_of_order_or_repeated_are_refused(run, order):
    world, logs = run
    with pytest.raises(WrongRound, match="sequence"):
        verify_run([logs[k] for k in order], world.roster)


def test_rounds_of_two_runs_are_refused(run):
    world, logs = run
    params = world.params(5)
    fields = {name: getattr(params, name) for name in params.__struct_fields__}
    other = RoundParams(**{**fields, "run_id": b"another-run-id.."})
    raw = world.run(server=world.server(other)).transcript.log
    with pytest.raises(WrongRound, match="another run"):
        verify_run([*logs, raw], world.roster)


def test_a_run_without_logs_is_refused():
    with pytest.raises(Malformed, match="no logs"):
        check_order([])


def test_an_error_in_a_run_says_in_which_log_it_is(run):
    world, logs = run
    with pytest.raises(SecAggError) as caught:
        verify_run([logs[0], logs[1][:-1], logs[2]], world.roster)
    assert caught.value.__notes__ == ["in log 2 of 3"]


def test_sequences_of_verified_runs_increase_strictly(run):
    world, logs = run
    found = verify_run(logs, world.roster).rounds
    assert all(a.params.sequence < b.params.sequence for a, b in pairwise(found))


# Command line -------------------------------------------------------------------------------


@pytest.fixture
def files(run, tmp_path):
    world, logs = run
    (tmp_path / "roster.json").write_bytes(world.roster.to_json())
    for number, log in enumerate(logs, start=1):
        (tmp_path / f"round-{number:04d}.bin").write_bytes(log)
    return tmp_path, [str(path) for path in sorted(tmp_path.glob("*.bin"))]


def test_the_command_says_what_was_verified_and_what_was_not(files, capsys):
    folder, logs = files
    assert main([*logs, "--roster", str(folder / "roster.json")]) == 0
    said = capsys.readouterr().out
    assert "round-0001.bin: sequence 1, masking: of 5 invited clients 5 advertised keys" in said
    assert "Verified: 3 round(s)" in said
    assert "Sequences without a log (aborted, or withheld): 3" in said
    assert "Not shown: that the server added the uploads up" in said
    assert Roster.from_json((folder / "roster.json").read_bytes()).fingerprint in said


def test_the_command_refuses_an_edited_log_or_a_wrong_order_with_exit_code_1(files, capsys):
    folder, logs = files
    roster = ["--roster", str(folder / "roster.json")]
    assert main([*reversed(logs), *roster]) == 1
    raw = bytearray((folder / "round-0002.bin").read_bytes())
    raw[-1] ^= 1
    (folder / "round-0002.bin").write_bytes(raw)
    assert main([*logs, *roster]) == 1
    said = capsys.readouterr().err
    assert "REFUSED: WrongRound: sequence 2 follows 4" in said
    assert "round-0002.bin: REFUSED: BadSignature" in said


@pytest.mark.parametrize("missing", ["log", "roster", "rubbish", "nothing"])
def test_the_command_tells_wrong_usage_by_exit_code_2(files, missing, capsys):
    folder, logs = files
    roster = folder / "roster.json"
    arguments = {
        "log": [str(folder / "none.bin"), "--roster", str(roster)],
        "roster": [*logs, "--roster", str(folder / "none.json")],
        "rubbish": [*logs, "--roster", logs[0]],
        "nothing": [],
    }[missing]
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_the_module_runs_as_a_command_without_a_warning(files):
    folder, logs = files
    command = [sys.executable, "-W", "error", "-m", "secagg.transcript", *logs]
    done = subprocess.run(
        [*command, "--roster", str(folder / "roster.json")], capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_coordinator_that_is_not_the_rosters_signed_nothing(logged):
    stranger = SigningKey(b"s" * 32)
    roster = replace(logged.world.roster, coordinator=stranger.public)
    params = replace(logged.log.params, roster_digest=roster.digest)
    with pytest.raises(BadSignature):
        verify_transcript(replace(logged.log, params=params).to_bytes(), roster)
