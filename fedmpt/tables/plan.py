"""From a table to the runs that fill it.

A run's folder is named by its configuration alone, so tables that share an output folder share runs: FedMPT with the
paper's settings is in most tables and trained once a seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from fedmpt.config import Config, load_config, to_toml
from fedmpt.errors import UsageError
from fedmpt.sweep.cells import Cell, Condition
from fedmpt.tables.definition import Part, TableDefinition, leaves

PAPER_DATA: Final = ("voc2007", "coco2014", "nuswide", "multiscene", "mlrsnet")
AUTHORS_CODE: Final = "authors-code"

# Nothing published was private; secure aggregation leaves sums as they are, and some cohorts are too small for it.
_BASE: Final[dict[str, Any]] = {"privacy.enabled": False, "secagg.mode": "none"}
_EVERY: Final = (
    10  # rounds between evaluations where the last round alone counts; curves stay visible
)
_QUICK: Final[dict[str, Any]] = {"train.rounds": 2}
_QUICK_SCENES: Final[dict[str, Any]] = {
    "data.scenes.train_size": 1500,
    "data.scenes.test_size": 400,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What of a table is to be run, and on what.

    Attributes:
        data: name of the data set.
        data_root: its folder; None for ``scenes``.
        backbone: name of the CLIP.
        pretrained: its tag or weights file.
        preset: of training settings, ``none`` for the project's own rules; None for ``paper`` on the paper's data sets
            and ``none`` elsewhere.
        seeds: how many; None for the table's own number.
        settings: texts ``key=value`` for every run; they win over the table's common ones.
        quick: only the outer columns, two rounds, and few images where these are made on the spot.
        rows: names of the rows that are run; none for all.
        columns: the same for columns; they win over ``quick``.
    """

    data: str
    data_root: str | None = None
    backbone: str = "tiny"
    pretrained: str | None = None
    preset: str | None = None
    seeds: int | None = None
    settings: tuple[str, ...] = ()
    quick: bool = False
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    @property
    def chosen_preset(self) -> str | None:
        """The preset of every run; None for the project's own rules."""
        chosen = self.preset or ("paper" if self.data in PAPER_DATA else "none")
        return None if chosen == "none" else chosen


@dataclass(frozen=True, kw_only=True, slots=True)
class TablePlan:
    """The runs of a table.

    Attributes:
        definition: the table, with the rows that are run.
        request: what of it.
        columns: those that are run.
        seeds: experiment seeds.
        runs: (row, column, seed) -> run; a convergence table has one run for all columns of a row, whose column is "".
    """

    definition: TableDefinition
    request: Request
    columns: tuple[Part, ...]
    seeds: tuple[int, ...]
    runs: Mapping[tuple[str, str, int], Cell]

    @property
    def cells(self) -> list[Cell]:
        """Every run once, the seeds outermost, so that an interrupted table has whole sets of figures."""
        return list({cell.name: cell for cell in self.runs.values()}.values())


def plan_table(definition: TableDefinition, request: Request) -> TablePlan:
    """Return the runs of a table.

    Raises:
        UsageError: a setting is unknown, has a value of the wrong type, or is the table's to vary; a row or column is
            unknown, or a significance table is asked for one row.
    """
    count = request.seeds
    if count is None:
        count = definition.quick_seeds if request.quick else definition.seeds
    if count < 1:
        raise UsageError(f"--seeds {count}: give at least 1")
    _refuse_varied(definition, request.settings)
    columns = _chosen("--column", definition.columns, request.columns)
    if request.quick and not request.columns and definition.kind == "metrics" and len(columns) > 2:
        columns = (columns[0], columns[-1])
    trained = (Part(name=""),) if definition.kind == "convergence" else columns
    definition = msgspec.structs.replace(
        definition, rows=_chosen("--row", definition.rows, request.rows)
    )
    if definition.kind == "significance" and len(definition.rows) < 2:
        raise UsageError("--row: this table compares rows with each other; name two or more")
    seeds = tuple(range(count))
    return TablePlan(
        definition=definition,
        request=request,
        columns=columns,
        seeds=seeds,
        runs={
            (row.name, column.name, seed): _cell(definition, request, row, column, seed)
            for seed in seeds
            for row in definition.rows
            for column in trained
        },
    )


def named_cell(config: Config, label: str) -> Cell:
    """Return the run of a configuration, in a folder named by nothing else.

    Args:
        config: all of it; its seed included.
        label: for people.
    """
    digest = hashlib.sha256(to_toml(config).encode()).hexdigest()
    epsilon = config.privacy.epsilon if config.privacy.enabled else None
    return Cell(
        condition=Condition(label=label, settings=(), epsilon=epsilon),
        seed=config.seed,
        config=config,
        name=f"{config.method.name}-seed={config.seed}-{digest[:16]}",
    )


def _chosen(option: str, parts: tuple[Part, ...], names: tuple[str, ...]) -> tuple[Part, ...]:
    """Return the parts of these names, in the table's order; all of them if none is named."""
    known = [part.name for part in parts]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(
            f"{option} {unknown[0]!r}: the table has none of this name; it has {', '.join(map(repr, known))}"
        )
    return tuple(part for part in parts if part.name in names) if names else parts


def _cell(
    definition: TableDefinition, request: Request, row: Part, column: Part, seed: int
) -> Cell:
    tree = _BASE | {
        "seed": seed,
        "data.name": request.data,
        "data.root": request.data_root,
        "backbone.name": request.backbone,
        "backbone.pretrained": request.pretrained,
        "train.preset": request.chosen_preset,
        "evaluation.every": 1 if definition.kind == "convergence" else _EVERY,
    }
    if request.quick:
        tree |= _QUICK | (_QUICK_SCENES if request.data == "scenes" else {})
    tree |= leaves(definition.set) | leaves(row.set) | leaves(column.set)
    named = set(_keys(request.settings))
    config = load_config(
        settings=request.settings, options={k: v for k, v in tree.items() if k not in named}
    )
    return named_cell(config, " ".join(filter(None, (row.name, column.name))))


def _refuse_varied(definition: TableDefinition, settings: Sequence[str]) -> None:
    parts = (*definition.rows, *definition.columns)
    varied = {key for part in parts for key in leaves(part.set)} | {"seed"}
    for key in _keys(settings):
        if key in varied:
            raise UsageError(f"--set {key}: the table itself varies it; leave it out")


def _keys(settings: Sequence[str]) -> list[str]:
    return [setting.partition("=")[0].strip() for setting in settings]
