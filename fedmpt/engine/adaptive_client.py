"""A client's side of FedAWA: its score, and its answers to the four sums of a round."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fedmpt.strategy.fedawa import (
    SLOPE_UNIT,
    Deviation,
    deviation,
    integer_weight,
    slope,
    stepped_score,
)
from fedmpt.types import FloatVector, GlobalState, Update


class AdaptiveClient:
    """A client's side: its score T_k, which never leaves it, and what it keeps between the sums of a round."""

    def __init__(self, score: float, *, lr: float, reports_loss: bool) -> None:
        """Start with a score.

        Args:
            score: T_k.
            lr: learning rate of T_k.
            reports_loss: whether updates carry a loss.
        """
        self.score = score
        self._lr = lr
        self._reports_loss = reports_loss

    def score_tensor(self) -> Tensor:
        """Return the score as a float64 scalar, to be kept on the client's disk."""
        return torch.tensor(self.score, dtype=torch.float64)

    def first(self, update: Update, state: GlobalState) -> Update:
        """Keep the round's update and contribute it with the current weight."""
        self._update, self._model = update, state.vector
        self._weight = integer_weight(self.score)
        return replace(update, weight=self._weight)

    def second(self, mean: FloatVector) -> Update:
        """Contribute the direction in which the update deviates from the mean."""
        self._deviation: Deviation = deviation(self._update.delta, mean)
        return self._silent(self._deviation.direction)

    def third(self, mean_direction: FloatVector) -> Update:
        """Contribute the slope, in every coordinate: their mean rounds finer than one of them."""
        self._slope = slope(self._update.delta, self._deviation, mean_direction, self._model)
        return self._silent(np.full_like(self._update.delta, self._slope / SLOPE_UNIT))

    def fourth(self, mean_slope: float, total_weight: int) -> Update:
        """Move the score and contribute the update with the new weight."""
        self.score = stepped_score(
            self.score,
            own_slope=self._slope,
            mean_slope=mean_slope,
            share=self._weight / total_weight,
            lr=self._lr,
        )
        return replace(self._update, weight=integer_weight(self.score))

    def _silent(self, values: FloatVector) -> Update:
        """Return a contribution that reports no loss of its own."""
        if self._reports_loss:
            return Update(delta=values, weight=self._weight, loss_sum=0.0, examples=0)
        return Update(delta=values, weight=self._weight)
