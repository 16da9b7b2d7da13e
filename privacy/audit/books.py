"""The books: charges of several rounds add up on disk, across restarts, and the limit holds."""

import tempfile
from dataclasses import replace
from pathlib import Path

from privacy import budget, history, ledger
from privacy.accountant import PLDAccountant
from privacy.audit.verdict import CheckResult, Stopwatch, Verdict
from privacy.errors import BudgetExhausted, PrivacyError
from privacy.plan import DPPlan

_ROUNDS = 3
_TOLERANCE = 1e-6


def check_books(plan: DPPlan, accountant: PLDAccountant) -> CheckResult:
    """Charges rounds with a restart before each, and recomputes what the file says.

    Args:
        plan: The claim; three of its rounds are charged, and one more must be refused.
        accountant: Of record.
    """
    watch = Stopwatch()
    done = plan.event(_ROUNDS * plan.steps_per_round)
    claimed = accountant.epsilon([done], plan.delta)
    plan = replace(plan, target_epsilon=claimed + _TOLERANCE, rounds=_ROUNDS)
    terms = history.LedgerTerms(
        holding="audit",
        n_pub=plan.n_pub,
        delta=plan.delta,
        lifetime_epsilon=claimed + _TOLERANCE,
        unit=plan.unit,
    )
    refused = False
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.jsonl"
        try:
            for index in range(_ROUNDS + 1):
                with ledger.Ledger(path, terms=terms) as book:
                    books = budget.Budget(
                        ledger=book, run="audit", plan=plan, accountant=accountant
                    )
                    try:
                        charge, _ = books.charge(index)
                    except BudgetExhausted:
                        refused = index == _ROUNDS
                        break
                    book.release(charge, b"audit")
            on_file = history.read_ledger(path)
            spent, rounds = on_file.spent_epsilon(accountant), len(on_file.charges)
            words = f"the file holds {rounds} of {_ROUNDS} charges, epsilon {spent:.4f}"
        except PrivacyError as error:
            spent, words = 0.0, f"the books cannot be kept: {type(error).__name__}: {error}"
    sound = refused and abs(spent - claimed) <= _TOLERANCE
    words += ", a round too many is " + ("refused" if refused else "NOT refused")
    return CheckResult(
        check="books",
        claim=f"{_ROUNDS} rounds with restarts between them are on file as epsilon {claimed:.4f}",
        verdict=Verdict.PASS if sound else Verdict.FAIL,
        statistic=spent,
        threshold=claimed,
        alpha=0.0,
        tests=1,
        n=_ROUNDS,
        words=words,
        seconds=watch.seconds,
    )
