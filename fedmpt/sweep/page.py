"""The report of a sweep: what privacy costs at a glance, figures with intervals, both epsilons, and links to the runs.

It is written from ``results.json``, so it says what the sweep's last call found, and shows other figures in the folder,
as of `experiments.bias`.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

from fedmpt.report.html import Html, bullets, element, folded, join, paragraph, section, table
from fedmpt.report.page import REPORT_FILE, contents, page, write_page
from fedmpt.report.plot import Interval, interval_chart
from fedmpt.sweep.curve import draw_panels
from fedmpt.sweep.figure import TITLE, panels_of
from fedmpt.sweep.files import CURVE_FILE, read_results
from fedmpt.sweep.headline import head, signed
from fedmpt.sweep.results import GAIN, METRICS, SweepResults
from fedmpt.sweep.run import CELLS
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
        "figures": _more_figures(folder),
        "cost": section("cost", "What it cost", bullets(price_lines(results))),
        "runs": _runs(results, folder),
        "failed": _failed(results),
    }
    shown = {anchor: content for anchor, content in sections.items() if content}
    names = {
        "curve": "privacy and utility",
        "results": "results",
        "comparisons": "paired comparisons",
        "figures": "more figures",
        "cost": "what it cost",
        "runs": "runs",
        "failed": "cells that failed",
    }
    title = f"Sweep over {', '.join(results.axes) or 'baselines'}"
    return write_page(
        folder,
        page(
            f"{title}: FedMPT report",
            head(results, folder, title),
            contents({anchor: names[anchor] for anchor in shown}),
            *shown.values(),
        ),
    )


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
            cells += [signed(outcome.gain[GAIN])]
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
            *(signed(outcome.against[metric].estimate) for metric in METRICS),
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
                text=signed(outcome.against[GAIN].estimate),
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


def _more_figures(folder: Path) -> Html | None:
    """Return the figures that other programs left in the folder, as images, in which nothing runs."""
    files = sorted(file for file in folder.glob("*.svg") if file.name != CURVE_FILE)
    if not files:
        return None
    shown = []
    for file in files:
        content = base64.b64encode(file.read_bytes()).decode()
        image = element("img", src=f"data:image/svg+xml;base64,{content}", alt=file.name)
        shown += [element("div", image, class_="scroll"), paragraph(file.name, kind="note")]
    return section("figures", "More figures", *shown)


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
