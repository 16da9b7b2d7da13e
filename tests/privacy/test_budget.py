import inspect
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from privacy import (
    AccountingError,
    Budget,
    BudgetExhausted,
    DPPlan,
    Event,
    Ledger,
    LedgerTerms,
    NeighbouringRelation,
    PLDAccountant,
    SampledGaussian,
    UnsupportedEvent,
    make_plan,
    read_ledger,
)

PlanWith = Callable[..., DPPlan]


def small_plan(accountant: PLDAccountant, rounds: int = 4, target: float = 8.0) -> DPPlan:
    return make_plan(
        n_pub=250,
        target_epsilon=target,
        rounds=rounds,
        max_grad_norm=1.0,
        accountant=accountant,
    )


def kinds_of(path: Path) -> list[str]:
    return [json.loads(line)["record"]["kind"] for line in path.read_text().splitlines()]


def test_all_planned_rounds_are_admitted_and_not_one_more(
    ledger: Ledger, ledger_path: Path, accountant: PLDAccountant
) -> None:
    plan = small_plan(accountant)
    budget = Budget(ledger=ledger, run="run-1", plan=plan, accountant=accountant)
    spent = []
    for index in range(4):
        assert budget.projected_rounds_left() == 4 - index
        charge, admission = budget.charge(index)
        assert charge.event == plan.round_event()
        spent.append(admission.run_epsilon)
        assert budget.run_epsilon == admission.run_epsilon
    assert spent == sorted(spent)
    assert 7.98 <= spent[-1] <= 8.0
    assert budget.projected_rounds_left() == 0
    assert budget.projected_rounds_left(at_most=100) == 0
    with pytest.raises(BudgetExhausted) as refusal:
        budget.charge(4)
    assert refusal.value.limit == "target"
    assert refusal.value.spent_epsilon == spent[-1]
    assert refusal.value.epsilon_after > 8.0
    assert kinds_of(ledger_path) == ["open", "plan", *["charge"] * 4, "refuse"]
    assert len(ledger.charges) == 4


def test_a_new_process_engine_or_run_resets_nothing(
    ledger_path: Path, terms: LedgerTerms, accountant: PLDAccountant
) -> None:
    plan = small_plan(accountant)
    for index in range(4):
        with Ledger(ledger_path, terms=terms) as ledger:
            Budget(ledger=ledger, run="run-1", plan=plan).charge(index)
    with Ledger(ledger_path, terms=terms) as ledger:
        budget = Budget(ledger=ledger, run="run-1", plan=plan)
        with pytest.raises(BudgetExhausted):
            budget.charge(0)
        at_once = PLDAccountant().epsilon([plan.event(4 * 8)], terms.delta)
        assert budget.run_epsilon == pytest.approx(at_once, abs=1e-6)


def test_a_repeated_round_is_charged_again(ledger: Ledger, accountant: PLDAccountant) -> None:
    plan = small_plan(accountant)
    budget = Budget(ledger=ledger, run="run-1", plan=plan, accountant=accountant)
    first, once = budget.charge(0)
    again, twice = budget.charge(0)
    assert (first.attempt, again.attempt) == (0, 1)
    assert twice.run_epsilon > once.run_epsilon
    assert budget.projected_rounds_left() == 2


def test_the_lifetime_limit_holds_over_runs(ledger_path: Path, accountant: PLDAccountant) -> None:
    terms = LedgerTerms(holding="ward-7", n_pub=250, delta=1e-5, lifetime_epsilon=10.0)
    plan = small_plan(accountant)
    with Ledger(ledger_path, terms=terms) as ledger:
        first = Budget(ledger=ledger, run="run-1", plan=plan, accountant=accountant)
        for index in range(4):
            first.charge(index)
        second = Budget(ledger=ledger, run="run-2", plan=plan, accountant=accountant)
        assert second.run_epsilon == 0.0
        projected = second.projected_rounds_left()
        assert 0 < projected < 4
        for index in range(projected):
            _, admission = second.charge(index)
            assert admission.total_epsilon > admission.run_epsilon
        with pytest.raises(BudgetExhausted) as refusal:
            second.charge(projected)
        assert refusal.value.limit == "lifetime"
        assert second.projected_rounds_left() == 0
        assert second.total_epsilon <= 10.0
        assert second.run_epsilon < second.total_epsilon


def test_a_sweep_of_ten_runs_costs_their_composition(
    ledger_path: Path, plan_with: PlanWith, accountant: PLDAccountant
) -> None:
    terms = LedgerTerms(holding="ward-7", n_pub=250, delta=1e-5, lifetime_epsilon=50.0)
    plan = plan_with(steps_per_round=800, rounds=1)
    with Ledger(ledger_path, terms=terms) as ledger:
        for run in range(9):
            ledger.accept_plan(f"run-{run}", plan)
            ledger.charge(run=f"run-{run}", round_index=0, plan=plan)
        Budget(ledger=ledger, run="run-9", plan=plan, accountant=accountant).charge(0)
        assert ledger.spent_epsilon(accountant) == pytest.approx(34.625, abs=0.002)
        assert ledger.spent_epsilon(accountant, "run-3") == pytest.approx(7.986, abs=0.002)


def test_projected_rounds_are_those_that_would_be_admitted(
    ledger: Ledger, plan_with: PlanWith, accountant: PLDAccountant
) -> None:
    plan = plan_with(noise_multiplier=1.0, rounds=100)
    budget = Budget(ledger=ledger, run="run-1", plan=plan, accountant=accountant)
    projected = budget.projected_rounds_left()
    assert 0 < projected < 100
    for index in range(projected):
        budget.charge(index)
    with pytest.raises(BudgetExhausted):
        budget.charge(projected)


