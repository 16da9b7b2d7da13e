"""A few test images with what the tuned model says of them, and for FedMPT where each condition looks.

Images are the first of the test split, a rule that nobody can choose by the result. They are data: differential privacy
covers training images in the model, not test images in a report.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fedmpt.clip.backbone import resolve_device
from fedmpt.config import load_config
from fedmpt.data.dataset import Dataset
from fedmpt.engine.prepare import Progress, load_data
from fedmpt.errors import FedMPTError, UsageError
from fedmpt.inference.maps import seen_part
from fedmpt.inference.model import TunedModel, load_tuned

EXAMPLES: Final = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class ConditionMap:
    """How one condition sees one class in one image.

    Attributes:
        condition: its word or words.
        gate: its weight in the mixture, 0 to 1.
        score: its own prediction ``psi`` of the class, 0 to 1.
        evidence: float32 ``[h, w]``, what each patch adds to ``score``.
    """

    condition: str
    gate: float
    score: float
    evidence: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One test image and its prediction.

    Attributes:
        index: in the test split.
        picture: what the image tower sees of it.
        present: names of the classes that its labels say are there.
        scores: (class name, score), highest first.
        maps: one a condition, all of the class with the highest score; none but for FedMPT.
    """

    index: int
    picture: Image.Image
    present: frozenset[str]
    scores: tuple[tuple[str, float], ...]
    maps: tuple[ConditionMap, ...]


def read_examples(folder: Path, *, progress: Progress) -> tuple[Example, ...]:
    """Return the first test images of a run as its tuned model sees them.

    Raises:
        UsageError: the model, the backbone or the data can no longer be read; the message says how to do without.
    """
    try:
        config = load_config(file=folder / "config.toml")
        dataset = load_data(config, progress)
        model = load_tuned(folder, device=resolve_device(config.device))
        return _predicted(dataset, model.for_classes(dataset.scored))
    except FedMPTError as error:
        raise UsageError(
            f"{error}; the report shows test images, which takes the run's data, backbone and model: "
            "--no-images does without"
        ) from error


def _predicted(dataset: Dataset, model: TunedModel) -> tuple[Example, ...]:
    count = min(EXAMPLES, len(dataset.test))
    images = [dataset.test.open_image(index) for index in range(count)]
    pixels = torch.stack([model.backbone.preprocess(image) for image in images])
    inputs = model.inputs(pixels)  # [B, M, .]
    scores = model.score(inputs).cpu().numpy()  # [B, C]
    maps: list[tuple[ConditionMap, ...]] = [()] * count
    if model.conditions:
        maps = _maps(model, inputs, scores.argmax(axis=1))
    return tuple(
        Example(
            index=index,
            picture=_seen(images[index], model),
            present=frozenset(
                name
                for name, label in zip(dataset.scored, dataset.test.labels[index], strict=True)
                if label == 1
            ),
            scores=tuple(
                (dataset.scored[row], float(scores[index, row]))
                for row in np.argsort(-scores[index], kind="stable")
            ),
            maps=maps[index],
        )
        for index in range(count)
    )


def _maps(
    model: TunedModel, inputs: Tensor, classes: NDArray[np.int64]
) -> list[tuple[ConditionMap, ...]]:
    """Return each image's maps of one class: ``classes`` is int64 ``[B]``."""
    gates = model.gate_weights(inputs).cpu().numpy()  # [B, N]
    evidence = model.evidence(inputs).cpu().numpy()  # [B, N, M, C]
    return [
        tuple(
            ConditionMap(
                condition=condition or "no condition",
                gate=float(gates[image, row]),
                score=float(evidence[image, row, :, name].sum()),
                evidence=evidence[image, row, :, name].reshape(model.backbone.grid),
            )
            for row, condition in enumerate(model.conditions)
        )
        for image, name in enumerate(classes)
    ]


def _seen(image: Image.Image, model: TunedModel) -> Image.Image:
    """Return what the image tower sees of an image: square, under the grid of patches."""
    preprocessing = model.backbone.preprocessing
    side = preprocessing["size"]
    shape = (
        (side, side) if isinstance(side, int) else (side[1], side[0])
    )  # open_clip's: height first
    return seen_part(image, str(preprocessing["resize_mode"])).resize(
        shape, Image.Resampling.BICUBIC
    )
