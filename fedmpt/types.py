"""Frozen values that flow round the loop, in one direction.

``GlobalState -> RoundPlan -> Update -> (bytes) -> mean update -> GlobalState``. The server side of the loop never holds
an `Update`: what it gets from a client is bytes, and from the aggregation a mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NewType, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FloatVector: TypeAlias = NDArray[np.float32]  # [d]
ClientId = NewType("ClientId", int)


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """The only bridge between named tensors and the flat vector that is sent and summed.

    Attributes:
        shapes: name -> shape, in the order of the vector.
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, parameters: Mapping[str, Tensor]) -> ParameterSpec:
        """Return the layout of ``parameters``, names ascending."""
        return cls(tuple((name, tuple(parameters[name].shape)) for name in sorted(parameters)))

    @property
    def size(self) -> int:
        """Number of values ``d``."""
        return sum(math.prod(shape) for _, shape in self.shapes)

    def flatten(self, parameters: Mapping[str, Tensor]) -> FloatVector:
        """Return the parameters as one float32 vector ``[d]``."""
        parts = [parameters[name].detach().cpu().float().reshape(-1) for name, _ in self.shapes]
        return torch.cat(parts).numpy() if parts else np.zeros(0, dtype=np.float32)

    def unflatten(
        self, vector: FloatVector, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """Return named tensors that hold a copy of ``vector``."""
        parameters: dict[str, Tensor] = {}
        start = 0
        for name, shape in self.shapes:
            stop = start + math.prod(shape)
            parameters[name] = torch.tensor(vector[start:stop], device=device).reshape(shape)
            start = stop
        return parameters


@dataclass(frozen=True, kw_only=True, slots=True)
class GlobalState:
    """The released model between rounds.

    Attributes:
        round: rounds done so far.
        vector: float32 ``[d]``, the tunable parameters.
    """

    round: int
    vector: FloatVector


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundPlan:
    """What every participant of a round knows beforehand; public.

    Attributes:
        round: 1 for the first.
        cohort: clients asked to take part, ascending.
        lr: learning rate of the local optimiser.
    """

    round: int
    cohort: tuple[ClientId, ...]
    lr: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """What a client's training made. It never leaves the client as such.

    Attributes:
        delta: float32 ``[d]``, new minus old parameters.
        weight: public weight in the average, at least 1.
        loss_sum: summed loss over the examples seen; None under differential privacy, where it must not leave.
        examples: examples seen, likewise.
    """

    delta: FloatVector
    weight: int
    loss_sum: float | None = None
    examples: int | None = None
