"""Writing ``report.html`` into the folder it is about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from fedmpt.engine.prepare import Progress
from fedmpt.errors import UsageError
from fedmpt.report.budgets import budgets
from fedmpt.report.checks import checks
from fedmpt.report.costs import costs
from fedmpt.report.curves import by_class, curves
from fedmpt.report.examples import read_examples
from fedmpt.report.headline import headline
from fedmpt.report.html import Html, element, folded, join, section
from fedmpt.report.parties import parties
from fedmpt.report.pictures import pictures
from fedmpt.report.source import RunSource, read_source
from fedmpt.runstore import write_whole

REPORT_FILE: Final = "report.html"
_STYLE: Final = Path(__file__).parent / "style.css"
_SECTIONS: Final = {  # anchor -> name in the table of contents
    "curves": "over rounds",
    "classes": "by class",
    "privacy": "privacy budget",
    "parties": "who could read what",
    "costs": "bytes and seconds",
    "audit": "audit",
    "examples": "test images",
    "config": "configuration",
}
_NO_IMAGES: Final = (
    "Left out (--no-images): this file holds no image and no prediction of a single image."
)
# Nothing is fetched and nothing runs, also if a text were to break out of its element.
_POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True, kw_only=True, slots=True)
class Choices:
    """What the user chose about a report.

    Attributes:
        ledgers: folder of the ledgers, if they were moved.
        images: whether test images may be in the file.
    """

    ledgers: Path | None = None
    images: bool = True


def write_report(folder: Path, choices: Choices, *, progress: Progress) -> Path:
    """Write the report of a folder into it, over an earlier one, and return its path.

    Guarantee: the file needs nothing beside it: it names no address, runs no script and shows the same offline.

    Args:
        folder: what `fedmpt train` made.
        choices: what to show.
        progress: hears how far reading the data is.

    Raises:
        UsageError: not such a folder, or something in it is missing or cannot be read.
        RunError: the report cannot be written.
    """
    for mark, page in _PAGES.items():
        if (folder / mark).is_file():
            target = folder / REPORT_FILE
            write_whole(target, page(folder, choices, progress).encode())
            return target
    raise UsageError(
        f"{folder}: nothing to report on (it has no {' or '.join(_PAGES)}); give what `fedmpt train --out` made"
    )


def run_page(folder: Path, choices: Choices, progress: Progress) -> Html:
    """Return the report of one run; raises as `write_report`."""
    source = read_source(folder, ledgers=choices.ledgers)
    examples, without = None, _NO_IMAGES
    if source.alone:
        without = "There is no common model to show on test images: every client trained its own."
    elif choices.images:
        examples = read_examples(folder, progress=progress)
    summary = source.summary
    return _page(
        f"{summary['method']} on {summary['data']}: FedMPT report",
        headline(source),
        _contents(),
        curves(source),
        by_class(source),
        budgets(source),
        parties(source),
        costs(source),
        checks(source),
        pictures(
            examples,
            without=without,
            data=summary["data"],
            threshold=source.evaluated[-1]["threshold"],
        ),
        _config(source),
    )


# The file by which a folder is known -> how its page is made.
_PAGES: Final[dict[str, Callable[[Path, Choices, Progress], Html]]] = {"config.toml": run_page}


def _page(title: str, *content: Html) -> Html:
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


def _contents() -> Html:
    links = [element("a", name, href=f"#{anchor}") for anchor, name in _SECTIONS.items()]
    return element("nav", *links, aria_label="sections")


def _config(source: RunSource) -> Html:
    return section(
        "config",
        "Configuration",
        folded("config.toml, enough to repeat the run", element("pre", source.config_text)),
    )
