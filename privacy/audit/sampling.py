"""The sampler: independent coins of the promised rate, and batches that are what was drawn.

Shuffled or fixed-size batches are another mechanism with a larger epsilon. Five exact binomial tests tell them apart,
none of which needs an approximation: all inclusions; those of the rarest and the most frequent index; the same index in
two consecutive draws (without replacement: never); the share of batches of a middling size (fixed size: all or none);
and empty batches of a small holding (skipped or redrawn: none).
"""

from collections.abc import Callable, Sequence

import numpy as np

from privacy.audit.exact import binomial_between, binomial_interval, binomial_p
from privacy.audit.step import RecordingSampler, StepUnderAudit, take_all
from privacy.audit.verdict import MECHANISM_ALPHA, CheckResult, Stopwatch, Verdict
from privacy.noise import InsecureZeroNoise
from privacy.plan import DPPlan
from privacy.sampling import PoissonSampler

_SIZE = 60  # examples of the holding that is drawn from
_DRAWS = 2000
_TOLERANCE = 1e-4  # of sums, in units of C


def check_sampling(
    step: StepUnderAudit,
    *,
    members: Sequence[int],
    sampler: Callable[[DPPlan], PoissonSampler] = PoissonSampler,
) -> CheckResult:
    """Tests the sampler's coins, and that a step sums exactly the examples that were drawn.

    Args:
        step: The step under audit.
        members: Examples to draw from, with finite gradients.
        sampler: Makes the program's own sampler.
    """
    watch = Stopwatch()
    rate = step.plan.sample_rate
    p_values = _everyone(sampler(step.plan)) if rate == 1 else _coins(sampler(step.plan), rate)
    missed = _sums_what_it_draws(step, members)
    threshold = MECHANISM_ALPHA / len(p_values)
    smallest, name = min(p_values)
    failed = not (smallest >= threshold and missed <= _TOLERANCE)
    wrong = [test for p_value, test in p_values if not p_value >= threshold]
    words = f"coins of rate {rate:.4f}: smallest p {smallest:.2g} ({', '.join(wrong) or name})"
    if missed > _TOLERANCE:
        words += f"; a step's sum is {missed:.3g} C off the sum of what was drawn"
    return CheckResult(
        check="Poisson sampling",
        claim=f"each example is in each batch with probability {rate:.4f}, independently",
        verdict=Verdict.FAIL if failed else Verdict.PASS,
        statistic=smallest,
        threshold=threshold,
        alpha=MECHANISM_ALPHA,
        tests=len(p_values),
        n=_DRAWS,
        words=words,
        seconds=watch.seconds,
    )


def _everyone(sampler: PoissonSampler) -> list[tuple[float, str]]:
    """At rate 1 there are no coins: a batch is the whole holding, or the sampler is wrong for certain."""
    whole = all(np.array_equal(sampler.draw(size), np.arange(size)) for size in (0, 1, _SIZE))
    return [(float(whole), "whole batches")]


def _coins(sampler: PoissonSampler, rate: float) -> list[tuple[float, str]]:
    included = np.zeros((_DRAWS, _SIZE), dtype=bool)
    for row in included:
        row[sampler.draw(_SIZE)] = True
    counts = included.sum(0)
    sizes = included.sum(1)
    both = int((included[0::2] & included[1::2]).sum())  # disjoint pairs of draws: independent
    low, high = binomial_interval(_SIZE, rate)
    middling = int(((sizes >= low) & (sizes <= high)).sum())
    few = max(1, round(1 / rate))  # of so many, a batch is empty about one time in three
    empty = sum(len(sampler.draw(few)) == 0 for _ in range(_DRAWS))
    per_index = min(binomial_p(int(count), _DRAWS, rate) for count in counts)
    return [
        (binomial_p(int(counts.sum()), _DRAWS * _SIZE, rate), "inclusions"),
        (min(1.0, per_index * _SIZE), "one index"),
        (binomial_p(both, _DRAWS // 2 * _SIZE, rate**2), "consecutive draws"),
        (
            binomial_p(middling, _DRAWS, binomial_between(low, high, _SIZE, rate)),
            "spread of batch sizes",
        ),
        (binomial_p(empty, _DRAWS, (1 - rate) ** few), "empty batches"),
    ]


def _sums_what_it_draws(step: StepUnderAudit, members: Sequence[int]) -> float:
    """Largest distance between a step's sum and the sum of what its sampler drew, in units of C."""
    alone = [
        step.noised_sum([m], sampler=take_all(step.plan), noise=InsecureZeroNoise())
        for m in members
    ]
    largest = 0.0
    for steps in (1, 3):
        sampler = RecordingSampler(step.plan)
        total = step.noised_sum(members, sampler=sampler, noise=InsecureZeroNoise(), steps=steps)
        if len(sampler.draws) != steps:
            return np.inf
        if steps == 1:  # in later steps the state has moved, and gradients with it
            expected = sum((alone[i] for i in sampler.draws[0]), np.zeros_like(total))
            largest = max(largest, float(np.linalg.norm(total - expected)))
    return largest
