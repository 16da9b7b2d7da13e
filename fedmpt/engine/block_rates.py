"""Learning rates in units of what a block's values are at the start.

A step of Adam moves every value by about the learning rate, so one rate cannot serve learnt tokens (size 0.02), layers
(0.05) and norms (1): what tunes the one ruins or never moves the other. In this unit one number serves all blocks of
all methods, and since the start is public, it costs no privacy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fedmpt.methods.base import Parameters
from fedmpt.methods.prompts import TOKEN_SPREAD

AT_ZERO: Final = TOKEN_SPREAD  # the unit of blocks that start at zero, which have no size


def block_rates(initial: Parameters, multipliers: Mapping[str, float]) -> dict[str, float]:
    """Return the factor of every block's learning rate: its root mean square at the start, times its multiplier.

    Args:
        initial: the starting parameters, public and the same for all clients.
        multipliers: block -> further factor, where that is not 1.
    """
    return {
        name: multipliers.get(name, 1.0) * (float(value.square().mean().sqrt()) or AT_ZERO)
        for name, value in initial.items()
    }
