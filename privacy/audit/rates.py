"""How often an attack on membership is right and wrong, with intervals, and what the claim allows.

An attack gives scores to members and others, in independent runs of any number of targets each. Two thresholds are
looked at: the one that accuses 1 % of the others, and the one of the largest advantage (right minus wrong rate). Each
is chosen on one half of the runs and used on the other, and the other way round, so that no run fixes its own.

Targets of one run share its noise, so they are not independent trials. Limits are those of Clopper and Pearson at the
effective number of trials, which the spread between runs tells. Under the claim a right rate is at most
`min over x of e^x * wrong rate + delta(x)`, and an advantage at most `delta(0)`, delta(x) being the privacy profile of
what was charged; both survive averaging over who else is in.

Source: Carlini et al., arXiv 2112.03570, section 4 (low wrong rates); Korn and Graubard, Survey Methodology 24 (1998).
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy.accountant import PLDAccountant
from privacy.audit.membership import largest_rate
from privacy.audit.verdict import (
    ATTACK_ALPHA,
    AttackRates,
    CheckResult,
    Goal,
    Verdict,
)
from privacy.events import Event

WRONG_RATE = 0.01
_CONFIDENCE = 0.95
_LEAST_CONTROL = 0.05  # right rate at 1 % wrong ones that an attack without protection must reach

Scores = NDArray[np.float64]
Coins = NDArray[np.bool_]

# Letters: S independent runs, m targets of a run.


@dataclass(frozen=True, slots=True, kw_only=True)
class Trials:
    """What an attack said, and the truth.

    Attributes:
        scores: float64 `[S, m]`, higher for what is taken for a member.
        members: bool `[S, m]`.
    """

    scores: Scores
    members: Coins


def check_rates(
    name: str,
    *,
    protected: Trials,
    unprotected: Trials,
    events: Sequence[Event],
    accountant: PLDAccountant,
    goal: Goal | None = None,
    seconds: float,
) -> CheckResult:
    """Judges an attack by its rates, beside its control.

    Args:
        name: The attack, and whose view it is.
        protected: Trials on what is claimed private.
        unprotected: Trials without privacy, the control.
        events: What a run was charged for the targets' data holding.
        accountant: Gives the profile.
        goal: What the project wants beyond the claim.
        seconds: Wall time of the trials.
    """
    seen, control = measured_rates(protected), measured_rates(unprotected)
    allowed = largest_rate(accountant, events, WRONG_RATE)
    allowed_advantage = accountant.delta(events, 0.0)
    violated = False
    for choose in (_at_wrong_rate, _at_best):
        right, wrong = _counted(protected, choose)
        least = clustered_limits(*right, alpha=ATTACK_ALPHA / 4)[0]
        most_wrong = clustered_limits(*wrong, alpha=ATTACK_ALPHA / 4)[1]
        violated |= least > largest_rate(accountant, events, max(most_wrong, WRONG_RATE))
    if violated:
        verdict, words = Verdict.FAIL, "more than the claim allows"
    elif control.true_positive_low < _LEAST_CONTROL:
        verdict, words = Verdict.INCONCLUSIVE, "the attack fails without privacy too"
    elif control.true_positive_low <= allowed and control.advantage_low <= allowed_advantage:
        verdict = Verdict.INCONCLUSIVE
        words = "without privacy the attack does not exceed the claim either"
    else:
        verdict, words = Verdict.PASS, "within the claim"
    if goal is not None:
        words += f"; {goal.describe(seen)}"
    return CheckResult(
        check=name,
        claim=f"of members, at {WRONG_RATE:.0%} wrong accusations, at most {allowed:.1%} are recognised; advantage at "
        f"most {allowed_advantage:.3f}",
        verdict=verdict,
        statistic=seen.true_positive_rate,
        threshold=allowed,
        alpha=ATTACK_ALPHA,
        tests=2,
        n=protected.scores.size,
        words=f"recognises {_percent(seen)} of members at {seen.false_positive_rate:.1%} wrong accusations, advantage "
        f"{_advantage(seen)}; at {WRONG_RATE:.0%} the claim allows {allowed:.1%}, and {allowed_advantage:.2f}; without "
        f"privacy {_percent(control)} and {_advantage(control)}: {words}",
        control=control.true_positive_rate,
        rates=seen,
        control_rates=control,
        goal=goal,
        goal_met=None if goal is None else goal.met(seen, control),
        proves=False,
        seconds=seconds,
    )


def measured_rates(trials: Trials) -> AttackRates:
    """Rates with 95 % intervals, at the thresholds that were used.

    The wrong rate at the first one is near 1 %, and given as it was. The interval of the advantage is made of two at
    97.5 %, so it is one of at least 95 %.
    """
    alpha = (1 - _CONFIDENCE) / 2
    right, wrong = _counted(trials, _at_wrong_rate)
    low, high = clustered_limits(*right, alpha=alpha)
    best_right, best_wrong = _counted(trials, _at_best)
    right_low, right_high = clustered_limits(*best_right, alpha=alpha / 2)
    wrong_low, wrong_high = clustered_limits(*best_wrong, alpha=alpha / 2)
    return AttackRates(
        false_positive_rate=_share(*wrong),
        true_positive_rate=_share(*right),
        true_positive_low=low,
        true_positive_high=high,
        advantage=_share(*best_right) - _share(*best_wrong),
        advantage_low=right_low - wrong_high,
        advantage_high=right_high - wrong_low,
        runs=len(trials.scores),
        trials=trials.scores.size,
    )


Counts = tuple[NDArray[np.int64], NDArray[np.int64]]  # [S] accused, [S] in all


def clustered_limits(
    hits: NDArray[np.int64], counts: NDArray[np.int64], *, alpha: float
) -> tuple[float, float]:
    """Lower and upper limit of a rate, each exceeded with probability about `alpha`.

    Args:
        hits: `[S]`, of each run.
        counts: `[S]`, trials of each run.
        alpha: Of each limit.
    """
    runs, total = len(hits), int(counts.sum())
    rate = _share(hits, counts)
    spread = runs / (runs - 1) * float(((hits - rate * counts) ** 2).sum()) / total**2
    simple = rate * (1 - rate)
    effective = total if spread == 0 else min(total, simple / spread)
    law = _stats().t
    effective *= (law.ppf(1 - alpha, total - 1) / law.ppf(1 - alpha, runs - 1)) ** 2
    found = rate * effective
    beta = _stats().beta
    low = 0.0 if found == 0 else float(beta.ppf(alpha, found, effective - found + 1))
    high = 1.0 if rate == 1 else float(beta.ppf(1 - alpha, found + 1, effective - found))
    return low, high


def _stats() -> Any:
    return importlib.import_module("scipy.stats")


Choose = Callable[[Scores, Scores], float]  # (of members, of others) -> threshold


def _counted(trials: Trials, choose: Choose) -> tuple[Counts, Counts]:
    """Accused members and accused others, by run."""
    scores, members = trials.scores, trials.members
    accused = np.zeros_like(members)
    second = np.arange(len(scores)) % 2 == 1
    for half in (second, ~second):
        kept, truth = scores[~half], members[~half]
        accused[half] = scores[half] > choose(kept[truth], kept[~truth])
    return (
        ((accused & members).sum(1), members.sum(1)),
        ((accused & ~members).sum(1), (~members).sum(1)),
    )


def _at_wrong_rate(of_members: Scores, of_others: Scores) -> float:
    return float(np.quantile(of_others, 1 - WRONG_RATE, method="higher"))


def _at_best(of_members: Scores, of_others: Scores) -> float:
    places = np.sort(np.concatenate([of_members, of_others]))
    right = 1 - np.searchsorted(np.sort(of_members), places, side="right") / len(of_members)
    wrong = 1 - np.searchsorted(np.sort(of_others), places, side="right") / len(of_others)
    return float(places[int(np.argmax(right - wrong))])


def _share(hits: NDArray[np.int64], counts: NDArray[np.int64]) -> float:
    return float(hits.sum() / counts.sum())


def _percent(rates: AttackRates) -> str:
    return (
        f"{rates.true_positive_rate:.1%} [{rates.true_positive_low:.1%}, "
        f"{rates.true_positive_high:.1%}]"
    )


def _advantage(rates: AttackRates) -> str:
    return f"{rates.advantage:.2f} [{rates.advantage_low:.2f}, {rates.advantage_high:.2f}]"


def likelihood_ratios(scores: Scores, members: Coins, *, online: bool) -> Scores:
    """Calibrates scores target by target: the likelihood ratio attack, every run judged by all others.

    For each target the scores of the other runs, with it and without it, give two normal laws of one width; a score
    becomes the logarithm of their ratio. Offline, the law without it alone is used, one-sided.

    Args:
        scores: `[S, m]`, any statistic, higher for members.
        members: `[S, m]`.
        online: Whether runs with the target are used too.

    Returns:
        `[S, m]`; 0 where too few runs are left to tell.

    Source: Carlini et al., arXiv 2112.03570, algorithm 1 and section 5.
    """
    ratios = np.zeros_like(scores)
    for run in range(len(scores)):
        others = np.arange(len(scores)) != run
        rest, into = scores[others], members[others]
        count_in, count_out = into.sum(0), (~into).sum(0)
        usable = (count_in > 1) & (count_out > 1)
        mean_in = (rest * into).sum(0) / np.maximum(count_in, 1)
        mean_out = (rest * ~into).sum(0) / np.maximum(count_out, 1)
        left = rest - np.where(into, mean_in, mean_out)
        own = (left**2).sum(0) / np.maximum(len(rest) - 2, 1)
        width = np.maximum((own + own.mean()) / 2, 1e-300)  # steadied by all targets' together
        if online:
            ratio = ((scores[run] - mean_out) ** 2 - (scores[run] - mean_in) ** 2) / (2 * width)
        else:
            ratio = (scores[run] - mean_out) / np.sqrt(width)
        ratios[run] = np.where(usable, ratio, 0.0)
    return ratios


def confidence(losses: Scores) -> Scores:
    """A model's confidence in the truth on a scale on which it is nearly normal: `log(p / (1 - p))` of `p = e^-loss`.

    Source: Carlini et al., arXiv 2112.03570, section 5.B.
    """
    return -np.log(np.expm1(np.clip(losses, 1e-9, 600.0)))
