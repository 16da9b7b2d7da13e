"""Integer noise in public numbers: when it is used, the delta of its claim, and how many values a step releases.

Integer noise differs from Gaussian noise by a little in every value. A hundredth of delta is set aside for that, and a
run that would take more is refused (`fedmpt.engine.ledgers`).
"""

from __future__ import annotations

import math

from fedmpt.config import PrivacyConfig
from fedmpt.engine.prepare import Federation
from fedmpt.engine.share_terms import DELTA_BLOCK
from fedmpt.learner import make_space, released_shapes
from privacy import Arithmetic, DPSpace
from privacy.grid import delta_of_claim


def arithmetic_of(privacy: PrivacyConfig) -> Arithmetic:
    """Return the arithmetic of query and noise; shares of noise are integers."""
    integers = privacy.noise == "shares" or privacy.arithmetic == "integer"
    return Arithmetic.INTEGER if integers else Arithmetic.FLOAT


def claimed(planned: float, arithmetic: Arithmetic) -> float:
    """Return the delta of the claim that plans for ``planned`` prove, with what is set aside for integer noise."""
    return delta_of_claim(planned) if arithmetic is Arithmetic.INTEGER else planned


def step_shapes(federation: Federation) -> dict[str, tuple[int, ...]]:
    """Return the blocks that a private step releases, with their shapes."""
    config = federation.config.privacy
    if config.unit == "client":
        return {DELTA_BLOCK: (federation.spec.size,)}
    sketch = federation.sketches.at(federation.initial, round_number=0)
    space = make_space(DPSpace(config.space), federation.method, sketch=sketch)
    return released_shapes(federation.method, space, federation.initial)


def released_values(federation: Federation) -> int:
    """Return how many values a private step releases."""
    return sum(math.prod(shape) for shape in step_shapes(federation).values())
