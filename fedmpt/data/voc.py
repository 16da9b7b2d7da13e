"""Reader of Pascal VOC: XML annotations beside lists of image ids.

A *tree* is a folder with ``ImageSets/Main/``, ``Annotations/`` and ``JPEGImages/``. Trees are
looked for at and up to three levels below the root, so ``VOCdevkit/VOC2007``, its parent and its
grandparent all work, and so do two trees unpacked side by side (training in one, test in the
other). Without a ``test.txt`` (VOC2012), ``train.txt`` and ``val.txt`` are used.

Objects marked difficult do not count by default: an image with nothing but difficult instances of a
class is a negative for it (as in DualCoOp). ``ignore`` makes it unknown, as VOC's own scoring does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias
from xml.etree import ElementTree

import numpy as np

from fedmpt.data.class_names import VOC_CLASSES
from fedmpt.data.dataset import Dataset, LabelMatrix
from fedmpt.data.folder import Listing, ReadPolicy, read_dataset
from fedmpt.data.layout import prompt_name, require_distinct, require_folder, require_root
from fedmpt.errors import DataError, UsageError

Difficult: TypeAlias = Literal["negative", "positive", "ignore"]

SPOKEN = {"diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "tv monitor"}

# What an image shows of a class: difficult instances only, or at least one that is not.
_ONLY_DIFFICULT, _CLEAR = 0, 1
_LEVELS = ("", "*/", "*/*/", "*/*/*/")
_REMEDY = (
    "--data-root must hold VOCdevkit/VOC2007 with JPEGImages/, Annotations/ and ImageSets/Main/"
)


def _trees(root: Path) -> list[Path]:
    """Return the folders at or below ``root`` that hold ``ImageSets/Main``, sorted."""
    mains = {main for level in _LEVELS for main in root.glob(f"{level}ImageSets/Main")}
    return sorted(main.parent.parent for main in mains if main.is_dir())


def _is_2007(tree: Path) -> bool:
    """Tell whether a tree may be of VOC2007: its name says so or says no year."""
    years = re.findall(r"(?:19|20)\d\d", tree.name)
    return not years or "2007" in years


def _only(trees: Sequence[Path], list_name: str, *, root: Path) -> Path | None:
    """Return the one tree with this list, None without any."""
    holders = [tree for tree in trees if (tree / "ImageSets" / "Main" / list_name).is_file()]
    if len(holders) > 1:
        raise DataError(
            f"{root}: {len(holders)} trees hold ImageSets/Main/{list_name}; "
            "point --data-root at the one to use"
        )
    return holders[0] if holders else None


def _locate(root: Path, *, year_2007: bool) -> tuple[tuple[Path, str], tuple[Path, str]]:
    """Return (tree, list name) of the training and of the test split."""
    trees = [tree for tree in _trees(root) if not year_2007 or _is_2007(tree)]
    if not trees:
        raise DataError(f"{root}: no folder with ImageSets/Main in it was found; {_REMEDY}")
    pairs = [("trainval.txt", "test.txt")]
    if not year_2007:
        pairs.append(("train.txt", "val.txt"))
    for train_list, test_list in pairs:
        train, test = _only(trees, train_list, root=root), _only(trees, test_list, root=root)
        if train is not None and test is not None:
            return (train, train_list), (test, test_list)
    wanted = " or ".join(f"{train} and {test}" for train, test in pairs)
    raise DataError(f"{root}: ImageSets/Main lacks {wanted}; unpack both archives there")


def _read_ids(tree: Path, list_name: str) -> list[str]:
    path = tree / "ImageSets" / "Main" / list_name
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the list of images cannot be read; unpack it again") from error
    ids = [line.split()[0] for line in lines if line.strip()]
    if not ids:
        raise DataError(f"{path}: the list of images is empty; unpack it again")
    if len(set(ids)) != len(ids):
        raise DataError(f"{path}: an image is listed twice; list each image once")
    return ids


def _read_objects(path: Path) -> dict[str, int] | None:
    """Return what one annotation says of each class that it names; None if it cannot be read."""
    try:
        text = path.read_bytes()
        if (
            b"<!DOCTYPE" in text or b"<!ENTITY" in text
        ):  # VOC has none; entities can be made to explode
            return None
        objects = ElementTree.fromstring(text).findall("object")  # noqa: S314 - no entities, see above
        seen: dict[str, int] = {}
        for item in objects:
            name = (item.findtext("name") or "").strip()
            if not name:
                return None
            difficult = (item.findtext("difficult") or "0").strip() not in ("", "0")
            seen[name] = max(
                seen.get(name, _ONLY_DIFFICULT), _ONLY_DIFFICULT if difficult else _CLEAR
            )
    except (OSError, ElementTree.ParseError):
        return None
    return seen


def _read_annotations(tree: Path, ids: Sequence[str]) -> list[dict[str, int]]:
    folder = require_folder(tree / "Annotations", what="VOC annotations", remedy=_REMEDY)
    found = [_read_objects(folder / f"{identifier}.xml") for identifier in ids]
    objects = [item for item in found if item is not None]
    if len(objects) < len(found):
        raise DataError(
            f"{folder}: {len(found) - len(objects)} of {len(found)} annotations are missing or "
            "not VOC XML; unpack the archive again (the labels of those images are unknown)"
        )
    return objects


def _listing(
    tree: Path,
    ids: Sequence[str],
    annotations: Sequence[dict[str, int]],
    *,
    classes: Sequence[str],
    difficult: Difficult,
) -> Listing:
    images = require_folder(tree / "JPEGImages", what="VOC images", remedy=_REMEDY)
    columns = {name: column for column, name in enumerate(classes)}
    of_difficult = {"negative": 0, "positive": 1, "ignore": -1}[difficult]
    labels: LabelMatrix = np.zeros((len(ids), len(classes)), dtype=np.int8)  # [n, C]
    for row, seen in enumerate(annotations):
        for name, state in seen.items():
            if name not in columns:
                raise DataError(
                    f"{tree / 'Annotations'}: an object is called {name!r}, which is none of the "
                    f"{len(classes)} classes; use --data voc for classes of your own"
                )
            labels[row, columns[name]] = 1 if state == _CLEAR else of_difficult
    return Listing(paths=tuple(images / f"{item}.jpg" for item in ids), labels=labels)


def read_voc(
    root: Path,
    *,
    name: str = "voc",
    year_2007: bool = False,
    difficult: Difficult = "negative",
    spoken_names: bool = True,
    policy: ReadPolicy | None = None,
) -> Dataset:
    """Read a data set in the layout of Pascal VOC.

    Args:
        root: VOCdevkit, a folder above it, or one VOC tree.
        name: what the data set is called.
        year_2007: read VOC2007 only, with its 20 classes and its trainval and test lists. Otherwise
            classes are all names that the annotations of either split use, sorted.
        difficult: what an image is for a class of which it shows difficult instances only.
        spoken_names: write "dining table" for "diningtable" and the like; published baselines keep
            the raw names.
        policy: what to do about images that cannot be read.

    Raises:
        DataError: if a folder, list or annotation is missing or malformed.
        UsageError: if ``difficult`` is unknown.
    """
    if difficult not in ("negative", "positive", "ignore"):
        raise UsageError(f"difficult={difficult!r}: must be negative, positive or ignore")
    places = _locate(require_root(root), year_2007=year_2007)
    ids = [_read_ids(tree, list_name) for tree, list_name in places]
    annotations = [
        _read_annotations(tree, split_ids) for (tree, _), split_ids in zip(places, ids, strict=True)
    ]
    if year_2007:
        classes: tuple[str, ...] = VOC_CLASSES
    else:
        names = {item for split in annotations for seen in split for item in seen}
        classes = require_distinct(sorted(names), where=str(root))
    train, test = (
        _listing(tree, split_ids, split_annotations, classes=classes, difficult=difficult)
        for (tree, _), split_ids, split_annotations in zip(places, ids, annotations, strict=True)
    )
    spoken = [prompt_name(SPOKEN.get(item, item) if spoken_names else item) for item in classes]
    return read_dataset(
        root,
        name=name,
        classes=require_distinct(spoken, where=str(root)),
        train=train,
        test=test,
        policy=policy,
    )
