"""Reader of data sets in COCO's instances format.

Two layouts are read:

- plain: ``instances_train.json``, ``instances_test.json`` and ``images/``;
- official: ``annotations/instances_{train,val}2014.json``, ``train2014/``, ``val2014/`` (val is the
  test split).

Category ids (91 with gaps in COCO) become contiguous labels in order of id. A class is present if
any annotation of the image has it, crowds included unless switched off. Annotations of images that
the file does not list are ignored, so lists that name a subset of the images work.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from fedmpt.data.dataset import Dataset, LabelMatrix
from fedmpt.data.folder import (
    Listing,
    ReadPolicy,
    prompt_name,
    read_splits,
    require_distinct,
    require_file,
    require_folder,
)
from fedmpt.errors import DataError


class _Image(msgspec.Struct, frozen=True, gc=False):
    id: int | str
    file_name: str


class _Annotation(msgspec.Struct, frozen=True, gc=False):
    image_id: int | str
    category_id: int
    iscrowd: int = 0


class _Category(msgspec.Struct, frozen=True, gc=False):
    id: int
    name: str


class _Instances(msgspec.Struct, frozen=True):
    """What is read of an instances file; boxes, polygons and licences are passed over."""

    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Source:
    """Where one split lies."""

    instances: Path
    images: Path


_PLAIN_REMEDY = (
    "--data-root must hold instances_train.json, instances_test.json and images/, "
    "or COCO 2014 as published (annotations/, train2014/, val2014/)"
)
_OFFICIAL_REMEDY = (
    "--data-root must hold annotations/instances_train2014.json, "
    "annotations/instances_val2014.json, train2014/ and val2014/"
)


def _official(root: Path, *, remedy: str) -> tuple[_Source, _Source]:
    annotations = require_folder(root / "annotations", what="COCO annotations", remedy=remedy)
    train, test = (
        _Source(
            instances=annotations / f"instances_{part}2014.json",
            images=root / f"{part}2014",
        )
        for part in ("train", "val")
    )
    return train, test


def _plain(root: Path) -> tuple[_Source, _Source]:
    images = root / "images"
    return (
        _Source(instances=root / "instances_train.json", images=images),
        _Source(instances=root / "instances_test.json", images=images),
    )


def _parse(source: _Source, *, remedy: str) -> _Instances:
    require_file(source.instances, what="COCO instances", remedy=remedy)
    require_folder(source.images, what="images of a COCO data set", remedy=remedy)
    try:
        return msgspec.json.decode(source.instances.read_bytes(), type=_Instances)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        message = (
            f"{source.instances}: not a COCO instances file ({reason}); "
            "images, annotations and categories are needed"
        )
    raise DataError(message)


def _category_names(instances: _Instances, *, where: Path) -> dict[int, str]:
    """Return category names by id, in order of id."""
    names = {category.id: prompt_name(category.name) for category in instances.categories}
    if len(names) != len(instances.categories):
        raise DataError(f"{where}: two categories have the same id; give each its own")
    return dict(sorted(names.items()))


def _listing(
    instances: _Instances,
    source: _Source,
    *,
    columns: dict[int, int],
    crowd: bool,
    labelled_only: bool,
) -> Listing:
    rows = {image.id: row for row, image in enumerate(instances.images)}
    if len(rows) != len(instances.images):
        raise DataError(f"{source.instances}: two images have the same id; give each its own")
    labels: LabelMatrix = np.zeros((len(rows), len(columns)), dtype=np.int8)  # [n, C]
    for annotation in instances.annotations:
        column = columns.get(annotation.category_id)
        if column is None:
            raise DataError(
                f"{source.instances}: an annotation has category_id {annotation.category_id}, "
                "which categories do not list; add the category or remove the annotation"
            )
        row = rows.get(annotation.image_id)
        if row is not None and (crowd or not annotation.iscrowd):
            labels[row, column] = 1
    paths = [source.images / image.file_name for image in instances.images]
    keep = np.flatnonzero(labels.any(axis=1)) if labelled_only else np.arange(len(paths))
    return Listing(paths=tuple(paths[row] for row in keep), labels=labels[keep])


def read_coco(
    root: Path,
    *,
    name: str = "coco",
    official_only: bool = False,
    crowd: bool = True,
    labelled_only: bool = False,
    policy: ReadPolicy | None = None,
) -> Dataset:
    """Read a data set in COCO's instances format.

    Args:
        root: the data set's folder.
        name: what the data set is called.
        official_only: read only COCO 2014 as published, not the plain layout.
        crowd: whether an annotation of a crowd makes its class present (DualCoOp and ASL: yes).
        labelled_only: leave out images without any positive (82,081 and 40,137 instead of 82,783
            and 40,504 images).
        policy: what to do about images that cannot be read.

    Raises:
        DataError: if a folder or file is missing or malformed, or if the test categories differ
            from the training ones.
    """
    require_folder(root, what="data root", remedy="give the data set's folder with --data-root")
    plain = not official_only and (
        (root / "instances_train.json").is_file() or not (root / "annotations").is_dir()
    )
    remedy = _OFFICIAL_REMEDY if official_only else _PLAIN_REMEDY
    sources = _plain(root) if plain else _official(root, remedy=remedy)
    parsed = [_parse(source, remedy=remedy) for source in sources]
    categories, test_categories = (
        _category_names(instances, where=source.instances)
        for instances, source in zip(parsed, sources, strict=True)
    )
    if categories != test_categories:
        raise DataError(
            f"{sources[1].instances}: its categories differ from those of "
            f"{sources[0].instances.name}; both files must list the same ids and names"
        )
    classes = require_distinct(list(categories.values()), where=str(sources[0].instances))
    columns = {category: column for column, category in enumerate(categories)}
    train, test = (
        _listing(instances, source, columns=columns, crowd=crowd, labelled_only=labelled_only)
        for instances, source in zip(parsed, sources, strict=True)
    )
    train_split, test_split = read_splits(
        root, train=train, test=test, policy=policy or ReadPolicy()
    )
    return Dataset(name=name, classes=classes, train=train_split, test=test_split)
