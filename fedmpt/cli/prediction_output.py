"""Predictions as they go out: a table for people, CSV or one JSON object; each image as soon as it is done.

Nothing gathers, so any number of images can be predicted.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import click

from fedmpt.inference.maps import write_maps
from fedmpt.inference.model import TunedModel
from fedmpt.inference.predict import Failure, Outcome, Prediction, Rule

SCHEMA: Final = "fedmpt.predictions/1"
_WIDEST_NAME: Final = 36
_NARROWEST: Final = 80


class Output(Protocol):
    """Where outcomes go."""

    def failure(self, failure: Failure) -> None:
        """Say why an image could not be read."""
        ...

    def prediction(self, prediction: Prediction, present: list[int], files: list[Path]) -> None:
        """Give an image's labels and scores, with the files of its maps."""
        ...

    def end(self, failed: int) -> None:
        """Finish, after ``failed`` failures."""
        ...


def show_all(
    output: Output, outcomes: Iterable[Outcome], *, model: TunedModel, rule: Rule, maps: Path | None
) -> int:
    """Send every outcome out as it comes, drawing its maps first if there is a folder for them.

    Returns:
        The number of failures.
    """
    failed = 0
    for number, outcome in enumerate(outcomes, start=1):
        if isinstance(outcome, Failure):
            failed += 1
            output.failure(outcome)
            continue
        present = rule.present(outcome.scores)
        files = []
        if maps is not None:
            files = write_maps(model, outcome, present, folder=maps, number=number)
        output.prediction(outcome, present, files)
    output.end(failed)
    return failed


class TableOutput(Output):
    """Two columns: the file, and its labels with scores."""

    def __init__(self, model: TunedModel, paths: Sequence[Path]) -> None:
        self._classes = model.classes
        self._width = min(_WIDEST_NAME, max(len(str(path)) for path in paths))
        self._room = max(_NARROWEST, shutil.get_terminal_size().columns)
        click.echo(f"{'image':<{self._width}}  labels")
        click.echo(f"{'-' * self._width}  {'-' * (self._room - self._width - 2)}")

    def failure(self, failure: Failure) -> None:
        """Show why an image could not be read."""
        self._line(failure.path, [f"NOT READ: {failure.reason}"])

    def prediction(self, prediction: Prediction, present: list[int], files: list[Path]) -> None:
        """Show an image's labels; further lines where one does not hold them."""
        del files
        items = [f"{self._classes[c]} {prediction.scores[c]:.2f}" for c in present]
        self._line(prediction.path, items or ["-"])

    def end(self, failed: int) -> None:
        """End; the failures are among the lines."""

    def _line(self, path: Path, items: list[str]) -> None:
        name = str(path)
        if len(name) > self._width:
            name = "..." + name[3 - self._width :]
        line = ""
        for place, item in enumerate(items):
            piece = item + ("," if place < len(items) - 1 else "")
            if line and len(line) + 1 + len(piece) > self._room - self._width - 2:
                click.echo(f"{name:<{self._width}}  {line}")
                name, line = "", ""
            line = f"{line} {piece}".lstrip()
        click.echo(f"{name:<{self._width}}  {line}")


class CSVOutput(Output):
    """``image, error, labels``, then the score of each class."""

    def __init__(self, model: TunedModel) -> None:
        self._classes = model.classes
        self._writer = csv.writer(sys.stdout, lineterminator="\n")
        self._writer.writerow(["image", "error", "labels", *model.classes])

    def failure(self, failure: Failure) -> None:
        """Write a line without scores."""
        self._writer.writerow([failure.path, failure.reason, "", *[""] * len(self._classes)])

    def prediction(self, prediction: Prediction, present: list[int], files: list[Path]) -> None:
        """Write a line."""
        del files
        labels = ";".join(self._classes[c] for c in present)
        scores = [f"{score:.6f}" for score in prediction.scores]
        self._writer.writerow([prediction.path, "", labels, *scores])

    def end(self, failed: int) -> None:
        """End; the failures are among the lines."""


class JSONOutput(Output):
    """One object, written as images are done: ``{"schema", "model", "classes", "images": [...], "failed"}``."""

    def __init__(self, model: TunedModel, rule: Rule) -> None:
        self._classes = model.classes
        self._conditions = bool(model.conditions)
        head = {
            "schema": SCHEMA,
            "method": model.card.method.name,
            "backbone": model.backbone.fingerprint,
            "classes": list(model.classes),
            "conditions": list(model.conditions),
            "thresholds": None if rule.top_k is not None else list(rule.thresholds),
            "top_k": rule.top_k,
        }
        text = json.dumps(head, indent=2)
        sys.stdout.write(text.removesuffix("\n}") + ',\n  "images": [')
        self._separator = "\n    "

    def failure(self, failure: Failure) -> None:
        """Write an entry with the reason."""
        self._entry({"image": str(failure.path), "error": failure.reason})

    def prediction(self, prediction: Prediction, present: list[int], files: list[Path]) -> None:
        """Write an entry with labels, scores, weights of conditions, and files of maps."""
        classes, scores = self._classes, prediction.scores
        entry: dict[str, Any] = {
            "image": str(prediction.path),
            "labels": [{"class": classes[c], "score": float(scores[c])} for c in present],
            "scores": [float(score) for score in scores],
        }
        if self._conditions:
            entry["gate"] = [float(weight) for weight in prediction.gate]
        if files:
            entry["maps"] = [str(file) for file in files]
        self._entry(entry)

    def _entry(self, entry: dict[str, Any]) -> None:
        sys.stdout.write(self._separator + json.dumps(entry))
        self._separator = ",\n    "

    def end(self, failed: int) -> None:
        """Close the object."""
        sys.stdout.write(f'\n  ],\n  "failed": {failed}\n}}\n')
