"""Means with 95% confidence intervals over seeds, and paired differences; Student's t."""

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


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of one or more values with its interval."""
    count = len(values)
    half = None
    if count > 1:
        from scipy import special  # loaded late: the command line's help needs none of it

        quantile = float(special.stdtrit(count - 1, 0.5 + CONFIDENCE / 2))
        half = quantile * statistics.stdev(values) / math.sqrt(count)
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
