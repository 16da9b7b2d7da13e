"""What attacks on the run's own training code found, where somebody made them."""

from __future__ import annotations

from fedmpt.audit.saved import SavedAudit, SavedCheck
from fedmpt.report.html import Html, element, folded, join, paragraph, table
from fedmpt.report.source import RunSource
from privacy.audit import AttackRates, Verdict

_SUMMARY = {
    Verdict.PASS: ("No attack showed more than the claim allows.", "good"),
    Verdict.FAIL: ("The training does not do what its ledger says.", "findings"),
    Verdict.INCONCLUSIVE: ("The attacks showed nothing either way.", None),
}


def attacks(source: RunSource) -> Html:
    """Return the empirical audit of a run; how to make one where there is none."""
    audit = source.empirical
    command = element("code", "fedmpt audit RUN --empirical")
    if audit is None:
        if not source.private:
            return Html("")
        return paragraph("Its training code was not attacked; ", command, " does so.", kind="note")
    said, kind = _SUMMARY[audit.verdict]
    content = [element("h3", "Attacks on the training code"), paragraph(said, kind=kind)]
    if not audit.is_of(source.folder):
        content.append(
            paragraph(
                "They were made on another model than this folder holds now.", kind="findings"
            )
        )
    measured = [check for check in audit.checks if check.rates is not None]
    if measured:
        content.append(_rates(measured))
    content.append(folded("Every check, and what it saw", _every(audit)))
    content.append(
        paragraph(
            f"On the training of client {audit.client}. A check can refute a claim, not prove it; inconclusive is one "
            "that could not have shown a violation, or whose control without privacy failed.",
            kind="note",
        )
    )
    return join(content)


def _rates(checks: list[SavedCheck]) -> Html:
    rows = [
        (
            check.check,
            check.verdict.value,
            _percent(check.rates),
            "" if check.threshold is None else f"{check.threshold:.1%}",
            _percent(check.control_rates),
            _advantage(check.rates),
            _advantage(check.control_rates),
            _goal(check),
        )
        for check in checks
    ]
    return table(
        "members recognised at 1 % wrong accusations, and advantage, with 95 % intervals",
        (
            *("attack", "verdict", "recognised", "claim allows", "without privacy"),
            *("advantage", "without privacy", "goal"),
        ),
        rows,
    )


def _every(audit: SavedAudit) -> Html:
    return table(
        "checks in the order they were made",
        ("check", "verdict", "what was seen"),
        [(check.check, check.verdict.value, check.words) for check in audit.checks],
    )


def _percent(rates: AttackRates | None) -> str:
    if rates is None:
        return ""
    low, high = rates.true_positive_low, rates.true_positive_high
    return f"{rates.true_positive_rate:.1%} [{low:.1%}, {high:.1%}]"


def _advantage(rates: AttackRates | None) -> str:
    if rates is None:
        return ""
    return f"{rates.advantage:.2f} [{rates.advantage_low:.2f}, {rates.advantage_high:.2f}]"


def _goal(check: SavedCheck) -> str:
    if check.goal is None:
        return ""
    what = "advantage" if check.goal.of == "advantage" else "recognised"
    return f"{what} <= {check.goal.at_most:g}: {'met' if check.goal_met else 'not met'}"
