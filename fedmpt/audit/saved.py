"""What an empirical audit found, kept in the run folder for the report and for whoever asks later."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from fedmpt.errors import UsageError
from fedmpt.inference.card import MODEL_FILE
from fedmpt.runstore import write_whole
from privacy.audit import AttackRates, CheckResult, Goal, Verdict, overall

EMPIRICAL_FILE: Final = "audit-empirical.json"
EMPIRICAL_SCHEMA: Final = "fedmpt.audit.empirical/1"


class SavedCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One check, as `privacy.audit.CheckResult` says it; what the report does not show is left out."""

    check: str
    claim: str
    verdict: Verdict
    words: str
    threshold: float | None = None
    seconds: float = 0.0
    rates: AttackRates | None = None
    control_rates: AttackRates | None = None
    goal: Goal | None = None
    goal_met: bool | None = None


class SavedAudit(msgspec.Struct, frozen=True, kw_only=True):
    """An empirical audit.

    Attributes:
        schema: version of the format.
        client: whose training was attacked.
        model: SHA-256 of the model that was attacked, hexadecimal; empty where there was none.
        verdict: of all checks together.
        seconds: wall time.
        checks: what was checked, in order.
    """

    schema: str
    client: int
    model: str
    verdict: Verdict
    seconds: float
    checks: tuple[SavedCheck, ...]

    def is_of(self, folder: Path) -> bool:
        """Whether the folder still holds the model that was attacked."""
        return self.model == _digest(folder)


def save_audit(
    folder: Path, *, client: int, results: Sequence[CheckResult], seconds: float
) -> dict[str, Any]:
    """Write an empirical audit into its run folder, over an earlier one, and return it as JSON values.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    report = {
        "schema": EMPIRICAL_SCHEMA,
        "client": client,
        "model": _digest(folder),
        "verdict": overall(results).value,
        "seconds": seconds,
        "checks": [result.as_dict() for result in results],
    }
    text = msgspec.json.format(msgspec.json.encode(report), indent=2)
    write_whole(folder / EMPIRICAL_FILE, text + b"\n")
    return report


def read_audit(folder: Path) -> SavedAudit | None:
    """Return the empirical audit in a run folder; None where there is none.

    Raises:
        UsageError: the file cannot be read, or is of another version.
    """
    path = folder / EMPIRICAL_FILE
    if not path.exists():
        return None
    try:
        found = msgspec.json.decode(path.read_bytes(), type=SavedAudit)
    except (OSError, msgspec.DecodeError) as error:
        raise UsageError(
            f"{path}: not readable ({error}); make it anew with `fedmpt audit {folder} --empirical`, or remove it"
        ) from error
    if found.schema != EMPIRICAL_SCHEMA:
        raise UsageError(
            f"{path}: of the format {found.schema}, not {EMPIRICAL_SCHEMA}; make it anew with "
            f"`fedmpt audit {folder} --empirical`, or remove it"
        )
    return found


def _digest(folder: Path) -> str:
    model = folder / MODEL_FILE
    return hashlib.sha256(model.read_bytes()).hexdigest() if model.exists() else ""
