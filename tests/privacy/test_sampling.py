import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from privacy import DPPlan, PoissonSampler
from privacy.noise import insecure_seeded_noise
from privacy.sampling import insecure_seeded_sampler

PlanWith = Callable[..., DPPlan]
LEVEL = 1e-9  # chance of a false alarm per check: noise cannot be seeded, and checks are many
STEPS, SIZE = 4000, 257


@pytest.fixture(scope="module")
def inclusions(plan_with: PlanWith) -> np.ndarray:
    """bool [STEPS, SIZE]: who was in which batch of the reference plan."""
    sampler = PoissonSampler(plan_with())
    result = np.zeros((STEPS, SIZE), dtype=bool)
    for row in result:
        row[sampler.draw(SIZE)] = True
    return result


def test_every_index_is_included_with_the_plans_rate(inclusions: np.ndarray) -> None:
    counts = inclusions.sum(axis=0)
    low, high = stats.binom.ppf([LEVEL / SIZE, 1 - LEVEL / SIZE], STEPS, 0.128)
    assert ((counts >= low) & (counts <= high)).all()
    assert stats.binomtest(int(inclusions.sum()), STEPS * SIZE, 0.128).pvalue > LEVEL


def test_batch_sizes_vary_as_a_binomial(inclusions: np.ndarray) -> None:
    sizes = inclusions.sum(axis=1)
    statistic = (STEPS - 1) * sizes.var(ddof=1) / (SIZE * 0.128 * 0.872)
    assert LEVEL < stats.chi2.sf(statistic, STEPS - 1) < 1 - LEVEL


def test_fixed_size_batches_would_be_noticed(plan_with: PlanWith) -> None:
    # Positive control: shuffled batches of 32 have no variance at all.
    sizes = np.full(STEPS, 32)
    statistic = (STEPS - 1) * sizes.var(ddof=1) / (SIZE * 0.128 * 0.872)
    assert stats.chi2.sf(statistic, STEPS - 1) > 1 - LEVEL


def test_inclusions_are_independent_over_steps_and_indices(inclusions: np.ndarray) -> None:
    centred = inclusions - 0.128
    scale = 0.128 * 0.872
    over_steps = float((centred[:-1] * centred[1:]).sum()) / scale
    assert abs(over_steps) < 5.5 * math.sqrt((STEPS - 1) * SIZE)
    over_indices = float((centred[:, :-1] * centred[:, 1:]).sum()) / scale
    assert abs(over_indices) < 5.5 * math.sqrt(STEPS * (SIZE - 1))


def test_there_is_no_epoch_after_which_everyone_was_seen(inclusions: np.ndarray) -> None:
    epoch = inclusions[:8].sum(axis=0)
    never = float((epoch == 0).mean())
    assert never == pytest.approx(0.872**8, abs=0.16)  # an epoch of shuffled batches leaves none
    assert (epoch > 1).any()


def test_the_last_indices_are_drawn_like_the_first(inclusions: np.ndarray) -> None:
    first, last = inclusions[:, 0].sum(), inclusions[:, -1].sum()
    assert abs(int(first) - int(last)) < 5.5 * math.sqrt(2 * STEPS * 0.128 * 0.872)


def test_indices_are_ascending_and_in_range(plan_with: PlanWith) -> None:
    drawn = PoissonSampler(plan_with()).draw(1000)
    assert drawn.dtype == np.int64
    assert (np.diff(drawn) > 0).all()
    assert drawn.min() >= 0
    assert drawn.max() < 1000


def test_a_vanishing_rate_draws_empty_batches(plan_with: PlanWith) -> None:
    sampler = PoissonSampler(plan_with(sample_rate=1e-12))
    assert all(sampler.draw(250).size == 0 for _ in range(50))
    assert PoissonSampler(plan_with()).draw(0).size == 0


def test_rate_one_draws_everyone(plan_with: PlanWith) -> None:
    assert np.array_equal(PoissonSampler(plan_with(sample_rate=1.0)).draw(7), np.arange(7))


@pytest.mark.parametrize("rate", [0.128, 0.5, 1e-9, 1 - 2**-53])
def test_the_rate_of_the_coins_never_exceeds_the_rate_that_is_charged(
    plan_with: PlanWith, rate: float
) -> None:
    sampler = PoissonSampler(plan_with(sample_rate=rate))
    numerator, denominator = rate.as_integer_ratio()
    assert sampler._threshold * denominator <= numerator << 64
    assert (sampler._threshold + 1) * denominator > numerator << 64


def test_only_the_insecure_sampler_repeats_and_it_says_so(plan_with: PlanWith) -> None:
    secret = PoissonSampler(plan_with())
    assert secret.is_secret
    assert not np.array_equal(secret.draw(5000), secret.draw(5000))
    first, again = (insecure_seeded_sampler(plan_with(), 3) for _ in range(2))
    assert not first.is_secret
    assert np.array_equal(first.draw(500), again.draw(500))
    assert repr(secret) == "PoissonSampler"


def test_coins_and_noise_of_one_insecure_seed_are_different_streams(plan_with: PlanWith) -> None:
    coins = insecure_seeded_sampler(plan_with(sample_rate=0.5), 3)
    noise = insecure_seeded_noise(3)
    assert coins._source.read(64) != noise._source.read(64)
