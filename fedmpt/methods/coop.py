"""CoOp: one learnt context for all classes; under federated averaging it is PromptFL.

Source: CoOp, IJCV 2022; PromptFL is CoOp with federated averaging.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedmpt.clip.backbone import Backbone
from fedmpt.config import CoOpConfig
from fedmpt.methods.base import Parameters
from fedmpt.methods.prompts import encode_context, start_tokens
from fedmpt.methods.text_method import PromptEncoder


class CoOpPrompts(PromptEncoder):
    """``[context] {class}.`` with ``context`` ``[k, W]``."""

    def __init__(self, backbone: Backbone, classes: tuple[str, ...], settings: CoOpConfig) -> None:
        self.classes = classes
        self._backbone = backbone
        self._settings = settings
        self._suffixes = backbone.text.suffixes(classes)

    def initial(self, random: torch.Generator) -> Parameters:
        """Return a fresh context."""
        settings = self._settings
        context = start_tokens(self._backbone, random, settings.tokens, settings.start)
        return {"context": context}

    def encode(self, parameters: Parameters) -> Tensor:
        """Return text features ``[C, D]``."""
        return encode_context(self._backbone, self._suffixes, parameters["context"])

    def for_classes(self, classes: tuple[str, ...]) -> CoOpPrompts:
        """Return the encoder for other classes."""
        return CoOpPrompts(self._backbone, classes, self._settings)
