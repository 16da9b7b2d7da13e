"""Published figures as typed rows, and where one of them stands in a table.

A file has a line a cell: ``dataset``, ``method`` (the published row), ``setting`` (the published column; empty where
the table has one), then the figures, ``marked`` (which of these columns a note is about) and ``note`` (why a figure
must be read with care: it contradicts another one, or is printed oddly). Figures stand as they were printed, never
corrected.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from fedmpt.errors import UsageError
from fedmpt.tables.definition import experiments_file

FOLDER: Final = "paper"
BEST_GAIN: Final = "delta"  # method of the rows that hold FedMPT less the best other method
_KEYS: Final = ("dataset", "method", "setting")
_TEXTS: Final = (*_KEYS, "conditions", "marked", "note")


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedRow:
    """A line of a published table.

    Attributes:
        dataset: name of the data set as ``--data`` takes it.
        method: name of the row.
        setting: name of the column; empty where there is one column only.
        figures: name -> figure, as printed; percent where the name is that of a metric.
        conditions: list of conditions, as printed; empty where the table has none.
        marked: names of columns that the note is about.
        note: why they must be read with care; empty where they need not.
    """

    dataset: str
    method: str
    setting: str
    figures: dict[str, float]
    conditions: tuple[str, ...] = ()
    marked: tuple[str, ...] = ()
    note: str = ""


class PublishedTable:
    """The rows of one published table."""

    def __init__(self, rows: Iterable[PublishedRow]) -> None:
        """Keep the rows, each of which must be of a cell of its own.

        Raises:
            UsageError: two rows are of the same cell.
        """
        self._rows: dict[tuple[str, str, str], PublishedRow] = {}
        for row in rows:
            if (row.dataset, row.method, row.setting) in self._rows:
                raise UsageError(
                    f"published figures: {row.dataset}, {row.method}, {row.setting!r} stands twice; keep one line"
                )
            self._rows[row.dataset, row.method, row.setting] = row

    def __iter__(self) -> Iterator[PublishedRow]:
        return iter(self._rows.values())

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the data sets it has figures of, in its own order."""
        return tuple(dict.fromkeys(row.dataset for row in self))

    def row(self, dataset: str, method: str, setting: str) -> PublishedRow | None:
        """Return the row of a cell, or None where nothing was published."""
        return self._rows.get((dataset, method, setting))


def read_published(name: str) -> PublishedTable:
    """Read a published table.

    Args:
        name: of a file of ``experiments/paper``, without its suffix.

    Raises:
        UsageError: it is missing or malformed.
    """
    file = experiments_file(FOLDER, f"{name}.csv")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"published = {name}: {FOLDER}/{name}.csv cannot be read; leave the key out where nothing is published"
        ) from error
    reader = csv.DictReader(lines, strict=True)
    lacking = [key for key in _KEYS if key not in (reader.fieldnames or ())]
    if lacking:
        raise UsageError(f"{FOLDER}/{name}.csv: has no column {lacking[0]}")
    return PublishedTable(_row(name, number, line) for number, line in enumerate(reader, start=2))


def _row(name: str, number: int, line: dict[str, str]) -> PublishedRow:
    figures = {}
    for key, text in line.items():
        if key in _TEXTS or text == "":
            continue
        try:
            figures[key] = float(text)
        except (TypeError, ValueError):
            figures[key] = math.nan
        if not math.isfinite(figures[key]):
            raise UsageError(f"{FOLDER}/{name}.csv, line {number}: {key} = {text!r} is no number")
    return PublishedRow(
        dataset=line["dataset"],
        method=line["method"],
        setting=line["setting"],
        figures=figures,
        conditions=tuple(filter(None, (line.get("conditions") or "").split(", "))),
        marked=tuple((line.get("marked") or "").split()),
        note=line.get("note") or "",
    )
