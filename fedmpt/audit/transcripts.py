"""The public logs of secure aggregation against what the run says of its sums."""

from __future__ import annotations

from typing import Final

from fedmpt.audit.findings import Finding, Kind
from fedmpt.audit.records import RunRecords
from secagg.ckks_transcript import verify_key_setup
from secagg.errors import SecAggError
from secagg.params import Mode
from secagg.roster import Roster
from secagg.transcript import check_order, verify_transcript
from secagg.verified import Verified

TRANSCRIPTS: Final = "transcripts"
KEY_SETUP: Final = "key-setup.bin"
_ROSTER: Final = "roster.json"


def transcript_findings(records: RunRecords) -> list[Finding]:
    """Return what is wrong with the logs in a run folder; none where no logs were kept.

    Every round that ``metrics.jsonl`` has must have a log that verifies against the roster and names the same clients
    in its sum; CKKS rounds need the log of the set-up of their key too. The digest that a client signs in a log is not
    the one its ledger books (that of the whole message), so the two are tied by client and round, not by bytes.
    """
    folder = records.folder / TRANSCRIPTS
    if not folder.is_dir():
        return []
    findings = []

    def find(where: str, what: str) -> None:
        findings.append(Finding(kind=Kind.TRANSCRIPT, where=where, what=what))

    try:
        roster = Roster.from_json((records.folder / _ROSTER).read_bytes())
    except (OSError, SecAggError) as error:
        find(_ROSTER, f"cannot be read: {error}")
        return findings
    verified: list[Verified] = []
    setup = folder / KEY_SETUP
    if setup.exists():
        try:
            verified.append(verify_key_setup(setup.read_bytes(), roster))
        except SecAggError as error:
            find(KEY_SETUP, f"{type(error).__name__}: {error}")
    for line in records.metrics:
        if line["round"] == 0:
            continue
        name = f"round-{line['round']:04d}.bin"
        try:
            one = verify_transcript((folder / name).read_bytes(), roster)
        except FileNotFoundError:
            find(name, f"round {line['round']} has no log")
            continue
        except SecAggError as error:
            find(name, f"{type(error).__name__}: {error}")
            continue
        verified.append(one)
        if one.params.mode is Mode.CKKS and not setup.exists():
            find(name, f"the set-up of its key has no log: {KEY_SETUP} is missing")
        if sorted(line["survivors"]) != sorted(one.survivors):
            find(name, f"signed for {one.survivors}, metrics.jsonl says {line['survivors']}")
    try:
        if verified:
            check_order(verified)
    except SecAggError as error:
        find(TRANSCRIPTS, f"{type(error).__name__}: {error}")
    return findings
