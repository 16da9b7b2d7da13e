import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy import ConfigurationError
from privacy.discrete import LARGEST_FAST_VARIANCE
from privacy.grid import (
    LEAST_DEVIATION,
    NOISE_REACH,
    clip_steps_for,
    discretisation_delta,
    noise_bound,
    share_variance,
)

MULTIPLIERS = st.floats(0.3, 60)


@given(MULTIPLIERS, st.integers(1, 400))
def test_shares_of_the_honest_add_up_to_at_least_the_noise_of_one_release(
    noise_multiplier: float, honest: int
) -> None:
    steps = clip_steps_for(noise_multiplier, honest)
    share = share_variance(noise_multiplier, steps, honest)
    assert share * honest >= (noise_multiplier * steps) ** 2 + 1 / 12
    assert (share - 1) * honest < (noise_multiplier * steps) ** 2 + 1 / 12


@given(MULTIPLIERS, st.integers(1, 400))
def test_the_chosen_grid_is_fine_enough_for_a_gaussian_accountant(
    noise_multiplier: float, honest: int
) -> None:
    steps = clip_steps_for(noise_multiplier, honest)
    assert noise_multiplier * steps >= LEAST_DEVIATION
    assert share_variance(noise_multiplier, steps, honest) <= LARGEST_FAST_VARIANCE
    spent = discretisation_delta(
        noise_multiplier=noise_multiplier,
        clip_steps=steps,
        target_epsilon=8.0,
        values=50_000 * 2000,
    )
    assert spent < 1e-5 / 100


def test_a_grid_that_is_too_coarse_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="too coarse"):
        share_variance(1.0, LEAST_DEVIATION - 1, 5)


@pytest.mark.parametrize("deviation", [2, 3, 5])
def test_the_variation_charged_to_delta_bounds_the_exact_one(deviation: int) -> None:
    """The discrete Gaussian of variance s^2 + 1/12 against a rounded Gaussian of variance s^2."""
    reach = np.arange(-14 * deviation, 14 * deviation + 1)
    normal = np.array([math.erf((x + 0.5) / deviation / math.sqrt(2)) for x in reach])
    below = np.array([math.erf((x - 0.5) / deviation / math.sqrt(2)) for x in reach])
    rounded = (normal - below) / 2
    weights = np.exp(-(reach**2) / (2 * (deviation**2 + 1 / 12)))
    variation = 0.5 * np.abs(rounded - weights / weights.sum()).sum()
    one_value = discretisation_delta(
        noise_multiplier=1.0, clip_steps=deviation, target_epsilon=0.0, values=1
    )
    assert variation <= one_value / 2  # the factor 1 + e^0


@pytest.mark.parametrize("variance", [1, 2, 1 << 24])
def test_the_noise_bound_lies_thirteen_deviations_out(variance: int) -> None:
    assert noise_bound(variance) >= NOISE_REACH * math.sqrt(variance)
