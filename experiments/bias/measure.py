"""Measuring the tuned models of a sweep on test images, which keep no company: one record a cell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from experiments.bias.crosstalk import crosstalk
from experiments.bias.maps import gradient_maps, own_maps
from experiments.bias.measures import MapLift, class_areas, company_tables, false_alarms
from fedmpt.config import Config, load_config
from fedmpt.data.dataset import LabelMatrix
from fedmpt.data.scenes import CLASSES, SceneSettings, atlas, render_with_owners, scene_recipe
from fedmpt.engine.prepare import Progress, feature_bank, input_bank, load_data
from fedmpt.errors import UsageError
from fedmpt.inference.model import load_tuned
from fedmpt.learner import predict

MAP_IMAGES: Final = 400  # the first of the test split
SCHEMA: Final = "fedmpt.bias/2"
_BATCH: Final = 32


def run_folders(sweep: Path) -> list[Path]:
    """Return the finished runs of a sweep's folder, by name.

    Raises:
        UsageError: there is none.
    """
    found = sorted(path.parent for path in sweep.glob("cells/*/summary.json"))
    if not found:
        raise UsageError(f"{sweep}: holds no finished cell; give the folder of a finished sweep")
    return found


def measure_run(folder: Path, *, map_images: int, progress: Progress) -> dict[str, Any]:
    """Return what one run learnt of the company that objects keep.

    Args:
        folder: a finished run on ``scenes``.
        map_images: how many of the first test images maps are computed for.
        progress: hears how far encoding is.

    Raises:
        UsageError: the run is of other data, or cannot be read.
    """
    config = load_config(file=folder / "config.toml")
    if config.data.name != "scenes" or config.data.protocol != "standard":
        raise UsageError(
            f"{folder}: a run on {config.data.name}; where objects are, only scenes knows"
        )
    summary = json.loads((folder / "summary.json").read_text())
    model, dataset = load_tuned(folder), load_data(config, progress)
    partners, decoys = company_tables(config.data.scenes.pairings, len(CLASSES))
    bank = feature_bank(model.backbone, dataset.test, "test features", progress)
    inputs = input_bank(
        model.backbone, model.method, dataset.test, "test images", progress, features=bank
    )
    scores = predict(model.method, model.parameters, inputs)
    rows = np.arange(min(map_images, len(dataset.test)))
    if model.method.pixel_shape:
        patches = model.backbone.patch_pixels([dataset.test.open_image(row) for row in rows])
    else:
        patches = torch.from_numpy(bank.patches(rows))
    lift, maps_of = MapLift(partners, decoys), own_maps if model.conditions else gradient_maps
    areas = [_areas(config, int(row), model.backbone.grid) for row in rows]
    for at, columns in _present(dataset.test.labels[rows]):
        maps = maps_of(model, patches[at], torch.from_numpy(columns)).numpy()
        for row, column, values in zip(at, columns, maps, strict=True):
            lift.add(int(column), values, areas[row])
    return {
        "method": config.method.name,
        "without": parts_taken_out(config),
        "seed": config.seed,
        "company": config.data.scenes.company,
        "pairings": config.data.scenes.pairings,
        "final": summary["final"],
        "zero_shot": summary["zero_shot"],
        "seconds": summary["seconds"],
        "false_alarms": asdict(false_alarms(scores, dataset.test.labels, partners, decoys)),
        "map_lift": lift.result(),
        "crosstalk": crosstalk(model, partners, decoys),
    }


def parts_taken_out(config: Config) -> list[str]:
    """Return the parts of FedMPT that a run was trained without."""
    own = config.method.fedmpt
    parts = {
        "conditions": own.use_conditions,
        "adapters": own.use_adapters,
        "transport": own.use_transport,
        "gate": own.use_gate,
    }
    used = config.method.name != "fedmpt"
    return [name for name, there in parts.items() if not (there or used)]


def _present(labels: LabelMatrix) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield batches (rows, classes) of every class that is present."""
    rows, columns = np.nonzero(labels == 1)
    for start in range(0, len(rows), _BATCH):
        yield rows[start : start + _BATCH], columns[start : start + _BATCH]


def _areas(config: Config, row: int, grid: tuple[int, int]) -> NDArray[np.float64]:
    """Return what each patch of a test image shows: ``[M, C]``."""
    scenes = config.data.scenes
    settings = SceneSettings(
        train_size=1,
        test_size=scenes.test_size,
        bias=scenes.bias,
        resolution=scenes.resolution,
        seed=scenes.seed,
    )
    recipe = scene_recipe(settings, "test", row)
    _, owners = render_with_owners(recipe, scenes.resolution)
    names = [atlas()[placement.sprite].label for placement in recipe.placements]
    labels = [CLASSES.index(name) if name in CLASSES else -1 for name in names]
    return class_areas(owners, labels, classes=len(CLASSES), grid=grid)
