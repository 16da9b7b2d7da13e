"""The frozen CLIP with "a photo of a {class}.": what every method has to beat, logged as round 0."""

from __future__ import annotations

import torch
from torch import Tensor

from fedmpt.clip.backbone import Backbone
from fedmpt.data.features import FeatureBank
from fedmpt.methods.base import Parameters
from fedmpt.methods.pooling import offset_probabilities, pooled_similarity
from fedmpt.methods.prompts import frozen_features
from fedmpt.methods.text_method import PromptEncoder

_IMAGES_AT_ONCE = 256


class ZeroShot:
    """Recognition without any tuning, by patches (as the methods do it) or by the class token."""

    def __init__(self, backbone: Backbone, classes: tuple[str, ...], *, pooling: float) -> None:
        """Fix text features and scales.

        Args:
            backbone: the frozen CLIP.
            classes: what is recognised.
            pooling: scale of the softmax over patches; `fedmpt.methods.cosine_scale` has the backbone's.
        """
        self._scale = backbone.logit_scale
        self._pooling = pooling
        self._text = frozen_features(backbone, classes)

    @torch.no_grad()
    def patch_scores(self, bank: FeatureBank) -> Tensor:
        """Return probabilities ``[n, C]`` from patch similarities, pooled."""
        similarity = [
            pooled_similarity(self._patches(bank, start), self._text, self._pooling)
            for start in range(0, len(bank), _IMAGES_AT_ONCE)
        ]
        return offset_probabilities(torch.cat(similarity), scale=self._scale)

    @torch.no_grad()
    def class_token_scores(self, bank: FeatureBank) -> Tensor:
        """Return probabilities ``[n, C]`` from class-token features."""
        features = torch.from_numpy(bank.global_features()).to(self._text.device)
        return offset_probabilities(features @ self._text.T, scale=self._scale)

    def _patches(self, bank: FeatureBank, start: int) -> Tensor:
        rows = slice(start, start + _IMAGES_AT_ONCE)
        return torch.from_numpy(bank.patches(rows)).to(self._text.device)


class FrozenPrompts(PromptEncoder):
    """CLIP's own text features, and nothing to tune."""

    def __init__(self, backbone: Backbone, classes: tuple[str, ...]) -> None:
        self.classes = classes
        self._backbone = backbone
        self._text = frozen_features(backbone, classes)

    def initial(self, random: torch.Generator) -> Parameters:
        """Return no parameters."""
        del random
        return {}

    def encode(self, parameters: Parameters) -> Tensor:
        """Return text features ``[C, D]``."""
        del parameters
        return self._text

    def for_classes(self, classes: tuple[str, ...]) -> FrozenPrompts:
        """Return the encoder for other classes."""
        return FrozenPrompts(self._backbone, classes)
