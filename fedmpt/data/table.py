"""Reader of a folder of images with one table of labels: the format for data of one's own.

The folder holds ``labels.csv`` or ``labels.tsv`` (UTF-8) and the images, directly or under
``images/``. The table's first line is a header:

- ``image``: path of the image below the folder (``file``, ``filename``, ``file_name`` and ``path``
  are read as well);
- ``split``, optional: ``train`` or ``test``; without it a seeded fifth of the images becomes the
  test split;
- either one ``labels`` column with class names separated by ``;``, ``|`` or ``,``, or written as a
  list (``["cat", "dog"]``; empty: no class), or one column a class with 1 (present), 0 (absent) or
  -1 (unknown) in each row.

What is wrong with a table is said with line and column, never with a cell's content.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmpt.data.cells import Table, read_cells
from fedmpt.data.dataset import Dataset, LabelMatrix
from fedmpt.data.folder import Listing, ReadPolicy, read_dataset
from fedmpt.data.layout import prompt_name, require_distinct, require_root
from fedmpt.errors import DataError, UsageError
from fedmpt.seeds import generator

_DELIMITERS = {"labels.csv": ",", "labels.tsv": "\t"}
_IMAGE_COLUMNS = ("image", "file", "filename", "file_name", "path")
_SPLIT_COLUMN = "split"
_LABELS_COLUMN = "labels"
_SEPARATORS = re.compile(r"[;|,]")
_REMEDY = (
    "the folder needs labels.csv or labels.tsv with the columns image, split (optional) and "
    "either one 0/1 column a class or one column called labels"
)


def _find(root: Path) -> Path:
    present = [root / name for name in _DELIMITERS if (root / name).is_file()]
    if not present:
        raise DataError(f"{root}: no table of labels; {_REMEDY}")
    if len(present) > 1:
        raise DataError(f"{root}: both labels.csv and labels.tsv are there; keep one")
    return present[0]


def _image_column(table: Table) -> str:
    for name in _IMAGE_COLUMNS:
        if name in table.header:
            return name
    if len(table.header) == 1 and (";" in table.header[0] or "\t" in table.header[0]):
        raise DataError(
            f"{table.path}: its columns are separated by semicolons or tabs; save it with commas as labels.csv, "
            "or with tabs as labels.tsv"
        )
    raise DataError(f"{table.path}: the header has no column called image; {_REMEDY}")


def _names(cell: str) -> list[str] | None:
    """Return the class names of one cell; None if it begins as a list and is none."""
    if not cell.startswith("["):
        return _SEPARATORS.split(cell)
    try:
        value = ast.literal_eval(cell)  # a literal only: nothing is run
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    whole = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return value if whole else None


def _from_names(table: Table) -> tuple[tuple[str, ...], LabelMatrix]:
    """Return classes, sorted, and labels from the column of class names."""
    cells: list[set[str]] = []
    for cell, line in zip(table.column(_LABELS_COLUMN), table.lines, strict=True):
        names = _names(cell)
        if names is None:
            raise DataError(
                f"{table.path}: line {line}, column 'labels': begins with [ and is not a list "
                'such as ["cat", "dog"]'
            )
        cells.append({prompt_name(name) for name in names} - {""})
    classes = require_distinct(sorted(set().union(*cells)), where=str(table.path))
    columns = {name: column for column, name in enumerate(classes)}
    labels: LabelMatrix = np.zeros((len(cells), len(classes)), dtype=np.int8)  # [n, C]
    for row, present in enumerate(cells):
        labels[row, [columns[name] for name in present]] = 1
    return classes, labels


def _labels(table: Table, image_column: str) -> tuple[tuple[str, ...], LabelMatrix]:
    if len(set(table.header)) != len(table.header):
        raise DataError(f"{table.path}: two columns have the same name; rename one")
    names = [name for name in table.header if name not in (image_column, _SPLIT_COLUMN)]
    if _LABELS_COLUMN not in names:
        # in the header's order
        classes = require_distinct([prompt_name(name) for name in names], where=str(table.path))
        return classes, table.labels([table.header.index(name) for name in names])
    if len(names) > 1:
        raise DataError(
            f"{table.path}: has a labels column and {len(names) - 1} further columns; "
            "keep the labels column or one column a class"
        )
    return _from_names(table)


def _is_test(table: Table, *, seed: int, test_fraction: float) -> NDArray[np.bool_]:
    """Return bool ``[n]``: which rows are of the test split."""
    n = len(table.rows)
    if _SPLIT_COLUMN not in table.header:
        test = np.zeros(n, dtype=bool)
        size = min(max(1, round(test_fraction * n)), n - 1)
        test[generator(seed, "split").permutation(n)[:size]] = True
        return test
    for cell, line in zip(table.column(_SPLIT_COLUMN), table.lines, strict=True):
        if cell not in ("train", "test"):
            raise DataError(f"{table.path}: line {line}, column 'split': must be train or test")
    return np.array([cell == "test" for cell in table.column(_SPLIT_COLUMN)])


def _paths(root: Path, table: Table, image_column: str) -> list[Path]:
    names = table.column(image_column)
    if not all(names):
        raise DataError(
            f"{table.path}: line {table.lines[names.index('')]}: the image column is empty"
        )
    if len(set(names)) != len(names):
        raise DataError(
            f"{table.path}: {len(names) - len(set(names))} rows repeat an image; "
            "give each image one row"
        )
    images = root / "images"
    return [images / name if (images / name).is_file() else root / name for name in names]


def read_table(
    root: Path,
    *,
    seed: int,
    name: str = "table",
    test_fraction: float = 0.2,
    policy: ReadPolicy | None = None,
) -> Dataset:
    """Read a folder of images with one table of labels.

    Args:
        root: the folder.
        seed: experiment seed; decides the test split where the table has no ``split`` column.
        name: what the data set is called.
        test_fraction: share of images in a drawn test split, between 0 and 1.
        policy: what to do about images that cannot be read.

    Raises:
        DataError: if the folder or table is missing or malformed, or a split is empty.
        UsageError: if ``test_fraction`` is not between 0 and 1.
    """
    if not 0 < test_fraction < 1:
        raise UsageError(f"data.test_fraction={test_fraction}: must be between 0 and 1")
    path = _find(require_root(root))
    table = read_cells(path, delimiter=_DELIMITERS[path.name], remedy=_REMEDY)
    image_column = _image_column(table)
    classes, labels = _labels(table, image_column)
    if len(table.rows) < 2:
        raise DataError(f"{table.path}: one image cannot be split in training and test")
    paths = _paths(root, table, image_column)
    is_test = _is_test(table, seed=seed, test_fraction=test_fraction)
    if is_test.all() or not is_test.any():
        missing = "train" if is_test.all() else "test"
        raise DataError(f"{table.path}: no row of split {missing}; both splits need images")
    train, test = (
        Listing(paths=tuple(paths[row] for row in np.flatnonzero(part)), labels=labels[part])
        for part in (~is_test, is_test)
    )
    return read_dataset(root, name=name, classes=classes, train=train, test=test, policy=policy)
