"""Reader of data sets in COCO's instances format.

Three layouts are read:

- plain: ``instances_train.json``, ``instances_test.json`` and ``images/``;
- official: ``annotations/instances_{train,val}2014.json``, ``train2014/``, ``val2014/`` (val is the
  test split), or the same with 2017;
- as annotation tools export it: ``train/_annotations.coco.json`` beside the images, and ``test/`` or
  ``valid/`` likewise.

Category ids (91 with gaps in COCO) become contiguous labels in order of id. A class is present if
any annotation of the image has it, crowds included unless switched off. Annotations of images that
the file does not list are ignored, so lists that name a subset of the images work.

For zero-shot protocols, the published lists of the split into 48 seen and 17 unseen classes are
read in both formats that circulate. They are a sample of COCO's images: a split drawn here gives
other figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from fedmpt.data.class_names import COCO_SEEN_48, COCO_UNSEEN_17
from fedmpt.data.dataset import Dataset, LabelMatrix, Protocol
from fedmpt.data.folder import Listing, ReadPolicy, read_dataset
from fedmpt.data.layout import (
    prompt_name,
    require_distinct,
    require_file,
    require_folder,
    require_root,
)
from fedmpt.data.published import ImageList, hold_out_lists, read_named_labels
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


_REMEDY = (
    "--data-root must hold instances_train.json, instances_test.json and images/, or COCO 2014 as "
    "published (annotations/, train2014/, val2014/), or train/ and test/ with _annotations.coco.json"
)
_OFFICIAL_REMEDY = (
    "--data-root must hold annotations/instances_train2014.json, "
    "annotations/instances_val2014.json, train2014/ and val2014/"
)


def _official(root: Path, year: int) -> tuple[_Source, _Source]:
    train, test = (
        _Source(
            instances=root / "annotations" / f"instances_{part}{year}.json",
            images=root / f"{part}{year}",
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


def _exported(root: Path) -> tuple[_Source, _Source]:
    test = root / ("test" if (root / "test").is_dir() else "valid")
    return (
        _Source(instances=root / "train" / "_annotations.coco.json", images=root / "train"),
        _Source(instances=test / "_annotations.coco.json", images=test),
    )


def _sources(root: Path, *, official_only: bool) -> tuple[_Source, _Source]:
    """Return training and test split of the layout of which the training list is there, else of the first one."""
    official = _official(root, 2014)
    if official_only:
        return official
    layouts = (_plain(root), official, _official(root, 2017), _exported(root))
    return next((item for item in layouts if item[0].instances.is_file()), layouts[0])


def _parse(path: Path, *, remedy: str) -> _Instances:
    require_file(path, what="COCO instances", remedy=remedy)
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Instances)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        message = (
            f"{path}: not a COCO instances file ({reason}); "
            "images, annotations and categories are needed"
        )
    raise DataError(message)


def _category_names(instances: _Instances, *, where: Path) -> dict[int, str]:
    """Return category names by id, in order of id."""
    names = {category.id: prompt_name(category.name) for category in instances.categories}
    if len(names) != len(instances.categories):
        raise DataError(f"{where}: two categories have the same id; give each its own")
    return dict(sorted(names.items()))


def _labels(
    instances: _Instances, *, path: Path, columns: dict[int, int], crowd: bool
) -> LabelMatrix:
    """Return int8 ``[n, C]``; ``columns`` has every category, -1 for one that is no label."""
    rows = {image.id: row for row, image in enumerate(instances.images)}
    if len(rows) != len(instances.images):
        raise DataError(f"{path}: two images have the same id; give each its own")
    width = max(columns.values(), default=-1) + 1
    labels: LabelMatrix = np.zeros((len(rows), width), dtype=np.int8)  # [n, C]
    for annotation in instances.annotations:
        column = columns.get(annotation.category_id)
        if column is None:
            raise DataError(
                f"{path}: an annotation has category_id {annotation.category_id}, "
                "which categories do not list; add the category or remove the annotation"
            )
        row = rows.get(annotation.image_id)
        if row is not None and column >= 0 and (crowd or not annotation.iscrowd):
            labels[row, column] = 1
    return labels


def _instances_list(path: Path, *, keep: tuple[str, ...], crowd: bool) -> ImageList:
    """Read an instances file of the 48/17 split.

    Its category ids are its own, so classes are matched by name; images without an annotation of a
    kept class are no part of the split.
    """
    instances = _parse(path, remedy="fetch the lists of the 48/17 split again")
    names = _category_names(instances, where=path)
    kept = [identifier for identifier, name in names.items() if name in keep]
    columns = {
        identifier: kept.index(identifier) if identifier in kept else -1 for identifier in names
    }
    labels = _labels(instances, path=path, columns=columns, crowd=crowd)
    present: NDArray[np.bool_] = (labels == 1).any(axis=1)
    return ImageList(
        path=path,
        images=tuple(
            image.file_name for image, shown in zip(instances.images, present, strict=True) if shown
        ),
        classes=require_distinct([names[identifier] for identifier in kept], where=str(path)),
        labels=labels[present],
    )


def _published(
    root: Path, protocol: Protocol, *, crowd: bool
) -> tuple[ImageList, ImageList] | None:
    """Return the lists of the 48/17 split where they lie below ``root``, None where they do not."""
    test_name = "test_17_filtered.json" if protocol == "fzsl" else "test_65_filtered.json"
    part = "unseen" if protocol == "fzsl" else "gzsi"
    tested = COCO_UNSEEN_17 if protocol == "fzsl" else COCO_SEEN_48 + COCO_UNSEEN_17
    for folder in (root / "annotations", root / "annotations" / "ZSIS", root):
        train = folder / "train_48_filtered.json"
        if train.is_file():
            test = require_file(
                folder / test_name, what=f"test list of {protocol}", remedy="put it there"
            )
            return read_named_labels(train), read_named_labels(test)
        train = folder / "instances_train2014_seen_48_17.json"
        if train.is_file():
            test = folder / f"instances_val2014_{part}_48_17.json"
            return (
                _instances_list(train, keep=COCO_SEEN_48, crowd=crowd),
                _instances_list(test, keep=tested, crowd=crowd),
            )
    return None


def read_coco(
    root: Path,
    *,
    name: str = "coco",
    official_only: bool = False,
    crowd: bool = True,
    protocol: Protocol = "standard",
    policy: ReadPolicy | None = None,
) -> Dataset:
    """Read a data set in COCO's instances format.

    Args:
        root: the data set's folder.
        name: what the data set is called.
        official_only: read only COCO 2014 as published, no other layout.
        crowd: whether an annotation of a crowd makes its class present (DualCoOp and ASL: yes).
        protocol: for a zero-shot protocol, published lists are read where they are found; without
            them the whole data set is returned.
        policy: what to do about images that cannot be read.

    Raises:
        DataError: if a folder or file is missing or malformed, or if the test categories differ
            from the training ones.
    """
    require_root(root)
    lists = None if protocol == "standard" else _published(root, protocol, crowd=crowd)
    if lists is not None:
        folders = [root / folder for folder in ("train2014", "val2014", "images")]
        return hold_out_lists(
            root,
            name=name,
            protocol=protocol,
            lists=lists,
            folders=[folder for folder in folders if folder.is_dir()] or folders[:1],
            policy=policy,
        )
    remedy = _OFFICIAL_REMEDY if official_only else _REMEDY
    sources = _sources(root, official_only=official_only)
    parsed = [_parse(source.instances, remedy=remedy) for source in sources]
    for source in sources:
        require_folder(source.images, what="images of a COCO data set", remedy=remedy)
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
        Listing(
            paths=tuple(source.images / image.file_name for image in instances.images),
            labels=_labels(instances, path=source.instances, columns=columns, crowd=crowd),
        )
        for instances, source in zip(parsed, sources, strict=True)
    )
    return read_dataset(root, name=name, classes=classes, train=train, test=test, policy=policy)
