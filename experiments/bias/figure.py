"""The figure: a column a method (or FedMPT without a part of it), a row a measure.

The share of images that keep company grows from left to right. One SVG file that needs nothing else and follows the
reader's light or dark theme. Partners are solid with marks, decoys dashed. Lengths are in units of the view box.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

from fedmpt.report.plot import ticks
from fedmpt.sweep.statistics import estimate

_LEFT: Final = 44.0
_PANEL: Final = 92.0
_GAP: Final = 12.0
_ROW: Final = 118.0
_ROW_GAP: Final = 38.0
_TOP: Final = 40.0
_RIGHT: Final = 12.0
_INSET: Final = 9.0  # of the outermost points from a panel's edges
_LINE: Final = 20.0
_FEWEST: Final = 6  # columns for which the legend's words are given room

# light, dark
_COLOURS: Final = {
    "page": ("#ffffff", "#14171b"),
    "text": ("#1b1f24", "#e6e9ed"),
    "quiet": ("#565d66", "#a5adb8"),
    "rule": ("#d5d9df", "#3a424c"),
    "partner": ("#b84f00", "#f0a030"),
    "decoy": ("#0072b2", "#56b4e9"),
}

Row = Mapping[str, Any]  # a record of `experiments.bias.measure.measure_run`


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """One row of the figure.

    Attributes:
        title: above the row.
        partner: what the solid line shows.
        decoy: what the dashed line shows; None for a measure that knows no decoys.
        frozen: whether the frozen model's value means the same, so that a line across shows it.
    """

    title: str
    partner: Callable[[Row], float | None]
    decoy: Callable[[Row], float | None] | None
    frozen: bool


MEASURES: Final = (
    Measure(
        title="mAP (%) on test images, where company is by chance",
        partner=lambda row: row["final"]["mAP"],
        decoy=None,
        frozen=True,
    ),
    Measure(
        title="False alarms (%) beside a partner, where 10% are beside a decoy",
        partner=lambda row: row["false_alarms"]["matched"],
        decoy=None,
        frozen=True,
    ),
    Measure(
        title="Brightness of a class's map on the object of a partner, or of a decoy",
        partner=lambda row: row["map_lift"]["partner"],
        decoy=lambda row: row["map_lift"]["decoy"],
        frozen=False,  # its maps are gradients, FedMPT's are not
    ),
)


def column_name(row: Row) -> str:
    """Return what a run is an instance of: its method, or the parts that it was trained without."""
    return f"no {' or '.join(row['without'])}" if row["without"] else str(row["method"])


def bias_svg(rows: Sequence[Row], *, columns: Sequence[str], title: str) -> str:
    """Return the figure as an SVG document.

    Args:
        rows: one record a finished run, all of one number of pairings; several seeds of one setting become a mean with
            its 95% interval.
        columns: `column_name` of each column from the left; ``zero-shot`` is a line across all of them instead.
        title: what the figure shows, for those who do not see it as well.
    """
    frozen = "zero-shot" in columns
    columns = [name for name in columns if name != "zero-shot"]
    across = max(len(columns), _FEWEST)
    width = _LEFT + across * _PANEL + (across - 1) * _GAP + _RIGHT
    levels = sorted({float(row["company"]) for row in rows})
    body: list[str] = []
    for index, name in enumerate(columns):
        x = _LEFT + index * (_PANEL + _GAP) + _PANEL / 2
        body.append(_words(name, x, 18, anchor="middle", kind="head"))
    top = _TOP
    for measure in MEASURES:
        body += _row(measure, rows, columns, levels, top=top, frozen=frozen)
        top += _ROW + _ROW_GAP
    body.append(_words("share of training images that keep their site's company", _LEFT, top + 2))
    height = top + 1.5 * _LINE
    body += _legend(height, frozen=frozen)
    height += 0.8 * _LINE
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
            f'height="{height:g}" role="img" aria-labelledby="bias-title">',
            f'<title id="bias-title">{escape(title)}</title>',
            f"<style>{_style()}</style>",
            f'<rect class="page" width="{width:g}" height="{height:g}"/>',
            *body,
            "</svg>\n",
        ]
    )


def _row(
    measure: Measure,
    rows: Sequence[Row],
    columns: Sequence[str],
    levels: Sequence[float],
    *,
    top: float,
    frozen: bool,
) -> list[str]:
    """Return one measure of every method, on one scale."""
    lines: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for name in columns:
        for kind, value in (("partner", measure.partner), ("decoy", measure.decoy)):
            if value is not None:
                lines[name, kind] = _points(rows, name, value)
    still = _mean(rows, "zero-shot", measure.partner) if frozen and measure.frozen else None
    heights = [
        y + sign * half for points in lines.values() for _, y, half in points for sign in (-1, 1)
    ]
    heights += [still] if still is not None else []
    if not heights:
        return []
    marks = ticks(min(heights), max(heights))
    scale = (_ROW - 12) / (marks[-1] - marks[0])
    bottom = top + _ROW

    def y_of(value: float) -> float:
        return bottom - (value - marks[0]) * scale

    drawn = [_words(measure.title, _LEFT, top - 2, kind="quiet")]
    for index, name in enumerate(columns):
        left = _LEFT + index * (_PANEL + _GAP)
        for mark in marks:
            drawn.append(_stroke("grid", left, y_of(mark), left + _PANEL, y_of(mark)))
            if index == 0:
                drawn.append(_words(f"{mark:g}", left - 6, y_of(mark) + 4, anchor="end"))
        if still is not None:
            drawn.append(_stroke("still", left, y_of(still), left + _PANEL, y_of(still)))

        def x_of(level: float, left: float = left) -> float:
            span = levels[-1] - levels[0] or 1.0
            return left + _INSET + (level - levels[0]) / span * (_PANEL - 2 * _INSET)

        for kind in ("decoy", "partner"):
            points = lines.get((name, kind), [])
            places = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y, _ in points)
            drawn.append(f'<polyline class="line {kind}" points="{places}"/>')
            for x, y, half in points:
                note = escape(f"{name}, company {x:g}, {kind}: {y:.1f}")
                at, up = x_of(x), y_of(y)
                if half:
                    drawn.append(_stroke(f"bar {kind}", at, y_of(y - half), at, y_of(y + half)))
                radius = 3.5 if kind == "partner" else 2.0
                drawn.append(
                    f'<circle class="mark {kind}" cx="{at:.1f}" cy="{up:.1f}" r="{radius}">'
                    f"<title>{note}</title></circle>"
                )
        drawn.append(_stroke("axis", left, bottom, left + _PANEL, bottom))
        for level in (levels[0], levels[-1]):
            drawn.append(_words(f"{level:g}", x_of(level), bottom + 15, anchor="middle"))
    return drawn


def _points(
    rows: Sequence[Row], name: str, value: Callable[[Row], float | None]
) -> list[tuple[float, float, float]]:
    """Return (company, mean, half of its interval) of a column, company ascending."""
    found: dict[float, list[float]] = {}
    for row in rows:
        measured = value(row)
        if column_name(row) == name and measured is not None:
            found.setdefault(float(row["company"]), []).append(measured)
    points = []
    for level, values in sorted(found.items()):
        one = estimate(values)
        points.append((level, one.mean, one.half_width or 0.0))
    return points


def _mean(rows: Sequence[Row], name: str, value: Callable[[Row], float | None]) -> float | None:
    values = [v for row in rows if column_name(row) == name and (v := value(row)) is not None]
    return estimate(values).mean if values else None


def _legend(y: float, *, frozen: bool) -> list[str]:
    drawn: list[str] = []
    x = _LEFT
    entries = [("line partner", "partner"), ("line decoy", "decoy: as many other classes")]
    if frozen:
        entries.append(("still", "the frozen model"))
    for kind, label in entries:
        drawn.append(_stroke(kind, x, y - 4, x + 26, y - 4))
        drawn.append(_words(label, x + 32, y))
        x += 60 + 7.2 * len(label)
    return drawn


def _style() -> str:
    """Return the style sheet; plain colours, as not every program that draws SVG knows variables."""
    light, dark = (_rules({name: pair[i] for name, pair in _COLOURS.items()}) for i in (0, 1))
    return (
        "text { font: 13px system-ui, sans-serif; } .head { font-weight: 600; }\n"
        ".line, .bar, .still, .grid, .axis { fill: none; } .line { stroke-width: 2; } .bar { stroke-width: 1.5; }\n"
        ".line.decoy { stroke-dasharray: 5 3; } .still { stroke-width: 1.5; stroke-dasharray: 2 4; }\n"
        f"{light}@media (prefers-color-scheme: dark) {{\n{dark}}}\n"
    )


def _rules(colour: Mapping[str, str]) -> str:
    rules = [
        f".page {{ fill: {colour['page']}; }} text {{ fill: {colour['text']}; }}",
        f"text.quiet {{ fill: {colour['quiet']}; }} .grid {{ stroke: {colour['rule']}; }}",
        f".axis {{ stroke: {colour['quiet']}; }} .still {{ stroke: {colour['text']}; }}",
    ]
    for kind in ("partner", "decoy"):
        rules.append(f".line.{kind}, .bar.{kind} {{ stroke: {colour[kind]}; }}")
        rules.append(f".mark.{kind} {{ fill: {colour[kind]}; }}")
    return "\n".join(rules) + "\n"


def _stroke(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _words(text: str, x: float, y: float, *, anchor: str = "start", kind: str = "") -> str:
    styled = f' class="{kind}"' if kind else ""
    return f'<text{styled} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
