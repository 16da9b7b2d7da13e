"""The first screen: what was tuned, what it gained, what it spent, who could read what."""

from __future__ import annotations

import math
from typing import Any, Final

from fedmpt.report.html import Html, bullets, element, folded, paragraph
from fedmpt.report.parties import aggregation_statement
from fedmpt.report.source import RunSource
from privacy import display_epsilon

METRICS: Final = ("mAP", "CF1", "OF1")


def headline(source: RunSource) -> Html:
    """Return the head of the page."""
    summary = source.summary
    return element(
        "header",
        element("h1", f"{summary['method']} on {summary['data']}"),
        paragraph(
            f"{summary['clients']} clients, {summary['rounds']} rounds, {summary['parameters']:,} tuned values on "
            f"the frozen CLIP {summary['backbone']}, seed {summary['seed']}."
            + (
                " Every client trained alone; figures are means over their models."
                if source.alone
                else ""
            ),
            kind="lead",
        ),
        *_warnings(source),
        element("div", *(_figure(name, summary) for name in METRICS), class_="tiles"),
        element("div", _privacy(source), _aggregation(source), class_="tiles wide"),
    )


def guarantee(summary: dict[str, Any], epsilon: float, delta: float) -> str:
    """Return what an epsilon promises, in words."""
    privacy = summary["privacy"]
    changed = (
        "all that any one client contributes"
        if privacy["unit"] == "client"
        else "any one training image with its labels"
    )
    shown = float(display_epsilon(epsilon))
    factor = f"{math.exp(shown):,.3g}" if shown < 3 else f"{math.exp(shown):,.0f}"
    if shown >= 30:
        factor = f"10^{shown / math.log(10):.0f}"
    against = privacy["against"]
    return (
        f"Against {against}: with or without {changed}, all that can be seen of this run is equally likely up to a "
        f"factor e^{shown:.2f}, about {factor}, but for a chance of {delta:g}. Protected is {privacy['protected']}."
    )


def _warnings(source: RunSource) -> list[Html]:
    """Return a banner for everything that takes a promise away."""
    warnings = []
    if source.summary.get("compatibility"):
        warnings.append(f"{source.summary['compatibility']}.")
    if not source.private:
        warnings.append(
            "NO DIFFERENTIAL PRIVACY: updates and the tuned model may reveal training images."
        )
    if source.audit.secagg == "none" and source.cohort and not source.alone:
        warnings.append("NO SECURE AGGREGATION: the server saw every client's update.")
    if source.audit.findings:
        warnings.append(
            f"THE AUDIT FOUND {len(source.audit.findings)} BROKEN PROMISE(S): see below before relying on any figure."
        )
    shown = [paragraph(text, kind="warning") for text in warnings]
    if source.warnings:
        said = [f"after round {number}: {text}" for number, text in source.warnings]
        shown.append(folded(f"{len(said)} warning(s) while it ran", bullets(said)))
    return shown


def _figure(name: str, summary: dict[str, Any]) -> Html:
    final, before = summary["final"][name], summary["zero_shot"][name]
    if not summary["rounds"]:
        return _tile(name, f"{final:.1f}", "of the frozen CLIP: nothing was tuned")
    gain = final - before
    return _tile(name, f"{final:.1f}", f"zero-shot {before:.1f}, change {gain:+.1f}")


def _privacy(source: RunSource) -> Html:
    epsilon, summary = source.epsilon, source.summary
    if not source.private:
        return _tile("epsilon", "none", "Nothing bounds what this run reveals of an image.")
    if not source.cohort:
        return _tile("epsilon", "0", "No training image was used, so nothing was spent.")
    if epsilon is None or math.isinf(epsilon):
        return _tile("epsilon", "unknown", "The ledgers give no figure that can be relied on.")
    delta = source.audit.accounts[0].claimed_delta
    return _tile(
        f"epsilon: the most a client spent, of {summary['privacy']['target_epsilon']:g}, at delta {delta:g}",
        display_epsilon(epsilon),
        guarantee(summary, epsilon, delta),
    )


def _aggregation(source: RunSource) -> Html:
    if not source.cohort:
        return _tile("aggregation", "none", "Nothing was tuned, so no client sent anything.")
    return _tile("aggregation", source.audit.secagg, aggregation_statement(source))


def _tile(name: str, value: str, words: str) -> Html:
    return element(
        "div",
        element("p", name, class_="name"),
        element("p", value, class_="value"),
        element("p", words, class_="words"),
        class_="tile",
    )
