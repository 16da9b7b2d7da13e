"""What a sweep is asked to do: which settings are varied over which values, in one grid or in several.

A key is a configuration path or the name of a ``train`` option; every value is checked against the configuration's own
types before anything runs. `fedmpt.sweep.cells` says which runs this makes.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from fedmpt.config import load_config
from fedmpt.errors import UsageError

EPSILON: Final = "privacy.epsilon"
_FILE_KEYS: Final = frozenset({"grid", "grids", "seeds", "set", "baselines", "reference"})
_BLOCK_KEYS: Final = frozenset({"grid", "seeds", "set"})

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
class Setting:
    """One fixed setting.

    Attributes:
        name: as the user wrote it.
        key: configuration path.
        text: its value, in TOML; bare words are texts.
    """

    name: str
    key: str
    text: str

    def __str__(self) -> str:
        """Return ``key=value``, as `load_config` takes it."""
        return f"{self.key}={self.text}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """One of a sweep's grids.

    Attributes:
        axes: varied settings; every combination is a condition.
        fixed: settings of this grid's cells, stronger than the sweep's; they tell its conditions from other grids'.
        seeds: of this grid; None for the sweep's.
    """

    axes: tuple[Axis, ...]
    fixed: tuple[Setting, ...] = ()
    seeds: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """What a sweep is asked to do.

    Attributes:
        blocks: its grids; a condition that several of them make is run once.
        seeds: every condition is run with each.
        fixed: settings of every cell.
        baselines: names of `fedmpt.baselines.BASELINES` that are run beside the grids, without privacy.
        reference: label of the condition that others are compared with; None for a default.
    """

    blocks: tuple[Block, ...]
    seeds: tuple[int, ...]
    fixed: tuple[Setting, ...] = ()
    baselines: tuple[str, ...] = ()
    reference: str | None = None


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
    distinct = {text_of(value) for value in checked}
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


def parse_setting(text: str, options: Mapping[str, str]) -> Setting:
    """Return the setting that ``key=value`` describes; its value is checked with a cell's whole configuration.

    Raises:
        UsageError: the text has another form.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise UsageError(f"--set {text}: write it as key=value, for example --set train.rounds=10")
    return Setting(
        name=name.strip(), key=configuration_key(name.strip(), options), text=value.strip()
    )


def slice_of(grid: Grid, only: Iterable[Axis]) -> Grid:
    """Return the part of a grid in which settings take certain values; a block that does not vary them is left out.

    Raises:
        UsageError: nothing varies one of the settings over one of its values.
    """
    blocks = grid.blocks
    for wanted in only:
        named = {text_of(value) for value in wanted.values}
        varied = [axis for block in blocks for axis in block.axes if axis.key == wanted.key]
        unknown = named - {text_of(value) for axis in varied for value in axis.values}
        if unknown:
            raise UsageError(
                f"--only {wanted.name}: the grid has no cell with {min(unknown)}; "
                + (
                    f"it has {', '.join(text_of(value) for value in varied[0].values)}"
                    if varied
                    else "it does not vary this setting"
                )
            )
        blocks = tuple(
            replace(block, axes=tuple(_kept(axis, wanted, named) for axis in block.axes))
            for block in blocks
            if any(
                axis.key == wanted.key and _kept(axis, wanted, named).values for axis in block.axes
            )
        )
    return replace(grid, blocks=blocks)


def _kept(axis: Axis, wanted: Axis, named: Collection[str]) -> Axis:
    if axis.key != wanted.key:
        return axis
    return replace(axis, values=tuple(value for value in axis.values if text_of(value) in named))


def read_grid(file: Path, options: Mapping[str, str]) -> Grid:
    """Read a grid from a TOML file.

    Keys: a table ``[grid]`` of key = [values], ``seeds`` (a number or a list), a table ``[set]`` of fixed settings,
    ``baselines`` and ``reference``. In place of ``[grid]``, ``[[grids]]`` is a list of grids, each with its own
    ``grid``, ``set`` and ``seeds``.

    Raises:
        UsageError: the file cannot be read, or something in it cannot be used.
    """
    try:
        tree = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}; give a readable TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: not valid TOML ({error})") from error
    _require_known(tree, _FILE_KEYS, file)
    several = tree.get("grids", [])
    if not isinstance(several, list) or not all(isinstance(one, dict) for one in several):
        raise UsageError(f"{file}: grids = {several!r}: write each grid under [[grids]]")
    if several and "grid" in tree:
        raise UsageError(f"{file}: has both [grid] and [[grids]]; write it as another [[grids]]")
    for one in several:
        _require_known(one, _BLOCK_KEYS, file)
    if "grid" in tree:
        several = [{"grid": tree["grid"]}]
    baselines = tree.get("baselines", [])
    reference = tree.get("reference")
    if not isinstance(baselines, list) or not (reference is None or isinstance(reference, str)):
        raise UsageError(f"{file}: baselines is a list of names, reference the label of a cell")
    return Grid(
        blocks=tuple(_block(one, options, file) for one in several),
        seeds=seed_list(tree.get("seeds", 1), source=str(file)),
        fixed=_settings(tree, options, file),
        baselines=tuple(str(name) for name in baselines),
        reference=reference,
    )


def _block(table: Mapping[str, Any], options: Mapping[str, str], file: Path) -> Block:
    axes = []
    for name, values in _leaves(_table(table, "grid", file)):
        if not isinstance(values, list):
            raise UsageError(f"{file}: grid {name} = {values!r}: give a list, [{values!r}]")
        axes.append(axis(name, values, options))
    seeds = table.get("seeds")
    return Block(
        axes=tuple(axes),
        fixed=_settings(table, options, file),
        seeds=None if seeds is None else seed_list(seeds, source=str(file)),
    )


def _settings(
    table: Mapping[str, Any], options: Mapping[str, str], file: Path
) -> tuple[Setting, ...]:
    return tuple(
        Setting(name=name, key=configuration_key(name, options), text=_toml(value))
        for name, value in _leaves(_table(table, "set", file))
    )


def _table(table: Mapping[str, Any], key: str, file: Path) -> dict[str, Any]:
    found = table.get(key, {})
    if not isinstance(found, dict):
        raise UsageError(f"{file}: {key} = {found!r}: write a table of settings, [{key}]")
    return found


def _require_known(table: Mapping[str, Any], known: frozenset[str], file: Path) -> None:
    unknown = sorted(set(table) - known)
    if unknown:
        raise UsageError(f"{file}: unknown key {unknown[0]}; known are {sorted(known)}")


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


def _checked(name: str, key: str, value: Any) -> Value:
    """Return a value as the configuration takes it; a word that looks like a number may be meant as text."""
    if without_privacy(key, value):
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
        raise UsageError(f"--grid {name}={text_of(value)}: {error}") from error
    return value  # type: ignore[no-any-return]


def without_privacy(key: str, value: object) -> bool:
    """Say whether a value of a setting stands for a run without privacy."""
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


def text_of(value: object) -> str:
    """Return a setting's value for people."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return str(list(value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _toml(value: object) -> str:
    """Return a value as TOML: what `json` writes of texts, numbers, truth values and lists of them is TOML as well."""
    return str(value) if isinstance(value, float) else json.dumps(value, default=str)
