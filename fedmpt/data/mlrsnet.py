"""Reader of MLRSNet: 46 folders of aerial images, 60 labels.

Layout: ``Images/<category>/<category>_00001.jpg`` and one table a category,
``Labels/<category>.csv``, with the columns ``image`` and one 0/1 column a label. Copies spell
folders differently (``labels``, ``harbor_port`` for ``harbor&port``, ``swimmimg_pool``): folders,
tables and images are matched by their letters and digits.

There is no official split. A published one is followed where ``train`` and ``test`` lists lie at
the root or in ``annotations/`` (``.txt`` or ``.csv`` with the image in the first column, or ``.json``
with ``images``); otherwise a seeded fifth of every category becomes the test split.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from fedmpt.data.cells import Table, read_cells
from fedmpt.data.dataset import Dataset, LabelMatrix
from fedmpt.data.folder import Listing, ReadPolicy, read_dataset
from fedmpt.data.layout import (
    find_entry,
    name_key,
    prompt_name,
    require_distinct,
    require_root,
)
from fedmpt.data.published import read_named_labels
from fedmpt.errors import DataError, UsageError
from fedmpt.seeds import generator

_REMEDY = "--data-root must hold Images/<category>/ and Labels/<category>.csv"
_LABELS_MISSPELT = {"habor": "harbor"}


def _key(name: str) -> str:
    """Return what spellings of a category or of one of its images share."""
    return name_key(name).replace("swimmimg", "swimming")


def _folder(root: Path, name: str) -> Path:
    folder = find_entry(root, name)
    if folder is None or not folder.is_dir():
        raise DataError(f"{root / name}: no such folder ({name.lower()} of MLRSNet); {_REMEDY}")
    return folder


def _tables(labels: Path) -> list[Table]:
    paths = sorted(path for path in labels.iterdir() if path.suffix.lower() == ".csv")
    if not paths:
        raise DataError(f"{labels}: holds no table; {_REMEDY}")
    tables = [read_cells(path, remedy=_REMEDY) for path in paths]
    for table in tables:
        if table.header[0].lower() != "image":
            raise DataError(f"{table.path}: the first column must be called image; {_REMEDY}")
        if table.header[1:] != tables[0].header[1:]:
            raise DataError(
                f"{table.path}: its columns differ from those of {tables[0].path.name}; "
                "all tables must list the same labels in one order"
            )
    return tables


def _images(table: Table, folders: dict[str, Path]) -> list[Path]:
    """Return where the images of one category lie; one that is nowhere keeps its listed name."""
    folder = folders.get(_key(table.path.stem))
    if folder is None:
        raise DataError(
            f"{table.path}: Images has no folder of that category; unpack its archive, or remove the table"
        )
    names = [row[0] for row in table.rows]
    if len({_key(name) for name in names}) != len(names):
        raise DataError(f"{table.path}: an image is listed twice; list each image once")
    there = {_key(path.stem): path for path in folder.iterdir()}
    return [
        there.get(_key(PurePosixPath(name).stem), folder / PurePosixPath(name).name)
        for name in names
    ]


def _listed(path: Path) -> set[str]:
    """Return the keys of the images that one list of a published split names."""
    if path.suffix == ".json":
        names: Iterable[str] = read_named_labels(path).images
    else:
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                names = [row[0].strip() for row in csv.reader(file) if row and row[0].strip()]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path}: cannot be read as a list of images") from error
    return {_key(PurePosixPath(name.replace("\\", "/")).stem) for name in names} - {"image"}


def _published_split(
    root: Path, paths: list[Path]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
    """Return bool ``[n]`` each, which images are of the training and of the test split; None without lists."""
    for folder in (root, root / "annotations"):
        for suffix in (".json", ".txt", ".csv"):
            train, test = folder / f"train{suffix}", folder / f"test{suffix}"
            if train.is_file() != test.is_file():
                there, lacking = (train, test) if train.is_file() else (test, train)
                raise DataError(
                    f"{there}: {lacking.name} is not beside it; a split needs both lists"
                )
            if train.is_file():
                keys = [_key(path.stem) for path in paths]
                of_train, of_test = _listed(train), _listed(test)
                unknown = len((of_train | of_test) - set(keys))
                both = len(of_train & of_test)
                if unknown or both:
                    raise DataError(
                        f"{folder}: the lists of the split name {unknown} images without labels "
                        f"and {both} images twice; they must fit Labels/"
                    )
                return (
                    np.array([key in of_train for key in keys]),
                    np.array([key in of_test for key in keys]),
                )
    return None


def _drawn_split(
    categories: NDArray[np.int64], *, seed: int, test_fraction: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return bool ``[n]`` each for a seeded split that takes the same share of every category."""
    test = np.zeros(len(categories), dtype=bool)
    for category in np.unique(categories):
        members = np.flatnonzero(categories == category)
        size = round(test_fraction * len(members))
        order = generator(seed, "split", int(category)).permutation(len(members))
        test[members[order[:size]]] = True
    return ~test, test


