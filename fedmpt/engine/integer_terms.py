"""What must hold before a Gaussian accountant may be asked about integer noise, in public numbers alone.

Integer noise differs from Gaussian noise by a little in every value. A hundredth of delta is set aside for that, and a
run that would take more is refused: at large epsilons the little is multiplied by e^epsilon.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedmpt.config import PrivacyConfig
from fedmpt.engine.prepare import Federation
from fedmpt.engine.share_terms import DELTA_BLOCK
from fedmpt.errors import UsageError
from fedmpt.learner import make_space, released_shapes
from privacy import Arithmetic, DPPlan, NoiseMode, PrivacyUnit
from privacy.grid import SET_ASIDE, delta_of_claim, discretisation_delta


def arithmetic_of(privacy: PrivacyConfig) -> Arithmetic:
    """Return the arithmetic of query and noise; shares of noise are integers."""
    integers = privacy.noise == "shares" or privacy.arithmetic == "integer"
    return Arithmetic.INTEGER if integers else Arithmetic.FLOAT


def claimed(planned: float, arithmetic: Arithmetic) -> float:
    """Return the delta of the claim that plans for ``planned`` prove, with what is set aside for integer noise."""
    return delta_of_claim(planned) if arithmetic is Arithmetic.INTEGER else planned


def step_shapes(federation: Federation, plan: DPPlan) -> dict[str, tuple[int, ...]]:
    """Return the blocks that a step of this plan releases, with their shapes."""
    if plan.unit is PrivacyUnit.CLIENT:
        return {DELTA_BLOCK: (federation.spec.size,)}
    sketch = federation.sketches.at(federation.initial, round_number=0)
    space = make_space(plan.space, federation.method, sketch=sketch)
    return released_shapes(federation.method, space, federation.initial)


def require_room_in_delta(
    federation: Federation, plans: Sequence[DPPlan], *, lifetimes: Sequence[float]
) -> None:
    """Refuse a run whose integer noise would take more of delta than is set aside for it.

    Where several runs add up on a ledger, the claim is made at its lifetime epsilon, and a run may take a part of what
    is set aside: the square of its target over the lifetime. Squares of the targets of runs that fit into a lifetime
    add up to at most the lifetime's, for squares of ``1 / sigma`` add up and epsilon grows at least linearly in it.

    Args:
        federation: the prepared run.
        plans: of its clients; nothing is refused where they are not of integer arithmetic.
        lifetimes: each client's lifetime epsilon, at least the plan's target.

    Raises:
        UsageError: the noise takes too much.
    """
    if not plans or plans[0].arithmetic is not Arithmetic.INTEGER:
        return
    values = sum(math.prod(shape) for shape in step_shapes(federation, plans[0]).values())
    for plan, lifetime in zip(plans, lifetimes, strict=True):
        spent = discretisation_delta(
            noise_multiplier=plan.noise_multiplier,
            clip_steps=plan.grid_steps,
            target_epsilon=lifetime,
            values=values * plan.steps_per_round * plan.rounds,
        )
        room = SET_ASIDE * plan.delta * min(1.0, plan.target_epsilon / lifetime) ** 2
        if spent > room:
            shared = plan.noise is NoiseMode.SHARES
            option = "--dp-noise shares" if shared else "--dp-arithmetic integer"
            raise UsageError(
                f"{option} at epsilon {lifetime:g}: that noise is discrete would take {spent:.2g} of delta "
                f"{plan.delta:.2g}, more than the {room:.2g} set aside for it; use a smaller --dp-epsilon or "
                "--dp-lifetime, fewer rounds or a smaller space"
            )
