"""FedAWA's adaptive weights, from sums that hide who contributed what.

The server of the original sees every update d_k and takes, per round, one Adam step on scalars T_k with
``p = softmax(T)`` and

    L(T) = sum_k p_k |d_k - m| + sum_k p_k (1 - cos(w, w + d_k)),    m = sum_j p_j d_j.

Its gradient needs no single update. With ``u_k = (d_k - m) / |d_k - m|`` and ``g = sum_k p_k u_k``,

    h_k = dL/dp_k = |d_k - m| + 1 - cos(w, w + d_k) - <d_k, g>,    dL/dT_k = p_k (h_k - sum_j p_j h_j),

so a client that keeps its own T_k needs the sums m, g and ``sum_j p_j h_j`` only, each a weighted mean over the
clients of a round, and the first step of a fresh Adam depends on its own gradient alone. Four secure sums a round
(m, g, the mean slope, the next model) give the original's weights without anybody seeing an update or a weight.

Source: FedAWA, CVPR 2025; the reduction to sums is this project's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from fedmpt.types import FloatVector

LARGEST_WEIGHT: Final = 1 << 20  # an integer weight is exp(T) in these units
LARGEST_SCORE: Final = (
    1.25  # T of the largest weight; T starts at 1 or below and moves by the learning rate a round
)
SLOPE_UNIT: Final = 256.0  # slopes are sent in this unit, so that they fit the encoder's range of 1
_ADAM_FLOOR: Final = 1e-8  # Adam's epsilon
_SHORTEST: Final = 1e-12  # a deviation below this has no direction


@dataclass(frozen=True, slots=True)
class Deviation:
    """How a client's update differs from the mean update.

    Attributes:
        length: ``|d_k - m|``.
        direction: float32 ``[d]``, of unit length, or 0 where there is no deviation.
    """

    length: float
    direction: FloatVector


def start_score(size: int, total: int, *, logarithmic: bool) -> float:
    """Return T_k at the start: a client's share of the images, or its logarithm (softmax then gives the shares)."""
    share = size / total
    return math.log(share) if logarithmic else share


def integer_weight(score: float) -> int:
    """Return exp(T) in units of `LARGEST_WEIGHT`, at least 1: what a client multiplies its contribution with."""
    return max(1, round(LARGEST_WEIGHT * math.exp(min(score, LARGEST_SCORE) - LARGEST_SCORE)))


def deviation(delta: FloatVector, mean: FloatVector) -> Deviation:
    """Return how ``delta`` differs from the weighted mean update."""
    difference = delta.astype(np.float64) - mean
    length = float(np.linalg.norm(difference))
    direction = difference / length if length > _SHORTEST else np.zeros_like(difference)
    return Deviation(length, direction.astype(np.float32))


def slope(
    delta: FloatVector, own: Deviation, mean_direction: FloatVector, model: FloatVector
) -> float:
    """Return ``h_k``, the loss's derivative in the client's own p_k.

    Args:
        delta: the client's update, float32 ``[d]``.
        own: its deviation from the mean.
        mean_direction: ``g``, float32 ``[d]``.
        model: the global model ``w`` that training started from, float32 ``[d]``.
    """
    before, change = model.astype(np.float64), delta.astype(np.float64)
    after = before + change
    lengths = float(np.linalg.norm(before) * np.linalg.norm(after))
    cosine = float(before @ after) / lengths if lengths > 0 else 0.0
    return own.length + 1 - cosine - float(change @ mean_direction)


def stepped_score(
    score: float, *, own_slope: float, mean_slope: float, share: float, lr: float
) -> float:
    """Return T_k after the first step of a fresh Adam.

    Args:
        score: T_k.
        own_slope: ``h_k``.
        mean_slope: ``sum_j p_j h_j``.
        share: ``p_k``.
        lr: Adam's learning rate.
    """
    gradient = share * (own_slope - mean_slope)
    return score - lr * gradient / (abs(gradient) + _ADAM_FLOOR)
