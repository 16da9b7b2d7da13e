"""The frame of every report: one file that names no address, runs no script and shows the same offline."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Final

from fedmpt.report.html import Html, element, join
from fedmpt.runstore import write_whole

REPORT_FILE: Final = "report.html"
_STYLE: Final = Path(__file__).parent / "style.css"
# Nothing is fetched and nothing runs, also if a text were to break out of its element.
_POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, *content: Html) -> Html:
    """Return a whole page."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Html(_STYLE.read_text(encoding="utf-8"))),
    )
    footer = element(
        "footer", f"Written by fedmpt {version('fedmpt')}. One file: no script, nothing fetched."
    )
    body = element("body", element("main", *content, footer))
    return join([Html("<!doctype html>\n"), element("html", head, body, lang="en"), "\n"])


def contents(sections: Mapping[str, str]) -> Html:
    """Return the links to a page's sections: anchor -> name."""
    links = [element("a", name, href=f"#{anchor}") for anchor, name in sections.items()]
    return element("nav", *links, aria_label="sections")


def write_page(folder: Path, content: Html) -> Path:
    """Write a report into the folder it is about, over an earlier one, and return its path.

    Raises:
        StorageError: it cannot be written.
    """
    target = folder / REPORT_FILE
    write_whole(target, content.encode())
    return target
