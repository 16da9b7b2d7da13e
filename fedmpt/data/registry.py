"""The one door to data sets by name, and to the protocols that any of them can be used under.

``scenes`` is embedded and needs nothing; every other name reads the folder given by
``--data-root``. Readers are imported when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np

from fedmpt.config import DataConfig
from fedmpt.data.class_names import COCO_SEEN_48, COCO_UNSEEN_17
from fedmpt.data.dataset import Dataset, Protocol, Split
from fedmpt.data.features import cache_directory
from fedmpt.data.folder import Progress, ReadPolicy
from fedmpt.data.unseen import add_unseen, draw_unseen, hold_out
from fedmpt.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderRequest:
    """What a loader of a folder is given.

    Attributes:
        name: the data set's name.
        root: its folder.
        seed: experiment seed, for splits that have to be drawn.
        protocol: for which published lists are looked for.
        config: settings of data sets; each loader reads its own.
        policy: what to do about images that cannot be read.
    """

    name: str
    root: Path
    seed: int
    protocol: Protocol
    config: DataConfig
    policy: ReadPolicy


FolderLoader: TypeAlias = Callable[[FolderRequest], Dataset]


def _coco(request: FolderRequest) -> Dataset:
    from fedmpt.data.coco import read_coco

    return read_coco(
        request.root,
        name=request.name,
        official_only=request.name == "coco2014",
        crowd=request.config.coco.crowd,
        protocol=request.protocol,
        policy=request.policy,
    )


def _voc(request: FolderRequest) -> Dataset:
    from fedmpt.data.voc import read_voc

    return read_voc(
        request.root,
        name=request.name,
        year_2007=request.name == "voc2007",
        difficult=request.config.voc.difficult,
        spoken_names=request.config.voc.spoken_names,
        policy=request.policy,
    )


def _nuswide(request: FolderRequest) -> Dataset:
    from fedmpt.data.nuswide import read_nuswide

    return read_nuswide(request.root, protocol=request.protocol, policy=request.policy)


def _multiscene(request: FolderRequest) -> Dataset:
    from fedmpt.data.multiscene import read_multiscene

    return read_multiscene(request.root, policy=request.policy)


def _mlrsnet(request: FolderRequest) -> Dataset:
    from fedmpt.data.mlrsnet import read_mlrsnet

    return read_mlrsnet(
        request.root,
        seed=request.seed,
        test_fraction=request.config.test_fraction,
        by_category=request.config.mlrsnet.split == "categories",
        policy=request.policy,
    )


def _table(request: FolderRequest) -> Dataset:
    from fedmpt.data.table import read_table

    return read_table(
        request.root,
        seed=request.seed,
        test_fraction=request.config.test_fraction,
        policy=request.policy,
    )


FOLDERS: Final[dict[str, FolderLoader]] = {
    "table": _table,
    "coco": _coco,
    "voc": _voc,
    "coco2014": _coco,
    "voc2007": _voc,
    "nuswide": _nuswide,
    "multiscene": _multiscene,
    "mlrsnet": _mlrsnet,
}
NAMES: Final = ("scenes", *FOLDERS)


def load_dataset(
    config: DataConfig,
    *,
    seed: int,
    unreadable_list: Path | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Return the configured data set under the configured protocol; labels are not masked yet.

    Args:
        config: name, folder, protocol and settings of the data set.
        seed: experiment seed; draws splits that no list gives.
        unreadable_list: file to which images left out because they cannot be read are written; it
            holds file names.
        cache_dir: where digests of image files are remembered; None for `cache_directory`.
        progress: called with (done, total) while image files are digested.

    Raises:
        UsageError: if the name is unknown, a folder is needed and none is given, or the protocol
            cannot be applied.
        DataError: if the folder cannot be read as that data set.
    """
    if config.protocol == "standard" and config.unseen is not None:
        raise UsageError("data.unseen is for --protocol fzsl or fgzsl; give one, or leave it out")
    if config.name == "scenes":
        if config.root is not None:
            raise UsageError(
                f"--data-root {config.root}: scenes is embedded and reads no folder; say what the folder holds with "
                f"--data {', '.join(FOLDERS)}"
            )
        dataset = _scenes(config)
    else:
        policy = ReadPolicy(
            strict=config.strict,
            digest_index=(cache_dir or cache_directory()) / "digests",
            unreadable_list=unreadable_list,
            progress=progress,
        )
        dataset = _read_folder(config, seed=seed, policy=policy)
    published = dataset.held_out is not None
    if config.protocol != "standard" and not published:
        dataset = _zero_shot(dataset, config, seed=seed)
    return _with_enough_labels(dataset, config, published=published)


