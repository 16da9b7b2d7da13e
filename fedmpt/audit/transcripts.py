"""The public logs of secure aggregation against what the run says of its sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedmpt.audit.findings import Finding, Kind
from fedmpt.audit.forms import RoundLine
from fedmpt.audit.records import RunRecords
from fedmpt.engine.adaptive import sums_of_a_round
from fedmpt.engine.share_terms import honest_others
from fedmpt.protect import MODES
from fedmpt.runstore import of_stretch
from secagg.ckks_transcript import verify_key_setup
from secagg.errors import SecAggError
from secagg.params import KeyedParams, Mode, RoundParams
from secagg.roster import Roster
from secagg.threshold import default_colluders, guaranteed_honest
from secagg.transcript import check_order, verify_transcript
from secagg.verified import Verified

TRANSCRIPTS: Final = "transcripts"
KEY_SETUP: Final = "key-setup"
ROSTER: Final = "roster"


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """Rounds that one process did under one roster; a resumed run has several.

    Attributes:
        first: round that it began with.
        rounds: that it completed, ascending; perhaps none.
        roster: its keys.
        key_setup: log of how its CKKS key was made; missing in other modes.
        logs: (round, log) of every sum of ``rounds`` in the order of the sums; the last of a round has its name alone.
    """

    first: int
    rounds: tuple[int, ...]
    roster: Path
    key_setup: Path
    logs: tuple[tuple[int, Path], ...]


def stretches(folder: Path, rounds: Iterable[int], *, sums: int) -> list[Stretch]:
    """Return the stretches of a run in order.

    Args:
        folder: the run folder.
        rounds: that ``metrics.jsonl`` has, but for round 0. Others were stopped and done again.
        sums: of a round, as `sums_of_a_round` says.
    """
    done = sorted(rounds)
    later = [int(path.stem.split("-")[1]) for path in folder.glob(f"{ROSTER}-[0-9]*.json")]
    begun = [1, *sorted(later)]
    found = []
    for first, end in zip(begun, [*begun[1:], math.inf], strict=True):
        own = tuple(number for number in done if first <= number < end)
        found.append(
            Stretch(
                first=first,
                rounds=own,
                roster=folder / f"{of_stretch(ROSTER, first)}.json",
                key_setup=folder / TRANSCRIPTS / f"{of_stretch(KEY_SETUP, first)}.bin",
                logs=tuple(
                    (number, folder / TRANSCRIPTS / f"round-{number:04d}{part}.bin")
                    for number in own
                    for part in (*(f"-{index}" for index in range(1, sums)), "")
                ),
            )
        )
    return found


def transcript_findings(records: RunRecords, *, honest: int) -> list[Finding]:
    """Return what is wrong with the logs in a run folder.

    Args:
        records: the run.
        honest: shares of noise that charged plans count on; 1 where no noise is shared.

    Every round that ``metrics.jsonl`` has must have a log that verifies against the roster of its stretch and names the
    same clients in its sum; with FedAWA, which makes several sums a round, a log for each, with these clients in it. A
    resumed run has a stretch, with keys and a roster of its own, for each process. CKKS rounds need the log of the
    set-up of their key too. The digest that a client signs in a log is not the one its ledger books (that of the whole
    message), so the two are tied by client and round, not by bytes. How a round was protected must be what the
    configuration says, and with shares of noise its signed parameters must promise the honest clients that plans count
    on.
    """
    lines = {line.round: line for line in records.lines if line.round > 0}
    if lines and not (records.folder / TRANSCRIPTS).is_dir():
        what = "no logs of secure aggregation: who was in which sum is the server's word"
        return [Finding(kind=Kind.TRANSCRIPT, where=TRANSCRIPTS, what=what)]
    sums = sums_of_a_round(records.settings.method.name)
    return [
        finding
        for stretch in stretches(records.folder, lines, sums=sums)
        if stretch.rounds  # one that completed no round proves nothing
        for finding in _stretch_findings(
            stretch, lines, lambda params: _broken_terms(params, records, honest=honest)
        )
    ]


def _broken_terms(params: RoundParams, records: RunRecords, *, honest: int) -> Iterator[str]:
    """Yield how a round's signed parameters fall short of what the run says of all its rounds."""
    config = records.settings.secagg
    if params.mode is not MODES[config.mode]:
        yield f"the round was summed in mode {params.mode.name.lower()}, config.toml says {config.mode}"
        return
    if isinstance(params, KeyedParams) and params.verify_sum != config.ckks_verify:
        yield f"says ckks_verify {params.verify_sum}, config.toml {config.ckks_verify}"
    if honest == 1:
        return
    tolerated = default_colluders(records.cohort)
    if params.invited_count < records.cohort:
        yield f"{params.invited_count} clients were invited, plans count on {records.cohort}"
    if params.colluders < tolerated:
        yield f"{params.colluders} colluders are tolerated, plans count on {tolerated}"
    sure = guaranteed_honest(params.invited_count, params.colluders, params.survivors_min)
    others = honest_others(sure, params.colluders)
    if others < honest:
        yield f"a sum is sure to hold {others} shares of noise that no colluder knows, plans count on {honest}"


def _stretch_findings(
    stretch: Stretch,
    lines: Mapping[int, RoundLine],
    broken_terms: Callable[[RoundParams], Iterable[str]],
) -> list[Finding]:
    """Return what is wrong with the logs of rounds that were summed under one roster.

    Args:
        stretch: the rounds.
        lines: of ``metrics.jsonl``, by round.
        broken_terms: says how a round's signed parameters fall short.
    """
    findings: list[Finding] = []

    def find(where: str, what: str) -> None:
        findings.append(Finding(kind=Kind.TRANSCRIPT, where=where, what=what))

    try:
        roster = Roster.from_json(stretch.roster.read_bytes())
    except (OSError, SecAggError) as error:
        find(stretch.roster.name, f"cannot be read: {error}")
        return findings
    verified: list[Verified] = []
    setup = stretch.key_setup
    if setup.exists():
        try:
            verified.append(verify_key_setup(setup.read_bytes(), roster))
        except SecAggError as error:
            find(setup.name, f"{type(error).__name__}: {error}")
    lasts = dict(stretch.logs)  # of each round
    for number, log in stretch.logs:
        name, line = log.name, lines[number]
        try:
            one = verify_transcript(log.read_bytes(), roster)
        except FileNotFoundError:
            find(name, f"round {number} has no log")
            continue
        except SecAggError as error:
            find(name, f"{type(error).__name__}: {error}")
            continue
        verified.append(one)
        if one.params.mode is Mode.CKKS and not setup.exists():
            find(name, f"the set-up of its key has no log: {setup.name} is missing")
        findings += [
            Finding(kind=Kind.CONTRADICTION, where=name, what=what)
            for what in broken_terms(one.params)
        ]
        named, signed = set(line.survivors), set(one.survivors)
        if not (named == signed if log == lasts[number] else named <= signed):
            find(name, f"signed for {one.survivors}, metrics.jsonl says {line.survivors}")
    try:
        if verified:
            check_order(verified)
    except SecAggError as error:
        find(TRANSCRIPTS, f"{type(error).__name__}: {error}")
    return findings
