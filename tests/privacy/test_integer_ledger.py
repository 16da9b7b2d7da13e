"""What a ledger grants integer noise: a hundredth of delta over all its runs, at its lifetime epsilon."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from privacy import (
    Arithmetic,
    DPPlan,
    Ledger,
    LedgerConflict,
    LedgerTerms,
    PLDAccountant,
    make_plan,
    read_ledger,
)
from privacy.grid import delta_of_plans

PlanWith = Callable[..., DPPlan]
ASKED = 1e-5  # delta


def integer_plan(*, values: int, epsilon: float = 2.0) -> DPPlan:
    """Twenty steps at a rate of 0.01, so that very many runs fit into a lifetime of 12."""
    return make_plan(
        n_pub=2000,
        batch_size=20,
        target_epsilon=epsilon,
        rounds=1,
        steps_per_round=20,
        max_grad_norm=1.0,
        delta=delta_of_plans(ASKED),
        arithmetic=Arithmetic.INTEGER,
        released_values=values,
    )


@pytest.fixture
def lifetime() -> LedgerTerms:
    return LedgerTerms(
        holding="ward-7", n_pub=2000, delta=delta_of_plans(ASKED), lifetime_epsilon=12.0
    )


def by_hand(plan: DPPlan, steps: int, epsilon: float) -> float:
    """Total variation of the values, as docs/privacy.md has it."""
    deviation = plan.noise_multiplier * plan.grid_steps
    assert plan.released_values is not None
    return (1 + math.exp(epsilon)) * 5e-4 / deviation**4 * plan.released_values * steps


def test_runs_on_one_ledger_take_no_more_than_a_hundredth_of_delta_together(
    ledger_path: Path, lifetime: LedgerTerms
) -> None:
    """Each fits by itself, and so would many more by epsilon: a share for each run by its target is no bound."""
    values = 1
    while by_hand(integer_plan(values=values), 20, 12.0) < 0.2 * 0.01 * ASKED:
        values *= 2
    plan, taken, runs = integer_plan(values=values), 0.0, 0
    with Ledger(ledger_path, terms=lifetime) as ledger:
        while taken + by_hand(plan, 20, 12.0) <= 0.01 * lifetime.delta:
            ledger.accept_plan(f"run-{runs}", plan)
            ledger.charge(run=f"run-{runs}", round_index=0, plan=plan)
            taken, runs = taken + by_hand(plan, 20, 12.0), runs + 1
        assert 2 <= runs <= 5
        with pytest.raises(LedgerConflict, match=r"noise of integers would take .* set aside"):
            ledger.accept_plan("one more", plan)
        with pytest.raises(LedgerConflict, match="set aside"):  # the same run's round again
            ledger.charge(run=f"run-{runs - 1}", round_index=0, plan=plan)
        further = [*ledger.events(), plan.round_event()]
    assert PLDAccountant().epsilon(further, lifetime.delta) < 12.0
    history = read_ledger(ledger_path)
    assert history.discretisation == pytest.approx(taken)
    assert (history.integer_noise, history.claimed_delta) == (True, ASKED)


def test_the_lifetime_decides_and_not_the_runs_own_epsilon(
    ledger_path: Path, lifetime: LedgerTerms
) -> None:
    plan = integer_plan(values=10_000)
    with Ledger(ledger_path, terms=lifetime) as ledger:
        ledger.accept_plan("run", plan)
    longer = replace(lifetime, lifetime_epsilon=20.0)
    assert by_hand(plan, 20, 12.0) < 0.01 * lifetime.delta < by_hand(plan, 20, 20.0)
    for epsilon in (20.0, 800.0):  # e^800 is no float
        path = ledger_path.with_suffix(f".{epsilon}")
        with (
            Ledger(path, terms=replace(longer, lifetime_epsilon=epsilon)) as ledger,
            pytest.raises(LedgerConflict, match="set aside"),
        ):
            ledger.accept_plan("run", plan)


def test_a_claim_with_its_part_for_integers_keeps_to_the_largest_delta(
    ledger_path: Path, lifetime: LedgerTerms
) -> None:
    """1/(10 n) bounds what is claimed, and that is a hundredth more than what the ledger has."""
    size = round(1 / (10 * ASKED))
    for delta, fits in ((delta_of_plans(ASKED), True), (ASKED, False)):
        terms = replace(lifetime, n_pub=size, delta=delta)
        plan = replace(integer_plan(values=100), n_pub=size, delta=delta)
        with Ledger(ledger_path.with_suffix(f".{fits}"), terms=terms) as ledger:
            if fits:
                ledger.accept_plan("run", plan)
            else:
                with pytest.raises(LedgerConflict, match="delta="):
                    ledger.accept_plan("run", plan)


@pytest.mark.parametrize("integers_first", [True, False])
def test_noise_of_integers_and_of_real_numbers_do_not_share_a_ledger(
    ledger_path: Path, lifetime: LedgerTerms, integers_first: bool
) -> None:
    integers = integer_plan(values=100)
    real = replace(integers, arithmetic=Arithmetic.FLOAT, clip_steps=None, released_values=None)
    first, second = (integers, real) if integers_first else (real, integers)
    with Ledger(ledger_path, terms=lifetime) as ledger:
        ledger.accept_plan("run-1", first)
        ledger.accept_plan("run-2", replace(first, rounds=2))
        with pytest.raises(LedgerConflict, match="arithmetic"):
            ledger.accept_plan("run-3", second)
