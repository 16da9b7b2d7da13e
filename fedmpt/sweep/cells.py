"""The runs that a sweep's grids make: a cell is one condition (a varied setting's values, or a baseline) with one seed.

What tells conditions apart is read from each cell's whole configuration, so a condition that two grids make, or that
differs in settings that decide nothing without privacy, is one condition and is run once.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fedmpt.baselines import baseline_settings
from fedmpt.config import Config, load_config, to_toml
from fedmpt.errors import UsageError
from fedmpt.sweep.grid import EPSILON, Block, Grid, Setting, text_of, without_privacy

NOT_APPLICABLE: Final = "-"
_ENABLED: Final = "privacy.enabled"
PRIVACY: Final = "privacy."
_NAME_LENGTH: Final = 60  # letters of a cell's folder before its digest


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A setting by which conditions differ.

    Attributes:
        name: as the user wrote it first.
        key: configuration path.
    """

    name: str
    key: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """What a cell is an instance of, apart from its seed.

    Attributes:
        label: unique in the sweep, for people: ``epsilon=1 secagg=masking``.
        settings: (column's name, value as text) in the order of the columns; ``-`` where a setting decides nothing, or
            is left to a rule.
        epsilon: target epsilon of the guarantee; None without privacy.
        baseline: name of the baseline; None for a condition of a grid.
    """

    label: str
    settings: tuple[tuple[str, str], ...]
    epsilon: float | None
    baseline: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One run of a sweep.

    Attributes:
        condition: what it is an instance of.
        seed: its experiment seed.
        config: all of its configuration, before rules that depend on data.
        name: of its folder; readable, with a digest of ``config``.
    """

    condition: Condition
    seed: int
    config: Config
    name: str

    @property
    def digest(self) -> str:
        """Return the digest that ``name`` ends with: of the configuration alone, however the grid is written."""
        return self.name.rpartition("-")[2]


def columns_of(grid: Grid) -> tuple[Column, ...]:
    """Return the settings by which conditions differ: all that is varied, and what one grid fixes apart from others."""
    columns: dict[str, Column] = {}
    for block in grid.blocks:
        for varied in block.axes:
            columns.setdefault(varied.key, Column(name=varied.name, key=varied.key))
    for block in grid.blocks:
        for fixed in block.fixed:
            columns.setdefault(fixed.key, Column(name=fixed.name, key=fixed.key))
    return tuple(columns.values())


def cells_of(grid: Grid) -> list[Cell]:
    """Return every cell once, the seeds outermost, so that an interrupted sweep has whole sets of conditions.

    Raises:
        UsageError: settings that contradict each other, an unknown baseline, or nothing to run.
    """
    columns = columns_of(grid)
    if not columns and not grid.baselines:
        raise UsageError(
            "nothing to sweep over: give --grid key=value,value, for example --grid dp.epsilon=1,8"
        )
    seeds = [block.seeds or grid.seeds for block in grid.blocks]
    ordered = dict.fromkeys((*grid.seeds, *itertools.chain.from_iterable(seeds)))
    cells: dict[tuple[str, int], Cell] = {}
    for seed in ordered:
        found = []
        if seed in grid.seeds:
            found += [_baseline_cell(grid, columns, name, seed) for name in grid.baselines]
        for block, its_seeds in zip(grid.blocks, seeds, strict=True):
            if seed in its_seeds:
                found += _block_cells(grid, block, columns, seed)
        for cell in found:
            first = cells.setdefault((cell.condition.label, seed), cell)
            if first.name != cell.name:
                raise UsageError(
                    f"two conditions would be called {cell.condition.label}: their values differ by less than is "
                    "written; give values that differ more"
                )
    return list(cells.values())


def _block_cells(grid: Grid, block: Block, columns: Sequence[Column], seed: int) -> list[Cell]:
    twice = {one.key for one in block.axes} & {one.key for one in block.fixed}
    if twice:
        raise UsageError(f"{min(twice)} is varied and fixed in one grid; leave one of the two out")
    cells = []
    for values in itertools.product(*(axis.values for axis in block.axes)):
        given = {axis.key: value for axis, value in zip(block.axes, values, strict=True)}
        config = _config((*grid.fixed, *block.fixed), given, seed)
        settings = tuple((column.name, _shown(config, column.key)) for column in columns)
        condition = Condition(
            label=" ".join(f"{n}={text}" for n, text in settings if text != NOT_APPLICABLE)
            or "defaults",
            settings=settings,
            epsilon=config.privacy.epsilon if config.privacy.enabled else None,
        )
        cells.append(_cell(condition, seed, config))
    return cells


def _config(fixed: Iterable[Setting], given: Mapping[str, Any], seed: int) -> Config:
    """Return a cell's configuration; without privacy, settings of privacy decide nothing and are the defaults."""
    settings, options = [], {"seed": seed} | dict(given)
    strongest = {one.key: one for one in fixed if one.key not in given}  # the later ones
    for setting in strongest.values():
        if without_privacy(setting.key, setting.text.strip("\"'")):
            settings.append(f"{_ENABLED}=false")
        else:
            settings.append(str(setting))
    if without_privacy(EPSILON, options.get(EPSILON)):
        del options[EPSILON]
        options[_ENABLED] = False
    config = load_config(settings=settings, options=options)
    if config.privacy.enabled:
        return config
    return load_config(
        settings=[one for one in settings if not one.startswith(PRIVACY)],
        options={k: v for k, v in options.items() if not k.startswith(PRIVACY)} | {_ENABLED: False},
    )


def _baseline_cell(grid: Grid, columns: Sequence[Column], name: str, seed: int) -> Cell:
    config = _config(grid.fixed, baseline_settings(name, given=()) | {_ENABLED: False}, seed)
    condition = Condition(
        label=name,
        settings=tuple((column.name, NOT_APPLICABLE) for column in columns),
        epsilon=None,
        baseline=name,
    )
    return _cell(condition, seed, config)


def _cell(condition: Condition, seed: int, config: Config) -> Cell:
    readable = re.sub(r"[^A-Za-z0-9.=-]+", "_", f"{condition.label} seed={seed}".strip())
    digest = hashlib.sha256(to_toml(config).encode()).hexdigest()
    name = f"{readable[:_NAME_LENGTH]}-{digest[:12]}"
    return Cell(condition=condition, seed=seed, config=config, name=name)


def _shown(config: Config, key: str) -> str:
    """Return a setting of a cell for people."""
    if not config.privacy.enabled and key.startswith(PRIVACY):
        return {EPSILON: "inf", _ENABLED: "false"}.get(key, NOT_APPLICABLE)
    value: Any = config
    for part in key.split("."):
        if value is None:  # left to a rule as a whole
            break
        value = value.get(part) if isinstance(value, Mapping) else getattr(value, part)
    return NOT_APPLICABLE if value is None else text_of(value)