def _scenes(config: DataConfig) -> Dataset:
    from fedmpt.data.scenes import scenes

    return scenes(
        train_size=config.scenes.train_size,
        test_size=config.scenes.test_size,
        bias=config.scenes.bias,
        resolution=config.scenes.resolution,
        seed=config.scenes.seed,
        company=config.scenes.company,
        sites=config.scenes.sites,
        pairings=config.scenes.pairings,
    )


def _read_folder(config: DataConfig, *, seed: int, policy: ReadPolicy) -> Dataset:
    if config.name not in FOLDERS:
        raise UsageError(
            f"--data {config.name}: no such data set; choose one of {', '.join(NAMES)}"
        )
    if config.root is None:
        raise UsageError(f"--data {config.name} reads a folder; give it with --data-root DIR")
    return FOLDERS[config.name](
        FolderRequest(
            name=config.name,
            root=Path(config.root),
            seed=seed,
            # classes named by the user make a split of their own
            protocol=config.protocol if config.unseen is None else "standard",
            config=config,
            policy=policy,
        )
    )


def _with_enough_labels(dataset: Dataset, config: DataConfig, *, published: bool) -> Dataset:
    """Leave out images with too few labels; by default none, but NUS-WIDE's untagged training images."""
    by_rule = int(dataset.name == "nuswide" and not published)
    fewest = by_rule if config.min_labels_train is None else config.min_labels_train
    return replace(
        dataset,
        train=_labelled(dataset.train, fewest),
        test=_labelled(dataset.test, config.min_labels_test),
    )


def _labelled(split: Split, fewest: int) -> Split:
    keep = (split.labels == 1).sum(axis=1) >= fewest
    if not keep.any():
        raise UsageError(
            f"data.min_labels_train or min_labels_test={fewest}: no image has so many; lower it"
        )
    return split.take(keep, reason=f"has fewer than {fewest} labels")


def _zero_shot(dataset: Dataset, config: DataConfig, *, seed: int) -> Dataset:
    """Apply a zero-shot protocol for which the reader found no published lists."""
    protocol = config.protocol
    if config.unseen is not None:
        return hold_out(
            dataset, protocol=protocol, unseen=config.unseen, source="classes of data.unseen"
        )
    if dataset.name == "scenes":
        return _scenes_zero_shot(dataset, config)
    if {*COCO_SEEN_48, *COCO_UNSEEN_17} <= set(dataset.classes):
        return hold_out(
            dataset,
            protocol=protocol,
            unseen=COCO_UNSEEN_17,
            seen=COCO_SEEN_48,
            source="COCO's 48 and 17 classes on all images that fit; the published lists are a "
            "sample, so figures do not compare with published ones",
        )
    drawn = draw_unseen(dataset, share=config.unseen_share, seed=seed)
    return hold_out(
        dataset, protocol=protocol, unseen=drawn, source=f"classes drawn with seed {seed}"
    )


def _scenes_zero_shot(dataset: Dataset, config: DataConfig) -> Dataset:
    from fedmpt.data.scenes import UNSEEN, SceneSettings, scene_unseen_labels

    settings = SceneSettings(
        train_size=1,
        test_size=len(dataset.test),
        bias=config.scenes.bias,
        resolution=config.scenes.resolution,
        seed=config.scenes.seed,
    )
    return add_unseen(
        dataset,
        protocol=config.protocol,
        names=UNSEEN,
        train_labels=np.zeros((len(dataset.train), len(UNSEEN)), dtype=np.int8),
        test_labels=scene_unseen_labels(settings),
        source="the unseen classes of scenes",
    )
