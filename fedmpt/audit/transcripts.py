"""The public logs of secure aggregation against what the run says of its sums."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from fedmpt.audit.findings import Finding, Kind
from fedmpt.audit.records import RunRecords
from fedmpt.runstore import of_stretch
from secagg.ckks_transcript import verify_key_setup
from secagg.errors import SecAggError
from secagg.params import Mode
from secagg.roster import Roster
from secagg.transcript import check_order, verify_transcript
from secagg.verified import Verified

TRANSCRIPTS: Final = "transcripts"
KEY_SETUP: Final = "key-setup"
ROSTER: Final = "roster"


def transcript_findings(records: RunRecords) -> list[Finding]:
    """Return what is wrong with the logs in a run folder; none where no logs were kept.

    Every round that ``metrics.jsonl`` has must have a log that verifies against the roster of its stretch and names the
    same clients in its sum; a resumed run has a stretch, with keys and a roster of its own, for each process. CKKS
    rounds need the log of the set-up of their key too. The digest that a client signs in a log is not the one its
    ledger books (that of the whole message), so the two are tied by client and round, not by bytes.
    """
    if not (records.folder / TRANSCRIPTS).is_dir():
        return []
    later = [int(path.stem.split("-")[1]) for path in records.folder.glob(f"{ROSTER}-[0-9]*.json")]
    begun = [1, *sorted(later)]
    rounds: dict[int, list[dict[str, Any]]] = {first: [] for first in begun}
    for line in records.metrics:
        if line["round"] > 0:
            rounds[max(first for first in begun if first <= line["round"])].append(line)
    return [
        finding
        for first, lines in rounds.items()
        if lines  # a stretch that completed no round proves nothing
        for finding in _stretch_findings(records.folder, first, lines)
    ]


def _stretch_findings(folder: Path, first: int, lines: list[dict[str, Any]]) -> list[Finding]:
    """Return what is wrong with the logs of rounds that were summed under one roster."""
    findings: list[Finding] = []

    def find(where: str, what: str) -> None:
        findings.append(Finding(kind=Kind.TRANSCRIPT, where=where, what=what))

    roster_name = of_stretch(ROSTER, first) + ".json"
    try:
        roster = Roster.from_json((folder / roster_name).read_bytes())
    except (OSError, SecAggError) as error:
        find(roster_name, f"cannot be read: {error}")
        return findings
    verified: list[Verified] = []
    setup_name = of_stretch(KEY_SETUP, first) + ".bin"
    setup = folder / TRANSCRIPTS / setup_name
    if setup.exists():
        try:
            verified.append(verify_key_setup(setup.read_bytes(), roster))
        except SecAggError as error:
            find(setup_name, f"{type(error).__name__}: {error}")
    for line in lines:
        name = f"round-{line['round']:04d}.bin"
        try:
            one = verify_transcript((folder / TRANSCRIPTS / name).read_bytes(), roster)
        except FileNotFoundError:
            find(name, f"round {line['round']} has no log")
            continue
        except SecAggError as error:
            find(name, f"{type(error).__name__}: {error}")
            continue
        verified.append(one)
        if one.params.mode is Mode.CKKS and not setup.exists():
            find(name, f"the set-up of its key has no log: {setup_name} is missing")
        if sorted(line["survivors"]) != sorted(one.survivors):
            find(name, f"signed for {one.survivors}, metrics.jsonl says {line['survivors']}")
    try:
        if verified:
            check_order(verified)
    except SecAggError as error:
        find(TRANSCRIPTS, f"{type(error).__name__}: {error}")
    return findings
