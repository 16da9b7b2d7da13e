"""Checks the public logs of rounds: anybody who holds the roster can, without any secret.

    python -m secagg.transcript RUN/transcripts/*.bin --roster RUN/roster.json

Everything is computed again from the records: parameters P, cohort M, threshold, ring, sharers V,
survivors R; and every signature over them is verified against the roster. A log that passes proves
what its members signed: that the clients in the sum are those that a quorum confirmed, that nobody
had both secrets opened, that no group was cut off. It cannot prove that the server added the
uploads up, that it published that sum, or that it shows the logs of all its rounds. What logs of
CKKS rounds and key set-ups prove is in `secagg.ckks_transcript`.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from secagg.ckks_log import KEYED_MAGIC, SETUP_MAGIC
from secagg.ckks_transcript import verify_key_setup, verify_keyed
from secagg.digests import advert_statement, dealt_statement, opened_statement
from secagg.errors import (
    BadAdvert,
    Equivocation,
    Malformed,
    NonCanonical,
    SecAggError,
    TooFewClients,
    TooFewReplies,
    ViewMismatch,
    WrongRound,
)
from secagg.graph import COMPLETE_GRAPH, check_strength
from secagg.logcheck import LogChecker, check_listed
from secagg.messages import AdvertRow, BundleRow, OpenedRow, from_table
from secagg.params import KeyedParams, Mode, Stage
from secagg.roster import Roster
from secagg.roundlog import RoundLog, max_log_bytes
from secagg.verified import Verified, VerifiedKeySetup, VerifiedRound, VerifiedRun, listed
from secagg.views import Cohort, Sharers, Survivors, share_kinds


def verify_run(logs: Sequence[bytes], roster: Roster) -> VerifiedRun:
    """Checks the logs of one run, those of key set-ups among them, in the order of sequences.

    Raises:
        SecAggError: as `verify_log` and `check_order`; a note says which log it was.
    """
    verified: list[Verified] = []
    for number, log in enumerate(logs, start=1):
        try:
            verified.append(verify_log(log, roster))
        except SecAggError as error:
            error.add_note(f"in log {number} of {len(logs)}")
            raise
    return check_order(verified)


def check_order(verified: Sequence[Verified]) -> VerifiedRun:
    """Checks that logs belong to one run, that sequences increase strictly, and who has the key.

    Raises:
        Malformed: there is no log.
        Equivocation: the coordinator signed two different requests for one stage of one sequence;
            in CKKS that may be a second decryption.
        WrongRound: another run's log, or a sequence that is not above the one before.
        ViewMismatch: a CKKS round under another key than the last set-up left, or with a client
            that it was not dealt to.
    """
    if not verified:
        raise Malformed("no logs: a run has at least one")
    for before, after in pairwise(verified):
        _check_successor(before, after)
    setup: VerifiedKeySetup | None = None
    for one in verified:
        if isinstance(one, VerifiedKeySetup):
            setup = one
        elif setup is not None and isinstance(one.params, KeyedParams):
            if one.params.shared_key != setup.key:
                raise ViewMismatch(
                    f"sequence {one.sequence}: under another key than the set-up of sequence "
                    f"{setup.sequence} left; if there was a later one, its log is missing"
                )
            check_listed(one.survivors, setup.members, "a survivor", "was not dealt the key")
    seen = [one.sequence for one in verified]
    gaps = (range(before + 1, after) for before, after in pairwise(seen))
    return VerifiedRun(
        rounds=tuple(one for one in verified if isinstance(one, VerifiedRound)),
        setups=tuple(one for one in verified if isinstance(one, VerifiedKeySetup)),
        missing=tuple(n for gap in gaps for n in gap),
    )


def _check_successor(before: Verified, after: Verified) -> None:
    if after.run_id != before.run_id:
        raise WrongRound(
            f"the log of sequence {after.sequence} is of another run than the one before"
        )
    if after.sequence > before.sequence:
        return
    if after.sequence == before.sequence:
        for one, other in zip(before.requests, after.requests, strict=False):
            if one.digest != other.digest:
                raise Equivocation(
                    f"sequence {after.sequence}: the coordinator signed two different requests for "
                    "one stage, so two sums may have been opened",
                    (one.digest + one.signature, other.digest + other.signature),
                )
    raise WrongRound(
        f"sequence {after.sequence} follows {before.sequence}: logs must be in the order of their "
        "rounds, each once"
    )


def verify_log(log: bytes, roster: Roster) -> Verified:
    """Checks one log, of a round or of a key set-up; errors as of `verify_transcript`."""
    if log.startswith(SETUP_MAGIC):
        return verify_key_setup(log, roster)
    return verify_transcript(log, roster)


def verify_transcript(log: bytes, roster: Roster) -> VerifiedRound:
    """Checks the log of one round against the roster.

    Raises:
        MessageError: not a log.
        UnsupportedSuite: of a version or suite that this code does not verify.
        WrongRound: made under another roster.
        PolicyViolation: a ring that honest clients refuse.
        BadSignature: a signature does not fit what was recorded or computed.
        UnknownIdentity, BadAdvert: a client that was not invited, or keys that are not distinct.
        TooFewClients, TooFewSurvivors, TooFewReplies, ThinRing: a list is too short.
        ViewMismatch: a list holds somebody who cannot be on it, or a share was opened that was
            not due.
    """
    if log.startswith(KEYED_MAGIC):
        return verify_keyed(log, roster)
    record = RoundLog.from_bytes(log, members=len(roster.members))
    check = _Checker(record, roster)
    return check.plain() if record.params.mode is Mode.PLAIN else check.masking()


class _Checker(LogChecker):
    """The checks of one plain or masking log, stage by stage."""

    def __init__(self, record: RoundLog, roster: Roster) -> None:
        super().__init__(record.params, record.requests, roster)
        self._record = record
        self._params = record.params

    def plain(self) -> VerifiedRound:
        record, params = self._record, self._params
        if record.adverts or record.bundles or record.confirmations or record.reveals:
            raise Malformed("a plain round has uploads only")
        requests = self.requests((Stage.ADVERTISE, params.digest))
        uploads = self.uploads(record.uploads, params.digest, self.invited, params.survivors_min)
        ids = tuple(uploads)
        return VerifiedRound(
            params=params, requests=requests, cohort=ids, sharers=ids, uploads=uploads
        )

    def masking(self) -> VerifiedRound:
        record, params = self._record, self._params
        cohort = self._cohort()
        sharers = self._sharers(cohort)
        least = max(cohort.threshold, params.survivors_min)
        uploads = self.uploads(record.uploads, sharers.digest, sharers.ids, least)
        survivors = Survivors.of(sharers.digest, uploads.items())
        cohort.check_windows(survivors.ids, "survivors")
        final = survivors.digest
        digests = (params.digest, cohort.digest, sharers.digest, final, final)
        requests = self.requests(*zip(Stage, digests, strict=True))
        confirmed = self.confirmed(record.confirmations, survivors, cohort.threshold)
        return VerifiedRound(
            params=params,
            requests=requests,
            cohort=cohort.ids,
            sharers=sharers.ids,
            uploads=uploads,
            confirmed=confirmed,
            revealed=self._revealed(cohort, sharers, survivors, confirmed),
            threshold=cohort.threshold,
        )

    def _cohort(self) -> Cohort:
        degree, invited = self._params.graph_degree, self._params.invited_count
        if degree != COMPLETE_GRAPH:
            window = self._params.graph_window
            check_strength(invited, self._params.colluders, degree=degree, window=window)
        rows = from_table(AdvertRow, self._record.adverts)
        keys = {key for row in rows for key in (row.mask_key, row.share_key)}
        if len(keys) != 2 * len(rows):
            raise BadAdvert("a key is advertised twice")
        for row in rows:
            statement = advert_statement(
                self._params.digest, row.client, row.mask_key, row.share_key
            )
            self.signature(row.client, row.signature, statement)
        cohort = Cohort.of(self._params, rows)
        cohort.check_size(self._params.n_min)
        return cohort

    def _sharers(self, cohort: Cohort) -> Sharers:
        rows = from_table(BundleRow, self._record.bundles)
        for row in rows:
            statement = dealt_statement(cohort.digest, row.client, row.commitment, row.sealed)
            self.signature(row.client, row.signature, statement)
        ids = tuple(row.client for row in rows)
        check_listed(ids, cohort.ids, "a sharer", "advertised no keys")
        least = max(cohort.threshold, self._params.survivors_min)
        if len(ids) < least:
            raise TooFewClients(f"{len(ids)} sharers, {least} required")
        cohort.check_windows(ids, "sharers")
        return Sharers.of(cohort, ids)

    def _revealed(
        self,
        cohort: Cohort,
        sharers: Sharers,
        survivors: Survivors,
        confirmed: Sequence[int],
    ) -> tuple[int, ...]:
        """Nobody opened a share that was not due, and what was opened suffices for the sum."""
        entries = self._record.reveals
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
    verified: list[Verified] = []
    for path in options.logs:
        try:
            with path.open("rb") as file:
                log = file.read(max_log_bytes(len(roster.members)) + 1)
        except OSError as error:
            parser.error(f"{path}: {error}")
        try:
            verified.append(verify_log(log, roster))
        except SecAggError as error:
            print(f"{path.name}: REFUSED: {type(error).__name__}: {error}", file=sys.stderr)
            return 1
        print(f"{path.name}: {verified[-1].describe()}")
    try:
        run = check_order(verified)
    except SecAggError as error:
        print(f"REFUSED: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(_conclusion(run, roster))
    return 0


def _conclusion(run: VerifiedRun, roster: Roster) -> str:
    found: list[Verified] = [*run.setups, *run.rounds]
    found.sort(key=lambda one: one.sequence)
    setups = f" and {len(run.setups)} key set-up(s)" if run.setups else ""
    missing = listed(run.missing) or "none"
    return (
        f"Verified: {len(run.rounds)} round(s){setups} of run {found[0].run_id.hex()}, sequences "
        f"{found[0].sequence} to {found[-1].sequence}, under the roster with fingerprint\n"
        f"  {roster.fingerprint}\n"
        f"Sequences without a log (aborted, or withheld): {missing}\n"
        "Shown: every signature is genuine and every client listed uploaded for its round; in masked "
        "rounds a quorum confirmed one list, and no share was opened that was not due.\n"
        + _conclusion_for_ckks(run)
        + "Not shown: that the server added the uploads up, or published that sum."
    )


def _conclusion_for_ckks(run: VerifiedRun) -> str:
    keyed = [one.params for one in run.rounds if isinstance(one.params, KeyedParams)]
    if not keyed:
        return ""
    word = (
        ""
        if all(params.verify_sum for params in keyed)
        else " Without verified sums it is the server's word that what they decrypted was the sum."
    )
    holder = "" if run.setups else " No log of a key set-up: who holds the key is not shown."
    return (
        "In ckks rounds the coordinator asked for one decryption, for this list, and two of its "
        f"clients signed the same integers.{word}{holder} Whoever holds the key can read every "
        "upload.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
