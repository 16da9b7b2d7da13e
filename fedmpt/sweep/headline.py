"""The first screen of a sweep's report: what privacy leaves of the gain, and what looking at it costs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedmpt.report.html import Html, element, paragraph
from fedmpt.runstore import SUMMARY_FILE
from fedmpt.sweep.price import SweepPrice
from fedmpt.sweep.results import GAIN, Outcome, SweepResults
from fedmpt.sweep.run import CELLS
from fedmpt.sweep.statistics import Estimate, estimate
from privacy import display_epsilon


def head(results: SweepResults, folder: Path, title: str) -> Html:
    """Return the head of the page.

    Args:
        results: of the sweep.
        folder: of the sweep.
        title: of the page.
    """
    done = [outcome for outcome in results.outcomes if outcome.rows]
    runs = sum(len(outcome.rows) for outcome in done)
    seeds = {row.seed for outcome in done for row in outcome.rows}
    about = _about(done, folder)
    return element(
        "header",
        element("h1", title),
        paragraph(
            f"{about}{runs} finished runs of {len(done)} conditions over {len(seeds)} seed(s). Means with the half "
            "width of their 95% confidence interval (Student's t), in percent.",
            kind="lead",
        ),
        *(
            [paragraph(f"{len(results.failures)} cell(s) failed; see below.", kind="warning")]
            if results.failures
            else []
        ),
        element("div", *_utility_tiles(done), class_="tiles"),
        element("div", *_privacy_tiles(results), class_="tiles wide"),
    )


def _about(done: Sequence[Outcome], folder: Path) -> str:
    """Return method, data and backbone where all runs have the same; nothing where one cannot be read."""
    found: set[tuple[str | None, ...]] = set()
    for outcome in done:
        for row in outcome.rows:
            try:
                text = (folder / CELLS / row.name / SUMMARY_FILE).read_text(encoding="utf-8")
                summary: dict[str, Any] = json.loads(text)
            except (OSError, ValueError):
                return ""
            if summary.get("method") != "zero-shot":
                found.add(tuple(summary.get(key) for key in ("method", "data", "backbone")))
    if len(found) != 1 or None in (same := next(iter(found))):
        return ""
    method, data, backbone = same
    return f"{method} on {data} with the frozen CLIP {backbone}. "


def _utility_tiles(done: Sequence[Outcome]) -> list[Html]:
    """Return zero-shot, the reference without privacy and the best private condition."""
    if not done:
        return [_tile("finished runs", "none", "", "Nothing to show yet.")]
    frozen = estimate([row.zero_shot[GAIN] for outcome in done for row in outcome.rows])
    tiles = [_tile(f"zero-shot {GAIN}", f"{frozen.mean:.1f}", "", "The frozen CLIP, untuned.")]
    in_grid = [outcome for outcome in done if outcome.condition.baseline is None]
    without = [outcome for outcome in in_grid if outcome.condition.epsilon is None]
    private = [outcome for outcome in in_grid if outcome.condition.epsilon is not None]
    if without:
        best = max(without, key=lambda one: one.final[GAIN].mean)
        tiles.append(_outcome_tile("without privacy", best))
    if private:
        best = max(private, key=lambda one: one.final[GAIN].mean)
        tiles.append(_outcome_tile("best with privacy", best))
    return tiles


def _outcome_tile(name: str, outcome: Outcome) -> Html:
    words = f"{outcome.condition.label}: {signed(outcome.gain[GAIN])} over zero-shot."
    if outcome.kept is not None:
        words += f" Keeps {outcome.kept} of the gain of {outcome.kept_of}."
    mean, half = _split(outcome.final[GAIN])
    return _tile(f"{GAIN} {name}", mean, half, words)


def _privacy_tiles(results: SweepResults) -> list[Html]:
    if not results.prices:
        words = "No run trained with privacy: nothing bounds what this folder reveals."
        return [_tile("epsilon", "none", "", words if results.open_runs else "Nothing was learnt.")]
    return [tile for price in results.prices for tile in _price_tiles(price)]


def _price_tiles(price: SweepPrice) -> list[Html]:
    chosen = price.composition if price.any_image is None else price.any_image
    unit = "image" if price.unit == "example" else "client"
    return [
        _tile(
            f"epsilon of one run, a single {unit} protected, at delta {price.delta:g}",
            display_epsilon(price.single),
            "",
            "The most that a client spent in one run. It holds for a run that nobody chose by looking at others.",
        ),
        _tile(
            f"epsilon of all {price.runs} private runs, and so of the best",
            display_epsilon(chosen),
            "",
            "Choosing among runs uses all of them: this prices the selection, against whoever sees this page.",
        ),
    ]


def _tile(name: str, value: str, aside: str, words: str) -> Html:
    return element(
        "div",
        element("p", name, class_="name"),
        element("p", value, element("small", aside), class_="value"),
        element("p", words, class_="words"),
        class_="tile",
    )


def _split(value: Estimate) -> tuple[str, str]:
    mean, _, half = str(value).partition(" ± ")
    return mean, f" ± {half}" if half else ""


def signed(value: Estimate) -> str:
    """Return a difference with its sign, for people."""
    text = str(value)
    return text if text.startswith("-") else f"+{text}"
