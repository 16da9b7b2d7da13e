"""The mechanism's noise: of the promised standard deviation, in every block, whatever the client holds.

The noise of a step is the difference between its noised sum and the sum with noise taken out. Its squares, in units of
the claim, sum to a chi-square variable exactly, so the test has exact error probabilities and, with thousands of
coordinates in one step, sees a deviation of a few per cent.
"""

from collections.abc import Callable, Sequence

import numpy as np

from privacy.audit.exact import chi_square_p, correlation_p
from privacy.audit.step import StepUnderAudit, take_all
from privacy.audit.verdict import MECHANISM_ALPHA, CheckResult, Stopwatch, Verdict
from privacy.noise import GaussianNoise, InsecureZeroNoise, NoiseSource


def check_mechanism(
    step: StepUnderAudit,
    *,
    holdings: Sequence[Sequence[int]],
    noise: Callable[[], NoiseSource] = GaussianNoise,
) -> CheckResult:
    """Tests the noise of a step for several holdings of the client, the empty one among them.

    Args:
        step: The step under audit.
        holdings: What the client holds; different sizes show noise that depends on the size.
        noise: Makes the program's own noise source.
    """
    watch = Stopwatch()
    sigma = step.plan.noise_multiplier
    p_values: list[tuple[float, str]] = []
    previous = None
    ratios: list[float] = []
    for members in holdings:
        source = noise()
        noised = step.noised_sum(members, sampler=take_all(step.plan), noise=source)
        exact = step.noised_sum(members, sampler=take_all(step.plan), noise=InsecureZeroNoise())
        drawn = (noised - exact) / sigma
        ratios.append(float(np.sqrt(np.mean(drawn**2))))
        for name, where in step.blocks.items():
            part = drawn[where]
            p_values.append(
                (chi_square_p(float(part @ part), len(part)), f"{len(members)} examples, {name}")
            )
        if previous is not None:
            p_values.append((correlation_p(previous, drawn), "noise of two steps"))
        previous = drawn
    smallest, where_found = min(p_values) if p_values else (1.0, "")
    threshold = MECHANISM_ALPHA / len(p_values)
    worst = max(ratios, key=lambda ratio: abs(np.log(ratio)) if ratio > 0 else np.inf)
    failed = not smallest >= threshold
    words = (
        f"standard deviation {worst:.4f} of the claimed, in the farthest of {len(ratios)} holdings"
    )
    if failed:
        words += f" ({where_found}: p {smallest:.1g})"
    return CheckResult(
        check="mechanism variance",
        claim=f"every step has fresh Gaussian noise of standard deviation {sigma:g} C, empty batches included",
        verdict=Verdict.FAIL if failed else Verdict.PASS,
        statistic=worst,
        threshold=1.0,
        alpha=MECHANISM_ALPHA,
        tests=len(p_values),
        n=int(sum(w.stop - w.start for w in step.blocks.values())) * len(holdings),
        words=words,
        seconds=watch.seconds,
    )
