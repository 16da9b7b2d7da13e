"""The report of one run: which sections, in which order."""

from __future__ import annotations

from dataclasses import dataclass
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
from fedmpt.report.html import Html, element, folded, section
from fedmpt.report.page import contents, page, write_page
from fedmpt.report.parties import parties
from fedmpt.report.pictures import LEFT_OUT, pictures
from fedmpt.report.source import RunSource, read_source

CONFIG_FILE: Final = "config.toml"
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
    """Write the report of a run into its folder, over an earlier one, and return its path.

    Guarantee: the file needs nothing beside it: it names no address, runs no script and shows the same offline.

    Args:
        folder: what `fedmpt train` made.
        choices: what to show.
        progress: hears how far reading the data is.

    Raises:
        UsageError: no such folder, or something in it is missing or cannot be read.
        RunError: the report cannot be written.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise UsageError(
            f"{folder}: nothing to report on: it has no {CONFIG_FILE}, as runs do, and no results.json, which a sweep "
            "writes when its call ends; give what `fedmpt train --out` or `fedmpt sweep --out` made"
        )
    return write_page(folder, _run_page(folder, choices, progress))


def _run_page(folder: Path, choices: Choices, progress: Progress) -> Html:
    """Return the report of one run; raises as `write_report`."""
    source = read_source(folder, ledgers=choices.ledgers)
    examples, without = None, LEFT_OUT
    if source.alone:
        without = "There is no common model to show on test images: every client trained its own."
    elif choices.images:
        examples = read_examples(folder, progress=progress)
    summary = source.summary
    return page(
        f"{summary['method']} on {summary['data']}: FedMPT report",
        headline(source),
        contents(_SECTIONS),
        curves(source),
        by_class(source),
        budgets(source),
        parties(source),
        costs(source),
        checks(source),
        pictures(
            examples,
            data=summary["data"],
            threshold=source.evaluated[-1]["threshold"],
            without=without,
        ),
        _config(source),
    )


def _config(source: RunSource) -> Html:
    return section(
        "config",
        "Configuration",
        folded("config.toml, enough to repeat the run", element("pre", source.config_text)),
    )
