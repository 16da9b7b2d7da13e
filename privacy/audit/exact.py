"""Exact tests and confidence limits: no normal approximation, whatever the size.

scipy, which dp-accounting and Opacus bring along, is imported on first use.
"""

import importlib
import math
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray


@cache
def _stats() -> Any:
    return importlib.import_module("scipy.stats")


def chi_square_p(sum_of_squares: float, degrees: int) -> float:
    """Two-sided p-value of a sum of squares of `degrees` independent standard normal values."""
    law = _stats().chi2(degrees)
    return _two_sided(float(law.cdf(sum_of_squares)), float(law.sf(sum_of_squares)))


def binomial_p(successes: int, trials: int, probability: float) -> float:
    """Two-sided p-value of a number of successes: twice the smaller tail, at most 1."""
    law = _stats().binom(trials, probability)
    return _two_sided(float(law.cdf(successes)), float(law.sf(successes - 1)))


def correlation_p(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Two-sided p-value of the correlation of two vectors, one of them independent and normal.

    Uncentred; exact, since the angle between a normal vector and any other has a known law. 0 for a vector of zeros,
    which no noise is.
    """
    degrees = len(first) - 1
    lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
    if lengths == 0:
        return 0.0
    cosine = float(first @ second) / lengths
    if abs(cosine) >= 1:
        return 0.0
    statistic = cosine * math.sqrt(degrees / (1 - cosine**2))
    law = _stats().t(degrees)
    return _two_sided(float(law.cdf(statistic)), float(law.sf(statistic)))


def lower_limit(successes: int, trials: int, alpha: float) -> float:
    """Clopper-Pearson: the probability is at least this, except with probability `alpha`."""
    if successes == 0:
        return 0.0
    return float(_stats().beta.ppf(alpha, successes, trials - successes + 1))


def upper_limit(successes: int, trials: int, alpha: float) -> float:
    """Clopper-Pearson: the probability is at most this, except with probability `alpha`."""
    if successes == trials:
        return 1.0
    return float(_stats().beta.ppf(1 - alpha, successes + 1, trials - successes))


def binomial_pmf(trials: int, probability: float) -> NDArray[np.float64]:
    """Probabilities of 0 to `trials` successes, `[trials + 1]`."""
    values: NDArray[np.float64] = _stats().binom.pmf(np.arange(trials + 1), trials, probability)
    return values


def binomial_interval(trials: int, probability: float) -> tuple[int, int]:
    """Quartiles of a number of successes."""
    law = _stats().binom(trials, probability)
    return int(law.ppf(0.25)), int(law.ppf(0.75))


def binomial_between(low: int, high: int, trials: int, probability: float) -> float:
    """Probability of `low` to `high` successes, both included."""
    law = _stats().binom(trials, probability)
    return float(law.cdf(high) - law.cdf(low - 1))


def _two_sided(below: float, above: float) -> float:
    return min(1.0, 2 * min(below, above))
