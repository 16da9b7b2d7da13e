"""The report of a sweep: what privacy costs at a glance, figures with intervals, both epsilons, and links to the runs.

It is written from ``results.json`` alone, so it says what the sweep's last call found.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from fedmpt.report.html import Html, bullets, element, folded, join, paragraph, section, table
from fedmpt.report.page import REPORT_FILE, contents, page, write_page
from fedmpt.report.plot import Interval, interval_chart
from fedmpt.runstore import SUMMARY_FILE
from fedmpt.sweep.curve import draw_panels
from fedmpt.sweep.figure import TITLE, panels_of
from fedmpt.sweep.price import SweepPrice
from fedmpt.sweep.results import GAIN, METRICS, Outcome, SweepResults, read_results
from fedmpt.sweep.run import CELLS
from fedmpt.sweep.statistics import Estimate, estimate
from fedmpt.sweep.table import failure_lines, names_of, note_lines, price_lines
from privacy import display_epsilon

_MOST_ROWS: Final = 24  # of a chart; a table has them all


def write_sweep_report(folder: Path) -> Path:
    """Write ``report.html`` into a sweep's folder, over an earlier one, and return its path.

    Guarantee: the file fetches nothing and runs no script; its links lead to run folders beside it.

    Raises:
        UsageError: ``results.json`` is missing or cannot be read.
        StorageError: the report cannot be written.
    """
    results = read_results(folder)
    sections = {
        "curve": _curve(results),
        "results": _results(results),
        "comparisons": _comparisons(results),
        "cost": section("cost", "What it cost", bullets(price_lines(results))),
        "runs": _runs(results, folder),
        "failed": _failed(results),
    }
    shown = {anchor: content for anchor, content in sections.items() if content}
    names = {
        "curve": "privacy and utility",
        "results": "results",
        "comparisons": "paired comparisons",
        "cost": "what it cost",
        "runs": "runs",
        "failed": "cells that failed",
    }
    title = f"Sweep over {', '.join(results.axes) or 'baselines'}"
    return write_page(
        folder,
        page(
            f"{title}: FedMPT report",
            _head(results, folder, title),
            contents({anchor: names[anchor] for anchor in shown}),
            *shown.values(),
        ),
    )


def _head(results: SweepResults, folder: Path, title: str) -> Html:
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
    words = f"{outcome.condition.label}: {_signed(outcome.gain[GAIN])} over zero-shot."
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


def _curve(results: SweepResults) -> Html | None:
    panels = panels_of(results)
    if not panels:
        return None
    drawn, width, height = draw_panels(panels)
    return section(
        "curve",
        "Privacy and utility",
        element(
            "div",
            element(
                "svg",
                element("title", TITLE, id="curve-title"),
                Html("\n".join(drawn)),
                viewBox=f"0 0 {width:g} {height:g}",
                role="img",
                aria_labelledby="curve-title",
            ),
            class_="scroll panels",
        ),
        paragraph(
            "Bars are 95% confidence intervals over seeds. Lines across are the frozen CLIP, runs without privacy and "
            "baselines.",
            kind="note",
        ),
    )


def _results(results: SweepResults) -> Html:
    columns = [*_heads(results), "seeds", "epsilon spent", *METRICS, f"gain in {GAIN}"]
    with_share = any(outcome.kept is not None for outcome in results.outcomes)
    if with_share:
        columns.append("gain kept")
    rows = []
    for outcome in results.outcomes:
        cells = [*names_of(outcome, results.axes), str(len(outcome.rows))]
        if outcome.rows:
            spent = "none" if outcome.epsilon is None else display_epsilon(outcome.epsilon)
            cells += ["0" if outcome.condition.baseline == "zero-shot" else spent]
            cells += [str(outcome.final[metric]) for metric in METRICS]
            cells += [_signed(outcome.gain[GAIN])]
            cells += [str(outcome.kept or "-")] if with_share else []
        rows.append(cells + ["-"] * (len(columns) - len(cells)))
    caption = "mean ± half of the 95% confidence interval, percent; epsilon: largest of a client in one run"
    notes = [paragraph(line, kind="note") for line in note_lines(results)]
    return section(
        "results",
        "Results",
        _label_table(caption, columns, rows, labels=len(_heads(results))),
        *notes,
    )


def _comparisons(results: SweepResults) -> Html | None:
    compared = [outcome for outcome in results.outcomes if outcome.against]
    if not compared:
        return None
    columns = [*_heads(results), *METRICS, f"{GAIN} by seed"]
    rows = [
        [
            *names_of(outcome, results.axes),
            *(_signed(outcome.against[metric].estimate) for metric in METRICS),
            ", ".join(f"{seed}: {d:+.1f}" for seed, d in outcome.against[GAIN].by_seed.items()),
        ]
        for outcome in compared
    ]
    drawn = compared[:_MOST_ROWS]
    chart = interval_chart(
        "differences",
        title=f"Difference in {GAIN} to {results.reference}",
        description=f"Mean differences in {GAIN}, paired by seed, with 95% intervals.",
        rows=[
            Interval(
                label=outcome.condition.label,
                value=outcome.against[GAIN].estimate.mean,
                half_width=outcome.against[GAIN].estimate.half_width,
                text=_signed(outcome.against[GAIN].estimate),
            )
            for outcome in drawn
        ],
        axis="points",
    )
    left_out = "" if len(drawn) == len(compared) else f" Drawn are the first {len(drawn)}."
    return section(
        "comparisons",
        "Paired comparisons",
        paragraph(
            f"Each condition against {results.reference}, seed by seed: the same data and clients on both sides. An "
            f"interval that holds 0 shows no difference.{left_out}",
            kind="note",
        ),
        element("div", chart, class_="intervals"),
        folded(
            "All metrics, and the differences by seed",
            _label_table("difference in points", columns, rows, labels=len(_heads(results))),
        ),
    )


def _runs(results: SweepResults, folder: Path) -> Html | None:
    rows = []
    for outcome in results.outcomes:
        for row in outcome.rows:
            report = folder / CELLS / row.name / REPORT_FILE
            place = f"{CELLS}/{quote(row.name)}/"
            rows.append(
                [
                    row.condition,
                    str(row.seed),
                    "-" if row.epsilon is None else display_epsilon(row.epsilon),
                    *(f"{row.final[metric]:.1f}" for metric in METRICS),
                    f"{row.seconds:.0f}",
                    element("a", "report", href=place + REPORT_FILE)
                    if report.is_file()
                    else element("a", "folder", href=place),
                ]
            )
    if not rows:
        return None
    columns = ("condition", "seed", "epsilon", *METRICS, "seconds", "run")
    return section(
        "runs",
        "Runs",
        folded(
            f"All {len(rows)} finished runs",
            table("figures in percent; folders lie beside this file", columns, rows, numbers=True),
        ),
        paragraph(
            "A run's own report: ",
            element("code", "fedmpt report DIR/cells/NAME"),
            ".",
            kind="note",
        ),
    )


def _failed(results: SweepResults) -> Html | None:
    if not results.failures:
        return None
    lines = [element("li", line) for line in failure_lines(results)]
    return section("failed", "Cells that failed", element("ul", *lines, class_="findings"))


def _label_table(
    caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, labels: int
) -> Html:
    """Return a table whose first columns are words and whose others are figures."""

    def cells(name: str, row: Sequence[str]) -> Html:
        return join(
            element(name, cell, class_="number" if index >= labels else None)
            for index, cell in enumerate(row)
        )

    content = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", cells("th", columns))),
        element("tbody", *(element("tr", cells("td", row)) for row in rows)),
    )
    return element("div", content, class_="scroll figures")


def _heads(results: SweepResults) -> list[str]:
    return list(results.axes) or ["baseline"]


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


def _signed(value: Estimate) -> str:
    text = str(value)
    return text if text.startswith("-") else f"+{text}"
