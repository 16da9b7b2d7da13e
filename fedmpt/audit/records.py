"""A run folder as an auditor reads it."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmpt.engine.ledgers import INDEX_FILE, INDEX_SCHEMA
from fedmpt.errors import UsageError
from fedmpt.runstore import (
    METRICS_FILE,
    ROUND_SCHEMA,
    SUMMARY_FILE,
    SUMMARY_SCHEMA,
    require_schema,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecords:
    """What a run left behind besides its ledgers.

    Attributes:
        folder: the run folder.
        config: the resolved configuration.
        metrics: lines of ``metrics.jsonl``, round 0 first.
        summary: ``summary.json``; None if the run did not end.
        index: ``ledger.json``; None for a run without privacy.
        ledgers: folder of the ledgers.
    """

    folder: Path
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    summary: dict[str, Any] | None
    index: dict[str, Any] | None
    ledgers: Path

    @property
    def private(self) -> bool:
        """Whether the run claims differential privacy."""
        return bool(self.config["privacy"]["enabled"])


def read_run(folder: Path, ledgers: Path | None) -> RunRecords:
    """Read a run folder.

    Args:
        folder: the run folder.
        ledgers: folder of its ledgers, if they were moved.

    Raises:
        UsageError: this is no run folder, or a file of it cannot be read.
    """
    if not (folder / "config.toml").is_file():
        raise UsageError(
            f"{folder}: no run folder (it has no config.toml); give what `fedmpt train --out` made"
        )
    index = _json(folder / INDEX_FILE)
    if index is not None:
        require_schema(folder / INDEX_FILE, index.get("schema"), INDEX_SCHEMA)
    place = Path(index["folder"]) if index is not None else Path("ledger")
    try:
        config = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
        text = (folder / METRICS_FILE).read_text(encoding="utf-8")
        whole = text[
            : text.rfind("\n") + 1
        ]  # a torn last line is of a round that was not committed
        metrics = [_line(line, number, folder) for number, line in enumerate(whole.splitlines())]
    except FileNotFoundError:
        metrics = []
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder}: cannot be read ({error}); is the folder whole?") from error
    summary = _json(folder / SUMMARY_FILE)
    if summary is not None:
        require_schema(folder / SUMMARY_FILE, summary.get("schema"), SUMMARY_SCHEMA)
    return RunRecords(
        folder=folder,
        config=config,
        metrics=metrics,
        summary=summary,
        index=index,
        ledgers=ledgers if ledgers is not None else folder / place,
    )


def _line(text: str, number: int, folder: Path) -> dict[str, Any]:
    """Return a line of ``metrics.jsonl``; one without a schema is of the time before lines said theirs, the first."""
    line = json.loads(text, object_pairs_hook=_once)
    if not isinstance(line, dict):
        raise ValueError(f"line {number + 1} of {METRICS_FILE} is no object")
    where = f"{folder / METRICS_FILE}, line {number + 1}"
    require_schema(where, line.get("schema", ROUND_SCHEMA), ROUND_SCHEMA)
    return line


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that an object has twice: readers keep the last, and the first would hide from an audit."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a key occurs twice among {', '.join(name for name, _ in pairs)}")
    return found


def _json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not readable as JSON ({error}); is the file whole?") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: not a JSON object; is this a run folder?")
    return content
