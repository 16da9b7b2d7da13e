"""One-run audit: a lower bound on epsilon from one training run with many canaries.

Each canary is in the data by the toss of a coin. After training the auditor guesses the coins of the canaries with
the most extreme scores. Under (epsilon, delta)-DP the number of right guesses is bounded, so many right guesses refute
small epsilons. Even perfect guesses cannot refute a large epsilon with few canaries: that ceiling is part of the
result, and a claim above it leaves the check inconclusive.

Source: Steinke, Nasr and Jagielski, arXiv 2305.08846, theorem 5.2.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from privacy.accountant import Accountant
from privacy.audit.canaries import canary_directions
from privacy.audit.exact import binomial_pmf
from privacy.audit.step import StepUnderAudit, Vector, take_all
from privacy.audit.verdict import CheckResult, Stopwatch, Verdict
from privacy.noise import GaussianNoise, InsecureZeroNoise, NoiseSource
from privacy.sampling import PoissonSampler

_ALPHA = 0.05  # of the bound on epsilon, as the source has it; a smaller one lowers the ceiling
_GUESS_SHARES = (
    0.02,
    0.05,
    0.1,
    0.2,
    0.4,
    0.7,
    1.0,
)  # of the canaries; each costs a share of alpha
_CONTROL_SHARE = 0.8  # of the ceiling that the control must reach
_LARGEST = 60.0


def check_one_run(
    step: StepUnderAudit,
    *,
    canaries: Sequence[int],
    steps: int,
    accountant: Accountant,
    coins: np.random.Generator,
) -> CheckResult:
    """Bounds epsilon from below by one run, and compares with the claim.

    Args:
        step: The step under audit; gradients of canaries are constant and orthogonal.
        canaries: Examples of the pool that are canaries.
        steps: Steps of the run.
        accountant: Gives the claimed epsilon.
        coins: Decides which canaries are in.
    """
    watch = Stopwatch()
    plan = step.plan
    claimed = accountant.epsilon([plan.event(steps)], plan.delta)
    bound = _audit(step, canaries, steps, PoissonSampler(plan), GaussianNoise(), coins)
    control = _audit(step, canaries, steps, take_all(plan), InsecureZeroNoise(), coins)
    ceiling = _largest_bound(len(canaries), plan.delta)
    if bound > claimed:
        verdict, words = Verdict.FAIL, "more than is claimed"
    elif control < _CONTROL_SHARE * ceiling:
        verdict, words = (
            Verdict.INCONCLUSIVE,
            f"its control without noise and sampling shows only {control:.2f}",
        )
    elif ceiling < claimed:
        verdict, words = Verdict.INCONCLUSIVE, "the ceiling lies below the claim"
    else:
        verdict, words = Verdict.PASS, "no more than is claimed"
    return CheckResult(
        check=f"one-run audit at epsilon {claimed:.2f}",
        claim=f"epsilon {claimed:.4f} at delta {plan.delta:g} after {steps} steps",
        verdict=verdict,
        statistic=bound,
        threshold=claimed,
        alpha=_ALPHA,
        tests=len(_GUESS_SHARES),
        n=len(canaries),
        words=f"shows epsilon >= {bound:.2f}, at most {ceiling:.2f} could be shown: {words}",
        ceiling=ceiling,
        control=control,
        proves=False,
        seconds=watch.seconds,
    )


def _audit(
    step: StepUnderAudit,
    canaries: Sequence[int],
    steps: int,
    sampler: PoissonSampler,
    noise: NoiseSource,
    coins: np.random.Generator,
) -> float:
    """The largest bound over the shares of canaries that are guessed, each at its share of alpha."""
    included = coins.random(len(canaries)) < 0.5
    members = [c for c, into in zip(canaries, included, strict=True) if into]
    total = step.noised_sum(members, sampler=sampler, noise=noise, steps=steps)
    scores = canary_directions(step, canaries) @ total
    return bound_from_scores(scores, included, delta=step.plan.delta, alpha=_ALPHA)


def bound_from_scores(
    scores: Vector, included: NDArray[np.bool_], *, delta: float, alpha: float
) -> float:
    """Guesses the extreme scores, high as in and low as out; returns the best bound on epsilon.

    Args:
        scores: `[m]`, higher for canaries that were in.
        included: bool `[m]`, the coins.
        delta: Of the claim.
        alpha: Error probability of the result.
    """
    m = len(scores)
    order = np.argsort(scores)
    best = 0.0
    for guesses in guess_counts(m):
        low, high = order[: guesses // 2], order[m - guesses // 2 :]
        right = int((~included[low]).sum() + included[high].sum())
        bound = epsilon_bound(
            right, guesses // 2 * 2, m, delta=delta, alpha=alpha / len(guess_counts(m))
        )
        best = max(best, bound)
    return best


def guess_counts(m: int) -> list[int]:
    """How many canaries are guessed, for each share."""
    return [max(2, round(share * m)) for share in _GUESS_SHARES]


def epsilon_bound(right: int, guesses: int, m: int, *, delta: float, alpha: float) -> float:
    """The largest epsilon that `right` of `guesses` right guesses refute at level `alpha`.

    Args:
        right: Right guesses.
        guesses: Guesses made.
        m: Canaries, each in with probability 1/2.
        delta: Of the claim.
        alpha: Level of the test.
    """
    if p_value(right, guesses, m, epsilon=0.0, delta=delta) >= alpha:
        return 0.0
    low, high = 0.0, _LARGEST
    while high - low > 1e-3:
        middle = (low + high) / 2
        refuted = p_value(right, guesses, m, epsilon=middle, delta=delta) < alpha
        low, high = (middle, high) if refuted else (low, middle)
    return low


def p_value(right: int, guesses: int, m: int, *, epsilon: float, delta: float) -> float:
    """Upper bound on the probability of so many right guesses under (epsilon, delta)-DP.

    With W binomial(guesses, e^epsilon / (1 + e^epsilon)): P[W >= right] plus `2 m delta` times the largest mean
    of the probabilities just below `right`.
    """
    pmf = binomial_pmf(guesses, 1 / (1 + math.exp(-epsilon)))
    tail = float(pmf[right:].sum())
    below = np.cumsum(pmf[:right][::-1])  # P[right - i <= W < right], i = 1..right
    mean = float((below / np.arange(1, right + 1)).max()) if right else 0.0
    return min(1.0, tail + 2 * m * delta * mean)


def _largest_bound(m: int, delta: float) -> float:
    """What perfect guesses would have shown."""
    counts = guess_counts(m)
    return max(
        epsilon_bound(g // 2 * 2, g // 2 * 2, m, delta=delta, alpha=_ALPHA / len(counts))
        for g in counts
    )
