"""Everything about a run that its report is written from: what it left behind, and what the audit makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedmpt.audit.records import read_run
from fedmpt.audit.run import RunAudit, audit_run
from fedmpt.audit.transcripts import KEY_SETUP, TRANSCRIPTS
from fedmpt.engine.summary import SUMMARY_SCHEMA
from fedmpt.errors import UsageError
from secagg import SecAggError
from secagg.roster import Roster
from secagg.transcript import verify_run
from secagg.verified import VerifiedRun

_FIELDS: Final = (
    *("method", "data", "backbone", "seed", "rounds", "clients", "parameters", "privacy"),
    *("final", "final_shared", "final_AP", "zero_shot", "zero_shot_class_token"),
    *("seconds", "seconds_by_phase"),
)
_SECAGG_FIELDS: Final = ("statement", "bytes_up_per_client_round")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSource:
    """A finished run.

    Attributes:
        folder: the run folder.
        config_text: ``config.toml``.
        config: the same, read.
        metrics: lines of ``metrics.jsonl``, round 0 first.
        summary: ``summary.json``.
        audit: its figures recomputed from the ledgers, and what is wrong.
        rounds: the public logs of its rounds and key set-ups, verified; None if there are none, or one does not verify.
        rounds_missing: why ``rounds`` is None.
    """

    folder: Path
    config_text: str
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    summary: dict[str, Any]
    audit: RunAudit
    rounds: VerifiedRun | None
    rounds_missing: str

    @property
    def private(self) -> bool:
        """Whether the run claims differential privacy."""
        return self.audit.private

    @property
    def alone(self) -> bool:
        """Whether every client trained by itself."""
        return bool(self.config["train"]["weighting"] == "none")

    @property
    def cohort(self) -> int:
        """Clients asked in a round; 0 for a run without rounds."""
        if len(self.metrics) < 2:
            return 0
        first = self.metrics[1]
        return len({*first["survivors"], *(one["client"] for one in first["dropped"])})

    @property
    def evaluated(self) -> list[dict[str, Any]]:
        """Lines of the rounds that were evaluated: the first and the last, and every so many between."""
        return [line for line in self.metrics if "AP" in line]

    @property
    def epsilon(self) -> float | None:
        """Largest epsilon that a client spent in this run, from its ledger; None where nothing is booked."""
        return max((account.epsilon for account in self.audit.accounts), default=None)


def read_source(folder: Path, *, ledgers: Path | None = None) -> RunSource:
    """Read a run folder and audit it.

    Args:
        folder: the run folder.
        ledgers: folder of the ledgers, if they are no longer where the run left them.

    Raises:
        UsageError: a file that a finished run has is missing or cannot be read; the message names it.
    """
    records = read_run(folder, ledgers)
    if not records.metrics:
        raise UsageError(f"{folder}: has no metrics.jsonl, so there is nothing to report")
    if records.summary is None:
        raise UsageError(
            f"{folder}: has no summary.json: the run did not finish; what it spent is told by `fedmpt audit {folder}`"
        )
    _require_fields(folder, records.summary)
    scored = len(records.summary["final_AP"])
    if any(len(line["AP"]) != scored for line in records.metrics if "AP" in line):
        raise UsageError(
            f"{folder}: summary.json and metrics.jsonl are over different classes; are they of one run?"
        )
    rounds, missing = _verified_rounds(folder)
    return RunSource(
        folder=folder,
        config_text=(folder / "config.toml").read_text(encoding="utf-8"),
        config=records.config,
        metrics=records.metrics,
        summary=records.summary,
        audit=audit_run(folder, ledgers=ledgers),
        rounds=rounds,
        rounds_missing=missing,
    )


def _require_fields(folder: Path, summary: dict[str, Any]) -> None:
    """Raise a `UsageError` unless the summary says all that a report tells."""
    secagg = summary.get("secagg", {})
    lacking = [name for name in _FIELDS if name not in summary]
    lacking += [f"secagg.{name}" for name in _SECAGG_FIELDS if name not in secagg]
    if summary.get("schema") != SUMMARY_SCHEMA or lacking:
        raise UsageError(
            f"{folder}: summary.json ({summary.get('schema')}) has no {', '.join(lacking) or SUMMARY_SCHEMA}: it was "
            "written by another version of fedmpt; report with that one"
        )


def _verified_rounds(folder: Path) -> tuple[VerifiedRun | None, str]:
    transcripts = folder / TRANSCRIPTS
    logs = [*transcripts.glob(f"{KEY_SETUP}.bin"), *sorted(transcripts.glob("round-*.bin"))]
    roster = folder / "roster.json"
    if not logs or not roster.is_file():
        return None, "This run kept no public logs of its rounds."
    if any(folder.glob("roster-[0-9]*.json")):
        return None, (
            "This run was resumed, with new keys each time: `fedmpt audit` verifies the logs of every stretch."
        )
    try:
        known = Roster.from_json(roster.read_bytes())
        return verify_run([log.read_bytes() for log in logs], known), ""
    except (SecAggError, OSError, ValueError) as error:
        notes = ", ".join(getattr(error, "__notes__", []))
        return None, f"The public logs of the rounds do not verify: {error} {notes}".strip()
