"""What the finished runs of a table say: one figure a seed, row, column and name."""

from __future__ import annotations

import json
import math
import statistics
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fedmpt.errors import RunError
from fedmpt.runstore import METRICS_FILE
from fedmpt.sweep.cells import Cell
from fedmpt.sweep.run import CELLS, summary_of
from fedmpt.tables.definition import Part
from fedmpt.tables.plan import AUTHORS_CODE, TablePlan
from fedmpt.tables.significance import cliffs_delta, wilcoxon_p

METRICS: Final = ("mAP", "CF1", "OF1")
COSTS: Final = ("total_parameters_M", "tunable_parameters_M", "ms_per_iteration", "mAP")
OPTIMISTIC: Final = ("CF1_oracle_optimistic", "CF1_mean_oracle_optimistic", "OF1_oracle_optimistic")

Figures = dict[str, float]  # name -> figure of one run
Measured = dict[tuple[str, str, str], dict[int, float]]  # (row, column, name) -> seed -> figure


def measure(plan: TablePlan, folder: Path) -> Measured:
    """Return the figures of every finished run.

    With the preset of the authors' code CF1 and OF1 are at the thresholds that are best on the test set, as there.

    Args:
        plan: the table's runs.
        folder: that they are in.

    Raises:
        RunError: a finished run's files cannot be read.
    """
    reader: dict[str, Callable[[TablePlan, Cell, Path], Mapping[str, Figures]]] = {
        "metrics": _final,
        "cost": _cost,
        "convergence": _by_round,
        "significance": _final,
    }
    read = reader[plan.definition.kind]
    found: Measured = {}
    for (row, column, seed), cell in plan.runs.items():
        for at, figures in read(plan, cell, folder).items():
            for name, value in figures.items():
                found.setdefault((row, at or column, name), {})[seed] = value
    if plan.definition.kind == "significance":
        return _compared(plan.definition.rows, found)
    if plan.definition.average is not None and plan.columns == plan.definition.columns:
        found |= _averages(plan, found)
    return found


def _final(plan: TablePlan, cell: Cell, folder: Path) -> Mapping[str, Figures]:
    summary = summary_of(cell, folder)
    if summary is None:
        return {}
    figures = {name: float(summary["final"][name]) for name in METRICS}
    best = {name: float(summary["final_oracle"][name]) for name in OPTIMISTIC}
    if plan.request.chosen_preset == AUTHORS_CODE:  # its CF1 is the mean over classes
        figures |= {"CF1": best["CF1_mean_oracle_optimistic"], "OF1": best["OF1_oracle_optimistic"]}
    return {"": figures | best}


def _by_round(plan: TablePlan, cell: Cell, folder: Path) -> Mapping[str, Figures]:
    if summary_of(cell, folder) is None:
        return {}
    by_round = {line["round"]: line for line in _lines(folder / CELLS / cell.name / METRICS_FILE)}
    return {
        column.name: {"mAP": float(by_round[column.round]["mAP"])}
        for column in plan.columns
        if column.round in by_round and by_round[column.round].get("mAP") is not None
    }


def _cost(plan: TablePlan, cell: Cell, folder: Path) -> Mapping[str, Figures]:
    summary = summary_of(cell, folder)
    if summary is None:
        return {}
    tunable = summary["parameters"]
    steps = _steps(folder / CELLS / cell.name, summary["rounds"])
    return {
        "": {
            "total_parameters_M": (summary["backbone_parameters"] + tunable) / 1e6,
            "tunable_parameters_M": tunable / 1e6,
            "ms_per_iteration": 1000 * summary["seconds_by_phase"]["train"] / steps,
            "mAP": float(summary["final"]["mAP"]),
        }
    }


def _steps(run: Path, rounds: int) -> int:
    """Return the local steps of a run in which every client takes part in every round."""
    try:
        config = tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))
        sizes = json.loads((run / "partition.json").read_text(encoding="utf-8"))["sizes"]
    except (OSError, ValueError, KeyError) as error:
        raise RunError(
            f"{run}: cannot be read ({error}); move the folder away to run it again"
        ) from error
    train = config["train"]
    batches = sum(math.ceil(size / train["batch_size"]) for size in sizes)
    return int(rounds * train["local_epochs"] * batches)


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path}: cannot be read ({error}); move its folder away to run it again"
        ) from error


def _averages(plan: TablePlan, found: Measured) -> Measured:
    """Return each row's mean over all columns, by the seeds that all of them have."""
    averages: Measured = {}
    for row in plan.definition.rows:
        for name in (*METRICS, *OPTIMISTIC):
            columns = [found.get((row.name, column.name, name), {}) for column in plan.columns]
            common = set.intersection(*(set(by_seed) for by_seed in columns))
            if common:
                averages[row.name, plan.definition.average or "", name] = {
                    seed: statistics.fmean(by_seed[seed] for by_seed in columns)
                    for seed in sorted(common)
                }
    return averages


def _compared(rows: Sequence[Part], found: Measured) -> Measured:
    """Return, as rows of one figure each, the spread over seeds and how the first row compares with each other."""
    first, *others = (row.name for row in rows)
    compared: Measured = {}
    for name in METRICS:
        ours = found.get((first, "", name), {})
        for row in (first, *others):
            by_seed = found.get((row, "", name), {})
            if by_seed:
                compared[f"mean of {row}", "", name] = {0: statistics.fmean(by_seed.values())}
            if len(by_seed) > 1:
                compared[f"SD of {row}", "", name] = {0: statistics.stdev(by_seed.values())}
        for row in others:
            theirs = found.get((row, "", name), {})
            seeds = sorted(ours.keys() & theirs.keys())
            if not seeds:
                continue
            pairs = [ours[seed] for seed in seeds], [theirs[seed] for seed in seeds]
            p = wilcoxon_p(*pairs)
            if p is not None:
                compared[f"p-value against {row}", "", name] = {0: p}
            compared[f"Cliff's delta against {row}", "", name] = {0: cliffs_delta(*pairs)}
    return compared
