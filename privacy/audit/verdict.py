"""What a check says, and how checks are summed up."""

import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum

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


def overall(results: Iterable[CheckResult]) -> Verdict:
    """`FAIL` if any check failed; else `PASS` if any passed; attacks alone prove nothing."""
    verdicts = {result.verdict for result in results}
    if Verdict.FAIL in verdicts:
        return Verdict.FAIL
    return Verdict.PASS if Verdict.PASS in verdicts else Verdict.INCONCLUSIVE
