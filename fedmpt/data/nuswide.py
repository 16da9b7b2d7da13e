r"""Reader of NUS-WIDE: 81 concepts, the official lists, images under ``Flickr/``.

Official layout::

    ImageList/TrainImagelist.txt, TestImagelist.txt       folder\file.jpg, a line an image
    Groundtruth/TrainTestLabels/Labels_<concept>_Train.txt, ..._Test.txt      0 or 1, a line an image
    ConceptsList/Concepts81.txt
    Flickr/<folder>/<file>.jpg

``TrainTestLabels`` may lie beside ``ImageList``, ``Concepts81.txt`` at the top or be missing, and
images in ``images/``, in folders or flat. Images are fetched from their authors' pages, so a copy
always lacks some: they are counted, never passed over in silence.

For zero-shot protocols (925 tags seen, 81 concepts unseen) the published lists are needed; both
formats that circulate are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from fedmpt.data.class_names import NUS_CONCEPTS
from fedmpt.data.dataset import Dataset, LabelMatrix, Protocol
from fedmpt.data.folder import Listing, ReadPolicy, read_dataset
from fedmpt.data.layout import (
    find_entry,
    prompt_name,
    require_distinct,
    require_file,
    require_folder,
    require_root,
)
from fedmpt.data.published import ImageList, hold_out_lists, read_arrays, read_named_labels
from fedmpt.errors import DataError

_REMEDY = (
    "--data-root must hold ImageList/, TrainTestLabels/ (or Groundtruth/TrainTestLabels/) and "
    "Flickr/ (or images/)"
)
_ZERO_SHOT_REMEDY = (
    "the 925/81 split needs its published lists: annotations/train_925_filtered.json with "
    "test_81_filtered.json and test_1006_filtered.json, or annotations/zsl/formatted_*.npy with "
    "annotations/Tag_all/all_labels.txt; for a split of the 81 concepts name some in data.unseen"
)
# DualCoOp's two lists for each part; of the test lists, the one that its published figures use.
_ARRAYS = {
    "train": ("formatted_train_images_filtered", "formatted_train_all_labels_filtered"),
    "fzsl": ("formatted_val_images_filtered", "formatted_val_all_labels_filtered"),
    "fgzsl": (
        "formatted_val_gzsl_images_filtered_small",
        "formatted_val_gzsl_labels_filtered_small",
    ),
}


def _lines(path: Path, *, what: str) -> list[str]:
    require_file(path, what=what, remedy=_REMEDY)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text; fetch it again") from error
    return [line.strip() for line in lines if line.strip()]


def _tokens(path: Path) -> NDArray[np.bytes_]:
    """Return the words of a file; as bytes, since the label files hold 22 million in all."""
    require_file(path, what="labels of NUS-WIDE", remedy=_REMEDY)
    try:
        return np.array(path.read_bytes().split(), dtype="S2")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); fetch it again") from error


def _image_folder(root: Path) -> Path:
    folder = find_entry(root, "Flickr", "images")
    if folder is None or not folder.is_dir():
        raise DataError(f"{root / 'Flickr'}: no such folder (images of NUS-WIDE); {_REMEDY}")
    return folder


def _concepts(root: Path, labels: Path) -> tuple[str, ...]:
    """Return the concepts in the official order, or the order of the file that lists them."""
    for path in (root / "ConceptsList" / "Concepts81.txt", root / "Concepts81.txt"):
        if path.is_file():
            return require_distinct(_lines(path, what="concepts"), where=str(path))
    there = {
        path.name.removeprefix("Labels_").removesuffix("_Train.txt")
        for path in labels.glob("Labels_*_Train.txt")
    }
    if there != set(NUS_CONCEPTS):
        raise DataError(
            f"{labels}: holds labels of {len(there & set(NUS_CONCEPTS))} of the 81 concepts and of "
            f"{len(there - set(NUS_CONCEPTS))} others; unpack the archive again, or add Concepts81.txt"
        )
    return NUS_CONCEPTS


def _labels(folder: Path, concepts: Sequence[str], part: str, *, n: int) -> LabelMatrix:
    labels: LabelMatrix = np.zeros((n, len(concepts)), dtype=np.int8)  # [n, C]
    for column, concept in enumerate(concepts):
        path = folder / f"Labels_{concept}_{part}.txt"
        values = _tokens(path)
        if len(values) != n:
            raise DataError(
                f"{path}: has {len(values)} labels and the {part.lower()} list {n} images; "
                "both must come from one distribution"
            )
        if not np.isin(values, (b"0", b"1")).all():
            raise DataError(f"{path}: holds other values than 0 and 1; fetch it again")
        labels[:, column] = values == b"1"
    return labels


def _official(root: Path, *, name: str, policy: ReadPolicy | None) -> Dataset:
    lists = require_folder(root / "ImageList", what="lists of images", remedy=_REMEDY)
    folder = root / "TrainTestLabels"
    if not folder.is_dir():
        folder = require_folder(
            root / "Groundtruth" / "TrainTestLabels", what="labels of NUS-WIDE", remedy=_REMEDY
        )
    concepts = _concepts(root, folder)
    images = _image_folder(root)
    flat = not any(entry.is_dir() for entry in images.iterdir())
    listings = []
    for part in ("Train", "Test"):
        listed = _lines(lists / f"{part}Imagelist.txt", what="list of images")
        relative = [PurePosixPath(line.replace("\\", "/")) for line in listed]
        listings.append(
            Listing(
                paths=tuple(images / (path.name if flat else path) for path in relative),
                labels=_labels(folder, concepts, part, n=len(listed)),
            )
        )
    return read_dataset(
        root,
        name=name,
        classes=require_distinct([prompt_name(item) for item in concepts], where=str(root)),
        train=listings[0],
        test=listings[1],
        policy=policy,
    )


def _named_lists(root: Path, protocol: Protocol) -> tuple[ImageList, ImageList] | None:
    test_name = "test_81_filtered.json" if protocol == "fzsl" else "test_1006_filtered.json"
    for folder in (root / "annotations", root):
        # The list of the 925 tags was released under the other name; its classes tell which it is.
        for train in (folder / "train_925_filtered.json", folder / "train_81_filtered.json"):
            if train.is_file():
                test = require_file(
                    folder / test_name, what=f"test list of {protocol}", remedy=_ZERO_SHOT_REMEDY
                )
                return read_named_labels(train), read_named_labels(test)
    return None


def _array_lists(root: Path, protocol: Protocol) -> tuple[ImageList, ImageList] | None:
    folder = root / "annotations" / "zsl"
    if not folder.is_dir():
        return None
    path = root / "annotations" / "Tag_all" / "all_labels.txt"
    names = require_distinct(
        [prompt_name(line) for line in _lines(path, what="names of classes")], where=str(path)
    )
    lacking = len(set(NUS_CONCEPTS) - set(names))
    if lacking:
        raise DataError(
            f"{path}: lacks {lacking} of the 81 concepts, which are the unseen classes; fetch it again"
        )
    seen = set(names) - set(NUS_CONCEPTS)
    kept = {"train": seen, "fzsl": set(NUS_CONCEPTS), "fgzsl": set(names)}
    train, test = (
        read_arrays(
            folder / f"{_ARRAYS[part][0]}.npy",
            folder / f"{_ARRAYS[part][1]}.npy",
            names=names,
            keep=kept[part],
        )
        for part in ("train", protocol)
    )
    return train, test


def read_nuswide(
    root: Path,
    *,
    name: str = "nuswide",
    protocol: Protocol = "standard",
    policy: ReadPolicy | None = None,
) -> Dataset:
    """Read NUS-WIDE.

    Args:
        root: the data set's folder.
        name: what the data set is called.
        protocol: ``standard`` reads the official lists, ``fzsl`` and ``fgzsl`` the 925/81 ones.
        policy: what to do about images that cannot be read.

    Raises:
        DataError: if a folder or file is missing or malformed.
    """
    require_root(root)
    if protocol == "standard":
        return _official(root, name=name, policy=policy)
    lists = _named_lists(root, protocol) or _array_lists(root, protocol)
    if lists is None:
        raise DataError(f"{root}: no zero-shot lists; {_ZERO_SHOT_REMEDY}")
    return hold_out_lists(
        root,
        name=name,
        protocol=protocol,
        lists=lists,
        folders=[_image_folder(root)],
        policy=policy,
    )
