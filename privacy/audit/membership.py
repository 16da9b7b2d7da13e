"""Membership inference on a view: how often a member is recognised, against what the claim allows.

The attacker sees some function of a round's releases, with one target example in the data or not, and gives a score.
At a threshold fixed on other trials, the rates of right and wrong accusations are bounded exactly (Clopper-Pearson).
Under the claim a right rate is at most `min over x of e^x * wrong rate + delta(x)`, delta(x) being the privacy profile
of what was charged. The same attack on the same view without protection must succeed, else nothing was learnt.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from privacy.accountant import PLDAccountant
from privacy.audit.exact import lower_limit, upper_limit
from privacy.audit.verdict import ATTACK_ALPHA, CheckResult, Stopwatch, Verdict
from privacy.events import Event

View = Callable[[bool], float]  # whether the target is in -> the attacker's score
_WRONG_RATE = 0.05  # of accusations that are aimed at
_EXPONENTS = np.linspace(0.0, 12.0, 121)


def check_membership(
    name: str,
    *,
    protected: View,
    unprotected: View,
    events: Sequence[Event],
    delta: float,
    accountant: PLDAccountant,
    trials: int,
) -> CheckResult:
    """Attacks a view, and its unprotected twin as the control.

    Args:
        name: Whose view it is.
        protected: One fresh run of what is claimed private.
        unprotected: One fresh run without privacy.
        events: What the view was charged for the target's data holding.
        delta: For the printed epsilon.
        accountant: Gives the profile.
        trials: Runs with and without the target each, half of them to fix the threshold.
    """
    watch = Stopwatch()

    def allowed(wrong: float) -> float:
        return largest_rate(accountant, events, wrong)

    right, wrong, seen = _attack(protected, trials)
    control, control_wrong, _ = _attack(unprotected, max(40, trials // 4))
    limit, control_limit = allowed(wrong), allowed(control_wrong)
    tested = trials - trials // 2
    best = lower_limit(tested, tested, ATTACK_ALPHA / 2)
    best_wrong = upper_limit(0, tested, ATTACK_ALPHA / 2)
    if right > limit:
        verdict, words = Verdict.FAIL, "more than the claim allows"
    elif control <= control_limit:
        verdict, words = Verdict.INCONCLUSIVE, "the attack fails without privacy too"
    elif best <= allowed(best_wrong):
        verdict, words = Verdict.INCONCLUSIVE, "not even a perfect attack would exceed the claim"
    else:
        verdict, words = Verdict.PASS, "within the claim"
    epsilon = accountant.epsilon(events, delta)
    return CheckResult(
        check=f"membership, {name}",
        claim=f"epsilon {epsilon:.2f}: at {wrong:.3f} wrong accusations at most {limit:.3f} right ones",
        verdict=verdict,
        statistic=right,
        threshold=limit,
        alpha=ATTACK_ALPHA,
        tests=2,
        n=2 * trials,
        words=f"recognises {seen:.2f} of members, {control:.2f} at least without privacy: {words}",
        ceiling=math.log(best / best_wrong),
        control=control,
        proves=False,
        seconds=watch.seconds,
    )


def largest_rate(accountant: PLDAccountant, events: Sequence[Event], wrong: float) -> float:
    """The largest rate of right accusations that the profile allows at a rate of wrong ones."""
    return min(1.0, *(math.exp(x) * wrong + accountant.delta(events, float(x)) for x in _EXPONENTS))


def _attack(view: View, trials: int) -> tuple[float, float, float]:
    """Lower limit of the right rate, upper limit of the wrong rate, and the right rate itself."""
    scores = np.array([[view(False), view(True)] for _ in range(trials)])  # [trials, 2]
    fixed, tested = scores[: trials // 2], scores[trials // 2 :]
    threshold = float(np.quantile(fixed[:, 0], 1 - _WRONG_RATE, method="higher"))
    wrong, right = (int(count) for count in (tested > threshold).sum(0))
    n = len(tested)
    return (
        lower_limit(right, n, ATTACK_ALPHA / 2),
        upper_limit(wrong, n, ATTACK_ALPHA / 2),
        right / n,
    )
