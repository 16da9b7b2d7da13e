"""What must hold before clients may share the noise, in public numbers alone."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

from fedmpt.config import Config
from fedmpt.errors import UsageError
from privacy import DPPlan, PrivacyUnit
from privacy.grid import clip_steps_for
from secagg.policy import MIN_MASKED_CLIENTS
from secagg.threshold import default_colluders, guaranteed_honest

LEAST_HONEST: Final = 2  # a client knows its own share, so one other must add noise too
DELTA_BLOCK: Final = "delta"  # the one block where a client is the unit


def counted_on(cohort: int) -> int:
    """Return how many shares of noise an adversary lacks in any sum that a cohort of this size opens.

    A client knows its own share, so at least one client counts as a colluder.
    """
    colluders = default_colluders(cohort)
    return honest_others(guaranteed_honest(cohort, colluders, MIN_MASKED_CLIENTS), colluders)


def honest_others(guaranteed: int, colluders: int) -> int:
    """Return the shares counted on, given the honest clients of any sum and the colluders assumed."""
    return guaranteed if colluders > 0 else guaranteed - 1


def check_shares(config: Config, *, cohort: int) -> None:
    """Raise a `UsageError` unless the proof for shared noise holds in a run with rounds of ``cohort`` clients."""
    privacy = config.privacy
    if not privacy.enabled:
        return
    if privacy.noise != "shares":
        if privacy.unit == "client":
            raise UsageError(
                "--dp-unit client with --dp-noise local: each client's own noise would have to hide all that it sends; "
                "add --dp-noise shares, so that only the sum has it, or use --dp-unit example"
            )
        return
    if config.secagg.mode != "masking":
        raise UsageError(
            f"--dp-noise shares with --secagg {config.secagg.mode}: a single client's contribution carries a share of "
            "the noise only, and this mode can open it; use --secagg masking or --dp-noise local"
        )
    if counted_on(cohort) < LEAST_HONEST:
        raise UsageError(f"--dp-noise shares: {cohort} clients in a round are too few; use more")


def drowning_note(plan: DPPlan, *, values: int, cohort: int) -> str | None:
    """Return a warning where a round's noise is longer than any sum of clients' changes; of public numbers alone.

    Each change has length 1 at most, in units of the clip norm, and so ``cohort`` of them ``cohort``; the noise's
    length is about ``noise_multiplier sqrt(values)``.

    Args:
        plan: of any client.
        values: of one client's change.
        cohort: clients in a round.
    """
    times = plan.noise_multiplier * math.sqrt(values) / cohort
    if plan.unit is not PrivacyUnit.CLIENT or times < 1:
        return None
    return (
        f"--dp-unit client: a round's noise is {times:.1f} times as long as the longest sum of changes that {cohort} "
        f"clients can send (noise multiplier {plan.noise_multiplier:.3g} on {values:,} values), so that the model may "
        "end worse than the frozen CLIP; use more clients a round, a larger --dp-epsilon, fewer --rounds, or "
        "--dp-unit example"
    )


def claim(config: Config, *, cohort: int) -> tuple[str, str]:
    """Return what is protected, and against whom, in words."""
    protected = (
        "everything a client contributes"
        if config.privacy.unit == "client"
        else "every image of every client"
    )
    if config.privacy.noise == "local":
        return protected, "everyone"
    colluders = max(1, default_colluders(cohort))
    return protected, (
        f"the server together with up to {colluders} client(s), who see only sums over at least "
        f"{counted_on(cohort)} others"
    )


def equal_rates(sizes: list[int], batch_size: int) -> list[int]:
    """Return expected batches in proportion to declared sizes, ``batch_size`` on average.

    All shares go into one sum, so the client that samples at the highest rate decides the noise of all.
    """
    mean = sum(sizes) / len(sizes)
    return [max(1, round(batch_size * size / mean)) for size in sizes]


def common_plans(plans: list[DPPlan]) -> list[DPPlan]:
    """Return the plans with the largest noise multiplier among them: all shares go into the same sum."""
    noise_multiplier = max(plan.noise_multiplier for plan in plans)
    steps = clip_steps_for(noise_multiplier, plans[0].honest)
    return [replace(plan, noise_multiplier=noise_multiplier, clip_steps=steps) for plan in plans]
