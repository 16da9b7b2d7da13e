"""Published lists of images for zero-shot benchmarks, in the formats that circulate.

- *Named labels* (RAM): JSON ``{"images": [[path, [label, ...]], ...], "classes": [...]}`` with a
  label repeated for every instance and with image paths of another machine.
- *Arrays* (DualCoOp, NUS-WIDE): two NumPy files, image paths and 0/1 labels, beside a text file of
  class names.

COCO's third format, an instances file of the split, is read by `fedmpt.data.coco`. The files
``cls_ids.pickle`` and ``cls_id.pickle`` that come with these lists are never opened: a pickle can
run code, and which classes are seen follows from their names.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from fedmpt.data.dataset import Dataset, HeldOut, LabelMatrix, Protocol
from fedmpt.data.folder import Listing, ReadPolicy, read_dataset
from fedmpt.data.layout import find_by_name, prompt_name, require_distinct, require_file
from fedmpt.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageList:
    """One published list.

    Attributes:
        path: the file.
        images: image paths as listed, often of another machine.
        classes: names of classes in label order.
        labels: int8 ``[n, C]``, 1 present, 0 absent.
    """

    path: Path
    images: tuple[str, ...]
    classes: tuple[str, ...]
    labels: LabelMatrix


class _NamedLabels(msgspec.Struct, frozen=True):
    images: list[tuple[str, list[str]]]
    classes: list[str]


def read_named_labels(path: Path) -> ImageList:
    """Read a list of images with named labels; labels of classes that it does not list are passed over.

    Raises:
        DataError: if the file cannot be read as such a list.
    """
    try:
        content = msgspec.json.decode(path.read_bytes(), type=_NamedLabels)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        message = (
            f"{path}: not a list of images with labels ({reason}); "
            'it must read {"images": [[path, [label, ...]], ...], "classes": [...]}'
        )
    else:
        classes = require_distinct([prompt_name(name) for name in content.classes], where=str(path))
        columns = {name: column for column, name in enumerate(classes)}
        labels: LabelMatrix = np.zeros((len(content.images), len(classes)), dtype=np.int8)  # [n, C]
        for row, (_, names) in enumerate(content.images):
            present = {columns.get(prompt_name(name)) for name in names} - {None}
            labels[row, [column for column in present if column is not None]] = 1
        images = tuple(image for image, _ in content.images)
        return ImageList(path=path, images=images, classes=classes, labels=labels)
    raise DataError(message)


def read_arrays(
    images_path: Path, labels_path: Path, *, names: Sequence[str], keep: Collection[str]
) -> ImageList:
    """Read a list of images kept as two NumPy files.

    Args:
        images_path: ``[n]`` texts, image paths.
        labels_path: ``[n, C]`` of 0 and 1; a column for every one of ``names`` or of ``keep``.
        names: names of all classes, in label order.
        keep: the classes of this list.

    Raises:
        DataError: if a file is missing, needs unpickling, or the shapes do not fit.
    """
    images, values = (_load(path) for path in (images_path, labels_path))
    kept = [column for column, name in enumerate(names) if name in keep]
    if images.ndim != 1 or images.dtype.kind != "U":
        raise DataError(
            f"{images_path}: must be one row of texts; it is {images.dtype} of shape {images.shape}"
        )
    if values.ndim == 2 and values.shape[1] == len(names):
        values = values[:, kept]
    if values.shape != (len(images), len(kept)):
        raise DataError(
            f"{labels_path}: must be {len(images)} rows (as {images_path.name}) of {len(kept)} or "
            f"{len(names)} labels; its shape is {values.shape}"
        )
    if not np.isin(values, (0, 1)).all():
        raise DataError(f"{labels_path}: holds other values than 0 and 1; fetch it again")
    return ImageList(
        path=images_path,
        images=tuple(images.tolist()),
        classes=tuple(names[column] for column in kept),
        labels=values.astype(np.int8),
    )


def _load(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    require_file(path, what="zero-shot list", remedy="fetch the data set's annotations/zsl again")
    try:
        return np.load(path, allow_pickle=False)  # type: ignore[no-any-return]
    except (OSError, ValueError, EOFError) as error:
        message = (
            f"{path}: cannot be read without unpickling ({type(error).__name__}), which could run "
            "code; save it again as plain text or numbers"
        )
    raise DataError(message)


def hold_out_lists(
    root: Path,
    *,
    name: str,
    protocol: Protocol,
    lists: tuple[ImageList, ImageList],
    folders: Sequence[Path],
    policy: ReadPolicy | None,
) -> Dataset:
    """Return the zero-shot data set of two published lists; images are found by file name.

    Args:
        root: the data set's folder.
        name: what the data set is called.
        protocol: ``fzsl`` or ``fgzsl``.
        lists: of training images over the seen classes, and of test images over the unseen or, for
            ``fgzsl``, all classes.
        folders: where images lie.
        policy: what to do about images that cannot be read.

    Raises:
        DataError: if the classes of the two lists do not fit the protocol.
    """
    train, test = lists
    seen = set(train.classes)
    unseen = tuple(item for item in test.classes if item not in seen)
    shared = len(test.classes) - len(unseen)
    expected = len(seen) if protocol == "fgzsl" else 0
    if shared != expected or not unseen:
        raise DataError(
            f"{test.path}: shares {shared} of its {len(test.classes)} classes with "
            f"{train.path.name}, and {protocol} needs {expected} shared and at least one unseen; "
            "take both files from one split"
        )
    places = find_by_name(train.images + test.images, folders)
    boundary = len(train.images)
    return read_dataset(
        root,
        name=name,
        classes=train.classes,
        train=Listing(paths=tuple(places[:boundary]), labels=train.labels),
        test=Listing(paths=tuple(places[boundary:]), labels=test.labels),
        policy=policy,
        held_out=HeldOut(
            protocol=protocol,
            unseen=unseen,
            scored=test.classes,
            source=f"published lists {train.path.name} and {test.path.name}",
        ),
    )
