"""What a table holds: rows, columns and the settings that each of them stands for, read from a TOML file.

A cell of a table is a run with the table's own settings, its row's and its column's. The tables of the paper are files
of the folder ``experiments/grids``, which is installed beside this package and looked up by name: nothing here depends
on what is in it.
"""

from __future__ import annotations

import tomllib
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from fedmpt.errors import UsageError

EXPERIMENTS: Final = "experiments"  # the distribution's folder of tables and published figures
GRIDS: Final = "grids"
_SUFFIX: Final = ".toml"

Positive = Annotated[int, msgspec.Meta(ge=1)]
Kind = Literal["metrics", "convergence", "cost", "significance"]


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A row or a column.

    Attributes:
        name: as the published table has it, where there is one.
        set: configuration path -> value.
        round: for a column of a convergence table, after how many rounds its figures are taken.
    """

    name: str
    set: dict[str, Any] = {}
    round: Positive | None = None


class TableDefinition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table.

    Attributes:
        title: what it is called.
        rows: at least one.
        columns: by default a single one without a name.
        kind: ``metrics`` mAP, CF1 and OF1 of each cell; ``convergence`` mAP of a row's run after so many rounds;
            ``cost`` parameters and time of each row; ``significance`` the first row against each other one, by seed.
        published: name of the file of published figures; None where nothing was printed.
        average: published name of the mean over columns; None where the table has none.
        seeds: how many each cell is run with.
        quick_seeds: the same in a quick slice.
        notes: what a reader of the table must know.
        set: settings of every cell.
    """

    title: str
    rows: tuple[Part, ...]
    columns: tuple[Part, ...] = (Part(name=""),)
    kind: Kind = "metrics"
    published: str | None = None
    average: str | None = None
    seeds: Positive = 3
    quick_seeds: Positive = 1
    notes: tuple[str, ...] = ()
    set: dict[str, Any] = {}


def table_names() -> tuple[str, ...]:
    """Return the names of the tables that are installed.

    Raises:
        UsageError: the folder of tables is missing.
    """
    files = (file for file in _folder(GRIDS).iterdir() if file.name.endswith(_SUFFIX))
    named = {file.name.removesuffix(_SUFFIX): file for file in files}
    return tuple(sorted((name for name, file in named.items() if _is_table(file)), key=_order))


def read_table(name: str) -> TableDefinition:
    """Return a table of those installed, or of a file of one's own.

    Args:
        name: of an installed table, or the path of a TOML file.

    Raises:
        UsageError: there is no such table, or its file cannot be used.
    """
    if name.endswith(_SUFFIX):
        return _parse(name, Path(name))
    if name not in table_names():
        raise UsageError(
            f"{name}: no such table; choose one of {', '.join(table_names())}, or give a TOML file"
        )
    return _parse(name, _folder(GRIDS) / (name + _SUFFIX))


def experiments_file(folder: str, name: str) -> Traversable:
    """Return a file of the folder ``experiments``; it may be missing.

    Raises:
        UsageError: the whole folder is missing.
    """
    return _folder(folder) / name


def leaves(table: dict[str, Any], path: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return nested settings with dotted names: ``clients.heterogeneity = 1`` is a table to TOML."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            found |= leaves(value, (*path, key))
        else:
            found[".".join((*path, key))] = value
    return found


def _folder(name: str) -> Traversable:
    try:
        folder = resources.files(EXPERIMENTS) / name
        present = folder.is_dir()
    except (ModuleNotFoundError, OSError):
        present = False
    if not present:
        raise UsageError(
            f"the folder {EXPERIMENTS}/{name} is not installed beside fedmpt; install the project again, or give the "
            "table as a TOML file"
        )
    return folder


def _is_table(file: Traversable) -> bool:
    """Say whether a file is a table and not a sweep's grid."""
    try:
        return "rows" in tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        return False


def _order(name: str) -> tuple[str, int, str]:
    """Return what sorts table9 before table10."""
    letters = name.rstrip("abcdefgh")
    stem = letters.rstrip("0123456789")
    number = letters.removeprefix(stem)
    return stem, int(number or 0), name


def _parse(name: str, file: Traversable) -> TableDefinition:
    try:
        tree = tomllib.loads(file.read_text(encoding="utf-8"))
        table = msgspec.convert(tree, TableDefinition, strict=True)
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror}; give a readable TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{name}: not valid TOML ({error})") from error
    except msgspec.ValidationError as error:
        raise UsageError(f"{name}: not a table ({error}); docs/paper.md has the format") from error
    _check(name, table)
    return table


def _check(name: str, table: TableDefinition) -> None:
    for what, parts in (("rows", table.rows), ("columns", table.columns)):
        if not parts or len({part.name for part in parts}) < len(parts):
            raise UsageError(f"{name}: {what} must be one or more, each with a name of its own")
    rounds = [part.round is not None for part in table.columns]
    if any(rounds) if table.kind != "convergence" else not all(rounds):
        raise UsageError(
            f"{name}: columns have a round in a convergence table, where all have one, and nowhere else"
        )
    if table.kind in ("cost", "significance") and len(table.columns) > 1:
        raise UsageError(f"{name}: a {table.kind} table has rows alone; leave its columns out")
    if table.kind == "significance" and len(table.rows) < 2:
        raise UsageError(
            f"{name}: a significance table compares its first row with others; give two"
        )
    for part in (*table.rows, *table.columns):
        both = leaves(table.set).keys() & leaves(part.set).keys()
        if both:
            raise UsageError(f"{name}: {min(both)} is set for all cells and by {part.name!r}")
