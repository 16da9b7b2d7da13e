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
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fedmpt.clip.backbone import Backbone, load_backbone
from fedmpt.config import load_config
from fedmpt.data.dataset import Dataset
from fedmpt.engine.prepare import Progress, load_data, resolve_device
from fedmpt.errors import FedMPTError, UsageError
from fedmpt.methods.base import Method, Parameters
from fedmpt.methods.fedmpt import FedMPT
from fedmpt.methods.registry import build_method

EXAMPLES: Final = 6
MODEL_FILE: Final = "model.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class ConditionMap:
    """How one condition sees one class in one image.

    Attributes:
        condition: its word or words.
        gate: its weight in the mixture, 0 to 1.
        score: its own prediction ``psi`` of the class, 0 to 1.
        contributions: float32 ``[h, w]``, what each patch adds to ``score``.
    """

    condition: str
    gate: float
    score: float
    contributions: NDArray[np.float32]


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
        backbone = load_backbone(
            config.backbone.name,
            pretrained=config.backbone.pretrained,
            device=resolve_device(config.device),
        )
        method = build_method(backbone, dataset.classes, config.method)
        parameters = _tuned(folder / MODEL_FILE, method, method.initial_parameters(config.seed))
        scorer = method if dataset.held_out is None else method.for_classes(dataset.scored)
        return _predicted(dataset, backbone, scorer, parameters)
    except FedMPTError as error:
        raise UsageError(
            f"{error}; the report shows test images, which takes the run's data, backbone and model: "
            "--no-images does without"
        ) from error


def _predicted(
    dataset: Dataset, backbone: Backbone, method: Method, parameters: Parameters
) -> tuple[Example, ...]:
    count = min(EXAMPLES, len(dataset.test))
    images = [dataset.test.open_image(index) for index in range(count)]
    with torch.no_grad():
        text = method.encode_text(parameters)
        patches = (  # [B, M, D]
            backbone.patch_pixels(images).to(backbone.device)
            if method.pixel_shape
            else backbone.encode_images(images)[0]
        )
        scores = method.score(parameters, text, patches).cpu().numpy()  # [B, C]
        best = scores.argmax(axis=1)  # [B]
        maps: list[tuple[ConditionMap, ...]] = [()] * count
        if isinstance(method, FedMPT):
            maps = _maps(method, parameters, text, patches, best, grid=backbone.grid)
    return tuple(
        Example(
            index=index,
            picture=backbone.seen(images[index]),
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
    method: FedMPT,
    parameters: Parameters,
    text: Tensor,
    patches: Tensor,
    classes: NDArray[np.int64],
    *,
    grid: tuple[int, int],
) -> list[tuple[ConditionMap, ...]]:
    """Return each image's maps of one class: ``classes`` is int64 ``[B]``."""
    gates = method.gate_weights(parameters, patches).cpu().numpy()  # [B, N]
    parts = method.evidence(parameters, text, patches).cpu().numpy()  # [B, N, M, C]
    return [
        tuple(
            ConditionMap(
                condition=condition or "no condition",
                gate=float(gates[image, row]),
                score=float(parts[image, row, :, name].sum()),
                contributions=parts[image, row, :, name].reshape(grid),
            )
            for row, condition in enumerate(method.conditions)
        )
        for image, name in enumerate(classes)
    ]


def _tuned(path: Path, method: Method, initial: Parameters) -> Parameters:
    """Return the tuned parameters; blocks that are each client's own are at zero, as in the shared model."""
    parameters = {name: torch.zeros_like(initial[name]) for name in method.local_blocks}
    shapes = {n: tuple(value.shape) for n, value in initial.items() if n not in parameters}
    if not shapes:
        return parameters
    try:
        tuned = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from error
    if {name: tuple(value.shape) for name, value in tuned.items()} != shapes:
        raise UsageError(f"{path}: does not hold the parameters of the method in config.toml")
    return parameters | {name: value.to(initial[name].device) for name, value in tuned.items()}
