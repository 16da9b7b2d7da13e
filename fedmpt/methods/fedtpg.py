"""FedTPG: a network that writes the context from the names of all classes, and is what clients tune.

Source: FedTPG, ICLR 2024.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedmpt.clip.backbone import Backbone
from fedmpt.config import FedTPGConfig
from fedmpt.errors import UsageError
from fedmpt.methods.attention import cross_block, fresh_cross_block
from fedmpt.methods.base import Parameters
from fedmpt.methods.prompts import encode_context, fresh_tokens, frozen_features
from fedmpt.methods.text_method import PromptEncoder


class GeneratedPrompts(PromptEncoder):
    """``[context] {class}.`` whose context learnt queries read off the features of the bare class names.

    Blocks: ``queries`` ``[k, W]`` and those of a cross-attention block.
    """

    def __init__(
        self, backbone: Backbone, classes: tuple[str, ...], settings: FedTPGConfig
    ) -> None:
        if backbone.text.width % settings.heads:
            raise UsageError(
                f"method.fedtpg.heads={settings.heads}: must divide the text width {backbone.text.width}"
            )
        self.classes = classes
        self._backbone = backbone
        self._settings = settings
        self._suffixes = backbone.text.suffixes(classes)
        self._names = frozen_features(backbone, classes, "{}")

    def initial(self, random: torch.Generator) -> Parameters:
        """Return fresh queries and a fresh block."""
        W = self._backbone.text.width
        return {
            "queries": fresh_tokens(random, self._settings.tokens, W),
            **fresh_cross_block(random, W, self._backbone.width),
        }

    def encode(self, parameters: Parameters) -> Tensor:
        """Return text features ``[C, D]``."""
        context = cross_block(
            parameters,
            parameters["queries"],
            self._names,
            heads=self._settings.heads,
            norm_values=True,
        )
        return encode_context(self._backbone, self._suffixes, context)

    def for_classes(self, classes: tuple[str, ...]) -> GeneratedPrompts:
        """Return the encoder whose context is generated from exactly these classes."""
        return GeneratedPrompts(self._backbone, classes, self._settings)
