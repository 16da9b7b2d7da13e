"""The privacy-utility curve as SVG: a panel a metric, epsilon on a logarithmic axis.

It is one file that needs nothing else, or part of a page whose style sheet names the same classes. Series differ by
shape and dash as well as by colour; colours follow the reader's light or dark theme. Lengths are in units of the view
box.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from fedmpt.report.plot import ticks

_PANEL: Final = 250.0
_PLOT_HEIGHT: Final = 230.0
_LEFT: Final = 46.0
_GAP: Final = 50.0
_RIGHT: Final = 16.0
_TOP: Final = 34.0
_LINE: Final = 20.0
_LETTER: Final = 7.4  # mean width of a letter
_CAP: Final = 4.0  # half of an error bar's cap
_INSET: Final = 14.0  # of the first and last epsilon from the panel's edges
MOST_SERIES: Final = 4  # that can be told apart

_LIGHT: Final = {
    **{"page": "#ffffff", "text": "#1b1f24", "quiet": "#565d66", "rule": "#d5d9df"},
    **{"s0": "#0072b2", "s1": "#b84f00", "s2": "#00795a", "s3": "#9a4d7f"},
}
_DARK: Final = {
    **{"page": "#14171b", "text": "#e6e9ed", "quiet": "#a5adb8", "rule": "#3a424c"},
    **{"s0": "#56b4e9", "s1": "#f0a030", "s2": "#35c79c", "s3": "#dc92bf"},
}
_SHAPES: Final = """
text { font: 13px system-ui, sans-serif; } .head { font-weight: 600; }
.line, .error { fill: none; stroke-width: 2; } .error { stroke-width: 1.5; }
.line.s1 { stroke-dasharray: 7 3; } .line.s2 { stroke-dasharray: 2 3; } .line.s3 { stroke-dasharray: 9 3 2 3; }
.level { stroke-width: 1.5; } .l0 { stroke-dasharray: 2 4; }
.l1 { stroke-dasharray: 9 4; } .l2 { stroke-dasharray: 9 3 2 3; } .l3 { stroke-dasharray: 14 4; }
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One mean with its interval.

    Attributes:
        epsilon: above 0.
        mean: percent.
        half_width: of its interval; None without one.
    """

    epsilon: float
    mean: float
    half_width: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One line of a panel.

    Attributes:
        label: in the legend.
        points: epsilon ascending.
    """

    label: str
    points: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """A reference line across a panel.

    Attributes:
        label: in the legend.
        value: percent.
    """

    label: str
    value: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One metric; every panel of a curve has the same series and levels, in the same order.

    Attributes:
        metric: its name.
        series: one to four.
        levels: up to four.
    """

    metric: str
    series: tuple[Series, ...]
    levels: tuple[Level, ...]


def privacy_utility_svg(panels: Sequence[Panel], *, title: str) -> str:
    """Return the curve as an SVG document.

    Args:
        panels: one or more, beside each other.
        title: what the figure shows, for those who do not see it as well.
    """
    body, width, height = draw_panels(panels)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
            f'height="{height:g}" role="img" aria-labelledby="curve-title">',
            f'<title id="curve-title">{escape(title)}</title>',
            f"<style>{_style()}</style>",
            f'<rect class="page" width="{width:g}" height="{height:g}"/>',
            *body,
            "</svg>\n",
        ]
    )


def draw_panels(panels: Sequence[Panel]) -> tuple[list[str], float, float]:
    """Return the panels' elements with their legend, and the width and height of their view box.

    Args:
        panels: one or more, beside each other.
    """
    width = _LEFT + len(panels) * _PANEL + (len(panels) - 1) * _GAP + _RIGHT
    epsilons = sorted(
        {p.epsilon for panel in panels for series in panel.series for p in series.points}
    )
    legend, height = _legend(panels[0], _TOP + _PLOT_HEIGHT + 3 * _LINE, width)
    drawn: list[str] = []
    for index, panel in enumerate(panels):
        drawn += _panel(panel, _LEFT + index * (_PANEL + _GAP), epsilons)
    return drawn + legend, width, height


def _style() -> str:
    """Return the style sheet; plain colours, as not every program that draws SVG knows variables."""
    dark = _colours(_DARK)
    return f"{_SHAPES}{_colours(_LIGHT)}@media (prefers-color-scheme: dark) {{\n{dark}}}\n"


def _colours(palette: Mapping[str, str]) -> str:
    rules = [
        f"text {{ fill: {palette['text']}; }} .page {{ fill: {palette['page']}; }}",
        f".grid {{ stroke: {palette['rule']}; }} .axis {{ stroke: {palette['quiet']}; }}",
        f".level {{ stroke: {palette['text']}; }}",
    ]
    for name in ("s0", "s1", "s2", "s3"):
        colour = palette[name]
        rules.append(
            f".line.{name}, .error.{name} {{ stroke: {colour}; }} .mark.{name} {{ fill: {colour}; }}"
        )
    return "\n".join(rules) + "\n"


def _panel(panel: Panel, left: float, epsilons: Sequence[float]) -> list[str]:
    bottom, right = _TOP + _PLOT_HEIGHT, left + _PANEL
    heights = [level.value for level in panel.levels]
    for series in panel.series:
        for point in series.points:
            half = point.half_width or 0.0
            heights += [point.mean - half, point.mean + half]
    marks = ticks(min(heights), max(heights))
    y_scale = _PLOT_HEIGHT / (marks[-1] - marks[0])
    span = math.log(epsilons[-1] / epsilons[0]) or 1.0

    def x_of(epsilon: float) -> float:
        if len(epsilons) == 1:
            return left + _PANEL / 2
        return left + _INSET + math.log(epsilon / epsilons[0]) / span * (_PANEL - 2 * _INSET)

    def y_of(value: float) -> float:
        return bottom - (value - marks[0]) * y_scale

    drawn = [_words(panel.metric, left, _TOP - 14, kind="head")]
    for mark in marks:
        drawn.append(_stroke("grid", (left, y_of(mark)), (right, y_of(mark))))
        drawn.append(_words(f"{mark:g}", left - 6, y_of(mark) + 4, anchor="end"))
    taken = -math.inf
    for epsilon in epsilons:
        text = f"{epsilon:g}"
        half = _LETTER * len(text) / 2
        if x_of(epsilon) - half > taken + 4:  # labels that would touch are left out
            drawn.append(_words(text, x_of(epsilon), bottom + 17, anchor="middle"))
            taken = x_of(epsilon) + half
    drawn.append(_stroke("axis", (left, bottom), (right, bottom)))
    drawn.append(_words("epsilon (log scale)", (left + right) / 2, bottom + 36, anchor="middle"))
    for index, level in enumerate(panel.levels):
        at = y_of(level.value)
        note = f"{level.label}: {level.value:.1f}"
        drawn.append(_stroke(f"level l{index}", (left, at), (right, at), note=note))
    shift = -1.5 * (len(panel.series) - 1)
    for index, series in enumerate(panel.series):
        aside = shift + 3 * index  # so that error bars of several series stay apart
        places = [(x_of(p.epsilon) + aside, y_of(p.mean)) for p in series.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        drawn.append(f'<polyline class="line s{index}" points="{path}"/>')
        for (x, y), point in zip(places, series.points, strict=True):
            note = f"{series.label}, epsilon {point.epsilon:g}: {point.mean:.1f}"
            if point.half_width is not None:
                drawn += _error_bar(index, x, y, point.half_width * y_scale)
                note += f" ± {point.half_width:.1f}"
            drawn.append(_marker(index, x, y, note=note))
    return drawn


def _legend(panel: Panel, top: float, width: float) -> tuple[list[str], float]:
    """Return the legend and where it ends."""
    entries = [(f"line s{i}", i, series.label) for i, series in enumerate(panel.series)]
    entries += [(f"level l{i}", -1, level.label) for i, level in enumerate(panel.levels)]
    drawn: list[str] = []
    x, y = _LEFT, top
    for kind, marker, label in entries:
        length = 36 + _LETTER * len(label) + 22
        if x > _LEFT and x + length > width:
            x, y = _LEFT, y + _LINE
        drawn.append(_stroke(kind, (x, y), (x + 28, y)))
        if marker >= 0:
            drawn.append(_marker(marker, x + 14, y))
        drawn.append(_words(label, x + 36, y + 4))
        x += length
    return drawn, y + 16


def _error_bar(series: int, x: float, y: float, half: float) -> list[str]:
    ends = [
        _stroke(f"error s{series}", (x - _CAP, at), (x + _CAP, at)) for at in (y - half, y + half)
    ]
    return [_stroke(f"error s{series}", (x, y - half), (x, y + half)), *ends]


def _marker(series: int, x: float, y: float, *, note: str = "") -> str:
    """Return a series' mark: circle, square, triangle, diamond."""
    inside = f"<title>{escape(note)}</title>" if note else ""
    kind = f'class="mark s{series}"'
    if series == 0:
        return f'<circle {kind} cx="{x:.1f}" cy="{y:.1f}" r="4">{inside}</circle>'
    shape = (
        ((-4, -4), (4, -4), (4, 4), (-4, 4)),
        ((0, -5), (5, 4), (-5, 4)),
        ((0, -5.5), (5.5, 0), (0, 5.5), (-5.5, 0)),
    )[series - 1]
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in shape)
    return f'<polygon {kind} points="{points}">{inside}</polygon>'


def _stroke(
    kind: str, start: tuple[float, float], end: tuple[float, float], *, note: str = ""
) -> str:
    inside = f"<title>{escape(note)}</title>" if note else ""
    return (
        f'<line class="{kind}" x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}">'
        f"{inside}</line>"
    )


def _words(text: str, x: float, y: float, *, anchor: str = "start", kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
