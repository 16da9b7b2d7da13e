"""DualCoOp: a positive and a negative learnt context; a class is present if its positive prompt fits better.

Source: DualCoOp, arXiv 2206.09541, section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedmpt.clip.backbone import Backbone
from fedmpt.config import DualCoOpConfig
from fedmpt.errors import UsageError
from fedmpt.methods.base import Parameters
from fedmpt.methods.prompts import encode_context, start_tokens
from fedmpt.methods.text_method import PromptEncoder

_BLOCKS = ("positive", "negative")


class DualPrompts(PromptEncoder):
    """``[positive] {class}.`` and ``[negative] {class}.``, each context ``[k, W]`` or ``[C, k, W]``."""

    def __init__(
        self, backbone: Backbone, classes: tuple[str, ...], settings: DualCoOpConfig
    ) -> None:
        self.classes = classes
        self._backbone = backbone
        self._settings = settings
        self._suffixes = backbone.text.suffixes(classes)

    def initial(self, random: torch.Generator) -> Parameters:
        """Return fresh contexts."""
        settings = self._settings
        copies = len(self.classes) if settings.class_specific else 1
        values = {}
        for name in _BLOCKS:
            contexts = [
                start_tokens(self._backbone, random, settings.tokens, settings.start)
                for _ in range(copies)
            ]
            values[name] = torch.stack(contexts) if settings.class_specific else contexts[0]
        return values

    def encode(self, parameters: Parameters) -> Tensor:
        """Return text features ``[2 C, D]``, positives first."""
        return torch.cat(
            [encode_context(self._backbone, self._suffixes, parameters[name]) for name in _BLOCKS]
        )

    def for_classes(self, classes: tuple[str, ...]) -> DualPrompts:
        """Return the encoder for other classes.

        Raises:
            UsageError: contexts are class-specific, so that other classes have none.
        """
        if self._settings.class_specific and classes != self.classes:
            raise UsageError(
                "method.dualcoop.class_specific: contexts of the tuned classes do not serve other classes; "
                "set it to false"
            )
        return DualPrompts(self._backbone, classes, self._settings)
