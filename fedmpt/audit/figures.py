"""When a figure that a run states is the one that its records give."""

from __future__ import annotations

import math
from typing import Final

EPSILON_TOLERANCE: Final = 1e-4  # between accountants' versions, and figures reached step by step
_ROUNDING: Final = 1e-9  # relative: of a float on its way through a file


def same_epsilon(told: float | None, recomputed: float | None) -> bool:
    """Whether a stated epsilon is the recomputed one; None is no figure at all."""
    if told is None or recomputed is None:
        return told is recomputed
    return abs(told - recomputed) <= EPSILON_TOLERANCE  # a NaN is not close to anything


def same(told: float | None, recomputed: float | None) -> bool:
    """Whether another stated figure is the recomputed one: counts exactly, floats but for rounding."""
    if told is None or recomputed is None:
        return told is recomputed
    if isinstance(recomputed, int):
        return told == recomputed
    return math.isclose(told, recomputed, rel_tol=_ROUNDING, abs_tol=0.0)
