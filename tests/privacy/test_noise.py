import math

import numpy as np
import pytest
from scipy import stats

from privacy import GaussianNoise
from privacy.noise import InsecureZeroNoise, insecure_seeded_noise

LEVEL = 1e-9  # chance of a false alarm per check: noise cannot be seeded, and checks are many


def assert_standard_deviation(values: np.ndarray, claimed: float) -> None:
    """Two-sided chi-square test of a centred Gaussian's standard deviation."""
    statistic = float((values.astype(np.float64) ** 2).sum()) / claimed**2
    low, high = stats.chi2.ppf([LEVEL / 2, 1 - LEVEL / 2], df=values.size)
    assert low <= statistic <= high


@pytest.mark.parametrize("size", [0, 1, 2, 3, 1001])
def test_noise_has_the_size_and_type_asked_for(size: int) -> None:
    values = GaussianNoise().gaussian(size, standard_deviation=2.0)
    assert values.shape == (size,)
    assert values.dtype == np.float32
    assert np.isfinite(values).all()


@pytest.mark.parametrize("standard_deviation", [1e-4, 1.0, 2317.0])
def test_noise_has_the_claimed_standard_deviation(standard_deviation: float) -> None:
    values = GaussianNoise().gaussian(200_000, standard_deviation=standard_deviation)
    assert_standard_deviation(values, standard_deviation)


def test_half_the_noise_would_be_noticed() -> None:
    values = GaussianNoise().gaussian(200_000, standard_deviation=0.5)
    with pytest.raises(AssertionError):
        assert_standard_deviation(values, 1.0)
    values = GaussianNoise().gaussian(200_000, standard_deviation=0.97)
    with pytest.raises(AssertionError):
        assert_standard_deviation(values, 1.0)


def test_noise_is_gaussian_to_its_tails() -> None:
    values = GaussianNoise().gaussian(400_000, standard_deviation=1.0).astype(np.float64)
    assert stats.kstest(values, "norm").pvalue > LEVEL
    beyond = int((np.abs(values) > 4).sum())
    assert stats.binomtest(beyond, values.size, 2 * stats.norm.sf(4)).pvalue > LEVEL


def test_coordinates_are_uncorrelated_also_within_a_box_muller_pair() -> None:
    values = GaussianNoise().gaussian(400_000, standard_deviation=1.0).astype(np.float64)
    for lag in (1, 2, 200_000 - 1):
        correlation = float(np.corrcoef(values[:-lag], values[lag:])[0, 1])
        assert abs(correlation) < 5.5 / math.sqrt(values.size - lag)
    half = values.size // 2
    squares = np.corrcoef(values[:half] ** 2, values[half:] ** 2)[0, 1]
    assert abs(squares) < 5.5 / math.sqrt(half)


def test_two_draws_differ_whatever_seeds_the_experiment_sets() -> None:
    import torch

    draws = []
    for _ in range(2):
        torch.manual_seed(7)
        np.random.seed(7)  # noqa: NPY002 (the global generator is what must not matter)
        draws.append(GaussianNoise().gaussian(8, standard_deviation=1.0))
    assert not np.array_equal(*draws)


def test_only_the_insecure_doubles_repeat_and_they_say_so() -> None:
    assert GaussianNoise().is_secret
    assert not insecure_seeded_noise(3).is_secret
    assert not InsecureZeroNoise().is_secret
    first = insecure_seeded_noise(3).gaussian(5, standard_deviation=1.0)
    again = insecure_seeded_noise(3).gaussian(5, standard_deviation=1.0)
    other = insecure_seeded_noise(4).gaussian(5, standard_deviation=1.0)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not InsecureZeroNoise().gaussian(5, standard_deviation=1.0).any()


def test_the_representation_of_a_noise_source_tells_nothing() -> None:
    assert repr(GaussianNoise()) == "GaussianNoise"
