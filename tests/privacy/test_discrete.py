import hashlib
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from privacy import discrete
from privacy.discrete import DiscreteGaussianNoise, discrete_gaussian, discrete_gaussians
from privacy.randomness import InsecureSeededBytes, SystemBytes

LEVEL = 1e-9  # chance of a false alarm per check: noise cannot be seeded, and checks are many


def pmf(x: int, variance: float) -> float:
    """The discrete Gaussian's probability of x, by summation."""
    reach = math.ceil(12 * math.sqrt(variance)) + 2
    total = sum(math.exp(-(k**2) / (2 * variance)) for k in range(-reach, reach + 1))
    return math.exp(-(x**2) / (2 * variance)) / total


def assert_fits_the_probabilities(values: list[int], variance: float) -> None:
    """Chi-square against the exact probabilities; rare values are counted together, exactly.

    A count of few has a longer tail than the normal law: values expected 5 times made false alarms at level 1e-6 more
    than ten times as frequent as that.
    """
    size = len(values)
    reach = math.ceil(5 * math.sqrt(variance))
    counts = Counter(values)
    observed, expected = [], []
    for x in range(-reach, reach + 1):
        wanted = size * pmf(x, variance)
        if wanted >= 20:
            observed.append(counts[x])
            expected.append(wanted)
    kept, share = sum(observed), sum(expected) / size
    assert stats.binomtest(size - kept, size, 1 - share).pvalue > LEVEL
    scaled = [wanted * kept / (share * size) for wanted in expected]
    statistic = sum((o - e) ** 2 / e for o, e in zip(observed, scaled, strict=True))
    assert stats.chi2.sf(statistic, len(expected) - 1) > LEVEL


def assert_standard_deviation(values: np.ndarray, claimed: float) -> None:
    """Two-sided chi-square test; a wide discrete Gaussian is a Gaussian to this accuracy."""
    statistic = float((values.astype(np.float64) ** 2).sum()) / claimed**2
    low, high = stats.chi2.ppf([LEVEL / 2, 1 - LEVEL / 2], df=values.size)
    assert low <= statistic <= high


@pytest.mark.parametrize("variance", [Fraction(1, 4), Fraction(7, 3), Fraction(10)])
def test_the_reference_sampler_has_the_exact_probabilities(variance: Fraction) -> None:
    values = discrete_gaussian(8000, variance=variance, source=SystemBytes())
    assert all(type(value) is int for value in values)
    assert_fits_the_probabilities(values, float(variance))


@pytest.mark.parametrize("variance", [1, 2, 3, 10, 121, 5000])
def test_the_fast_sampler_has_the_exact_probabilities(variance: int) -> None:
    values = discrete_gaussians(200_000, variance=variance, source=SystemBytes())
    assert values.dtype == np.int64
    assert_fits_the_probabilities(values.tolist(), float(variance))


def test_a_slightly_wrong_variance_would_be_noticed() -> None:
    values = discrete_gaussians(200_000, variance=110, source=SystemBytes())
    with pytest.raises(AssertionError):
        assert_fits_the_probabilities(values.tolist(), 121.0)


@pytest.mark.parametrize("deviation", [1 << 9, 1 << 12, 1 << 13])
def test_wide_noise_has_its_moments_and_is_symmetric(deviation: int) -> None:
    values = discrete_gaussians(200_000, variance=deviation**2, source=SystemBytes())
    assert_standard_deviation(values, deviation)
    assert stats.kstest(values / deviation, "norm").pvalue > LEVEL
    assert stats.binomtest(int((values > 0).sum()), int((values != 0).sum())).pvalue > LEVEL
    for lag in (1, 2, 100_000):
        correlation = float(np.corrcoef(values[:-lag], values[lag:])[0, 1])
        assert abs(correlation) < 5.5 / math.sqrt(values.size - lag)


def test_beyond_the_fast_range_the_reference_takes_over_with_the_same_law() -> None:
    variance = discrete.LARGEST_FAST_VARIANCE + 1
    values = DiscreteGaussianNoise().integers(3000, variance=variance)
    assert values.dtype == np.int64
    assert_standard_deviation(values, math.sqrt(variance))


def test_candidates_too_large_for_64_bits_are_decided_by_the_reference(monkeypatch) -> None:
    """With a tiny limit almost all candidates go that way, and the law stays."""
    monkeypatch.setattr(discrete, "_LARGEST_FAST_QUOTIENT", 0)
    values = discrete_gaussians(20_000, variance=30, source=SystemBytes())
    assert_fits_the_probabilities(values.tolist(), 30.0)


def test_64_bits_suffice_at_the_largest_fast_variance() -> None:
    variance = discrete.LARGEST_FAST_VARIANCE
    scale = math.isqrt(variance) + 1
    largest = ((discrete._LARGEST_FAST_QUOTIENT + 1) * scale * scale) ** 2
    assert largest < 2**63
    assert 2 * variance * scale**2 * discrete._LARGEST_TRIALS < 2**63


@pytest.mark.parametrize("bound", [1, 2, 3, 1000, 2**40 + 1, 2**63])
def test_uniform_words_stay_below_their_bound_and_fill_it(bound: int) -> None:
    values = discrete._Words(SystemBytes()).below(bound, 20_000)
    assert values.min() >= 0
    assert int(values.max()) < bound
    tenths = np.minimum(values.astype(np.float64) * 10 / bound, 9).astype(int)
    if bound >= 1000:
        assert stats.chisquare(np.bincount(tenths, minlength=10)).pvalue > LEVEL


def test_a_seeded_source_repeats_and_the_values_are_pinned() -> None:
    draws = [
        discrete_gaussians(
            1000, variance=9, source=InsecureSeededBytes(insecure_seed=5, purpose="noise")
        )
        for _ in range(2)
    ]
    assert np.array_equal(*draws)
    assert hashlib.sha256(draws[0].astype("<i8").tobytes()).hexdigest()[:16] == "e075065bc6d3bf1c"


@pytest.mark.parametrize("size", [0, 1, 5])
def test_exactly_as_many_values_come_as_were_asked_for(size: int) -> None:
    assert discrete_gaussians(size, variance=4, source=SystemBytes()).shape == (size,)


@pytest.mark.parametrize("variance", [0, -1, discrete.LARGEST_FAST_VARIANCE + 1])
def test_a_variance_out_of_range_is_refused(variance: int) -> None:
    with pytest.raises(ValueError, match="variance"):
        discrete_gaussians(1, variance=variance, source=SystemBytes())


def test_the_reference_refuses_a_variance_of_zero() -> None:
    with pytest.raises(ValueError, match="variance"):
        discrete_gaussian(1, variance=Fraction(0), source=SystemBytes())


def test_integer_noise_is_secret_unless_it_says_otherwise() -> None:
    assert DiscreteGaussianNoise().is_secret
    seeded = DiscreteGaussianNoise(InsecureSeededBytes(insecure_seed=1, purpose="noise"))
    assert not seeded.is_secret
    assert repr(DiscreteGaussianNoise()) == "DiscreteGaussianNoise"