def test_admitting_does_nothing_but_refusing_is_recorded(
    ledger: Ledger, ledger_path: Path, accountant: PLDAccountant
) -> None:
    plan = small_plan(accountant)
    budget = Budget(ledger=ledger, run="run-1", plan=plan, accountant=accountant)
    admission = budget.admit(plan.round_event())
    assert admission.event == plan.round_event()
    assert kinds_of(ledger_path) == ["open", "plan"]
    with pytest.raises(BudgetExhausted):
        budget.admit(plan.event(10_000))
    assert kinds_of(ledger_path) == ["open", "plan", "refuse"]
    assert ledger.charges == ()


def test_an_event_under_another_relation_is_refused(
    ledger: Ledger, accountant: PLDAccountant
) -> None:
    plan = small_plan(accountant)
    budget = Budget(ledger=ledger, run="run-1", plan=plan, accountant=accountant)
    event = SampledGaussian(
        sample_rate=0.1,
        noise_multiplier=5.0,
        steps=1,
        relation=NeighbouringRelation.REPLACE_ONE,
    )
    with pytest.raises(UnsupportedEvent):
        budget.admit(event)


class Nonsense:
    """An accountant whose figure is not a number."""

    name = "nonsense"

    def __init__(self) -> None:
        self.broken = False

    def epsilon(self, events: Sequence[Event], delta: float) -> float:
        return float("nan") if self.broken else PLDAccountant().epsilon(events, delta)


def test_a_figure_that_is_not_a_number_refuses(ledger: Ledger, plan_with: PlanWith) -> None:
    accountant = Nonsense()
    budget = Budget(ledger=ledger, run="run-1", plan=plan_with(), accountant=accountant)
    accountant.broken = True
    with pytest.raises((BudgetExhausted, AccountingError)):
        budget.charge(0)
    assert ledger.charges == ()


def test_a_run_whose_accountants_disagree_never_starts(ledger: Ledger, plan_with: PlanWith) -> None:
    class Low:
        name = "half"

        def epsilon(self, events: Sequence[Event], delta: float) -> float:
            return PLDAccountant().epsilon(events, delta) / 2

    with pytest.raises(AccountingError, match="further apart"):
        Budget(ledger=ledger, run="run-1", plan=plan_with(), accountant=Low())
    assert ledger.charges == ()


def test_closing_confirms_and_records_the_spent_figure(
    ledger: Ledger, ledger_path: Path, accountant: PLDAccountant
) -> None:
    budget = Budget(ledger=ledger, run="run-1", plan=small_plan(accountant), accountant=accountant)
    assert 7.98 <= budget.planned.epsilon <= 8.0
    budget.charge(0)
    figures = budget.close()
    assert figures.cross_check == "agrees"
    assert figures.epsilon == budget.run_epsilon < budget.planned.epsilon
    assert kinds_of(ledger_path)[-1] == "close"


def test_a_third_party_recomputes_the_same_epsilon_from_the_file_alone(
    ledger: Ledger, ledger_path: Path, accountant: PLDAccountant
) -> None:
    plan = small_plan(accountant)
    budget = Budget(ledger=ledger, run="run-1", plan=plan, accountant=accountant)
    for index in range(3):
        budget.charge(index)
    recomputed = read_ledger(ledger_path).spent_epsilon(PLDAccountant())
    assert recomputed == pytest.approx(budget.total_epsilon, abs=1e-6)


def test_nothing_a_budget_is_given_depends_on_data() -> None:
    # What decides a refusal, and when: ledger, run name, plan, accountant, event and round number.
    assert set(inspect.signature(Budget).parameters) == {"ledger", "run", "plan", "accountant"}
    assert list(inspect.signature(Budget.charge).parameters) == ["self", "round_index"]
    assert list(inspect.signature(Budget.admit).parameters) == ["self", "event"]


@pytest.mark.parametrize("equal_plans", [True, False])
def test_accounting_of_a_whole_run_is_cheap(tmp_path: Path, equal_plans: bool) -> None:
    accountant = PLDAccountant()
    budgets, ledgers, plans = [], [], []
    for client in range(12):
        n_pub = 250 if equal_plans else 200 + 10 * client
        plan = DPPlan(
            n_pub=n_pub,
            target_epsilon=8.0,
            delta=1e-5,
            sample_rate=32 / n_pub,
            noise_multiplier=2.0,
            max_grad_norm=1.0,
            steps_per_round=8,
            rounds=30,
        )
        terms = LedgerTerms(holding=f"c{client}", n_pub=n_pub, delta=1e-5, lifetime_epsilon=20.0)
        ledgers.append(Ledger(tmp_path / f"{client}.jsonl", terms=terms))
        budgets.append(Budget(ledger=ledgers[-1], run="run-1", plan=plan, accountant=accountant))
        plans.append(plan)
    start = time.process_time()
    for index in range(30):
        for budget in budgets:
            budget.charge(index)
    spent = time.process_time() - start
    start = time.process_time()
    for plan in plans[:3]:
        for rounds in (10, 20, 30):
            PLDAccountant().epsilon([plan.event(8 * rounds)], plan.delta)
    anew = (time.process_time() - start) / 9
    # of accounting for every round of every client from its beginning; 0.03 and 0.18 were seen
    assert spent < (0.15 if equal_plans else 0.6) * 12 * 30 * anew
    for ledger in ledgers:
        ledger.close()
