"""Means with 95% confidence intervals over seeds, paired differences and paired ratios; Student's t."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

CONFIDENCE: Final = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: of the values.
        half_width: of the confidence interval; None for one value, which has none.
        count: number of values.
    """

    mean: float
    half_width: float | None
    count: int

    def __str__(self) -> str:
        mean = round(self.mean, 1) + 0.0  # no minus before a zero
        return f"{mean:.1f}" if self.half_width is None else f"{mean:.1f} ± {self.half_width:.1f}"


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedDifference:
    """How much a condition differs from a reference, seed by seed.

    Attributes:
        by_seed: seed -> difference.
        estimate: of its mean.
    """

    by_seed: dict[int, float]
    estimate: Estimate


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """The mean of a condition over that of another with the same seeds.

    Attributes:
        value: the ratio of the means.
        low: of its confidence interval; None for one seed.
        high: of its confidence interval; likewise.
        count: number of seeds that both have.
    """

    value: float
    low: float | None
    high: float | None
    count: int

    def __str__(self) -> str:
        value = f"{100 * self.value:.0f}%"
        if self.low is None or self.high is None:
            return value
        return f"{value} ({100 * self.low:.0f} to {100 * self.high:.0f})"


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of one or more values with its interval."""
    count = len(values)
    half = None
    if count > 1:
        half = _quantile(count) * statistics.stdev(values) / math.sqrt(count)
    return Estimate(mean=statistics.fmean(values), half_width=half, count=count)


def paired(values: Mapping[int, float], reference: Mapping[int, float]) -> PairedDifference | None:
    """Return the differences over the seeds that both have; None where there is none.

    Args:
        values: by seed.
        reference: by seed.
    """
    differences = {s: values[s] - reference[s] for s in sorted(set(values) & set(reference))}
    if not differences:
        return None
    return PairedDifference(by_seed=differences, estimate=estimate(list(differences.values())))


def share(values: Mapping[int, float], whole: Mapping[int, float]) -> Share | None:
    """Return the ratio of two means, paired by seed, with Fieller's interval.

    A ratio ``r`` is in the interval where the paired differences ``value - r * whole`` do not tell their mean from 0.

    Args:
        values: by seed.
        whole: by seed; the divisor.

    Returns:
        None where no seed is shared or the divisor's mean is not above 0, or where it cannot be told from 0: then the
        interval is not bounded, and a ratio says nothing.

    Source: Fieller, "Some problems in interval estimation", J. R. Stat. Soc. B 16 (1954).
    """
    seeds = sorted(set(values) & set(whole))
    if not seeds:
        return None
    ours, theirs = [values[seed] for seed in seeds], [whole[seed] for seed in seeds]
    above, below = statistics.fmean(ours), statistics.fmean(theirs)
    if below <= 0:
        return None
    low = high = None
    if len(seeds) > 1:
        spread = _quantile(len(seeds)) ** 2 / len(seeds)
        square = below**2 - spread * statistics.variance(theirs)
        middle = above * below - spread * statistics.covariance(ours, theirs)
        rest = above**2 - spread * statistics.variance(ours)
        if square <= 0:
            return None
        root = math.sqrt(max(0.0, middle**2 - square * rest))
        low, high = (middle - root) / square, (middle + root) / square
    return Share(value=above / below, low=low, high=high, count=len(seeds))


def _quantile(count: int) -> float:
    """Return Student's quantile for the mean of two or more values."""
    from scipy import special  # loaded late: the command line's help needs none of it

    return float(special.stdtrit(count - 1, 0.5 + CONFIDENCE / 2))
