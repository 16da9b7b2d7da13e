"""FedPGP: a context that clients share plus a low-rank one that each keeps to itself.

The contrastive term pulls the shared context to CLIP's own prompt and pushes the personal one away from it. It depends
on prompts alone.

Source: FedPGP, ICML 2024 (arXiv 2405.09771), section 4.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fedmpt.clip.backbone import Backbone
from fedmpt.config import FedPGPConfig
from fedmpt.methods.base import Parameters
from fedmpt.methods.prompts import encode_context, fresh_tokens, frozen_features, start_tokens
from fedmpt.methods.text_method import PromptEncoder


class PersonalPrompts(PromptEncoder):
    """The prompt ``[shared + left right] {class}.``, the second context of low rank.

    Blocks: ``shared`` ``[k, W]``; each client's own ``left`` ``[k, r]`` and ``right`` ``[r, W]``. With the own blocks
    at zero the prompt is the shared one.
    """

    local_blocks = ("left", "right")
    has_penalty = True

    def __init__(
        self, backbone: Backbone, classes: tuple[str, ...], settings: FedPGPConfig
    ) -> None:
        self.classes = classes
        self._backbone = backbone
        self._settings = settings
        self._suffixes = backbone.text.suffixes(classes)
        self._frozen = frozen_features(backbone, classes)

    def initial(self, random: torch.Generator) -> Parameters:
        """Return a fresh context and fresh factors, the same for all clients."""
        settings = self._settings
        return {
            "shared": start_tokens(self._backbone, random, settings.tokens, settings.start),
            "left": fresh_tokens(random, settings.tokens, settings.rank),
            "right": fresh_tokens(random, settings.rank, self._backbone.text.width),
        }

    def encode(self, parameters: Parameters) -> Tensor:
        """Return text features ``[C, D]`` of the personal prompt."""
        context = parameters["shared"] + parameters["left"] @ parameters["right"]
        return encode_context(self._backbone, self._suffixes, context)

    def penalty(self, parameters: Parameters, text: Tensor) -> Tensor:
        """Return the mean over classes of the cross-entropy of (shared, CLIP) against (shared, personal)."""
        shared = encode_context(self._backbone, self._suffixes, parameters["shared"])
        to_frozen = (shared * self._frozen).sum(dim=-1)
        to_personal = (shared * text).sum(dim=-1)
        excess = (to_personal - to_frozen) / self._settings.contrast_temperature
        return self._settings.contrast_weight * functional.softplus(excess).mean()

    def for_classes(self, classes: tuple[str, ...]) -> PersonalPrompts:
        """Return the encoder for other classes."""
        return PersonalPrompts(self._backbone, classes, self._settings)
