"""Attacks on one release, each beside a control that must succeed, or it proves nothing."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from privacy import DPPlan, GaussianNoise, PLDAccountant, PoissonSampler, PrivateGradient

PlanWith = Callable[..., DPPlan]

TRIALS, SIZE = 2000, 16
CONFIDENCE = 1 - 1e-6  # the noise cannot be seeded: a false alarm must be too rare to be seen


def canary_scores(
    plan: DPPlan, *, present: bool, canary: torch.Tensor, unclipped: bool = False
) -> np.ndarray:
    """The released coordinate in the canary's direction, in units of C, over fresh releases."""
    others = torch.zeros(3, SIZE)
    rows = torch.cat([others, canary[None]]) if present else others
    private = PrivateGradient(plan=plan, shapes={"text": (SIZE,)}, noise=GaussianNoise())
    scale = plan.expected_batch_size / plan.max_grad_norm
    scores = []
    for _ in range(TRIALS):
        if unclipped:  # the bug: the same noise on a sum that nobody clipped
            noise = private.release({"text": torch.zeros(0, SIZE)})["text"]
            released = noise + rows.sum(0) / plan.expected_batch_size
        else:
            released = private.release({"text": rows})["text"]
        scores.append(float(released[0]) * scale)
    return np.array(scores)


def true_positive_rate(
    absent: np.ndarray, present: np.ndarray, false_positive_rate: float
) -> tuple[float, float]:
    """Rate of finding the canary at a false-positive rate, and its lower confidence limit."""
    threshold = np.quantile(absent, 1 - false_positive_rate)
    found = int((present > threshold).sum())
    lower = stats.binomtest(found, len(present)).proportion_ci(CONFIDENCE, "exact").low
    return found / len(present), float(lower)


def largest_rate(accountant: PLDAccountant, plan: DPPlan, false_positive_rate: float) -> float:
    """The largest true-positive rate that the privacy profile of one step allows."""
    event = plan.event(1)
    return min(
        math.exp(x) * false_positive_rate + accountant.delta([event], x)
        for x in np.linspace(0, 6, 61)
    )


def test_an_example_of_any_size_is_found_no_more_often_than_the_profile_allows(
    plan_with: PlanWith, accountant: PLDAccountant
) -> None:
    plan = plan_with(sample_rate=1.0, noise_multiplier=2.0, steps_per_round=10**6)
    canary = torch.zeros(SIZE)
    canary[0] = 1e3
    absent = canary_scores(plan, present=False, canary=canary)
    present = canary_scores(plan, present=True, canary=canary)
    for false_positive_rate in (0.01, 0.1):
        _, lower = true_positive_rate(absent, present, false_positive_rate)
        # The threshold is itself an estimate: allow the profile at four standard errors more of the rate.
        rate = false_positive_rate + 4 * math.sqrt(false_positive_rate / TRIALS)
        assert lower <= largest_rate(accountant, plan, rate)
    # The canary does leave its full C in the sum: the attack looks where the example is.
    assert present.mean() - absent.mean() == pytest.approx(1.0, abs=6 * 2.0 / math.sqrt(TRIALS / 2))


def test_without_clipping_the_same_attack_always_finds_it(
    plan_with: PlanWith, accountant: PLDAccountant
) -> None:
    plan = plan_with(sample_rate=1.0, noise_multiplier=2.0, steps_per_round=10**6)
    canary = torch.zeros(SIZE)
    canary[0] = 1e3
    absent = canary_scores(plan, present=False, canary=canary, unclipped=True)
    present = canary_scores(plan, present=True, canary=canary, unclipped=True)
    rate, lower = true_positive_rate(absent, present, 0.01)
    assert rate == 1.0
    assert lower > largest_rate(accountant, plan, 0.02)


def test_one_upload_does_not_tell_the_size_of_the_dataset(plan_with: PlanWith) -> None:
    # An attacker reads the scale of the noise, which sampling alone must not move.
    plan = plan_with(steps_per_round=10**6)
    sampler = PoissonSampler(plan)
    size = 49_000
    private = PrivateGradient(plan=plan, shapes={"text": (size,)}, noise=GaussianNoise())
    scales = {}
    for holding in (255, 256):
        scales[holding] = [
            float(
                private.release({"text": torch.zeros(len(sampler.draw(holding)), size)})["text"]
                .square()
                .mean()
                .sqrt()
            )
            for _ in range(10)
        ]
    claimed = plan.noise_standard_deviation / plan.expected_batch_size
    for measured in scales.values():
        assert np.mean(measured) == pytest.approx(claimed, rel=6 / math.sqrt(2 * 10 * size))
    # Control: with the denominator int(n * q) of q = 32/256 one upload tells 255 from 256.
    q = 32 / 256
    control = [2.317 / int(holding * q) for holding in (255, 256)]
    assert control[0] / control[1] - 1 > 6 / math.sqrt(2 * size)
