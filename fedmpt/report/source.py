"""Everything about a run that its report is written from: what it left behind, and what the audit makes of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedmpt.audit.forms import Form, formed
from fedmpt.audit.records import read_run
from fedmpt.audit.run import RunAudit, audit_run
from fedmpt.audit.saved import SavedAudit, read_audit
from fedmpt.audit.transcripts import stretches
from fedmpt.engine.adaptive import sums_of_a_round
from fedmpt.errors import UsageError
from fedmpt.report.forms import Evaluated, Line, PrivatePromise, Summary, Warned
from fedmpt.runstore import (
    METRICS_FILE,
    SUMMARY_FILE,
    WARNING_SCHEMA,
    WARNINGS_FILE,
    require_schema,
)
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
        warnings: (rounds done, text) of each line of ``warnings.jsonl``.
        summary: ``summary.json``.
        audit: its figures recomputed from the ledgers, and what is wrong.
        empirical: what attacks on its training code found; None if none were made.
        logs: the public logs of its rounds and key set-ups, verified: (first round, logs) of each stretch of the run,
            each with keys of its own; empty if there are none, or one does not verify.
        sums: of a round, each with a log.
        logs_missing: why there are none.
    """

    folder: Path
    config_text: str
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    warnings: tuple[tuple[int, str], ...]
    summary: dict[str, Any]
    audit: RunAudit
    empirical: SavedAudit | None
    logs: tuple[tuple[int, VerifiedRun], ...]
    sums: int
    logs_missing: str

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
    _require_form(folder, SUMMARY_FILE, records.summary, Summary)
    if records.private:
        _require_form(folder, SUMMARY_FILE, records.summary["privacy"], PrivatePromise)
    for number, line in enumerate(records.metrics, start=1):
        where = f"{METRICS_FILE}, line {number}"
        _require_form(folder, where, line, Line)
        if number == 1 or "AP" in line:
            _require_form(folder, where, line, Evaluated)
    scored = len(records.summary["final_AP"])
    if any(len(line["AP"]) != scored for line in records.metrics if "AP" in line):
        raise UsageError(
            f"{folder}: summary.json and metrics.jsonl are over different classes; are they of one run?"
        )
    sums = sums_of_a_round(records.config["method"]["name"])
    rounds = [line["round"] for line in records.metrics[1:]]
    logs, missing = _verified_logs(folder, rounds, sums=sums)
    return RunSource(
        folder=folder,
        config_text=(folder / "config.toml").read_text(encoding="utf-8"),
        config=records.config,
        metrics=records.metrics,
        warnings=_kept_warnings(folder),
        summary=records.summary,
        audit=audit_run(folder, ledgers=ledgers),
        empirical=read_audit(folder),
        logs=logs,
        sums=sums,
        logs_missing=missing,
    )


def _kept_warnings(folder: Path) -> tuple[tuple[int, str], ...]:
    """Return (rounds done, text) of each warning; a last line that a crash tore is left out.

    Raises:
        UsageError: the file cannot be read, or a line of it is of another version or damaged.
    """
    path = folder / WARNINGS_FILE
    if not path.exists():
        return ()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror}); is the folder whole?"
        ) from error
    whole = data[: data.rfind(b"\n") + 1]
    return tuple(
        _warned(line, f"{path}, line {number}")
        for number, line in enumerate(whole.splitlines(), start=1)
    )


def _warned(data: bytes, where: str) -> tuple[int, str]:
    """Return (rounds done, text) of a line of ``warnings.jsonl``."""
    try:
        line = json.loads(data)
        if isinstance(line, dict):
            require_schema(where, line.get("schema"), WARNING_SCHEMA)
        warned = formed(line, Warned)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{where} is not as a run writes it: {error}; restore the file, or move it away for a report without "
            "the run's warnings"
        ) from error
    return warned.round, warned.text


def _require_fields(folder: Path, summary: dict[str, Any]) -> None:
    """Raise a `UsageError` unless the summary says all that a report tells."""
    lacking = [name for name in _FIELDS if name not in summary]
    secagg = summary.get("secagg")
    if isinstance(secagg, dict):  # else its form says so
        lacking += [f"secagg.{name}" for name in _SECAGG_FIELDS if name not in secagg]
    if lacking:
        raise UsageError(
            f"{folder}: summary.json has no {', '.join(lacking)}: it was written by another version of fedmpt; report "
            "with that one"
        )


def _require_form(folder: Path, where: str, value: object, form: type[Form]) -> None:
    """Raise a `UsageError` unless what a report reads of a file has its form."""
    try:
        formed(value, form)
    except ValueError as error:
        raise UsageError(
            f"{folder}: {where} is not as a run writes it: {error}; a report needs it whole, and "
            f"`fedmpt audit {folder}` tells what else is wrong"
        ) from error


def _verified_logs(
    folder: Path, rounds: list[int], *, sums: int
) -> tuple[tuple[tuple[int, VerifiedRun], ...], str]:
    """Return the verified logs of every stretch that completed a round, or why there are none."""
    found = []
    for stretch in stretches(folder, rounds, sums=sums):
        if not stretch.rounds:
            continue
        lacking = sorted({number for number, log in stretch.logs if not log.is_file()})
        if not stretch.roster.is_file() or len(lacking) == len(stretch.rounds):
            return (), "This run kept no public logs of its rounds."
        if lacking:
            return (), f"There is no public log of round(s) {', '.join(map(str, lacking))}."
        logs = [log for _, log in stretch.logs]
        if stretch.key_setup.is_file():
            logs.insert(0, stretch.key_setup)
        try:
            roster = Roster.from_json(stretch.roster.read_bytes())
            found.append((stretch.first, verify_run([log.read_bytes() for log in logs], roster)))
        except (SecAggError, OSError, ValueError) as error:
            notes = ", ".join(getattr(error, "__notes__", []))
            return (), f"The public logs of the rounds do not verify: {error} {notes}".strip()
    return tuple(found), "" if found else "No round was done, so there are no logs."
