"""TCP: tokens made from CLIP's own knowledge of each class enter late in the text tower.

Source: TCP, CVPR 2024.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedmpt.clip.backbone import Backbone
from fedmpt.clip.text import DeepTokens
from fedmpt.config import TCPConfig
from fedmpt.errors import UsageError
from fedmpt.methods.base import Parameters
from fedmpt.methods.prompts import (
    encode_context,
    fresh_linear,
    frozen_features,
    linear,
    start_tokens,
)
from fedmpt.methods.text_method import PromptEncoder

_GELU_SLOPE = 1.702  # of CLIP's quick approximation x sigmoid(1.702 x)


class KnowledgePrompts(PromptEncoder):
    """``[context] {class}.`` whose context is overwritten by tokens of each class before one block.

    Blocks: ``context`` ``[k, W]``, and a net D -> hidden -> k W over the frozen text features.
    """

    has_penalty = True

    def __init__(self, backbone: Backbone, classes: tuple[str, ...], settings: TCPConfig) -> None:
        layers = backbone.text.layers
        self._block = settings.block or max(1, 2 * layers // 3)
        if self._block >= layers:
            raise UsageError(
                f"method.tcp.block={self._block}: this text tower has {layers} blocks, so at most {layers - 1}"
            )
        self.classes = classes
        self._backbone = backbone
        self._settings = settings
        self._suffixes = backbone.text.suffixes(classes)
        self._knowledge = frozen_features(backbone, classes)

    def initial(self, random: torch.Generator) -> Parameters:
        """Return a fresh context and a fresh net."""
        tokens, D, W = self._settings.tokens, self._backbone.width, self._backbone.text.width
        hidden = self._settings.hidden or max(1, D // 4)
        return {
            "context": start_tokens(self._backbone, random, tokens, self._settings.start),
            **fresh_linear(random, "down", D, hidden),
            **fresh_linear(random, "up", hidden, tokens * W),
        }

    def encode(self, parameters: Parameters) -> Tensor:
        """Return text features ``[C, D]``."""
        hidden = linear(parameters, "down", self._knowledge)
        hidden = hidden * torch.sigmoid(_GELU_SLOPE * hidden)
        tokens = linear(parameters, "up", hidden)  # [C, k W]
        tokens = tokens.reshape(len(self.classes), self._settings.tokens, -1)
        deep = {self._block: DeepTokens(tokens=tokens)}
        return encode_context(self._backbone, self._suffixes, parameters["context"], deep)

    def penalty(self, parameters: Parameters, text: Tensor) -> Tensor:
        """Return the distance from CLIP's own features: weight times one minus the mean cosine."""
        del parameters
        cosines = (text * self._knowledge).sum(dim=-1)
        return self._settings.consistency_weight * (1 - cosines.mean())

    def for_classes(self, classes: tuple[str, ...]) -> KnowledgePrompts:
        """Return the encoder for other classes, whose tokens the same net makes."""
        return KnowledgePrompts(self._backbone, classes, self._settings)
