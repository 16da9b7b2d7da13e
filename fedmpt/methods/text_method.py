"""Methods that change the text side alone: a `PromptEncoder` makes text features, a head compares patches with them.

Each such method is its encoder; scoring, loss and everything a training loop asks for are common to them.

Dimensions: ``B`` images, ``M`` patches, ``C`` classes, ``D`` width, ``P`` text features (C, or 2 C for pairs).
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from fedmpt.clip.backbone import Backbone
from fedmpt.config import LossConfig
from fedmpt.methods.base import Method, Parameters
from fedmpt.methods.losses import configured_loss
from fedmpt.methods.pooling import Head
from fedmpt.methods.prompts import drawn


class PromptEncoder(Protocol):
    """The text side of a method, for one backbone and one list of classes.

    Attributes:
        classes: the scored classes, in label order.
        local_blocks: names of the parameters that are each client's own.
        has_penalty: whether the loss has a term that no example touches.
    """

    classes: tuple[str, ...]
    local_blocks: tuple[str, ...] = ()
    has_penalty: bool = False

    def initial(self, random: torch.Generator) -> Parameters:
        """Return the tunable tensors at the start, on the CPU."""
        ...

    def encode(self, parameters: Parameters) -> Tensor:
        """Return the text features ``[P, D]`` of unit length."""
        ...

    def penalty(self, parameters: Parameters, text: Tensor) -> Tensor:
        """Return a term of the loss that no example touches, a scalar; used where ``has_penalty``."""
        del parameters
        return text.new_zeros(())

    def for_classes(self, classes: tuple[str, ...]) -> PromptEncoder:
        """Return the encoder for other classes with the same parameters."""
        ...


class TextMethod(Method):
    """A method whose parameters all belong to its text side."""

    def __init__(
        self,
        name: str,
        backbone: Backbone,
        encoder: PromptEncoder,
        head: Head,
        loss: LossConfig,
        *,
        aggregation: Literal["fedavg", "fedawa"] = "fedavg",
    ) -> None:
        """Put a method together.

        Args:
            name: as given to ``--method``.
            backbone: the frozen CLIP.
            encoder: makes the text features.
            head: (text ``[P, D]``, patches ``[B, M, D]``) -> probabilities ``[B, C]``.
            loss: the loss.
            aggregation: how updates become the next global state.
        """
        self.name = name
        self.classes = encoder.classes
        self.prompt_blocks = tuple(encoder.initial(torch.Generator()))
        self.local_blocks = encoder.local_blocks
        self.has_penalty = encoder.has_penalty
        self.aggregation = aggregation
        self._backbone = backbone
        self._encoder = encoder
        self._head = head
        self._loss = loss

    def initial_parameters(self, seed: int) -> Parameters:
        """Return the starting parameters of the experiment seed ``seed``."""
        return drawn(self._backbone, seed, self._encoder.initial)

    def encode_text(self, parameters: Parameters) -> Tensor:
        """Return the encoder's text features ``[P, D]``."""
        return self._encoder.encode(parameters)

    def score(self, parameters: Parameters, text: Tensor, patches: Tensor) -> Tensor:
        """Return the head's probabilities ``[B, C]``."""
        del parameters
        return self._head(text, patches)

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return the asymmetric loss of each example: ``[B]``."""
        return configured_loss(scores, labels, self._loss)

    def penalty(self, parameters: Parameters, text: Tensor) -> Tensor:
        """Return the encoder's own term."""
        return self._encoder.penalty(parameters, text)

    def for_classes(self, classes: tuple[str, ...]) -> TextMethod:
        """Return the method for other classes."""
        return TextMethod(
            self.name,
            self._backbone,
            self._encoder.for_classes(classes),
            self._head,
            self._loss,
            aggregation=self.aggregation,
        )
