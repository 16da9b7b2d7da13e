"""Reader of MultiScene-Clean: aerial images of 36 scenes.

Layout: ``images/<stem>.jpg``, and ``Tra.csv`` and ``Test.csv`` whose first column is the stem
(``img_71``) and whose 36 further columns are 0/1. Column names are CamelCase, some misspelt
(``OilFiled``, ``SolarPannel``, ``WindTrubine``): they are read out right in prompts. Labels follow
the header's order.
"""

from __future__ import annotations

from pathlib import Path

from fedmpt.data.cells import Table, read_cells
from fedmpt.data.dataset import Dataset
from fedmpt.data.folder import Listing, ReadPolicy, read_dataset
from fedmpt.data.layout import (
    find_entry,
    name_key,
    require_distinct,
    require_file,
    require_root,
    spoken,
)
from fedmpt.errors import DataError

_CLASSES = 36
_MISSPELT = {
    "oilfiled": "oil field",
    "solarpannel": "solar panel",
    "windtrubine": "wind turbine",
    "lakeorpond": "lake or pond",
}
_REMEDY = "--data-root must hold images/, Tra.csv and Test.csv"


def _read(root: Path, name: str) -> Table:
    path = require_file(
        find_entry(root, name) or root / name, what="labels of MultiScene", remedy=_REMEDY
    )
    table = read_cells(path, remedy=_REMEDY)
    if len(table.header) != _CLASSES + 1:
        raise DataError(
            f"{path}: the header has {len(table.header)} columns and must have the stem and "
            f"{_CLASSES} scenes; use --data table for labels of your own"
        )
    return table


def _listing(table: Table, images: Path) -> Listing:
    stems = [row[0] for row in table.rows]
    if len(set(stems)) != len(stems):
        raise DataError(f"{table.path}: an image is listed twice; list each image once")
    return Listing(
        paths=tuple(images / (stem if Path(stem).suffix else f"{stem}.jpg") for stem in stems),
        labels=table.labels(range(1, _CLASSES + 1)),
    )


def read_multiscene(
    root: Path, *, name: str = "multiscene", policy: ReadPolicy | None = None
) -> Dataset:
    """Read MultiScene-Clean.

    Args:
        root: the data set's folder.
        name: what the data set is called.
        policy: what to do about images that cannot be read.

    Raises:
        DataError: if a folder or table is missing or malformed, or the headers differ.
    """
    require_root(root)
    images = find_entry(root, "images")
    if images is None or not images.is_dir():
        raise DataError(f"{root / 'images'}: no such folder (images of MultiScene); {_REMEDY}")
    train, test = (_read(root, table) for table in ("Tra.csv", "Test.csv"))
    if train.header[1:] != test.header[1:]:
        raise DataError(
            f"{test.path}: its columns differ from those of {train.path.name}; "
            "both tables must list the same scenes in one order"
        )
    classes = [_MISSPELT.get(name_key(item), spoken(item)) for item in train.header[1:]]
    return read_dataset(
        root,
        name=name,
        classes=require_distinct(classes, where=str(train.path)),
        train=_listing(train, images),
        test=_listing(test, images),
        policy=policy,
    )
