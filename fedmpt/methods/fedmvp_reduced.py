"""FedMVP as the paper's cost table counts it: one visual token, made from the image's feature and the class prompts.

The image runs through the frozen tower twice: once for its global feature, which is kept, and then with the token.

Source: the size (1,135,424 parameters at ViT-B/16) in Table 5 of FedMPT, arXiv 2605.28347; FedMVP, ICCV 2025.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from fedmpt.config import FedMVPConfig
from fedmpt.errors import UsageError
from fedmpt.methods.attention import attention, fresh_attention
from fedmpt.methods.base import Parameters
from fedmpt.methods.image_method import ImageMethod, pack, unpack
from fedmpt.methods.pooling import Head
from fedmpt.methods.prompts import (
    encode_context,
    fresh_linear,
    fresh_tokens,
    frozen_features,
    linear,
)

_HEADS: Final = 8


class ReducedFedMVP(ImageMethod[FedMVPConfig, Head]):
    """The reduced design, for one backbone and one list of classes.

    Blocks: ``context`` ``[k, W]``, attention of width D, and a net D -> hidden -> V.
    """

    name = "fedmvp"
    prepared_as = "pixels and global feature"
    prompt_blocks = ("context",)
    has_penalty = True

    def _set_up(self) -> None:
        settings, backbone = self._settings, self._backbone
        self._heads = settings.heads or _HEADS
        if backbone.width % self._heads:
            raise UsageError(
                f"method.fedmvp.heads={self._heads}: must divide the joint width {backbone.width}"
            )
        weight = settings.consistency_weight
        self._consistency = 1.0 if weight is None else weight
        self._suffixes = backbone.text.suffixes(self.classes)
        self._frozen = frozen_features(backbone, self.classes)

    def _initial(self, random: torch.Generator) -> Parameters:
        settings, D = self._settings, self._backbone.width
        return {
            "context": fresh_tokens(random, settings.text_tokens, self._backbone.text.width),
            **fresh_attention(random, "attention", D, D),
            **fresh_linear(random, "down", D, settings.hidden),
            **fresh_linear(random, "up", settings.hidden, self._tower.width),
        }

    def prepare_images(self, pixels: Tensor) -> Tensor:
        """Return pixels ``[B, M, Q]`` and behind them the global feature."""
        tower = self._tower
        return pack(pixels, tower.features(tower.run(tower.enter(tower.embed(pixels)))[:, :1]))

    def encode_text(self, parameters: Parameters) -> Tensor:
        """Return text features ``[C, D]``."""
        return encode_context(self._backbone, self._suffixes, parameters["context"])

    def score(self, parameters: Parameters, text: Tensor, patches: Tensor) -> Tensor:
        """Return probabilities ``[B, C]`` from prepared images."""
        tower, shape = self._tower, self.pixel_shape
        pixels, whole = unpack(patches, shape, (1, self._backbone.width))
        tokens = tower.embed(pixels)  # [B, 1 + M, V]
        read = attention(parameters, "attention", whole, text, text, heads=self._heads)
        visual = linear(parameters, "up", functional.gelu(linear(parameters, "down", read)))
        prompted = torch.cat([tokens[:, :1], visual, tokens[:, 1:]], dim=1)
        return self._head(text, tower.features(tower.run(tower.enter(prompted))[:, 2:]))

    def penalty(self, parameters: Parameters, text: Tensor) -> Tensor:
        """Return the distance of the tuned text features from CLIP's own."""
        del parameters
        return self._consistency * (1 - (text * self._frozen).sum(dim=-1).mean())
