"""A run folder as an auditor reads it."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from fedmpt.audit.findings import Finding, Kind
from fedmpt.audit.forms import Index, RoundLine, Summary, formed
from fedmpt.config import Config
from fedmpt.engine.ledgers import INDEX_FILE, INDEX_SCHEMA
from fedmpt.errors import UsageError
from fedmpt.inference.card import CARD_FILE, Card
from fedmpt.runstore import (
    LEDGER_FOLDER,
    METRICS_FILE,
    ROUND_SCHEMA,
    SUMMARY_FILE,
    SUMMARY_SCHEMA,
    require_schema,
)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecords:
    """What a run left behind besides its ledgers.

    Attributes:
        folder: the run folder.
        config: the resolved configuration, as it is in the file.
        settings: the same, typed.
        metrics: lines of ``metrics.jsonl``, round 0 first, as they are in the file.
        lines: those that have their form.
        summary: ``summary.json``, as it is in the file; None if the run did not end.
        claims: what of it an audit compares; None also where it has not its form.
        index: ``ledger.json``; None for a run without privacy, or where it has not its form.
        card: of the tuned model; None where there is none, or where it has not its form.
        ledgers: folder of the ledgers.
        malformed: a finding for each file and line that has not its form.
    """

    folder: Path
    config: dict[str, Any]
    settings: Config
    metrics: list[dict[str, Any]]
    lines: tuple[RoundLine, ...]
    summary: dict[str, Any] | None
    claims: Summary | None
    index: Index | None
    card: Card | None
    ledgers: Path
    malformed: tuple[Finding, ...]

    @property
    def private(self) -> bool:
        """Whether the run claims differential privacy."""
        return self.settings.privacy.enabled

    @property
    def booked(self) -> list[int]:
        """Clients that have a ledger in the index, each once."""
        return list(dict.fromkeys(row.client for row in self.index.clients)) if self.index else []

    @property
    def trained(self) -> bool:
        """Whether a round was done after the frozen model was evaluated."""
        return any(line.round > 0 for line in self.lines)

    @property
    def lines_whole(self) -> bool:
        """Whether every line of ``metrics.jsonl`` has its form."""
        return len(self.lines) == len(self.metrics)

    @property
    def books_known(self) -> bool:
        """Whether it is known which ledgers there are: there is no index, or it has its form."""
        return all(finding.where != INDEX_FILE for finding in self.malformed)

    @property
    def clients(self) -> int:
        """Number of clients: of ledgers, or without them what the summary says."""
        if self.index is not None:
            return len(self.booked)
        return self.claims.clients if self.claims is not None else 0

    @property
    def cohort(self) -> int:
        """Clients that the configuration invites to a round; 1 where there is nothing to train, as in the summary."""
        size = int(self.settings.clients.participation * self.clients)
        return max(1, size) if self.trained else 1


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
    malformed: list[Finding] = []

    def read(value: object, form: type[T], where: str) -> T | None:
        try:
            return formed(value, form)
        except ValueError as error:
            what = f"is not as a run writes it: {error}"
            malformed.append(Finding(kind=Kind.UNREADABLE, where=where, what=what))
            return None

    config, settings = _config(folder / "config.toml")
    raw = {
        name: _versioned(folder / name, schema)
        for name, schema in ((INDEX_FILE, INDEX_SCHEMA), (SUMMARY_FILE, SUMMARY_SCHEMA))
    }
    metrics = _metrics(folder / METRICS_FILE)
    card = _json(folder / CARD_FILE)
    index = read(raw[INDEX_FILE], Index, INDEX_FILE) if raw[INDEX_FILE] is not None else None
    lines = [
        read(line, RoundLine, f"{METRICS_FILE}, line {number}")
        for number, line in enumerate(metrics, start=1)
    ]
    summary = raw[SUMMARY_FILE]
    place = Path(index.folder) if index is not None else Path(LEDGER_FOLDER)
    return RunRecords(
        folder=folder,
        config=config,
        settings=settings,
        metrics=metrics,
        lines=tuple(line for line in lines if line is not None),
        summary=summary,
        claims=read(summary, Summary, SUMMARY_FILE) if summary is not None else None,
        index=index,
        card=read(card, Card, CARD_FILE) if card is not None else None,
        ledgers=ledgers if ledgers is not None else folder / place,
        malformed=tuple(malformed),
    )


def _config(path: Path) -> tuple[dict[str, Any], Config]:
    """Return the configuration of a run as it is in the file, and typed."""
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8"))
        return config, msgspec.convert(config, Config, strict=True)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{path}: cannot be read as a configuration ({error}); is it whole, and of this version of fedmpt?"
        ) from error


def _metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of ``metrics.jsonl``; a torn last line is of a round that was not committed."""
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        return [_line(line, number, path) for number, line in enumerate(whole.splitlines())]
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); is the folder whole?") from error


def _versioned(path: Path, schema: str) -> dict[str, Any] | None:
    """Return a JSON file of the schema that is read here; None where there is none."""
    content = _json(path)
    if content is not None:
        require_schema(path, content.get("schema"), schema)
    return content


def _line(text: str, number: int, path: Path) -> dict[str, Any]:
    """Return a line of ``metrics.jsonl``; one without a schema is of the time before lines said theirs, the first."""
    line = json.loads(text, object_pairs_hook=_once)
    if not isinstance(line, dict):
        raise ValueError(f"line {number + 1} of {METRICS_FILE} is no object")
    require_schema(f"{path}, line {number + 1}", line.get("schema", ROUND_SCHEMA), ROUND_SCHEMA)
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
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not readable as JSON ({error}); is the file whole?") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: not a JSON object; is this a run folder?")
    return content
