"""Losses of multi-label recognition. Each is of one example alone, so that it can be clipped under DP."""

from __future__ import annotations

from typing import Final

import msgspec
import torch
from torch import Tensor

from fedmpt.config import LossConfig

PROBABILITY_FLOOR: Final = 1e-6  # keeps logarithms finite at 0 and 1 (DualCoOp's value)
_WEIGHT: Final = 0.02  # DualCoOp's, where log-odds are 100 times a difference of cosines
_WEIGHT_SCALE: Final = 100.0


def asymmetric_loss(
    probabilities: Tensor,
    labels: Tensor,
    *,
    gamma_positive: float = 1.0,
    gamma_negative: float = 2.0,
    shift: float = 0.05,
) -> Tensor:
    """Return the asymmetric loss of every example, summed over classes.

    Guarantee: an example's loss depends on its own row only. Unknown labels (-1) and negatives whose probability is
    below ``shift`` contribute neither loss nor gradient. Focusing weights carry no gradient.

    Args:
        probabilities: ``[B, C]`` in [0, 1].
        labels: ``[B, C]``; 1 present, 0 absent, -1 unknown.
        gamma_positive: focusing exponent of positives.
        gamma_negative: focusing exponent of negatives.
        shift: probability ``c`` that is taken off negatives.

    Returns:
        ``[B]``, at least 0.

    Source: FedMPT Eq. 12 with the sign that makes it a loss; ASL, arXiv 2009.14119, Eq. 4-7.
    """
    positive = (labels == 1).to(probabilities.dtype)
    negative = (labels == 0).to(probabilities.dtype)
    p = probabilities.clamp(PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    shifted = (probabilities - shift).clamp(min=0.0, max=1 - PROBABILITY_FLOOR)
    focus_positive = (1 - p).detach() ** gamma_positive
    focus_negative = (
        torch.ones_like(p) if gamma_negative == 0 else shifted.detach() ** gamma_negative
    )
    gain = positive * focus_positive * p.log() + negative * focus_negative * torch.log1p(-shifted)
    return -gain.sum(-1)


def weighted(config: LossConfig, *, scale: float) -> LossConfig:
    """Return the loss with its weight: as configured, else so that a step of SGD moves log-odds as far as DualCoOp's.

    A gradient is proportional to the scale of log-odds, and so is what it does to them.

    Args:
        config: the loss.
        scale: multiplier of cosines in the log-odds of the method's scores.
    """
    if config.weight is not None:
        return config
    return msgspec.structs.replace(config, weight=_WEIGHT * (_WEIGHT_SCALE / scale) ** 2)


def configured_loss(probabilities: Tensor, labels: Tensor, config: LossConfig) -> Tensor:
    """Return the asymmetric loss of every example as configured, times its weight (1 without one): ``[B]``."""
    return (config.weight or 1.0) * asymmetric_loss(
        probabilities,
        labels,
        gamma_positive=config.gamma_positive,
        gamma_negative=config.gamma_negative,
        shift=config.shift,
    )
