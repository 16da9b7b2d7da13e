"""PositiveCoOp: DualCoOp's pair, with a free vector a class in place of the negative prompt.

Source: PositiveCoOp, WACV 2025.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedmpt.clip.backbone import Backbone
from fedmpt.clip.text import normalise
from fedmpt.config import PosCoOpConfig
from fedmpt.methods.base import Parameters
from fedmpt.methods.prompts import (
    TOKEN_SPREAD,
    frozen_features,
    raw_context_features,
    start_tokens,
)
from fedmpt.methods.text_method import PromptEncoder


class PositivePrompts(PromptEncoder):
    """``[context] {class}.`` and vectors ``negative`` ``[C, D]`` that never pass the text tower.

    The vectors belong to the classes that are tuned; a class that is not among them takes their mean.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: tuple[str, ...],
        settings: PosCoOpConfig,
        *,
        tuned: tuple[str, ...] | None = None,
    ) -> None:
        self.classes = classes
        self._tuned = classes if tuned is None else tuned
        self._backbone = backbone
        self._settings = settings
        self._suffixes = backbone.text.suffixes(classes)

    def initial(self, random: torch.Generator) -> Parameters:
        """Return a fresh context and standard normal vectors."""
        settings, shape = self._settings, (len(self._tuned), self._backbone.width)
        context = start_tokens(self._backbone, random, settings.tokens, settings.start)
        values = {"context": context}
        values["negative"] = torch.randn(shape, generator=random)
        if settings.negative_start == "text":
            # What all classes have in common: a class is present where its prompt fits better than that.
            common = frozen_features(self._backbone, self._tuned).cpu().mean(dim=0)
            near = common + TOKEN_SPREAD * values["negative"]
            # As long as a random vector, whose direction the published learning rate turns by as much.
            values["negative"] = math.sqrt(shape[1]) * near
        if settings.positive_offset:
            values["positive_offset"] = torch.randn(shape, generator=random)
        return values

    def encode(self, parameters: Parameters) -> Tensor:
        """Return features ``[2 C, D]``, positives first."""
        positive = raw_context_features(self._backbone, self._suffixes, parameters["context"])
        if "positive_offset" in parameters:
            positive = positive + self._rows(parameters["positive_offset"])
        return torch.cat([normalise(positive), normalise(self._rows(parameters["negative"]))])

    def for_classes(self, classes: tuple[str, ...]) -> PositivePrompts:
        """Return the encoder for other classes; those without a vector take the mean of the tuned ones."""
        return PositivePrompts(self._backbone, classes, self._settings, tuned=self._tuned)

    def _rows(self, vectors: Tensor) -> Tensor:
        """Return the vectors of the scored classes, ``[C, D]``."""
        if self.classes == self._tuned:
            return vectors
        index = {name: row for row, name in enumerate(self._tuned)}
        mean = vectors.mean(dim=0)
        return torch.stack(
            [vectors[index[name]] if name in index else mean for name in self.classes]
        )
