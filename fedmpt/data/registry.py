"""The one door to data sets by name.

``scenes`` is embedded and needs nothing; every other name reads the folder given by
``--data-root``. Readers are imported when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from fedmpt.data.dataset import Dataset
from fedmpt.data.features import cache_directory
from fedmpt.data.folder import Progress, ReadPolicy
from fedmpt.data.voc import Difficult
from fedmpt.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSettings:
    """Settings of data sets; each loader reads its own and passes over the others.

    Attributes:
        train_size: scenes: number of training images.
        test_size: scenes: number of test images.
        bias: scenes: how often a training image follows its context's law, 0 to 1.
        resolution: scenes: side of an image in pixels.
        crowd: coco: whether an annotation of a crowd makes its class present.
        labelled_only: coco: leave out images without any positive.
        difficult: voc: what an image is for a class of which it shows difficult instances only.
        spoken_names: voc: write "dining table" for "diningtable" and the like.
        test_fraction: table: share of test images where the table names no split.
        unreadable_list: folders: file to which images left out are written; it then holds file
            names.
    """

    train_size: int = 6000
    test_size: int = 1500
    bias: float = 0.8
    resolution: int = 64
    crowd: bool = True
    labelled_only: bool = False
    difficult: Difficult = "negative"
    spoken_names: bool = True
    test_fraction: float = 0.2
    unreadable_list: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderRequest:
    """What a loader of a folder is given."""

    root: Path
    seed: int
    settings: DataSettings
    policy: ReadPolicy


EmbeddedLoader: TypeAlias = Callable[[int, DataSettings], Dataset]
FolderLoader: TypeAlias = Callable[[FolderRequest], Dataset]


def _scenes(seed: int, settings: DataSettings) -> Dataset:
    from fedmpt.data.scenes import scenes

    return scenes(
        train_size=settings.train_size,
        test_size=settings.test_size,
        bias=settings.bias,
        resolution=settings.resolution,
        seed=seed,
    )


def _coco(request: FolderRequest) -> Dataset:
    from fedmpt.data.coco import read_coco

    return read_coco(
        request.root,
        name="coco",
        crowd=request.settings.crowd,
        labelled_only=request.settings.labelled_only,
        policy=request.policy,
    )


def _coco2014(request: FolderRequest) -> Dataset:
    from fedmpt.data.coco import read_coco

    return read_coco(
        request.root,
        name="coco2014",
        official_only=True,
        crowd=request.settings.crowd,
        labelled_only=request.settings.labelled_only,
        policy=request.policy,
    )


def _voc(request: FolderRequest) -> Dataset:
    from fedmpt.data.voc import read_voc

    return read_voc(
        request.root,
        name="voc",
        difficult=request.settings.difficult,
        spoken_names=request.settings.spoken_names,
        policy=request.policy,
    )


def _voc2007(request: FolderRequest) -> Dataset:
    from fedmpt.data.voc import read_voc

    return read_voc(
        request.root,
        name="voc2007",
        year_2007=True,
        difficult=request.settings.difficult,
        spoken_names=request.settings.spoken_names,
        policy=request.policy,
    )


def _table(request: FolderRequest) -> Dataset:
    from fedmpt.data.table import read_table

    return read_table(
        request.root,
        seed=request.seed,
        test_fraction=request.settings.test_fraction,
        policy=request.policy,
    )


EMBEDDED: dict[str, EmbeddedLoader] = {"scenes": _scenes}
FOLDERS: dict[str, FolderLoader] = {
    "coco": _coco,
    "coco2014": _coco2014,
    "voc": _voc,
    "voc2007": _voc2007,
    "table": _table,
}
NAMES = (*EMBEDDED, *FOLDERS)


def load_dataset(
    name: str,
    *,
    data_root: Path | None,
    seed: int,
    strict: bool = False,
    settings: DataSettings | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Return the data set called ``name``.

    Args:
        name: one of `NAMES`.
        data_root: folder of the data set; needed by all but embedded ones.
        seed: experiment seed.
        strict: refuse the data set when any image cannot be read, instead of counting it.
        settings: settings of data sets; None for the defaults.
        cache_dir: where digests of image files are remembered; None for `cache_directory`.
        progress: called with (done, total) while image files are digested.

    Raises:
        UsageError: if the name is unknown, or a folder is needed and none is given.
        DataError: if the folder cannot be read as that data set.
    """
    settings = settings or DataSettings()
    if name in EMBEDDED:
        return EMBEDDED[name](seed, settings)
    if name not in FOLDERS:
        raise UsageError(f"--data {name}: no such data set; choose one of {', '.join(NAMES)}")
    if data_root is None:
        raise UsageError(f"--data {name} reads a folder; give it with --data-root DIR")
    policy = ReadPolicy(
        strict=strict,
        digest_index=(cache_dir or cache_directory()) / "digests",
        unreadable_list=settings.unreadable_list,
        progress=progress,
    )
    return FOLDERS[name](FolderRequest(root=data_root, seed=seed, settings=settings, policy=policy))
