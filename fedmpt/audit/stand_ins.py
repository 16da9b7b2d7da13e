"""What an audit puts in the place of a run's method and data, so that a noised sum can be read off an update.

Dimensions: ``n`` examples of a pool, ``M`` patches, ``D`` width, ``C`` classes, ``B`` images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpt.data.features import FeatureBank
from fedmpt.learner import ClientData
from fedmpt.methods.base import Method, Parameters

CARRIER: Final = "text_carrier"  # the text features as a parameter


class Unpenalised(Method):
    """A method without the term of its loss that no example touches: what examples add is the method's own."""

    def __init__(self, method: Method) -> None:
        self.name = method.name
        self.classes = method.classes
        self.prompt_blocks = method.prompt_blocks
        self.pixel_shape = method.pixel_shape
        self.prepared_as = method.prepared_as
        self.examples_per_chunk = method.examples_per_chunk
        self._method = method

    def initial_parameters(self, seed: int) -> Parameters:
        """As the method."""
        return self._method.initial_parameters(seed)

    def prepare_images(self, pixels: Tensor) -> Tensor:
        """As the method."""
        return self._method.prepare_images(pixels)

    def encode_text(self, parameters: Parameters) -> Tensor:
        """As the method."""
        return self._method.encode_text(parameters)

    def score(self, parameters: Parameters, text: Tensor, patches: Tensor) -> Tensor:
        """As the method."""
        return self._method.score(parameters, text, patches)

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """As the method."""
        return self._method.loss(scores, labels)

    def example_losses(
        self, parameters: Parameters, text: Tensor, patches: Tensor, labels: Tensor
    ) -> Tensor:
        """As the method."""
        return self._method.example_losses(parameters, text, patches, labels)

    def for_classes(self, classes: tuple[str, ...]) -> Unpenalised:
        """Return the same for other classes."""
        return type(self)(self._method.for_classes(classes))


class Carried(Unpenalised):
    """A method whose text features are a parameter; scores and losses are the method's own."""

    def __init__(self, method: Method) -> None:
        super().__init__(method)
        self.prompt_blocks = (CARRIER,)

    def initial_parameters(self, seed: int) -> Parameters:
        """Return the parameters at the method's own start."""
        return carried_parameters(self._method, self._method.initial_parameters(seed))

    def encode_text(self, parameters: Parameters) -> Tensor:
        """Return the parameter itself."""
        return parameters[CARRIER]


def carried_parameters(method: Method, parameters: Parameters) -> Parameters:
    """Return the method's parameters with the text features in the place of the prompts, on the CPU."""
    with torch.no_grad():
        text = method.encode_text(parameters)
    head = {name: v for name, v in parameters.items() if name not in method.prompt_blocks}
    return {name: value.detach().cpu() for name, value in (head | {CARRIER: text}).items()}


class CanaryMethod(Method):
    """A method of which every example's gradient is its own first patch, whatever the state; linear."""

    def __init__(self, size: int) -> None:
        self.name = "canaries"
        self.classes = ("canary",)
        self.prompt_blocks = (CARRIER,)
        self._size = size

    def initial_parameters(self, seed: int) -> Parameters:
        """Return zeros."""
        del seed
        return {CARRIER: torch.zeros(self._size)}

    def encode_text(self, parameters: Parameters) -> Tensor:
        """Return the parameter itself."""
        return parameters[CARRIER]

    def score(self, parameters: Parameters, text: Tensor, patches: Tensor) -> Tensor:
        """Return the inner product with the first patch: ``[B, 1]``."""
        del parameters
        return (patches[:, 0] @ text).unsqueeze(-1)

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return the score: ``[B]``."""
        del labels
        return scores.sum(-1)

    def for_classes(self, classes: tuple[str, ...]) -> CanaryMethod:
        """Return itself: canaries have no classes."""
        del classes
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """Examples an auditor trains on.

    Attributes:
        names: what they are.
        patches: float16 ``[n, M, D]``.
        labels: int8 ``[n, C]``.
    """

    names: tuple[str, ...]
    patches: NDArray[np.float16]
    labels: NDArray[np.int8]

    def hold(self, members: Sequence[int]) -> ClientData:
        """Return a client that holds some of them."""
        rows = np.asarray(members, dtype=np.int64)
        bank = FeatureBank(
            key="audit", stored_patches=self.patches, stored_globals=self.patches[:, 0]
        )
        return ClientData(bank=bank, rows=rows, labels=self.labels[rows])
