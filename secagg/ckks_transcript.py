"""Checks the public logs of mode `ckks`: a round's, and a key set-up's.

A round's log proves who uploaded, that the coordinator asked for one decryption, for this survivor
list, and that two survivors signed the same integers for it. That the ciphertext they were shown was
the sum of these uploads it cannot prove: with verified sums honest decryptors see to that, and
without them nobody does.
"""

from __future__ import annotations

from secagg.ckks_client import DECRYPTORS, decryptors_in_order, quorum
from secagg.ckks_keys import KeyMembers
from secagg.ckks_log import KeyedLog, KeySetupLog
from secagg.ckks_presets import SharedKey
from secagg.digests import (
    asked_digest,
    box_statement,
    decrypted_statement,
    key_ack_statement,
    key_made_statement,
)
from secagg.errors import Malformed, TooFewClients, TooFewReplies
from secagg.logcheck import LogChecker, check_listed
from secagg.messages import AnswerRow, BoxRow, ConfirmRow, from_table
from secagg.params import Stage
from secagg.roster import Roster
from secagg.verified import VerifiedKeySetup, VerifiedRound
from secagg.views import Survivors


def verify_keyed(log: bytes, roster: Roster) -> VerifiedRound:
    """Checks the log of a CKKS round; errors as of `secagg.transcript.verify_transcript`."""
    record = KeyedLog.from_bytes(log, members=len(roster.members))
    params, check = record.params, LogChecker(record.params, record.requests, roster)
    uploads = check.uploads(record.uploads, params.digest, check.invited, params.survivors_min)
    survivors = Survivors.of(params.digest, uploads.items())
    asked = asked_digest(survivors.digest, record.ciphertexts)
    stages = [(Stage.ADVERTISE, params.digest), (Stage.REVEAL, asked)]
    needed = quorum(params) if params.verify_sum else 0
    confirmed: tuple[int, ...] = ()
    if params.verify_sum:
        confirmed = check.confirmed(record.confirmations, survivors, needed)
        stages.insert(1, (Stage.CONFIRM, survivors.digest))
    elif record.confirmations:
        raise Malformed("a round without verified sums has no confirmations")
    requests = check.requests(*stages)
    present = confirmed if params.verify_sum else survivors.ids
    decrypted = _decrypted(check, record, asked, present)
    order = decryptors_in_order(survivors, present)
    turns = order[: max(map(order.index, decrypted)) + 1]
    return VerifiedRound(
        params=params,
        requests=requests,
        cohort=survivors.ids,
        sharers=survivors.ids,
        uploads=uploads,
        confirmed=confirmed,
        revealed=decrypted,
        threshold=needed,
        passed_over=tuple(sorted(set(turns) - set(decrypted))),
        sums=record.sums,
    )


def _decrypted(
    check: LogChecker, record: KeyedLog, asked: bytes, present: tuple[int, ...]
) -> tuple[int, ...]:
    """The clients that signed the one sum for the one request."""
    rows = from_table(AnswerRow, record.answers)
    for row in rows:
        statement = decrypted_statement(asked, row.client, record.sums)
        check.signature(row.client, row.signature, statement)
    ids = tuple(row.client for row in rows)
    missing = "did not confirm the list" if record.params.verify_sum else "is not a survivor"
    check_listed(ids, present, "a decryptor", missing)
    if len(ids) < DECRYPTORS:
        raise TooFewReplies(f"{len(ids)} decrypted sums, {DECRYPTORS} required")
    if len(ids) > DECRYPTORS:
        raise Malformed(f"{len(ids)} decrypted sums: no more than {DECRYPTORS} are asked for")
    return ids


def verify_key_setup(log: bytes, roster: Roster) -> VerifiedKeySetup:
    """Checks the log of a key set-up.

    It proves whom the key was sealed to and who acknowledged it, not that nobody else was told it.

    Raises:
        SecAggError: as `secagg.transcript.verify_transcript`.
    """
    record = KeySetupLog.from_bytes(log, members=len(roster.members))
    terms, check = record.terms, LogChecker(record.terms, record.requests, roster)
    rows = from_table(BoxRow, record.adverts)
    for row in rows:
        check.signature(
            row.client, row.signature, box_statement(terms.digest, row.client, row.box_key)
        )
    least = max(1, terms.n_min)
    if len(rows) < least:
        raise TooFewClients(f"{len(rows)} members, {least} required")
    members = KeyMembers.of(terms, rows)
    requests = check.requests(
        (Stage.ADVERTISE, terms.digest),
        (Stage.SHARE, members.digest),
        (Stage.CONFIRM, members.digest),
    )
    statement = key_made_statement(
        members.digest, record.fingerprint, record.ephemeral, record.sealed, record.boxes
    )
    check.signature(members.leader, record.signature, statement)
    acknowledgements = from_table(ConfirmRow, record.acknowledgements)
    for ack in acknowledgements:
        statement = key_ack_statement(members.digest, record.fingerprint, ack.client)
        check.signature(ack.client, ack.signature, statement)
    holders = tuple(ack.client for ack in acknowledgements)
    check_listed(holders, members.ids, "a holder of the key", "is no member")
    if len(holders) < least:
        raise TooFewReplies(f"{len(holders)} holders of the key, {least} required")
    return VerifiedKeySetup(
        terms=terms,
        requests=requests,
        key=SharedKey(terms.preset, record.fingerprint),
        members=members.ids,
        holders=holders,
    )