def _halves(
    categories: NDArray[np.int64],
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return bool ``[n]`` each: the first half of the categories to train on, the others to test on."""
    train = categories < (categories.max() + 1) // 2
    return train, ~train


def read_mlrsnet(
    root: Path,
    *,
    seed: int,
    name: str = "mlrsnet",
    test_fraction: float = 0.2,
    by_category: bool = False,
    policy: ReadPolicy | None = None,
) -> Dataset:
    """Read MLRSNet.

    Args:
        root: the data set's folder.
        seed: experiment seed; decides the test split where no lists are given.
        name: what the data set is called.
        test_fraction: share of every category in a drawn test split, between 0 and 1.
        by_category: whether whole categories are kept for the test, in the order of their names, as the paper's
            released code does; no list is followed then.
        policy: what to do about images that cannot be read.

    Raises:
        DataError: if a folder, table or list is missing or malformed, or a split is empty.
        UsageError: if ``test_fraction`` is not between 0 and 1.
    """
    if not 0 < test_fraction < 1:
        raise UsageError(f"data.test_fraction={test_fraction}: must be between 0 and 1")
    require_root(root)
    images, tables = _folder(root, "Images"), _tables(_folder(root, "Labels"))
    folders = {_key(path.name): path for path in sorted(images.iterdir()) if path.is_dir()}
    paths: list[Path] = []
    for table in tables:
        paths += _images(table, folders)
    labelled = {_key(table.path.stem) for table in tables}
    unlabelled = sum(
        len(list(folder.iterdir())) for key, folder in folders.items() if key not in labelled
    )
    width = len(tables[0].header)
    labels: LabelMatrix = np.vstack([table.labels(range(1, width)) for table in tables])  # [n, C]
    categories = np.repeat(np.arange(len(tables)), [len(table.rows) for table in tables])
    if by_category:
        parts = _halves(categories)
    else:
        parts = _published_split(root, paths) or _drawn_split(
            categories, seed=seed, test_fraction=test_fraction
        )
    left_out = {
        "in neither list of the split": int((~parts[0] & ~parts[1]).sum()),
        "in a folder without a table of labels": unlabelled,
    }
    if not parts[0].any() or not parts[1].any():
        raise DataError(f"{root}: the training or the test split is empty; give more images")
    train, test = (
        Listing(
            paths=tuple(paths[row] for row in np.flatnonzero(part)),
            labels=labels[part],
            left_out=counted,
        )
        for part, counted in zip(
            parts, (tuple(item for item in left_out.items() if item[1]), ()), strict=True
        )
    )
    classes = [prompt_name(item) for item in tables[0].header[1:]]
    return read_dataset(
        root,
        name=name,
        classes=require_distinct(
            [_LABELS_MISSPELT.get(item, item) for item in classes], where=str(tables[0].path)
        ),
        train=train,
        test=test,
        policy=policy,
    )
