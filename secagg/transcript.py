"""Checks the public logs of rounds: anybody who holds the roster can, without any secret.

    python -m secagg.transcript RUN/transcripts/*.bin --roster RUN/roster.json

Everything is computed again from the records: parameters P, cohort M, threshold, ring, sharers V,
survivors R; and every signature over them is verified against the roster. A log that passes proves
what its members signed: that the clients in the sum are those that a quorum confirmed, that nobody
had both secrets opened, that no group was cut off. It cannot prove that the server added the
uploads up, that it published that sum, or that it shows the logs of all its rounds.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from secagg.digests import (
    advert_statement,
    confirm_statement,
    dealt_statement,
    opened_statement,
    request_statement,
    upload_statement,
)
from secagg.errors import (
    BadAdvert,
    Malformed,
    NonCanonical,
    SecAggError,
    TooFewClients,
    TooFewReplies,
    TooFewSurvivors,
    UnknownIdentity,
    UnsupportedSuite,
    ViewMismatch,
    WrongRound,
)
from secagg.graph import COMPLETE_GRAPH, check_strength
from secagg.keys import verify
from secagg.messages import (
    AdvertRow,
    BundleRow,
    ConfirmRow,
    OpenedRow,
    SurvivorRow,
    from_table,
)
from secagg.params import PROTOCOL_VERSION, SUITE, Mode, RoundParams, Stage
from secagg.roster import Roster
from secagg.roundlog import RoundLog, max_log_bytes
from secagg.views import Cohort, Sharers, Survivors, share_kinds


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifiedRound:
    """What the signatures of one round's log prove; all ids ascending.

    Attributes:
        params: the parameters that the coordinator signed.
        cohort: clients that advertised keys; in plain mode those that uploaded.
        sharers: clients that dealt shares; in plain mode those that uploaded.
        uploads: {client whose upload the sum is over: the upload's digest, which it signed}.
        confirmed: clients that signed this very list of survivors; none in plain mode.
        revealed: clients that opened shares for it; none in plain mode.
        threshold: t, confirmations and reveals needed; 0 in plain mode.
    """

    params: RoundParams
    cohort: tuple[int, ...]
    sharers: tuple[int, ...]
    uploads: Mapping[int, bytes]
    confirmed: tuple[int, ...] = ()
    revealed: tuple[int, ...] = ()
    threshold: int = 0

    @property
    def survivors(self) -> tuple[int, ...]:
        """The clients that the sum is over."""
        return tuple(self.uploads)

    def describe(self) -> str:
        """One line in plain words."""
        head = f"sequence {self.params.sequence}, {self.params.mode.name.lower()}"
        if self.params.mode is Mode.PLAIN:
            return (
                f"{head}: {len(self.survivors)} of {self.params.invited_count} invited clients are "
                "in the sum; the server saw every update"
            )
        degree, window = self.params.graph_degree, self.params.graph_window
        ring = f"; ring of degree {degree}, window {window} or more" if degree else ""
        return (
            f"{head}: of {self.params.invited_count} invited clients {len(self.cohort)} advertised "
            f"keys, {len(self.sharers)} dealt shares, {len(self.survivors)} are in the sum; "
            f"{len(self.confirmed)} confirmed this list and {len(self.revealed)} opened shares for "
            f"it ({self.threshold} needed, {self.params.colluders} colluders tolerated){ring}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifiedRun:
    """The verified rounds of one run.

    Attributes:
        rounds: in order of sequence.
        missing: sequences between the first and the last without a log: attempts that aborted, or
            rounds whose logs are withheld, which nobody can tell apart from here.
    """

    rounds: tuple[VerifiedRound, ...]
    missing: tuple[int, ...]


def verify_run(logs: Sequence[bytes], roster: Roster) -> VerifiedRun:
    """Checks the logs of one run, in the order of its rounds.

    Raises:
        SecAggError: as `verify_transcript` and `check_order`; a note says which log it was.
    """
    rounds: list[VerifiedRound] = []
    for number, log in enumerate(logs, start=1):
        try:
            rounds.append(verify_transcript(log, roster))
        except SecAggError as error:
            error.add_note(f"in log {number} of {len(logs)}")
            raise
    return check_order(rounds)


def check_order(rounds: Sequence[VerifiedRound]) -> VerifiedRun:
    """Checks that rounds belong to one run and that their sequence increases strictly.

    Raises:
        Malformed: there is no round.
        WrongRound: another run's round, or a sequence that is not above the one before.
    """
    if not rounds:
        raise Malformed("no logs: a run has at least one")
    for before, after in pairwise(rounds):
        if after.params.run_id != before.params.run_id:
            raise WrongRound(
                f"the log of sequence {after.params.sequence} is of another run than the one before"
            )
        if after.params.sequence <= before.params.sequence:
            raise WrongRound(
                f"sequence {after.params.sequence} follows {before.params.sequence}: logs must be "
                "in the order of their rounds, each once"
            )
    seen = [one.params.sequence for one in rounds]
    gaps = (range(before + 1, after) for before, after in pairwise(seen))
    return VerifiedRun(rounds=tuple(rounds), missing=tuple(n for gap in gaps for n in gap))


def verify_transcript(log: bytes, roster: Roster) -> VerifiedRound:
    """Checks the log of one round against the roster.

    Raises:
        MessageError: not a log.
        UnsupportedSuite: of a version, suite or mode that this code does not verify.
        WrongRound: made under another roster.
        PolicyViolation: a ring that honest clients refuse.
        BadSignature: a signature does not fit what was recorded or computed.
        UnknownIdentity, BadAdvert: a client that was not invited, or keys that are not distinct.
        TooFewClients, TooFewSurvivors, TooFewReplies, ThinRing: a list is too short.
        ViewMismatch: a list holds somebody who cannot be on it, or a share was opened that was
            not due.
    """
    record = RoundLog.from_bytes(log, members=len(roster.members))
    params = record.params
    if params.version != PROTOCOL_VERSION or params.suite != SUITE:
        raise UnsupportedSuite(f"version {params.version}, suite {params.suite:#06x}")
    if params.mode not in _VERIFIERS:
        raise UnsupportedSuite(f"logs of mode {params.mode.name} cannot be verified here")
    if params.roster_digest != roster.digest:
        raise WrongRound("the log was made under another roster: compare fingerprints")
    return _VERIFIERS[params.mode](_Checker(record, roster))


class _Checker:
    """The checks of one log, stage by stage."""

    def __init__(self, record: RoundLog, roster: Roster) -> None:
        self.record = record
        self.params = record.params
        self._roster = roster
        self._invited = frozenset(record.params.invited_ids(roster))

    def signature(self, client: int, signature: bytes, statement: bytes) -> None:
        if client not in self._invited:
            raise UnknownIdentity(f"client {client} was not invited")
        verify(self._roster.key_of(client), signature, statement, author=f"client {client}")

    def requests(self, *stage_digests: bytes) -> None:
        """The coordinator signed each stage's digest."""
        found = self.record.requests
        if len(found) != len(stage_digests):
            raise Malformed(f"{len(found)} requests: {len(stage_digests)} expected in this mode")
        for stage, stage_digest, signature in zip(Stage, stage_digests, found, strict=False):
            statement = request_statement(self.params.digest, stage, stage_digest)
            author = f"the coordinator ({stage.name})"
            verify(self._roster.coordinator, signature, statement, author=author)

    def cohort(self) -> Cohort:
        degree, invited = self.params.graph_degree, self.params.invited_count
        if degree != COMPLETE_GRAPH:
            window = self.params.graph_window
            check_strength(invited, self.params.colluders, degree=degree, window=window)
        rows = from_table(AdvertRow, self.record.adverts)
        keys = {key for row in rows for key in (row.mask_key, row.share_key)}
        if len(keys) != 2 * len(rows):
            raise BadAdvert("a key is advertised twice")
        for row in rows:
            statement = advert_statement(
                self.params.digest, row.client, row.mask_key, row.share_key
            )
            self.signature(row.client, row.signature, statement)
        cohort = Cohort.of(self.params, rows)
        cohort.check_size(self.params.n_min)
        return cohort

    def sharers(self, cohort: Cohort) -> Sharers:
        rows = from_table(BundleRow, self.record.bundles)
        for row in rows:
            statement = dealt_statement(cohort.digest, row.client, row.commitment, row.sealed)
            self.signature(row.client, row.signature, statement)
        ids = self._members(rows, cohort.ids, "a sharer", "advertised no keys")
        least = max(cohort.threshold, self.params.survivors_min)
        if len(ids) < least:
            raise TooFewClients(f"{len(ids)} sharers, {least} required")
        cohort.check_windows(ids, "sharers")
        return Sharers.of(cohort, ids)

    def uploads(self, view: bytes, allowed: Sequence[int], least: int) -> dict[int, bytes]:
        rows = from_table(SurvivorRow, self.record.uploads)
        for row in rows:
            statement = upload_statement(view, row.client, row.upload)
            self.signature(row.client, row.signature, statement)
        ids = self._members(rows, allowed, "a survivor", "dealt no shares")
        if len(ids) < least:
            raise TooFewSurvivors(f"{len(ids)} survivors, {least} required")
        return {row.client: row.upload for row in rows}

    def confirmed(self, cohort: Cohort, survivors: Survivors) -> tuple[int, ...]:
        rows = from_table(ConfirmRow, self.record.confirmations)
        statement = confirm_statement(survivors.digest)
        for row in rows:
            self.signature(row.client, row.signature, statement)
        ids = self._members(rows, survivors.ids, "a client that confirmed", "is not a survivor")
        if len(ids) < cohort.threshold:
            raise TooFewReplies(f"{len(ids)} confirmations, {cohort.threshold} required")
        return ids

    def revealed(
        self,
        cohort: Cohort,
        sharers: Sharers,
        survivors: Survivors,
        confirmed: Sequence[int],
    ) -> tuple[int, ...]:
        """Nobody opened a share that was not due, and what was opened suffices for the sum."""
        entries = self.record.reveals
        ids = tuple(entry.client for entry in entries)
        if any(a >= b for a, b in pairwise(ids)):
            raise NonCanonical("reveals must be unique and ascending")
        if not set(ids) <= set(confirmed):
            raise ViewMismatch("shares were opened by a client that confirmed nothing")
        opened: Counter[int] = Counter()
        for entry in entries:
            kinds = share_kinds(cohort, sharers, survivors, entry.client)
            for row in from_table(OpenedRow, entry.opened):
                if kinds.get(row.client) != row.kind:
                    raise ViewMismatch(
                        f"client {entry.client} opened a share of client {row.client} not due"
                    )
                opened[row.client] += 1
            statement = opened_statement(survivors.digest, entry.client, entry.opened, entry.values)
            self.signature(entry.client, entry.signature, statement)
        if len(ids) < cohort.threshold:
            raise TooFewReplies(f"{len(ids)} reveals, {cohort.threshold} required")
        for owner in set(sharers.ids) - set(ids):
            if opened[owner] < cohort.share_threshold:
                raise TooFewReplies(
                    f"client {owner}: {opened[owner]} shares of its secret opened, "
                    f"{cohort.share_threshold} required for a sum"
                )
        return ids

    @staticmethod
    def _members(
        rows: Sequence[BundleRow] | Sequence[SurvivorRow] | Sequence[ConfirmRow],
        allowed: Sequence[int],
        who: str,
        why_not: str,
    ) -> tuple[int, ...]:
        ids = tuple(row.client for row in rows)
        strangers = set(ids) - set(allowed)
        if strangers:
            raise ViewMismatch(f"client {min(strangers)}, listed as {who}, {why_not}")
        return ids


def _verify_plain(check: _Checker) -> VerifiedRound:
    record, params = check.record, check.params
    if record.adverts or record.bundles or record.confirmations or record.reveals:
        raise Malformed("a plain round has uploads only")
    check.requests(params.digest)
    rows = from_table(SurvivorRow, record.uploads)
    everybody = [row.client for row in rows]  # `signature` has refused those not invited
    uploads = check.uploads(params.digest, everybody, params.survivors_min)
    ids = tuple(uploads)
    return VerifiedRound(params=params, cohort=ids, sharers=ids, uploads=uploads)


def _verify_masking(check: _Checker) -> VerifiedRound:
    params = check.params
    cohort = check.cohort()
    sharers = check.sharers(cohort)
    least = max(cohort.threshold, params.survivors_min)
    uploads = check.uploads(sharers.digest, sharers.ids, least)
    survivors = Survivors.of(sharers.digest, uploads.items())
    cohort.check_windows(survivors.ids, "survivors")
    final = survivors.digest
    check.requests(params.digest, cohort.digest, sharers.digest, final, final)
    confirmed = check.confirmed(cohort, survivors)
    return VerifiedRound(
        params=params,
        cohort=cohort.ids,
        sharers=sharers.ids,
        uploads=uploads,
        confirmed=confirmed,
        revealed=check.revealed(cohort, sharers, survivors, confirmed),
        threshold=cohort.threshold,
    )


_VERIFIERS: dict[Mode, Callable[[_Checker], VerifiedRound]] = {
    Mode.PLAIN: _verify_plain,
    Mode.MASKING: _verify_masking,
}


# Command line -------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Verifies files and says in plain words what was proven; exit code 0, or 1 if refused."""
    parser = argparse.ArgumentParser(
        prog="python -m secagg.transcript",
        description="Verify the public logs of aggregation rounds.",
        epilog="Exit code: 0 all verified, 1 a log was refused, 2 a file cannot be read.",
    )
    parser.add_argument("logs", nargs="+", type=Path, metavar="FILE", help="logs, in order")
    parser.add_argument("--roster", required=True, type=Path, help="the roster, as JSON")
    options = parser.parse_args(arguments)
    try:
        roster = Roster.from_json(options.roster.read_bytes())
    except (OSError, SecAggError) as error:
        parser.error(f"{options.roster}: {error}")
    rounds: list[VerifiedRound] = []
    for path in options.logs:
        try:
            with path.open("rb") as file:
                log = file.read(max_log_bytes(len(roster.members)) + 1)
        except OSError as error:
            parser.error(f"{path}: {error}")
        try:
            rounds.append(verify_transcript(log, roster))
        except SecAggError as error:
            print(f"{path.name}: REFUSED: {type(error).__name__}: {error}", file=sys.stderr)
            return 1
        print(f"{path.name}: {rounds[-1].describe()}")
    try:
        run = check_order(rounds)
    except SecAggError as error:
        print(f"REFUSED: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(_conclusion(run, roster))
    return 0


def _conclusion(run: VerifiedRun, roster: Roster) -> str:
    first, last = run.rounds[0].params, run.rounds[-1].params
    missing = ", ".join(map(str, run.missing)) or "none"
    return (
        f"Verified: {len(run.rounds)} round(s) of run {first.run_id.hex()}, sequences "
        f"{first.sequence} to {last.sequence}, under the roster with fingerprint\n"
        f"  {roster.fingerprint}\n"
        f"Sequences without a log (aborted, or withheld): {missing}\n"
        "Shown: every signature is genuine and every client listed uploaded for its round; in masked "
        "rounds a quorum confirmed one list, and no share was opened that was not due.\n"
        "Not shown: that the server added the uploads up, or published that sum."
    )


if __name__ == "__main__":
    sys.exit(main())
