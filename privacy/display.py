"""Figures as people read them."""

import math
from decimal import ROUND_CEILING, Decimal


def display_epsilon(epsilon: float, digits: int = 2) -> str:
    """Epsilon for people: rounded up, never to nearest; what is no finite number is shown as it is."""
    if not math.isfinite(epsilon):
        return str(epsilon)
    step = Decimal(1).scaleb(-digits)
    return str(Decimal(repr(float(epsilon))).quantize(step, rounding=ROUND_CEILING))
