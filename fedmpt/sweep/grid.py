"""A grid: which settings are varied over which values, and the cells that this makes.

A key is a configuration path or the name of a ``train`` option; every value is checked against the configuration's own
types before anything runs. A cell is one condition (a value for each axis, or a baseline) with one seed.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedmpt.baselines import baseline_settings
from fedmpt.config import Config, load_config, to_toml
from fedmpt.errors import UsageError

EPSILON: Final = "privacy.epsilon"
_ENABLED: Final = "privacy.enabled"
_FILE_KEYS: Final = frozenset({"grid", "seeds", "set", "baselines", "reference"})
_NAME_LENGTH: Final = 60  # letters of a cell's folder before its digest

Value = str | int | float | bool | None | list[Any] | dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One varied setting.

    Attributes:
        name: as the user wrote it.
        key: configuration path.
        values: in the user's order.
    """

    name: str
    key: str
    values: tuple[Value, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """What a sweep is asked to do.

    Attributes:
        axes: varied settings; every combination is a condition.
        seeds: every condition is run with each.
        fixed: settings ``key=value`` of every cell.
        baselines: names of `fedmpt.baselines.BASELINES` that are run beside the grid, without privacy.
        reference: label of the condition that others are compared with; None for a default.
    """

    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    fixed: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    reference: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """What a cell is an instance of, apart from its seed.

    Attributes:
        label: unique in the sweep, for people: ``epsilon=1 secagg=masking``.
        settings: (axis name, value as text) in the order of the axes; ``-`` where an axis does not apply.
        epsilon: target epsilon of the guarantee; None without privacy.
        baseline: name of the baseline; None for a condition of the grid.
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


def axis(name: str, values: Iterable[Any], options: Mapping[str, str]) -> Axis:
    """Return an axis whose values all fit the configuration.

    Args:
        name: configuration path, ``dp.`` before a privacy setting, or the name of a ``train`` option.
        values: what the setting takes; ``inf`` as epsilon means no privacy.
        options: name of a ``train`` option -> configuration path.

    Raises:
        UsageError: an unknown key, no values, or a value of the wrong type or range.
    """
    key = configuration_key(name, options)
    if key == "seed":
        raise UsageError("--grid seed: seeds are no axis of a grid; use --seeds N")
    checked = tuple(_checked(name, key, value) for value in values)
    if not checked:
        raise UsageError(f"--grid {name}: has no values; write it as {name}=1,2,4")
    distinct = {_text(value) for value in checked}
    if len(distinct) < len(checked):
        raise UsageError(f"--grid {name}: names a value twice; give every value once")
    return Axis(name=name, key=key, values=checked)


def parse_axis(text: str, options: Mapping[str, str]) -> Axis:
    """Return the axis that ``key=value,value`` describes.

    Raises:
        UsageError: as `axis`, or the text has another form.
    """
    name, equals, values = text.partition("=")
    if not equals or not name.strip():
        raise UsageError(
            f"--grid {text}: write it as key=value,value, for example --grid dp.epsilon=1,2,4,8,inf"
        )
    return axis(name.strip(), _split(values.strip()), options)


def read_grid(file: Path, options: Mapping[str, str]) -> Grid:
    """Read a grid from a TOML file.

    Keys: a table ``[grid]`` of key = [values], ``seeds`` (a number or a list), a table ``[set]`` of fixed settings,
    ``baselines`` and ``reference``.

    Raises:
        UsageError: the file cannot be read, or something in it cannot be used.
    """
    try:
        tree = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}; give a readable TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: not valid TOML ({error})") from error
    unknown = sorted(set(tree) - _FILE_KEYS)
    if unknown:
        raise UsageError(f"{file}: unknown key {unknown[0]}; known are {sorted(_FILE_KEYS)}")
    axes = []
    for name, values in _leaves(tree.get("grid", {})):
        if not isinstance(values, list):
            raise UsageError(f"{file}: grid {name} = {values!r}: give a list, [{values!r}]")
        axes.append(axis(name, values, options))
    fixed = tuple(
        f"{configuration_key(name, options)}={_toml(value)}"
        for name, value in _leaves(tree.get("set", {}))
    )
    baselines = tree.get("baselines", [])
    reference = tree.get("reference")
    if not isinstance(baselines, list) or not (reference is None or isinstance(reference, str)):
        raise UsageError(f"{file}: baselines is a list of names, reference the label of a cell")
    return Grid(
        axes=tuple(axes),
        seeds=seed_list(tree.get("seeds", 1), source=str(file)),
        fixed=fixed,
        baselines=tuple(str(name) for name in baselines),
        reference=reference,
    )


def seed_list(seeds: object, *, source: str) -> tuple[int, ...]:
    """Return the seeds that a number (the first so many) or a list of them stands for.

    Raises:
        UsageError: neither, none, or one twice.
    """
    found: list[Any] = []
    if type(seeds) is int:
        found = list(range(seeds))
    elif isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds):
        found = seeds
    if not found or len(set(found)) < len(found):
        raise UsageError(
            f"{source}: seeds = {seeds!r}: give how many there are (5), or a list of different ones ([0, 1, 2])"
        )
    return tuple(found)


def configuration_key(name: str, options: Mapping[str, str]) -> str:
    """Return the configuration path that a grid's key stands for."""
    option = name.replace("-", "_")
    if option in options:
        return options[option]
    if name.startswith("dp."):
        return "privacy." + name.removeprefix("dp.").replace("-", "_")
    return name


def cells_of(grid: Grid) -> list[Cell]:
    """Return every cell once, the seeds outermost, so that an interrupted sweep has whole sets of conditions.

    Conditions without privacy differ in no privacy setting, so they are one.

    Raises:
        UsageError: settings that contradict each other, an unknown baseline, or nothing to run.
    """
    if not grid.axes and not grid.baselines:
        raise UsageError(
            "nothing to sweep over: give --grid key=value,value, for example --grid dp.epsilon=1,8"
        )
    cells: dict[str, Cell] = {}
    for seed in grid.seeds:
        for name in grid.baselines:
            cell = _baseline_cell(grid, name, seed)
            cells.setdefault(cell.name, cell)
        if grid.axes:
            for values in itertools.product(*(axis.values for axis in grid.axes)):
                cell = _grid_cell(grid, values, seed)
                cells.setdefault(cell.name, cell)
    return list(cells.values())


def _grid_cell(grid: Grid, values: Sequence[Value], seed: int) -> Cell:
    overrides: dict[str, Any] = {"seed": seed}
    for axis, value in zip(grid.axes, values, strict=True):
        if _without_privacy(axis.key, value):
            overrides[_ENABLED] = False
        else:
            overrides[axis.key] = value
    config = load_config(settings=grid.fixed, options=overrides)
    settings = []
    for axis, value in zip(grid.axes, values, strict=True):
        applies = config.privacy.enabled or not axis.key.startswith("privacy.")
        told = applies or _without_privacy(axis.key, value) or axis.key == _ENABLED
        text = _text(value) if told else "inf" if axis.key == EPSILON else "-"
        settings.append((axis.name, text))
    if not config.privacy.enabled:  # what privacy would have been decides nothing
        kept = {k: v for k, v in overrides.items() if not k.startswith("privacy.")}
        config = load_config(settings=_open(grid.fixed), options=kept | {_ENABLED: False})
    condition = Condition(
        label=" ".join(f"{name}={text}" for name, text in settings if text != "-"),
        settings=tuple(settings),
        epsilon=config.privacy.epsilon if config.privacy.enabled else None,
    )
    return Cell(condition=condition, seed=seed, config=config, name=_name(condition, seed, config))


def _baseline_cell(grid: Grid, name: str, seed: int) -> Cell:
    overrides = baseline_settings(name, given=()) | {"seed": seed, _ENABLED: False}
    config = load_config(settings=_open(grid.fixed), options=overrides)
    condition = Condition(
        label=name,
        settings=tuple((axis.name, "-") for axis in grid.axes),
        epsilon=None,
        baseline=name,
    )
    return Cell(condition=condition, seed=seed, config=config, name=_name(condition, seed, config))


def _open(settings: Iterable[str]) -> list[str]:
    """Return the settings that decide something of a run without privacy."""
    return [setting for setting in settings if not setting.strip().startswith("privacy.")]


def _name(condition: Condition, seed: int, config: Config) -> str:
    readable = re.sub(r"[^A-Za-z0-9.=-]+", "_", f"{condition.label} seed={seed}".strip())
    digest = hashlib.sha256(to_toml(config).encode()).hexdigest()
    return f"{readable[:_NAME_LENGTH]}-{digest[:12]}"


def _checked(name: str, key: str, value: Any) -> Value:
    """Return a value as the configuration takes it; a word that looks like a number may be meant as text."""
    if _without_privacy(key, value):
        return math.inf
    try:
        load_config(options={key: value})
    except UsageError as error:
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                load_config(options={key: str(value)})
            except UsageError:
                pass
            else:
                return str(value)
        raise UsageError(f"--grid {name}={_text(value)}: {error}") from error
    return value  # type: ignore[no-any-return]


def _without_privacy(key: str, value: object) -> bool:
    return key == EPSILON and (value == "inf" or value == math.inf)


def _split(text: str) -> list[Any]:
    """Return comma-separated TOML values; bare words are texts."""
    try:
        values = tomllib.loads(f"values = [{text}]")["values"]
    except tomllib.TOMLDecodeError:
        return [_word(part.strip()) for part in text.split(",") if part.strip()]
    return list(values)


def _word(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _leaves(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, Any]]:
    """Return the leaves of nested tables with dotted names: ``dp.epsilon = [1]`` is a table to TOML."""
    found: list[tuple[str, Any]] = []
    for key, value in table.items():
        if isinstance(value, dict):
            found += _leaves(value, (*path, key))
        else:
            found.append((".".join((*path, key)), value))
    return found


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _toml(value: object) -> str:
    return (
        value
        if isinstance(value, str)
        else str(value).replace("True", "true").replace("False", "false")
    )
