"""What a check says, and how checks are summed up."""

import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Literal

MECHANISM_ALPHA = 1e-5  # probability that a correct program fails one check of the mechanism
ATTACK_ALPHA = 1e-3  # likewise of an attack, all its tests together


class Verdict(StrEnum):
    """How a check ended."""

    PASS = "pass"  # noqa: S105 (no password) -- no violation found, though one would have been seen
    FAIL = "fail"  # a promise is broken
    INCONCLUSIVE = (
        "inconclusive"  # the check could not have seen a violation, or its control failed
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackRates:
    """How well an attack on membership did.

    Attributes:
        false_positive_rate: Of others accused, at the threshold that aims at 1 %.
        true_positive_rate: Of members accused at that threshold.
        true_positive_low: Lower 95 % limit.
        true_positive_high: Upper 95 % limit.
        advantage: Largest difference of the two rates over thresholds.
        advantage_low: Lower 95 % limit.
        advantage_high: Upper 95 % limit.
        runs: Independent runs.
        trials: Targets over all runs.
    """

    false_positive_rate: float
    true_positive_rate: float
    true_positive_low: float
    true_positive_high: float
    advantage: float
    advantage_low: float
    advantage_high: float
    runs: int
    trials: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What a project wants an attack not to reach, beyond what it claims; missing it is no violation.

    Attributes:
        of: `true_positive_rate` or `advantage`.
        at_most: Largest value wanted.
        control_at_least: What the attack must reach without privacy for the goal to mean anything.
    """

    of: Literal["true_positive_rate", "advantage"]
    at_most: float
    control_at_least: float

    def met(self, seen: AttackRates, control: AttackRates) -> bool:
        """Whether the attack stayed below, and its control did not."""
        reached, unprotected = (
            rates.advantage if self.of == "advantage" else rates.true_positive_rate
            for rates in (seen, control)
        )
        return reached <= self.at_most and unprotected >= self.control_at_least

    def describe(self, seen: AttackRates) -> str:
        """The goal, and whether the attack stayed below, in words."""
        if self.of == "advantage":
            return f"goal of advantage <= {self.at_most:g} {_met(seen.advantage <= self.at_most)}"
        return f"goal of <= {self.at_most:.0%} {_met(seen.true_positive_rate <= self.at_most)}"


def _met(reached: bool) -> str:
    return "met" if reached else "missed"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """One check.

    Attributes:
        check: Its name.
        claim: What the program promises, in words and public numbers.
        verdict: How it ended.
        statistic: What was measured; the worst of several.
        threshold: What would have been a violation.
        alpha: Probability of a false alarm, all tests of the check together; 0.0 for exact checks.
        tests: How many tests that probability is shared by.
        n: Trials, examples or values looked at.
        words: What was seen, for people.
        ceiling: Largest epsilon the check could have shown; None where epsilon is not its matter.
        control: The same statistic where protection was taken out; None without a control.
        rates: Of an attack on membership; None of other checks.
        control_rates: The same of its control.
        goal: What the project wants beyond the claim; None where nothing.
        goal_met: Whether it is so.
        proves: Whether passing speaks for the program; an attack that does not succeed only fails to speak against it.
        seconds: Wall time.
    """

    check: str
    claim: str
    verdict: Verdict
    statistic: float
    threshold: float
    alpha: float
    tests: int
    n: int
    words: str
    ceiling: float | None = None
    control: float | None = None
    rates: AttackRates | None = None
    control_rates: AttackRates | None = None
    goal: Goal | None = None
    goal_met: bool | None = None
    proves: bool = True
    seconds: float = 0.0

    def as_dict(self) -> dict[str, object]:
        """The check as JSON values; figures that are not finite are null."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }


@dataclass(slots=True)
class Stopwatch:
    """Wall time since it was made."""

    _start: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self._start


def not_attempted(check: str, why: str) -> CheckResult:
    """What is said in the place of a check that cannot be made here."""
    return CheckResult(
        check=check,
        claim="",
        verdict=Verdict.INCONCLUSIVE,
        statistic=0.0,
        threshold=0.0,
        alpha=0.0,
        tests=0,
        n=0,
        words=f"not attempted: {why}",
    )


def overall(results: Iterable[CheckResult]) -> Verdict:
    """`FAIL` if any check failed; else `PASS` if every check that proves something passed, and there is one."""
    results = list(results)
    if any(result.verdict is Verdict.FAIL for result in results):
        return Verdict.FAIL
    proving = {result.verdict for result in results if result.proves}
    return Verdict.PASS if proving == {Verdict.PASS} else Verdict.INCONCLUSIVE
