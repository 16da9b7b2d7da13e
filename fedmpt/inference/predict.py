"""Scores of image files, a batch at a time: one image in full size is in memory at once, whatever their number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpt.data.folder import open_rgb
from fedmpt.errors import DataError
from fedmpt.inference.model import TunedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What a model says of one image file.

    Attributes:
        path: the file.
        scores: float32 ``[C]`` in [0, 1].
        gate: float32 ``[N]``, the weights of conditions; empty for methods without.
        evidence: float32 ``[N, M, C]``, if it was asked for.
    """

    path: Path
    scores: NDArray[np.float32]
    gate: NDArray[np.float32]
    evidence: Tensor | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """An image file that could not be read.

    Attributes:
        path: the file.
        reason: why.
    """

    path: Path
    reason: str


Outcome: TypeAlias = Prediction | Failure


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """Which classes count as present.

    Attributes:
        thresholds: of each class; present is what scores above.
        top_k: the classes with the highest scores, whatever they are; None to go by thresholds.
    """

    thresholds: tuple[float, ...]
    top_k: int | None = None

    def present(self, scores: NDArray[np.float32]) -> list[int]:
        """Return the classes that count as present, highest score first; of equal ones the earlier class."""
        order = [int(c) for c in np.argsort(-scores, kind="stable")]
        if self.top_k is not None:
            return order[: self.top_k]
        return [c for c in order if scores[c] > self.thresholds[c]]


def predict_files(
    model: TunedModel, paths: Sequence[Path], *, batch_size: int = 32, evidence: bool = False
) -> Iterator[Outcome]:
    """Yield the outcome of each file, in the order given; a file that cannot be read is a `Failure`.

    Args:
        model: the tuned model.
        paths: image files.
        batch_size: images encoded at a time; scores do not depend on it beyond rounding.
        evidence: whether predictions carry what region maps are drawn from.
    """
    for start in range(0, len(paths), batch_size):
        batch = paths[start : start + batch_size]
        pixels = [_pixels(model, path) for path in batch]
        readable = [value for value in pixels if isinstance(value, Tensor)]
        predictions = iter(_predict(model, readable, evidence=evidence))
        for path, value in zip(batch, pixels, strict=True):
            if isinstance(value, str):
                yield Failure(path=path, reason=value)
                continue
            scores, gate, regions = next(predictions)
            yield Prediction(path=path, scores=scores, gate=gate, evidence=regions)


def _pixels(model: TunedModel, path: Path) -> Tensor | str:
    """Return a file's preprocessed image, or why there is none."""
    try:
        with path.open("rb"):
            pass  # tells what keeps the file from being read, which a decoder does not
        return model.backbone.preprocess(open_rgb(path))
    except OSError as error:
        return error.strerror or "cannot be opened"
    except DataError:
        return "not an image, or damaged"


def _predict(
    model: TunedModel, pixels: list[Tensor], *, evidence: bool
) -> list[tuple[NDArray[np.float32], NDArray[np.float32], Tensor | None]]:
    if not pixels:
        return []
    inputs = model.inputs(torch.stack(pixels))
    scores = model.score(inputs).cpu().numpy()
    gate = np.zeros((len(pixels), 0), dtype=np.float32)
    if model.conditions:
        gate = model.gate_weights(inputs).cpu().numpy()
    regions = model.evidence(inputs).cpu() if evidence else [None] * len(pixels)
    return list(zip(scores, gate, regions, strict=True))
