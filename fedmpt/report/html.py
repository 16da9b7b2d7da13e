"""HTML that text cannot break out of: what is not marked as HTML is escaped, wherever it enters.

Class names, paths and messages come from data sets and files, so none of them is trusted. `Html` marks what this module
made itself; any other text, also one that an `Html` was formatted or concatenated into, is escaped when it is put into
an element. Forgetting the mark shows markup to the reader, never the other way round.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

_EMPTY: Final = frozenset({"img", "meta"})  # elements without an end tag


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(name: str, /, *content: str, **attributes: str | float | None) -> Html:
    """Return an element.

    Args:
        name: of the element.
        content: `Html` goes in as it is, any other text is escaped.
        attributes: values are escaped; None leaves the attribute out. In names ``_`` stands for ``-``, and one at the
            end is dropped (``class_``, ``http_equiv``).
    """
    head = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_text(value), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _EMPTY:
        return Html(f"<{name}{head}>")
    return Html(f"<{name}{head}>{join(content)}</{name}>")


def join(parts: Iterable[str]) -> Html:
    """Return the parts one after the other, escaped unless they are `Html`."""
    return Html("".join(part if isinstance(part, Html) else escape(part) for part in parts))


def section(anchor: str, heading: str, *content: str) -> Html:
    """Return a section with a heading, to which ``#anchor`` leads."""
    return element("section", element("h2", heading), *content, id=anchor)


def paragraph(*content: str, kind: str | None = None) -> Html:
    """Return a paragraph of the class ``kind``."""
    return element("p", *content, class_=kind)


def bullets(items: Sequence[str]) -> Html:
    """Return an unordered list."""
    return element("ul", *(element("li", item) for item in items))


def folded(summary: str, *content: str) -> Html:
    """Return content that is shown when its summary is opened."""
    return element("details", element("summary", summary), *content)


def table(
    caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = False
) -> Html:
    """Return a table that scrolls by itself where it is too wide.

    Args:
        caption: what the table shows.
        columns: their headings.
        rows: their cells; the first of a row is its heading.
        numbers: whether all other cells are figures, set flush right.
    """
    kind = "number" if numbers else None
    head = element(
        "tr",
        *(
            element("th", name, scope="col", class_=kind if index else None)
            for index, name in enumerate(columns)
        ),
    )
    body = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(element("td", cell, class_=kind) for cell in row[1:]),
        )
        for row in rows
    ]
    content = element(
        "table",
        element("caption", caption),
        element("thead", head),
        element("tbody", *body),
    )
    return element("div", content, class_="scroll")


def _text(value: str | float) -> str:
    """Return an attribute's value; two decimals are a fiftieth of a pixel and finer."""
    if isinstance(value, str):
        return value
    return f"{value:.2f}".rstrip("0").rstrip(".")
