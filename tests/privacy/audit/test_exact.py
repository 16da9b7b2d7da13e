"""Exact tests and limits against independent arithmetic."""

import math

import numpy as np
import pytest

from privacy.audit.exact import (
    binomial_between,
    binomial_p,
    chi_square_p,
    correlation_p,
    lower_limit,
    upper_limit,
)


def pmf(k: int, n: int, p: float) -> float:
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)


def test_clopper_pearson_limits_solve_their_tail_equations() -> None:
    for successes, trials in ((3, 20), (17, 20), (1, 7)):
        low = lower_limit(successes, trials, 0.01)
        high = upper_limit(successes, trials, 0.01)
        at_least = sum(pmf(k, trials, low) for k in range(successes, trials + 1))
        at_most = sum(pmf(k, trials, high) for k in range(successes + 1))
        assert (at_least, at_most) == pytest.approx((0.01, 0.01), abs=1e-9)
    assert lower_limit(0, 5, 0.01) == 0.0
    assert upper_limit(5, 5, 0.01) == 1.0


def test_binomial_p_values_are_twice_the_smaller_tail() -> None:
    assert binomial_p(2, 10, 0.5) == pytest.approx(2 * sum(pmf(k, 10, 0.5) for k in range(3)))
    assert binomial_p(9, 10, 0.5) == pytest.approx(2 * sum(pmf(k, 10, 0.5) for k in (9, 10)))
    assert binomial_p(5, 10, 0.5) == 1.0
    assert binomial_between(2, 4, 10, 0.3) == pytest.approx(sum(pmf(k, 10, 0.3) for k in (2, 3, 4)))


def test_p_values_of_noise_are_uniform_and_of_other_noise_tiny() -> None:
    random = np.random.default_rng(0)
    noise = random.standard_normal((400, 50))
    chi = [chi_square_p(float(row @ row), 50) for row in noise]
    angle = [correlation_p(a, b) for a, b in zip(noise[::2], noise[1::2], strict=True)]
    for values in (chi, angle):
        assert abs(np.mean(values) - 0.5) < 0.1
        assert abs(np.mean(np.array(values) < 0.1) - 0.1) < 0.06
    assert chi_square_p(4 * 50.0, 50) < 1e-9
    assert chi_square_p(0.0, 50) == 0.0
    assert correlation_p(noise[0], noise[0]) == 0.0
    assert correlation_p(noise[0], 0 * noise[0]) == 0.0
