"""The public logs of secure aggregation against what the run says of its sums."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fedmpt.audit.findings import Finding, Kind
from fedmpt.audit.records import RunRecords
from fedmpt.runstore import roster_file
from secagg.errors import SecAggError
from secagg.roster import Roster
from secagg.transcript import VerifiedRound, check_order, verify_transcript

TRANSCRIPTS: Final = "transcripts"


def transcript_findings(records: RunRecords) -> list[Finding]:
    """Return what is wrong with the logs in a run folder; none where no logs were kept.

    Every round that ``metrics.jsonl`` has must have a log that verifies against the roster of its stretch and names the
    same clients in its sum; a resumed run has a stretch, with keys and a roster of its own, for each process. The
    digest that a client signs in a log is not the one its ledger books (that of the whole message), so the two are tied
    by client and round, not by bytes.
    """
    folder = records.folder / TRANSCRIPTS
    if not folder.is_dir():
        return []
    findings = []

    def find(where: str, what: str) -> None:
        findings.append(Finding(kind=Kind.TRANSCRIPT, where=where, what=what))

    rosters: dict[int, Roster] = {}
    for first, path in _roster_files(records.folder):
        try:
            rosters[first] = Roster.from_json(path.read_bytes())
        except (OSError, SecAggError) as error:
            find(path.name, f"cannot be read: {error}")
            return findings
    verified: dict[int, list[VerifiedRound]] = {first: [] for first in rosters}
    for line in records.metrics:
        if line["round"] == 0:
            continue
        name = f"round-{line['round']:04d}.bin"
        try:
            stretch = max(first for first in rosters if first <= line["round"])
            one = verify_transcript((folder / name).read_bytes(), rosters[stretch])
        except FileNotFoundError:
            find(name, f"round {line['round']} has no log")
            continue
        except SecAggError as error:
            find(name, f"{type(error).__name__}: {error}")
            continue
        verified[stretch].append(one)
        if sorted(line["survivors"]) != sorted(one.survivors):
            find(name, f"signed for {one.survivors}, metrics.jsonl says {line['survivors']}")
    for rounds in filter(None, verified.values()):
        try:
            check_order(rounds)
        except SecAggError as error:
            find(TRANSCRIPTS, f"{type(error).__name__}: {error}")
    return findings


def _roster_files(folder: Path) -> list[tuple[int, Path]]:
    """Return the first round of every stretch and its roster; that of round 1 whether it is there or not."""
    later = [
        (int(path.stem.removeprefix("roster-")), path) for path in folder.glob("roster-[0-9]*.json")
    ]
    return [(1, folder / roster_file(1)), *sorted(later)]
