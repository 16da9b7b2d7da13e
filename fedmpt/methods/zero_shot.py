"""The frozen CLIP with "a photo of a {class}.": what every method has to beat, logged as round 0."""

from __future__ import annotations

import torch
from torch import Tensor

from fedmpt.clip.backbone import Backbone
from fedmpt.config import HeadConfig
from fedmpt.data.features import FeatureBank
from fedmpt.methods.base import Parameters
from fedmpt.methods.pooling import SinglePromptHead, offset_probabilities
from fedmpt.methods.prompts import frozen_features
from fedmpt.methods.text_method import PromptEncoder

_IMAGES_AT_ONCE = 256


class ZeroShot:
    """Recognition without any tuning, by patches (as the methods do it) or by the class token."""

    def __init__(self, backbone: Backbone, classes: tuple[str, ...], head: HeadConfig) -> None:
        """Fix text features and scales.

        Args:
            backbone: the frozen CLIP.
            classes: what is recognised.
            head: how similarities of patches become probabilities, as in the methods with one text feature a class.
        """
        self._scale = backbone.logit_scale
        self._head = SinglePromptHead.of(backbone, classes, head)
        self._text = frozen_features(backbone, classes)

    @torch.no_grad()
    def patch_scores(self, bank: FeatureBank) -> Tensor:
        """Return probabilities ``[n, C]`` from patch similarities, pooled."""
        return torch.cat(
            [
                self._head(self._text, self._patches(bank, start))
                for start in range(0, len(bank), _IMAGES_AT_ONCE)
            ]
        )

    @torch.no_grad()
    def class_token_scores(self, bank: FeatureBank) -> Tensor:
        """Return probabilities ``[n, C]`` from class-token features, whose scale no method's head knows.

        Only their ranking compares with anything: the common offset is a mean over the very images that are scored.
        """
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
