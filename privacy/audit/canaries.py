"""Canary regression: a whole round of steps on orthogonal canaries must add up to draws plus noise.

A canary's gradient is constant and orthogonal to all others. After T steps its direction holds its clipped gradient
times the number of batches it was in, which the auditor recorded, plus noise of standard deviation `sqrt(T) sigma C`.
Whatever is left after both are taken out is a chi-square variable, exactly, and two-sided: too little noise, too much
weight and batches that were not drawn all show.
"""

from collections.abc import Sequence

import numpy as np

from privacy.audit.exact import chi_square_p
from privacy.audit.step import RecordingSampler, StepUnderAudit, Vector, take_all
from privacy.audit.verdict import MECHANISM_ALPHA, CheckResult, Stopwatch, Verdict
from privacy.noise import GaussianNoise, InsecureZeroNoise


def check_canaries(step: StepUnderAudit, *, canaries: Sequence[int], steps: int) -> CheckResult:
    """Tests the sum of many steps against the recorded draws.

    Args:
        step: The step under audit; gradients of canaries are constant and orthogonal.
        canaries: Examples of the pool that are canaries.
        steps: Steps of the round.
    """
    watch = Stopwatch()
    directions = canary_directions(step, canaries)  # [m, d]
    weights = np.linalg.norm(directions, axis=1)  # [m], clipped norms in units of C
    sampler = RecordingSampler(step.plan)
    total = step.noised_sum(canaries, sampler=sampler, noise=GaussianNoise(), steps=steps)
    times = np.bincount(np.concatenate(sampler.draws), minlength=len(canaries))
    scores = directions @ total / weights  # [m]
    left = (scores - times * weights) / (np.sqrt(steps) * step.plan.noise_multiplier)
    p_value = chi_square_p(float(left @ left), len(canaries))
    spread = float(np.sqrt(np.mean(left**2)))
    failed = not p_value >= MECHANISM_ALPHA
    return CheckResult(
        check="canary regression",
        claim=f"{steps} steps add up to what was drawn, clipped, and {steps} noises",
        verdict=Verdict.FAIL if failed else Verdict.PASS,
        statistic=spread,
        threshold=1.0,
        alpha=MECHANISM_ALPHA,
        tests=1,
        n=len(canaries),
        words=f"what draws do not explain has {spread:.3f} of the claimed noise (p {p_value:.2g})",
        seconds=watch.seconds,
    )


def canary_directions(step: StepUnderAudit, canaries: Sequence[int]) -> Vector:
    """What each canary adds to a sum, in units of C: float64 `[m, d]`."""
    return np.stack(
        [
            step.noised_sum([c], sampler=take_all(step.plan), noise=InsecureZeroNoise())
            for c in canaries
        ]
    )
