"""Tables of text cells as readers need them: parsed strictly, and complained of by line, never by content.

Cells may tell of patients, so no message holds one; it says file, line and column.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedmpt.data.dataset import LabelMatrix
from fedmpt.errors import DataError

_VALUES = {"1": 1, "0": 0, "-1": -1, "1.0": 1, "0.0": 0, "-1.0": -1}
_NO_VALUE = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table as text.

    Guarantee: every row has as many cells as the header; cells carry no blanks around them.

    Attributes:
        path: where it was read.
        header: names of columns.
        rows: the rows below the header.
        lines: the line of the file on which each row ends.
    """

    path: Path
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    lines: tuple[int, ...]

    def column(self, name: str) -> list[str]:
        """Return the cells of the first column called ``name``."""
        position = self.header.index(name)
        return [row[position] for row in self.rows]

    def labels(self, columns: Sequence[int]) -> LabelMatrix:
        """Return int8 ``[n, C]`` from columns of 1 (present), 0 (absent) or -1 (unknown).

        Raises:
            DataError: if a cell is none of these.
        """
        values = [
            [_VALUES.get(cells[column], _NO_VALUE) for column in columns] for cells in self.rows
        ]
        labels: LabelMatrix = np.array(values, dtype=np.int8).reshape(-1, len(columns))  # [n, C]
        for row, position in np.argwhere(labels == _NO_VALUE)[:1]:
            raise DataError(
                f"{self.path}: line {self.lines[row]}, column {self.header[columns[position]]!r}: "
                "must be 0, 1 or -1 (unknown)"
            )
        return labels


def read_cells(path: Path, *, delimiter: str = ",", remedy: str) -> Table:
    """Read a table (UTF-8, a byte order mark is passed over); blank lines are passed over.

    Raises:
        DataError: if the file cannot be read as a table, has no row below the header, or a row has
            more or fewer cells than the header.
    """
    rows: list[tuple[str, ...]] = []
    lines: list[int] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            for row in reader:
                if any(cell.strip() for cell in row):
                    rows.append(tuple(cell.strip() for cell in row))
                    lines.append(reader.line_num)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        kind = "UTF-8" if isinstance(error, UnicodeDecodeError) else "a table"
        message = f"{path}: cannot be read as {kind}; {remedy}"
    else:
        if len(rows) < 2:
            raise DataError(f"{path}: holds no row below the header; {remedy}")
        for cells, line in zip(rows, lines, strict=True):
            if len(cells) != len(rows[0]):
                raise DataError(
                    f"{path}: line {line} has {len(cells)} cells and the header {len(rows[0])}; "
                    "quote cells that hold the separator"
                )
        return Table(path=path, header=tuple(rows[0]), rows=tuple(rows[1:]), lines=tuple(lines[1:]))
    raise DataError(message)
