"""Charts as inline SVG: lines over a whole-numbered axis, horizontal bars, and intervals about a zero line.

A chart has a title and a description for those who do not see it, labels its axes, and tells series apart by shape and
dash as well as by colour. Colours and fonts are the page's: the style sheet names them by class, light and dark.
Lengths are in units of the view box, which is as wide as a telephone and scales with the page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from fedmpt.report.html import Html, element, join

_WIDTH: Final = 480.0
_PLOT_HEIGHT: Final = 210.0
_LEFT: Final = 46.0
_RIGHT: Final = 14.0
_LINE: Final = 20.0  # from one line of text to the next
_LETTER: Final = 7.2  # mean width of a letter
_LABEL_WIDTH: Final = 108.0  # of the names beside bars
_BAR: Final = 9.0
_MOST_MARKERS: Final = 30  # above, markers would touch


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line of a chart.

    Attributes:
        label: its name in the legend.
        points: (x, y), x ascending.
    """

    label: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """A value that is marked across a chart.

    Attributes:
        label: what it is.
        value: on the axis of values.
    """

    label: str
    value: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One row of a bar chart.

    Attributes:
        label: what the row is about; shortened where it is long.
        values: one bar a series, each at least 0; None draws nothing.
        text: the row's figures, in words.
    """

    label: str
    values: tuple[float | None, ...]
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """One row of a chart of intervals.

    Attributes:
        label: what the row is about.
        value: in the middle.
        half_width: to either side; None draws the value alone.
        text: the row's figures, in words.
    """

    label: str
    value: float
    half_width: float | None
    text: str


def line_chart(
    name: str,
    *,
    title: str,
    description: str,
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    figure: Callable[[float], str],
    limit: Limit | None = None,
    from_zero: bool = False,
) -> Html:
    """Return a chart of lines over whole numbers.

    Args:
        name: unique in the page.
        title: what the chart is called.
        description: what it shows, in words.
        lines: one or more, with one or more points each; at most four can be told apart.
        x_label: what the horizontal axis counts.
        y_label: what the vertical axis measures.
        figure: writes a value for people.
        limit: a marked value.
        from_zero: whether the vertical axis starts at 0.
    """
    heights = [y for line in lines for _, y in line.points] + ([limit.value] if limit else [])
    y_ticks = ticks(0.0 if from_zero else min(heights), max(heights))
    last = max(x for line in lines for x, _ in line.points)
    x_ticks = [tick for tick in ticks(0, max(1, last)) if tick <= last and tick == int(tick)]
    legend, top = _legend([line.label for line in lines], limit, markers=True)
    bottom = top + _PLOT_HEIGHT
    x_scale = (_WIDTH - _LEFT - _RIGHT) / max(1, last)
    y_scale = _PLOT_HEIGHT / (y_ticks[-1] - y_ticks[0])

    def place(x: float, y: float) -> tuple[float, float]:
        return _LEFT + x * x_scale, bottom - (y - y_ticks[0]) * y_scale

    drawn = [legend]
    for tick in y_ticks:
        _, y = place(0, tick)
        drawn.append(_stroke("grid", (_LEFT, y), (_WIDTH - _RIGHT, y)))
        drawn.append(_words(f"{tick:g}", _LEFT - 6, y + 4, anchor="end"))
    for tick in x_ticks:
        x, _ = place(tick, 0)
        drawn.append(_words(f"{tick:g}", x, bottom + 17, anchor="middle"))
    drawn.append(_stroke("axis", (_LEFT, bottom), (_WIDTH - _RIGHT, bottom)))
    drawn.append(
        _words(x_label, (_LEFT + _WIDTH - _RIGHT) / 2, bottom + 2 * _LINE - 3, anchor="middle")
    )
    drawn.append(_sideways(y_label, top + _PLOT_HEIGHT / 2))
    if limit is not None:
        _, y = place(0, limit.value)
        drawn.append(_stroke("limit", (_LEFT, y), (_WIDTH - _RIGHT, y)))
    for series, line in enumerate(lines):
        places = [place(x, y) for x, y in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        drawn.append(element("polyline", points=path, class_=f"line s{series}"))
        marked = zip(places, line.points, strict=True)
        if len(places) > _MOST_MARKERS:
            marked = zip(places[-1:], line.points[-1:], strict=True)
        drawn += [
            _marker(series, *at, note=f"{line.label}, {x:g}: {figure(y)}") for at, (x, y) in marked
        ]
    height = bottom + 2 * _LINE + 4
    return _chart(name, title, description, drawn, width=_WIDTH, height=height)


def bar_chart(
    name: str,
    *,
    title: str,
    description: str,
    series: Sequence[str],
    bars: Sequence[Bar],
    maximum: float,
    limit: Limit | None = None,
    width: float = _WIDTH,
) -> Html:
    """Return a chart of horizontal bars.

    Args:
        name: unique in the page.
        title: what the chart is called.
        description: what it shows, in words.
        series: what each of a row's values is; a single one needs no legend.
        bars: the rows, from above.
        maximum: the value at the right end of the plot, above 0.
        limit: a marked value.
        width: of the view box; smaller for a chart in a small place, so that its letters are not.
    """
    named = list(series) if len(series) > 1 else []
    legend, top = _legend(named, limit, markers=False)
    texts = 12 + _LETTER * max((len(bar.text) for bar in bars), default=0)
    row_height = max(_LINE, len(series) * (_BAR + 1) + 8)
    left = _LABEL_WIDTH + 8
    longest = width - left - texts
    bottom = top + row_height * len(bars)
    drawn = [legend]
    for row, bar in enumerate(bars):
        middle = top + (row + 0.5) * row_height
        drawn.append(_words(_shortened(bar.label), left - 8, middle + 4, anchor="end"))
        first = middle - len(series) * (_BAR + 1) / 2
        for index, value in enumerate(bar.values):
            if value is not None:
                length = max(1.0, longest * min(1.0, value / maximum))
                drawn.append(
                    element(
                        "rect",
                        element("title", f"{bar.label}: {bar.text}"),
                        x=left,
                        y=first + index * (_BAR + 1),
                        width=length,
                        height=_BAR,
                        class_=f"bar s{index}",
                    )
                )
        drawn.append(_words(bar.text, left + longest + 8, middle + 4, anchor="start"))
    drawn.append(_stroke("axis", (left, top), (left, bottom)))
    if limit is not None:
        x = left + longest * min(1.0, limit.value / maximum)
        drawn.append(_stroke("limit", (x, top), (x, bottom)))
    return _chart(name, title, description, drawn, width=width, height=bottom + 4)


def interval_chart(
    name: str, *, title: str, description: str, rows: Sequence[Interval], axis: str
) -> Html:
    """Return a chart of intervals about a zero line, a row each with its label above.

    Args:
        name: unique in the page.
        title: what the chart is called.
        description: what it shows, in words.
        rows: one or more, from above.
        axis: what the horizontal axis measures.
    """
    ends = [row.value + sign * (row.half_width or 0) for row in rows for sign in (-1, 1)]
    marks = ticks(min(0.0, *ends), max(0.0, *ends))
    right = _WIDTH - _RIGHT
    scale = (right - _RIGHT) / (marks[-1] - marks[0])
    top, height = 6.0, 40.0
    bottom = top + height * len(rows)

    def x_of(value: float) -> float:
        return _RIGHT + (value - marks[0]) * scale

    drawn: list[Html] = []
    for mark in marks:
        kind = "axis" if mark == 0 else "grid"
        drawn.append(_stroke(kind, (x_of(mark), top), (x_of(mark), bottom)))
        drawn.append(
            _words(f"{mark:+g}" if mark else "0", x_of(mark), bottom + 17, anchor="middle")
        )
    for index, row in enumerate(rows):
        y = top + index * height + 28
        drawn.append(_words(row.label, _RIGHT, y - 13, anchor="start"))
        drawn.append(_words(row.text, right, y - 13, anchor="end"))
        if row.half_width is not None:
            low, high = x_of(row.value - row.half_width), x_of(row.value + row.half_width)
            drawn.append(_stroke("error s0", (low, y), (high, y)))
            drawn += [_stroke("error s0", (x, y - 4), (x, y + 4)) for x in (low, high)]
        drawn.append(_marker(0, x_of(row.value), y, note=f"{row.label}: {row.text}"))
    drawn.append(_words(axis, (_RIGHT + right) / 2, bottom + 2 * _LINE - 3, anchor="middle"))
    return _chart(name, title, description, drawn, width=_WIDTH, height=bottom + 2 * _LINE + 4)


def ticks(low: float, high: float) -> list[float]:
    """Return four to eight round values, the first at or below ``low`` and the last at or above ``high``.

    Args:
        low: smallest value shown.
        high: largest value shown; a range without length is widened.
    """
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / 5
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(f * magnitude for f in (1, 2, 5, 10) if f * magnitude >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]


def _chart(
    name: str,
    title: str,
    description: str,
    drawn: Sequence[str],
    *,
    width: float,
    height: float,
) -> Html:
    return element(
        "figure",
        element("figcaption", title),
        element(
            "svg",
            element("title", title, id=f"{name}-title"),
            element("desc", description, id=f"{name}-desc"),
            *drawn,
            viewBox=f"0 0 {width:g} {height:.0f}",
            role="img",
            aria_labelledby=f"{name}-title {name}-desc",
        ),
        class_="chart",
    )


def _legend(labels: Sequence[str], limit: Limit | None, *, markers: bool) -> tuple[Html, float]:
    """Return the legend and the height it takes."""
    entries = [(label, index) for index, label in enumerate(labels)]
    if limit is not None:
        entries.append((limit.label, -1))
    drawn: list[Html] = []
    x, y = 4.0, 12.0
    for label, series in entries:
        width = 34 + _LETTER * len(label) + 20
        if x > 4 and x + width > _WIDTH:
            x, y = 4.0, y + _LINE
        if series < 0:
            drawn.append(_stroke("limit", (x, y), (x + 26, y)))
        elif markers:
            drawn.append(_stroke(f"line s{series}", (x, y), (x + 26, y)))
            drawn.append(_marker(series, x + 13, y))
        else:
            swatch = element(
                "rect", x=x + 6, y=y - 5, width=18.0, height=_BAR, class_=f"bar s{series}"
            )
            drawn.append(swatch)
        drawn.append(_words(label, x + 34, y + 4, anchor="start"))
        x += width
    return join(drawn), (y + 16 if entries else 4.0)


def _marker(series: int, x: float, y: float, *, note: str = "") -> Html:
    """Return a series' mark: circle, square, triangle, diamond."""
    shapes = (
        (),
        ((-4, -4), (4, -4), (4, 4), (-4, 4)),
        ((0, -5), (5, 4), (-5, 4)),
        ((0, -5.5), (5.5, 0), (0, 5.5), (-5.5, 0)),
    )
    inside = (element("title", note),) if note else ()
    shape = shapes[series % len(shapes)]
    kind = f"mark s{series}"
    if not shape:
        return element("circle", *inside, cx=x, cy=y, r=4.0, class_=kind)
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in shape)
    return element("polygon", *inside, points=points, class_=kind)


def _stroke(kind: str, start: tuple[float, float], end: tuple[float, float]) -> Html:
    return element("line", x1=start[0], y1=start[1], x2=end[0], y2=end[1], class_=kind)


def _words(text: str, x: float, y: float, *, anchor: str) -> Html:
    return element("text", text, x=x, y=y, text_anchor=anchor)


def _sideways(text: str, y: float) -> Html:
    return element(
        "text", text, text_anchor="middle", transform=f"translate(12 {y:.1f}) rotate(-90)"
    )


def _shortened(label: str) -> str:
    most = int(_LABEL_WIDTH / _LETTER)
    return label if len(label) <= most else label[: most - 1] + "…"
