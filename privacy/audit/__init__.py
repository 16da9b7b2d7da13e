"""Attacks on a private step that would notice if it did not do what its plan says.

A proof is about an algorithm, an audit about the program that is meant to be it. Every check has a claim, exact error
probabilities, and, where it can only attack, a control that must succeed without protection: an attack that fails
against an unprotected step has shown nothing. Checks end in `PASS` ("no violation found", never "verified"), `FAIL`
(a promise is broken, up to the stated error) or `INCONCLUSIVE` (the check could not have noticed).
"""

from privacy.audit.books import check_books
from privacy.audit.canaries import check_canaries
from privacy.audit.inversion import check_inversion
from privacy.audit.mechanism import check_mechanism
from privacy.audit.membership import check_membership
from privacy.audit.one_run import check_one_run
from privacy.audit.rates import Trials, check_rates, confidence, likelihood_ratios
from privacy.audit.replay import check_replay
from privacy.audit.sampling import check_sampling
from privacy.audit.step import GradientStep, RecordingSampler, StepUnderAudit, take_all
from privacy.audit.verdict import (
    AttackRates,
    CheckResult,
    Goal,
    Verdict,
    not_attempted,
    overall,
)

__all__ = [
    "AttackRates",
    "CheckResult",
    "Goal",
    "GradientStep",
    "RecordingSampler",
    "StepUnderAudit",
    "Trials",
    "Verdict",
    "check_books",
    "check_canaries",
    "check_inversion",
    "check_mechanism",
    "check_membership",
    "check_one_run",
    "check_rates",
    "check_replay",
    "check_sampling",
    "confidence",
    "likelihood_ratios",
    "not_attempted",
    "overall",
    "take_all",
]
