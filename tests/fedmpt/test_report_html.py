"""HTML and charts of reports: text never becomes markup, and drawings are where their figures say."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedmpt.report.html import Html, element, join, table
from fedmpt.report.images import draw_maps, picture_uri
from fedmpt.report.plot import (
    Bar,
    Interval,
    Limit,
    Line,
    bar_chart,
    interval_chart,
    line_chart,
    ticks,
)

FIGURES = st.floats(-1e6, 1e6, allow_nan=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


class _Reader(HTMLParser):
    """What an independent parser finds."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: dict[str, str | None] = {}
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= dict(attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def read(text: str) -> _Reader:
    reader = _Reader()
    reader.feed(text)
    reader.close()
    return reader


@given(content=TEXT, value=TEXT)
def test_any_text_comes_back_as_text_and_any_attribute_as_one_value(
    content: str, value: str
) -> None:
    found = read(element("p", content, title=value))
    assert found.tags == ["p"]
    assert found.text == content
    assert found.attributes == {"title": value}


def test_what_is_marked_as_html_goes_in_as_it_is() -> None:
    assert element("p", element("b", "a < b")) == "<p><b>a &lt; b</b></p>"


@pytest.mark.parametrize(
    "spoilt", [element("b", "x") + "<i>", f"{element('b', 'x')}", element("b", "x").upper()]
)
def test_html_that_was_formatted_into_text_is_text_again(spoilt: str) -> None:
    assert not isinstance(spoilt, Html)
    assert "<b" not in join([spoilt])
    assert "<B" not in join([spoilt])


def test_names_of_attributes_are_those_of_the_document() -> None:
    made = element("meta", http_equiv="a", class_="b", content=None)
    assert made == '<meta http-equiv="a" class="b">'


def test_a_table_names_rows_and_columns() -> None:
    tree = ElementTree.fromstring(table("t", ("a", "b"), [("r", "1")], numbers=True))  # noqa: S314
    assert [th.get("scope") for th in tree.iter("th")] == ["col", "col", "row"]
    assert [td.text for td in tree.iter("td")] == ["1"]


@given(low=FIGURES, length=st.floats(0, 1e6))
def test_ticks_are_even_and_just_cover_the_range(low: float, length: float) -> None:
    high = low + length
    marks = ticks(low, high)
    steps = np.diff(marks)
    assert 2 <= len(marks) <= 9
    assert np.allclose(steps, steps[0], rtol=1e-6)
    assert marks[0] <= low + 1e-6 * steps[0]
    assert marks[-1] >= high - 1e-6 * steps[0]


def _svg(figure: Html) -> ElementTree.Element:
    svg = ElementTree.fromstring(figure).find("svg")  # noqa: S314 -- made above
    assert svg is not None
    return svg


def _line(*values: float, limit: Limit | None = None) -> ElementTree.Element:
    return _svg(
        line_chart(
            "c",
            title="T",
            description="D",
            lines=[Line(label="a", points=tuple(enumerate(values)))],
            x_label="round",
            y_label="percent",
            figure=str,
            limit=limit,
        )
    )


@given(st.lists(FIGURES, min_size=1, max_size=40))
def test_every_point_of_a_line_lies_inside_and_higher_values_higher(values: list[float]) -> None:
    svg = _line(*values)
    _, _, width, height = map(float, svg.attrib["viewBox"].split())
    path = next(svg.iter("polyline")).attrib["points"].split()
    places = [tuple(map(float, point.split(","))) for point in path]
    assert len(places) == len(values)
    assert all(0 <= x <= width and 0 <= y <= height for x, y in places)
    drawn = [-y for _, y in places]
    assert all(
        drawn[i] >= drawn[j] - 0.11  # a coordinate has one decimal
        for i in range(len(values))
        for j in range(len(values))
        if values[i] >= values[j]
    )


def test_a_chart_is_titled_and_described_for_those_who_do_not_see_it() -> None:
    svg = _line(1, 2)
    named = {part.get("id"): part.text for part in svg if part.tag in ("title", "desc")}
    assert [named[name] for name in svg.attrib["aria-labelledby"].split()] == ["T", "D"]
    assert {"round", "percent", "a"} <= {text.text for text in svg.iter("text")}


def test_lines_differ_by_shape_and_class_not_by_colour_alone() -> None:
    lines = [Line(label=str(i), points=((0, i), (1, i))) for i in range(4)]
    chart = line_chart(
        "c", title="", description="", lines=lines, x_label="", y_label="", figure=str
    )
    marks = [mark for mark in _svg(chart).iter() if "mark" in mark.get("class", "")]
    outlines = {(mark.tag, (mark.get("points") or "").count(" ")) for mark in marks}
    assert len(outlines) >= 3
    assert len({mark.get("class") for mark in marks}) == 4


def _bars(*values: float | None, limit: float | None = None) -> ElementTree.Element:
    return _svg(
        bar_chart(
            "b",
            title="T",
            description="D",
            series=("spent",),
            bars=[Bar(label=f"client {i}", values=(v,), text="x") for i, v in enumerate(values)],
            maximum=10.0,
            limit=None if limit is None else Limit(label="limit", value=limit),
        )
    )


def test_bars_are_as_long_as_their_values_and_end_at_the_limit() -> None:
    svg = _bars(2.0, 4.0, 8.0, None, 80.0, limit=8.0)
    lengths = [float(bar.attrib["width"]) for bar in svg.iter("rect")]
    assert len(lengths) == 4  # None draws nothing
    assert lengths[1] / lengths[0] == pytest.approx(2, rel=1e-3)
    assert lengths[2] / lengths[0] == pytest.approx(4, rel=1e-3)
    assert lengths[3] / lengths[0] == pytest.approx(5, rel=1e-3)  # kept inside the plot
    third = list(svg.iter("rect"))[2]
    limit = [line for line in svg.iter("line") if line.get("class") == "limit"][-1]
    end = float(third.attrib["x"]) + float(third.attrib["width"])
    assert end == pytest.approx(float(limit.attrib["x1"]), abs=0.02)


def test_a_long_label_is_shortened_and_stays_readable_in_full() -> None:
    label = "a very long class name of many words"
    chart = bar_chart(
        "b",
        title="",
        description="",
        series=("a",),
        bars=[Bar(label=label, values=(1.0,), text="1")],
        maximum=1.0,
    )
    svg = _svg(chart)
    shown = [text.text or "" for text in svg.iter("text")]
    assert label not in shown
    assert any(text.endswith("…") and label.startswith(text[:-1]) for text in shown)
    assert any(label in (title.text or "") for title in svg.iter("title"))


def _decoded(uri: str) -> Image.Image:
    head, content = uri.split(",")
    assert head.startswith("data:image/")
    return Image.open(io.BytesIO(base64.b64decode(content)))


def test_a_map_darkens_patches_by_what_they_lack() -> None:
    maps = np.array([[[0.0, 0.5], [1.0, 0.25]], [[0.0, 0.0], [0.0, 0.0]]], np.float32)
    first, empty = (np.asarray(_decoded(uri)) for uri in draw_maps(maps))
    assert first.shape == (2, 2, 4)
    assert not first[..., :3].any()
    shade = first[..., 3].astype(float)
    assert shade[1, 0] == 0  # the largest contribution is not darkened
    assert shade[0, 0] > shade[1, 1] > shade[0, 1] > 0
    assert shade[0, 1] == pytest.approx(shade[0, 0] / 2, abs=1)
    assert (empty[..., 3] == empty[0, 0, 3]).all()


def test_small_pictures_are_kept_exactly_and_large_ones_small() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert (np.asarray(_decoded(picture_uri(Image.fromarray(pixels)))) == pixels).all()
    smooth = Image.fromarray(pixels).resize((336, 336))
    assert len(picture_uri(smooth)) < 336 * 336


def test_intervals_lie_about_their_values_and_zero_is_always_on_the_axis() -> None:
    rows = [
        Interval(label="a", value=4.0, half_width=1.0, text="+4.0 ± 1.0"),
        Interval(label="b", value=2.0, half_width=None, text="+2.0"),
    ]
    chart = interval_chart("name", title="t", description="d", rows=rows, axis="points")
    root = ElementTree.fromstring(chart)  # noqa: S314 -- our own
    texts = [one.text for one in root.iter("text")]
    assert {"0", "a", "+4.0 ± 1.0", "b", "points"} <= set(texts)
    (bar, *caps) = [one for one in root.iter("line") if one.get("class") == "error s0"]
    low, high = (float(bar.get(end) or "nan") for end in ("x1", "x2"))
    first, second = (float(one.get("cx") or "nan") for one in root.iter("circle"))
    assert len(caps) == 2
    assert first == pytest.approx((low + high) / 2)
    (zero,) = [
        float(one.get("x1") or "nan") for one in root.iter("line") if one.get("class") == "axis"
    ]
    assert zero < second < low < first
    assert (first - zero) / (second - zero) == pytest.approx(2, abs=0.01)


def test_an_interval_on_zero_alone_has_an_axis() -> None:
    row = Interval(label="same", value=0.0, half_width=0.0, text="+0.0 ± 0.0")
    assert "same" in interval_chart("n", title="t", description="d", rows=[row], axis="points")
