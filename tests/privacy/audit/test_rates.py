"""Rates of attacks: limits that hold for runs with many targets, thresholds that no run fixes itself, and verdicts."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from privacy import DPPlan, PLDAccountant
from privacy.audit import (
    CheckResult,
    Goal,
    Trials,
    Verdict,
    check_rates,
    confidence,
    likelihood_ratios,
)
from privacy.audit.exact import lower_limit, upper_limit
from privacy.audit.rates import clustered_limits, measured_rates

PlanWith = Callable[..., DPPlan]
GOAL = Goal(of="true_positive_rate", at_most=0.02, control_at_least=0.05)


def normal_trials(shift: float, *, runs: int = 40, targets: int = 50, seed: int = 0) -> Trials:
    """Scores whose law with and without the target differ by a shift."""
    random = np.random.default_rng(seed)
    members = random.random((runs, targets)) < 0.5
    return Trials(scores=random.standard_normal(members.shape) + shift * members, members=members)


def test_with_one_trial_a_run_limits_are_those_of_clopper_and_pearson() -> None:
    hits = np.array([1] * 9 + [0] * 51)
    low, high = clustered_limits(hits, np.ones(60, dtype=np.int64), alpha=0.01)
    assert low == pytest.approx(lower_limit(9, 60, 0.01), abs=0.002)
    assert high == pytest.approx(upper_limit(9, 60, 0.01), abs=0.003)
    assert clustered_limits(0 * hits, hits * 0 + 1, alpha=0.01)[0] == 0.0
    assert clustered_limits(hits * 0 + 1, hits * 0 + 1, alpha=0.01)[1] == 1.0


def test_limits_hold_where_targets_of_a_run_stand_and_fall_together() -> None:
    random = np.random.default_rng(3)
    counts = np.full(24, 20)
    missed = naive = 0
    for _ in range(400):
        rates = random.choice([0.02, 0.38], size=24)  # mean 0.2, shared by all targets of a run
        hits = random.binomial(20, rates)
        missed += clustered_limits(hits, counts, alpha=0.05)[0] > 0.2
        naive += lower_limit(int(hits.sum()), 480, 0.05) > 0.2
    assert missed <= 0.05 * 400 + 3 * np.sqrt(0.05 * 0.95 * 400)
    assert naive > 2 * missed  # as if they were independent, it misses too often


def test_measured_rates_are_those_of_the_laws_they_are_drawn_from() -> None:
    rates = measured_rates(normal_trials(2.0, runs=100, targets=100))
    expected = stats.norm.sf(stats.norm.isf(0.01) - 2.0)
    assert rates.true_positive_rate == pytest.approx(expected, abs=0.04)
    assert rates.true_positive_low < rates.true_positive_rate < rates.true_positive_high
    assert rates.false_positive_rate == pytest.approx(0.01, abs=0.004)
    assert rates.advantage == pytest.approx(2 * stats.norm.cdf(1.0) - 1, abs=0.03)
    assert rates.advantage_low < rates.advantage < rates.advantage_high


def test_calibration_finds_what_differs_less_than_targets_do() -> None:
    trials = normal_trials(2.0)
    apart = 30 * np.random.default_rng(1).standard_normal(trials.scores.shape[1])
    hidden = Trials(scores=trials.scores + apart, members=trials.members)
    assert measured_rates(hidden).advantage < 0.2
    for online in (True, False):
        found = likelihood_ratios(hidden.scores, hidden.members, online=online)
        rates = measured_rates(Trials(scores=found, members=hidden.members))
        assert rates.advantage > 0.5


@pytest.mark.parametrize("online", [True, False])
def test_calibration_finds_nothing_where_nothing_is(online: bool) -> None:
    trials = normal_trials(0.0, runs=60, targets=100)
    found = likelihood_ratios(trials.scores, trials.members, online=online)
    rates = measured_rates(Trials(scores=found, members=trials.members))
    assert rates.true_positive_rate == pytest.approx(0.01, abs=0.006)
    assert abs(rates.advantage) < 0.05


def test_confidence_grows_as_the_loss_falls_and_stays_finite() -> None:
    values = confidence(np.array([0.0, 0.1, np.log(2), 5.0, 1e9]))
    assert np.isfinite(values).all()
    assert (np.diff(values) < 0).all()
    assert values[2] == pytest.approx(0.0)  # p = 1/2


def judged(
    plan: DPPlan, accountant: PLDAccountant, protected: Trials, unprotected: Trials
) -> CheckResult:
    return check_rates(
        "an attack",
        protected=protected,
        unprotected=unprotected,
        events=[plan.event(100)],  # epsilon 2.5
        accountant=accountant,
        goal=GOAL,
        seconds=0.0,
    )


def test_an_attack_beyond_the_claim_fails_the_check_and_its_control_decides_the_rest(
    plan_with: PlanWith, accountant: PLDAccountant
) -> None:
    plan, perfect = plan_with(), normal_trials(8.0)
    nothing, weak = normal_trials(0.0, seed=1), normal_trials(0.3, seed=2)
    found = judged(plan, accountant, perfect, perfect)
    assert found.verdict is Verdict.FAIL
    assert found.goal_met is False
    passed = judged(plan, accountant, nothing, perfect)
    assert passed.verdict is Verdict.PASS
    assert passed.goal_met is True
    assert passed.rates is not None
    assert passed.rates.true_positive_high < passed.threshold < 0.1
    unclear = judged(plan, accountant, nothing, weak)
    assert unclear.verdict is Verdict.INCONCLUSIVE
    assert "fails without privacy too" in unclear.words
    assert unclear.goal_met is False
    record = passed.as_dict()
    assert record["goal"] == {"of": "true_positive_rate", "at_most": 0.02, "control_at_least": 0.05}


def test_a_control_within_the_claim_leaves_the_check_inconclusive(
    plan_with: PlanWith, accountant: PLDAccountant
) -> None:
    plan = plan_with(noise_multiplier=0.6)  # a claim that hardly forbids anything
    result = judged(plan, accountant, normal_trials(0.0), normal_trials(1.5, seed=4))
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "does not exceed the claim either" in result.words


def test_an_attack_just_within_the_claim_passes_and_one_well_beyond_fails(
    plan_with: PlanWith, accountant: PLDAccountant
) -> None:
    """Gaussian scores one release apart: their trade-off is the claim's own."""
    plan = plan_with(sample_rate=1.0, noise_multiplier=1.0)

    def verdict(shift: float) -> Verdict:
        return check_rates(
            "one release",
            protected=normal_trials(shift, runs=200, targets=20),
            unprotected=normal_trials(8.0, runs=20, targets=20),
            events=[plan.event(1)],
            accountant=accountant,
            seconds=0.0,
        ).verdict

    assert verdict(1.0) is Verdict.PASS  # sensitivity over deviation: exactly what is claimed
    assert verdict(1.6) is Verdict.FAIL
