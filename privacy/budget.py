"""Admit, then charge, then act: the check that comes before every round.

All inputs are public (charged events, plan, limits), so whether and when a round is refused says
nothing about data.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from privacy.accountant import Accountant, EpsilonFigures, PLDAccountant, cross_checked
from privacy.errors import BudgetExhausted, UnsupportedEvent
from privacy.events import Event
from privacy.history import Charge
from privacy.ledger import Ledger
from privacy.plan import DPPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """An event that may be charged.

    Attributes:
        event: The event.
        run_epsilon: Epsilon of the run once it is charged.
        total_epsilon: Epsilon of the data holding, over all runs, once it is charged.
    """

    event: Event
    run_epsilon: float
    total_epsilon: float


class Budget:
    """The two limits of a run on a data holding: the run's target and the holding's lifetime limit.

    Guarantee: a round that `charge` admits keeps the composition of all charges of the run within
    the plan's target, and of all charges ever within the ledger's lifetime limit, under the
    ledger's relation and delta.

    Opening a budget records the plan and confirms the planned total by a second accountant, so a
    run whose figures cannot be trusted never starts.

    Args:
        ledger: The data holding's ledger, open for writing.
        run: Name of the run; a resumed run keeps its name.
        plan: The accepted plan.
        accountant: The accountant of record; share one object between clients, so that equal plans
            are computed once. PLD by default.

    Raises:
        AccountingError: The accountants disagree about the planned total.
        LedgerConflict: The plan contradicts the ledger's terms.
    """

    def __init__(
        self, *, ledger: Ledger, run: str, plan: DPPlan, accountant: Accountant | None = None
    ) -> None:
        self._ledger = ledger
        self._run = run
        self._plan = plan
        self._accountant = PLDAccountant() if accountant is None else accountant
        ledger.accept_plan(run, plan)
        self._planned = cross_checked(
            self._with_rounds(self._ledger.events(), max(1, self._rounds_to_come())),
            ledger.terms.delta,
            of_record=self._accountant,
        )

    @property
    def run(self) -> str:
        """Name of the run."""
        return self._run

    @property
    def planned(self) -> EpsilonFigures:
        """Figures of the data holding once all planned rounds are done, as of the start."""
        return self._planned

    @property
    def run_epsilon(self) -> float:
        """Spent by this run so far, recomputed from the ledger."""
        return self._ledger.spent_epsilon(self._accountant, self._run)

    @property
    def total_epsilon(self) -> float:
        """Spent by all runs on this data holding so far, recomputed from the ledger."""
        return self._ledger.spent_epsilon(self._accountant)

    def admit(self, event: Event) -> Admission:
        """Composes all charges with the proposed event; nothing else happens.

        Raises:
            BudgetExhausted: A limit would be exceeded. The refusal is on the ledger.
            UnsupportedEvent: The event's relation or unit is not the ledger's.
        """
        terms = self._ledger.terms
        if (event.relation, event.unit) != (terms.relation, terms.unit):
            raise UnsupportedEvent(
                f"an event under {event.relation}, unit {event.unit}, on a ledger under "
                f"{terms.relation}, unit {terms.unit}"
            )
        admission = Admission(
            event=event,
            run_epsilon=self._epsilon((*self._ledger.events(self._run), event)),
            total_epsilon=self._epsilon((*self._ledger.events(), event)),
        )
        refusal = self._refusal(admission)
        if refusal is not None:
            self._ledger.refuse(run=self._run, refusal=refusal)
            raise refusal
        return admission

    def charge(self, round_index: int) -> tuple[Charge, Admission]:
        """Admits and charges one round of the plan.

        On return the charge is on disk, and coins may be drawn.

        Raises:
            BudgetExhausted: A limit would be exceeded; nothing was charged.
        """
        admission = self.admit(self._plan.round_event())
        charge = self._ledger.charge(run=self._run, round_index=round_index, plan=self._plan)
        return charge, admission

    def projected_rounds_left(self, at_most: int | None = None) -> int:
        """How many further rounds of this plan would be admitted.

        Args:
            at_most: Where to stop counting; the planned rounds that are not yet charged by default.
        """
        terms = self._ledger.terms
        return rounds_that_fit(
            self._plan.round_event(),
            [
                (self._ledger.events(self._run), self._plan.target_epsilon),
                (self._ledger.events(), terms.lifetime_epsilon),
            ],
            delta=terms.delta,
            accountant=self._accountant,
            at_most=self._rounds_to_come() if at_most is None else at_most,
        )

    def close(self) -> EpsilonFigures:
        """Confirms the run's own spent epsilon by the second accountant and records the figures."""
        figures = cross_checked(
            self._ledger.events(self._run), self._ledger.terms.delta, of_record=self._accountant
        )
        self._ledger.close_run(self._run, figures)
        return figures

    def _rounds_to_come(self) -> int:
        return self._plan.rounds - len(self._ledger.events(self._run))

    def _with_rounds(self, events: Sequence[Event], rounds: int) -> tuple[Event, ...]:
        return (*events, self._plan.event(rounds * self._plan.steps_per_round))

    def _epsilon(self, events: Sequence[Event]) -> float:
        return self._accountant.epsilon(events, self._ledger.terms.delta)

    def _refusal(self, admission: Admission) -> BudgetExhausted | None:
        # Written so that a figure that is not a number refuses as well.
        if not admission.run_epsilon <= self._plan.target_epsilon:
            return BudgetExhausted(
                limit="target",
                limit_epsilon=self._plan.target_epsilon,
                spent_epsilon=self.run_epsilon,
                epsilon_after=admission.run_epsilon,
            )
        if not admission.total_epsilon <= self._ledger.terms.lifetime_epsilon:
            return BudgetExhausted(
                limit="lifetime",
                limit_epsilon=self._ledger.terms.lifetime_epsilon,
                spent_epsilon=self.total_epsilon,
                epsilon_after=admission.total_epsilon,
            )
        return None


def rounds_that_fit(
    round_event: Event,
    limits: Sequence[tuple[Sequence[Event], float]],
    *,
    delta: float,
    accountant: Accountant,
    at_most: int,
) -> int:
    """How many further rounds stay within several limits at once.

    Args:
        round_event: What one further round does.
        limits: Pairs of what was charged towards a limit, and the limit.
        delta: At this delta.
        accountant: The accountant that decides.
        at_most: Where to stop counting.
    """

    def fit(rounds: int) -> bool:
        further = replace(round_event, steps=rounds * round_event.steps)
        return all(
            accountant.epsilon((*events, further), delta) <= limit for events, limit in limits
        )

    high = at_most
    if high <= 0 or fit(high):
        return max(0, high)
    low = 0  # low rounds fit, high do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fit(middle) else (low, middle)
    return low
