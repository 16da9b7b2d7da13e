"""Measure the models of a finished sweep over company, and draw the figure.

``python -m experiments.bias SWEEP`` writes ``bias.json``, ``bias.md`` and ``bias.svg`` into the sweep's folder, with
``bias-parts.svg`` where FedMPT ran without parts of it, one for each number of pairings; runs that were measured before
are not measured again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from experiments.bias.figure import bias_svg, column_name
from experiments.bias.measure import MAP_IMAGES, SCHEMA, measure_run, run_folders
from fedmpt.cli.progress import ProgressBar
from fedmpt.config import METHOD_NAMES
from fedmpt.errors import FedMPTError, UsageError
from fedmpt.runstore import write_whole
from fedmpt.sweep.statistics import estimate

_TITLE: Final = "What tuning learns of the company that objects keep on clients, by method"
_COLUMNS: Final = (
    *("mAP", "beside partner %", "beside decoy %", "matched %"),
    *("map: own", "map: partner", "map: decoy"),
    *("crosstalk: partner %", "crosstalk: decoy %"),
)


def measure(sweep: Path) -> list[dict[str, Any]]:
    """Return a record of each run of a sweep, and keep them in ``bias.json``."""
    target = sweep / "bias.json"
    kept = json.loads(target.read_text()) if target.exists() else {}
    known = kept["runs"] if kept.get("schema") == SCHEMA else {}
    folders = run_folders(sweep)
    for folder in folders:
        if folder.name not in known:
            print(f"measuring {folder.name}", file=sys.stderr)
            known[folder.name] = measure_run(folder, map_images=MAP_IMAGES, progress=ProgressBar())
            text = json.dumps({"schema": SCHEMA, "runs": known}, indent=2, allow_nan=False)
            write_whole(target, f"{text}\n".encode())
    return [known[folder.name] for folder in folders]


def require_distinct(rows: Sequence[dict[str, Any]]) -> None:
    """Raise a `UsageError` where two runs differ in something that neither table nor figure shows."""
    seen: set[tuple[Any, ...]] = set()
    for row in rows:
        setting = (column_name(row), *(row[name] for name in ("pairings", "company", "seed")))
        if setting in seen:
            raise UsageError(
                f"two runs of {setting[0]} with company {setting[2]:g} and seed {setting[3]}: they differ in other "
                "settings, which would be taken for chance; give a sweep over method and company alone"
            )
        seen.add(setting)


def figures(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return file name -> records of each figure: methods, and FedMPT beside itself with parts taken out.

    One of each for every number of pairings, which the names have where there are several.
    """
    numbers = sorted({row["pairings"] for row in rows})
    found = {}
    for number in numbers:
        ending = ".svg" if len(numbers) == 1 else f"-pairings-{number}.svg"
        some = [row for row in rows if row["pairings"] == number]
        found["bias" + ending] = [row for row in some if not row["without"]]
        if any(row["without"] for row in some):
            own = [row for row in some if row["method"] in ("fedmpt", "zero-shot")]
            found["bias-parts" + ending] = own
    return {name: some for name, some in found.items() if some}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return means with 95% intervals over seeds as Markdown."""
    lines = [
        f"| method | pairings | company | seeds | {' | '.join(_COLUMNS)} |",
        "|---" * (4 + len(_COLUMNS)) + "|",
    ]
    groups: dict[tuple[int, int, float], list[dict[str, Any]]] = {}
    columns = column_names(rows)
    for row in rows:
        place = columns.index(column_name(row))
        groups.setdefault((place, row["pairings"], row["company"]), []).append(row)
    for (place, pairings, company), some in sorted(groups.items()):
        values = [_values(row) for row in some]
        cells = [_cell([one[i] for one in values]) for i in range(len(_COLUMNS))]
        name = columns[place]
        lines.append(f"| {name} | {pairings} | {company:g} | {len(some)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def column_names(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return what is compared, in the methods' order, each method before itself with parts taken out."""
    ordered = sorted(rows, key=lambda row: (METHOD_NAMES.index(row["method"]), row["without"]))
    return list(dict.fromkeys(column_name(row) for row in ordered))


def _values(row: dict[str, Any]) -> list[float | None]:
    alarms, lift = row["false_alarms"], row["map_lift"]
    return [
        row["final"]["mAP"],
        *(alarms[name] for name in ("beside_partner", "beside_decoy", "matched")),
        *(lift[name] for name in ("own", "partner", "decoy")),
        *(row["crosstalk"][name] for name in ("partner", "decoy")),
    ]


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    one = estimate(known)
    return f"{one.mean:.2f}" if one.half_width is None else f"{one.mean:.2f} ± {one.half_width:.2f}"


def main(arguments: Sequence[str]) -> int:
    """Measure, print the table, write the figure."""
    if len(arguments) != 1:
        print("usage: python -m experiments.bias SWEEP", file=sys.stderr)
        return 2
    sweep = Path(arguments[0])
    try:
        rows = measure(sweep)
        require_distinct(rows)
        write_whole(sweep / "bias.md", table(rows).encode())
        for name, some in figures(rows).items():
            figure = bias_svg(some, columns=column_names(some), title=_TITLE)
            write_whole(sweep / name, figure.encode())
    except FedMPTError as error:
        print(f"bias: {error}", file=sys.stderr)
        return error.exit_code
    print(table(rows), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
