"""Grey-box neighbour replay: what one example adds to the sum before noise, measured.

The same step is run with and without one example, with recorded coins and without noise. The difference of the two
sums is what the example adds; its norm may not exceed C. The difference must also be the same whatever else the client
holds: an example whose share depends on the others (a clip or a normaliser over the batch) breaks the proof even where
its norm happens to be small.

Exact: no randomness, no confidence level. Source: the method of arXiv 2602.17454.
"""

from collections.abc import Sequence

import numpy as np

from privacy.audit.step import StepUnderAudit, Vector, take_all
from privacy.audit.verdict import CheckResult, Stopwatch, Verdict
from privacy.noise import InsecureZeroNoise

TOLERANCE = 1e-4  # of float32 sums over a few dozen examples, in units of C


def check_replay(
    step: StepUnderAudit, *, base: Sequence[int], removed: Sequence[int]
) -> CheckResult:
    """Adds each of some examples to a base and measures what it adds.

    `INCONCLUSIVE` if no example exceeds C even without clipping: then a missing clip could not have been seen.

    Args:
        step: The step under audit.
        base: What the client holds anyway.
        removed: Examples that are added one at a time.
    """
    watch = Stopwatch()
    without = _sum(step, base)
    largest, most_shared, culprit = 0.0, 0.0, ""
    for index in removed:
        added = _sum(step, [*base, index]) - without
        shared = float(np.linalg.norm(added - _sum(step, [index])))
        norm = float(np.linalg.norm(added))
        worst = max(norm - 1, shared) if np.isfinite(added).all() else np.inf
        if not culprit or not worst <= max(largest - 1, most_shared):
            culprit = step.examples[index]
        largest = max(largest, norm) if np.isfinite(norm) else np.inf
        most_shared = max(most_shared, shared) if np.isfinite(shared) else np.inf
    raw = [float(np.linalg.norm(_sum(step, [i], unclipped=True))) for i in removed]
    control = max((norm for norm in raw if np.isfinite(norm)), default=0.0)
    violated = not (largest <= 1 + TOLERANCE and most_shared <= TOLERANCE)
    if violated:
        verdict = Verdict.FAIL
        words = f"the example '{culprit}' adds up to {largest:.4f} C, and {most_shared:.4f} C of it depend on others"
    elif control > 1 + TOLERANCE:
        verdict = Verdict.PASS
        words = f"no example adds more than {largest:.6f} C, whatever else is held; unclipped {control:.1f} C"
    else:
        verdict = Verdict.INCONCLUSIVE
        words = f"unclipped, no example exceeds C either ({control:.2f} C): a missing clip would not show"
    return CheckResult(
        check="neighbour replay",
        claim="one example more or less moves the sum by at most C, whatever the others are",
        verdict=verdict,
        statistic=max(largest, 1 + most_shared),
        threshold=1 + TOLERANCE,
        alpha=0.0,
        tests=len(removed),
        n=len(base) + 1,
        words=words,
        control=control,
        seconds=watch.seconds,
    )


def _sum(step: StepUnderAudit, members: Sequence[int], *, unclipped: bool = False) -> Vector:
    return step.noised_sum(
        members, sampler=take_all(step.plan), noise=InsecureZeroNoise(), unclipped=unclipped
    )
