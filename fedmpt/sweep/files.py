"""A sweep's results as files: ``results.json``, which can be read again, and ``results.csv`` with a line a cell."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import msgspec

from fedmpt.errors import UsageError
from fedmpt.runstore import write_whole
from fedmpt.sweep.cells import Condition
from fedmpt.sweep.price import SweepPrice
from fedmpt.sweep.results import METRICS, FailedCell, Outcome, Row, SweepResults
from fedmpt.sweep.run import CELLS
from fedmpt.sweep.statistics import CONFIDENCE, Estimate, PairedDifference, Share

SCHEMA: Final = "fedmpt.sweep/1"
RESULTS_FILE: Final = "results.json"
CURVE_FILE: Final = "curve.svg"


def as_dict(results: SweepResults) -> dict[str, Any]:
    """Return the contents of ``results.json``."""
    return {
        "schema": SCHEMA,
        "confidence": CONFIDENCE,
        "axes": list(results.axes),
        "reference": results.reference,
        "conditions": [
            {
                "label": outcome.condition.label,
                "baseline": outcome.condition.baseline,
                "settings": dict(outcome.condition.settings),
                "target_epsilon": outcome.condition.epsilon,
                "largest_epsilon": outcome.epsilon,
                "cells": [asdict(row) for row in outcome.rows],
                "final": {name: asdict(value) for name, value in outcome.final.items()},
                "zero_shot": {name: asdict(value) for name, value in outcome.zero_shot.items()},
                "gain": {name: asdict(value) for name, value in outcome.gain.items()},
                "against_reference": {
                    name: {
                        "by_seed": {str(s): d for s, d in value.by_seed.items()},
                        **asdict(value.estimate),
                    }
                    for name, value in outcome.against.items()
                },
                "gain_kept": {"of": outcome.kept_of, **asdict(outcome.kept)}
                if outcome.kept is not None
                else None,
            }
            for outcome in results.outcomes
        ],
        "failed": [asdict(failure) for failure in results.failures],
        "privacy": {
            "open_runs": results.open_runs,
            "prices": [asdict(price) for price in results.prices],
        },
    }


def read_results(folder: Path) -> SweepResults:
    """Read ``results.json`` of a sweep's folder, as `write_results` wrote it.

    Raises:
        UsageError: it is missing, or another version of fedmpt wrote it.
    """
    path = folder / RESULTS_FILE
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        schema = tree.get("schema")
        if schema != SCHEMA:
            raise UsageError(
                f"{path}: is of schema {schema}, this version of fedmpt reads {SCHEMA}; give the sweep's call again to "
                "write it anew"
            )
        return SweepResults(
            axes=tuple(tree["axes"]),
            outcomes=tuple(_read_outcome(one) for one in tree["conditions"]),
            reference=tree["reference"],
            failures=msgspec.convert(tree["failed"], tuple[FailedCell, ...]),
            prices=msgspec.convert(tree["privacy"]["prices"], tuple[SweepPrice, ...]),
            open_runs=tree["privacy"]["open_runs"],
        )
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UsageError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); give the sweep's call again to write it anew"
        ) from error


def _read_outcome(tree: dict[str, Any]) -> Outcome:
    kept = tree["gain_kept"]
    return Outcome(
        condition=Condition(
            label=tree["label"],
            settings=tuple(tree["settings"].items()),
            epsilon=tree["target_epsilon"],
            baseline=tree["baseline"],
        ),
        rows=msgspec.convert(tree["cells"], tuple[Row, ...]),
        **{
            name: msgspec.convert(tree[name], dict[str, Estimate])
            for name in ("final", "zero_shot", "gain")
        },
        against={
            name: PairedDifference(
                by_seed={int(seed): value for seed, value in one.pop("by_seed").items()},
                estimate=msgspec.convert(one, Estimate),
            )
            for name, one in tree["against_reference"].items()
        },
        kept=None if kept is None else msgspec.convert(kept, Share),
        kept_of=None if kept is None else kept["of"],
    )


def as_csv(results: SweepResults) -> str:
    """Return one line a finished cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        (
            *("condition", *results.axes, "seed", "target_epsilon", "epsilon"),
            *(*METRICS, *(f"zero_shot_{metric}" for metric in METRICS), "seconds", "cell"),
        )
    )
    for outcome in results.outcomes:
        for row in outcome.rows:
            writer.writerow(
                (
                    *(row.condition, *(value for _, value in outcome.condition.settings)),
                    *(row.seed, outcome.condition.epsilon, row.epsilon),
                    *(row.final[metric] for metric in METRICS),
                    *(row.zero_shot[metric] for metric in METRICS),
                    *(f"{row.seconds:.1f}", f"{CELLS}/{row.name}"),
                )
            )
    return text.getvalue()


def write_results(results: SweepResults, folder: Path, *, table: str, curve: str | None) -> None:
    """Write every file of results, each whole or not at all; a curve that no longer applies is taken away."""
    write_whole(folder / "results.csv", as_csv(results).encode())
    text = json.dumps(as_dict(results), indent=2, allow_nan=False) + "\n"
    write_whole(folder / RESULTS_FILE, text.encode())
    write_whole(folder / "table.md", table.encode())
    if curve is None:
        (folder / CURVE_FILE).unlink(missing_ok=True)
    else:
        write_whole(folder / CURVE_FILE, curve.encode())
