"""What a method is to the training loop, the accountant and the server.

Prompt tuning of a frozen CLIP splits into a part that no example touches (the text features, made once a step) and a
part per example (scores and loss). Per-example gradients, and with them differential privacy, concern the second part
only; the first is crossed afterwards.

Dimensions: ``B`` images, ``M`` patches, ``C`` classes, ``D`` width, ``P`` text features of the method's own layout.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

from torch import Tensor

Parameters: TypeAlias = dict[str, Tensor]


class Method(Protocol):
    """One method of multi-label prompt tuning, for one backbone and one list of classes.

    Guarantees that implementations give: `score` and `loss` treat every example alone; both are pure and may be mapped
    by ``torch.func.vmap``; permuting patches leaves scores as they are.

    Attributes:
        name: as given to ``--method``.
        classes: the scored classes, in label order.
        prompt_blocks: names of the parameters that only `encode_text` reads; the others are read by `score`.
    """

    name: str
    classes: tuple[str, ...]
    prompt_blocks: tuple[str, ...]

    def initial_parameters(self, seed: int) -> Parameters:
        """Return the named tunable tensors, float32, as every client and the server start with them."""
        ...

    def encode_text(self, parameters: Parameters) -> Tensor:
        """Return the text features ``[P, D]`` of unit length; differentiable in the prompt blocks."""
        ...

    def score(self, parameters: Parameters, text: Tensor, patches: Tensor) -> Tensor:
        """Return probabilities ``[B, C]`` for patch features ``[B, M, D]``, given `encode_text`'s result."""
        ...

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each example: ``[B]`` for scores and labels ``[B, C]``."""
        ...

    def for_classes(self, classes: tuple[str, ...]) -> Method:
        """Return the same method with the same parameters for other classes, for example unseen ones."""
        ...
