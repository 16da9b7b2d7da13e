"""FedMVP as the paper's cost table counts it: one visual token, made from the image's feature and the class prompts.

The image runs through the frozen tower twice: once for its global feature, and once more with the token.

Source: the size (1,135,424 parameters at ViT-B/16) in Table 5 of FedMPT, arXiv 2605.28347; FedMVP, ICCV 2025.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from fedmpt.clip.backbone import Backbone
from fedmpt.config import FedMVPConfig, LossConfig
from fedmpt.errors import UsageError
from fedmpt.methods.attention import attention, fresh_attention
from fedmpt.methods.base import Method, Parameters
from fedmpt.methods.losses import configured_loss
from fedmpt.methods.pooling import Head
from fedmpt.methods.prompts import (
    drawn,
    encode_context,
    fresh_linear,
    fresh_tokens,
    frozen_features,
    linear,
)

_HEADS: Final = 8


class ReducedFedMVP(Method):
    """The reduced design, for one backbone and one list of classes.

    Blocks: ``context`` ``[k, W]``, attention of width D, and a net D -> hidden -> V.
    """

    name = "fedmvp"
    prompt_blocks = ("context",)
    has_penalty = True
    examples_per_chunk = 4

    def __init__(
        self,
        backbone: Backbone,
        classes: tuple[str, ...],
        settings: FedMVPConfig,
        head: Head,
        loss: LossConfig,
    ) -> None:
        """Fix what no training changes.

        Raises:
            UsageError: heads do not divide the joint width.
        """
        self._heads = settings.heads or _HEADS
        if backbone.width % self._heads:
            raise UsageError(
                f"method.fedmvp.heads={self._heads}: must divide the joint width {backbone.width}"
            )
        self._tower = backbone.image_tower
        self.classes = classes
        self.pixel_shape = (backbone.patches, self._tower.patch_values)
        self._backbone = backbone
        self._settings = settings
        self._head = head
        self._loss = loss
        weight = settings.consistency_weight
        self._consistency = 1.0 if weight is None else weight
        self._suffixes = backbone.text.suffixes(classes)
        self._frozen = frozen_features(backbone, classes)

    def initial_parameters(self, seed: int) -> Parameters:
        """Return the starting parameters of the experiment seed ``seed``."""
        return drawn(self._backbone, seed, self._initial)

    def _initial(self, random: torch.Generator) -> Parameters:
        settings, D = self._settings, self._backbone.width
        return {
            "context": fresh_tokens(random, settings.text_tokens, self._backbone.text.width),
            **fresh_attention(random, "attention", D, D),
            **fresh_linear(random, "down", D, settings.hidden),
            **fresh_linear(random, "up", settings.hidden, self._tower.width),
        }

    def encode_text(self, parameters: Parameters) -> Tensor:
        """Return text features ``[C, D]``."""
        return encode_context(self._backbone, self._suffixes, parameters["context"])

    def score(self, parameters: Parameters, text: Tensor, patches: Tensor) -> Tensor:
        """Return probabilities ``[B, C]`` from pixels ``[B, M, Q]``."""
        tower = self._tower
        with torch.no_grad():
            tokens = tower.embed(patches)  # [B, 1 + M, V]
            whole = tower.features(tower.run(tower.enter(tokens))[:, :1])  # [B, 1, D]
        read = attention(parameters, "attention", whole, text, text, heads=self._heads)
        visual = linear(parameters, "up", functional.gelu(linear(parameters, "down", read)))
        prompted = torch.cat([tokens[:, :1], visual, tokens[:, 1:]], dim=1)
        return self._head(text, tower.features(tower.run(tower.enter(prompted))[:, 2:]))

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return the asymmetric loss of each example: ``[B]``."""
        return configured_loss(scores, labels, self._loss)

    def penalty(self, parameters: Parameters, text: Tensor) -> Tensor:
        """Return the distance of the tuned text features from CLIP's own."""
        del parameters
        return self._consistency * (1 - (text * self._frozen).sum(dim=-1).mean())

    def for_classes(self, classes: tuple[str, ...]) -> ReducedFedMVP:
        """Return the method for other classes."""
        return ReducedFedMVP(self._backbone, classes, self._settings, self._head, self._loss)
