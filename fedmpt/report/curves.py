"""How the run went: metrics and epsilon over rounds, and average precision by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from fedmpt.report.headline import METRICS
from fedmpt.report.html import Html, element, folded, paragraph, section, table
from fedmpt.report.plot import Bar, Limit, Line, bar_chart, line_chart
from fedmpt.report.source import RunSource
from privacy import display_epsilon

_MOST_CLASSES: Final = 60  # drawn; above, the best and the worst half as many each
_SAME: Final = 0.005  # epsilons that a chart cannot tell apart


def curves(source: RunSource) -> Html:
    """Return metrics and epsilon over rounds; round 0 is the frozen CLIP."""
    lines = source.metrics
    if len(lines) < 2:
        return section(
            "curves", "Over rounds", paragraph("Nothing was tuned, so there was no round.")
        )
    charts = [
        line_chart(
            "metrics",
            title="mAP, CF1 and OF1 on the test split, "
            + ("mean over clients' own models" if _own_models(source) else "of the global model"),
            description=f"Percent over rounds. {_story(source.evaluated)} Round 0 is the frozen CLIP.",
            lines=[
                Line(
                    label=name,
                    points=tuple((line["round"], line[name]) for line in source.evaluated),
                )
                for name in METRICS
            ],
            x_label="round (0: zero-shot)",
            y_label="percent",
            figure="{:.1f}".format,
        )
    ]
    spent = [line for line in lines if line["epsilon_max"] is not None]
    if spent:
        charts.append(_budget(spent, source.summary["privacy"]["target_epsilon"]))
    columns = ("round", *METRICS, "epsilon", "clients", "dropped", "attempts")
    rows = [
        (
            str(line["round"]),
            *(_percent(line.get(name)) for name in METRICS),
            "-" if line["epsilon_max"] is None else display_epsilon(line["epsilon_max"], 3),
            str(len(line["survivors"])),
            str(len(line["dropped"])),
            str(line["attempts"]),
        )
        for line in lines
    ]
    return section(
        "curves",
        "Over rounds",
        element("div", *charts, _figures(source), class_="charts"),
        folded("All rounds as a table", table("metrics by round", columns, rows, numbers=True)),
    )


def _own_models(source: RunSource) -> bool:
    return source.summary.get("final_clients") is not None


def _figures(source: RunSource) -> Html:
    """Return what the tuned model is compared with."""
    summary, clients = source.summary, source.summary.get("final_clients") or {}
    named = [
        ("tuned, mean over clients" if clients else "tuned", summary["final"]),
        ("lowest of a client, by metric", clients.get("min")),
        ("highest of a client, by metric", clients.get("max")),
        ("tuned, without the blocks that are each client's own", summary["final_shared"]),
        ("zero-shot, pooled patches (round 0)", summary["zero_shot"]),
        ("zero-shot, class token", summary["zero_shot_class_token"]),
    ]
    rows = [
        (label, *(f"{figures[name]:.1f}" for name in METRICS))
        for label, figures in named
        if figures
    ]
    return table("percent on the test split", ("model", *METRICS), rows, numbers=True)


def by_class(source: RunSource) -> Html:
    """Return average precision by class beside zero-shot, best first."""
    final: dict[str, float | None] = source.summary["final_AP"]
    before = dict(zip(final, source.metrics[0]["AP"], strict=True))
    figures = [("tuned", final), ("zero-shot", before)][0 if source.cohort else 1 :]
    series = tuple(name for name, _ in figures)
    rows = {
        name: tuple(values[name] for _, values in figures)
        for name in sorted(final, key=lambda name: final[name] or 0.0, reverse=True)
    }
    shown, left_out = list(rows), ""
    if len(rows) > _MOST_CLASSES:
        half = _MOST_CLASSES // 2
        shown = shown[:half] + shown[-half:]
        left_out = f" Drawn are the {half} best and the {half} worst of {len(rows)} classes."
    middle = -(-len(shown) // 2)
    charts = [
        bar_chart(
            f"classes-{part}",
            title=f"Average precision, {part} half of the classes, percent",
            description=f"Bars from 0 to 100 percent, best class first: {', then '.join(series)}.",
            series=series,
            bars=[
                Bar(label=name, values=rows[name], text=" | ".join(map(_percent, rows[name])))
                for name in half_shown
            ],
            maximum=100.0,
        )
        for part, half_shown in (("first", shown[:middle]), ("second", shown[middle:]))
        if half_shown
    ]
    numbers = table(
        "average precision by class",
        ("class", *series),
        [(name, *map(_percent, values)) for name, values in rows.items()],
        numbers=True,
    )
    return section(
        "classes",
        "By class",
        paragraph(
            f"Average precision, {' | '.join(series)}, best first.{left_out} A class without a positive test image has "
            "no figure.",
            kind="note",
        ),
        element("div", *charts, class_="charts"),
        folded("All classes as a table", numbers),
    )


def _budget(lines: Sequence[dict[str, Any]], target: float) -> Html:
    """Return the chart of epsilon over rounds; one line where all clients spend alike."""
    drawn = [("largest of a client", "epsilon_max"), ("smallest", "epsilon_min")]
    if all(line["epsilon_max"] - line["epsilon_min"] < _SAME for line in lines):
        drawn = [("every client", "epsilon_max")]
    return line_chart(
        "epsilon",
        title="Epsilon spent, over all rounds so far",
        description=f"Epsilon of clients over rounds: {display_epsilon(lines[-1]['epsilon_max'])} at the end, of "
        f"{target:g}.",
        lines=[
            Line(
                label=label,
                points=((0, 0), *((line["round"], line[key]) for line in lines)),
            )
            for label, key in drawn
        ],
        x_label="round",
        y_label="epsilon",
        figure=display_epsilon,
        limit=Limit(label=f"limit {target:g}", value=target),
        from_zero=True,
    )


def _story(lines: Sequence[dict[str, Any]]) -> str:
    return " ".join(
        f"{name} goes from {lines[0][name]:.1f} to {lines[-1][name]:.1f}." for name in METRICS
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
