"""What privacy costs: mAP on ``scenes`` over epsilon, space of the prompt side and kind of noise, with intervals.

``python -m experiments.utility --epsilons 8 inf --spaces sketch text --seeds 0 1 2`` runs the cells that
``experiments/results/utility.json`` does not hold yet, one after the other, and prints the table. Each finished cell is
written at once, so a run that was interrupted goes on where it stopped; delete the file after a change of defaults.
Epsilon ``inf`` trains without privacy and has no space.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any, Final

RESULTS: Final = Path(__file__).parent / "results" / "utility.json"
EPSILONS: Final = ("1", "2", "4", "8", "inf")
SPACES: Final = ("prompt", "text", "sketch")
NOISES: Final = ("local",)
NO_SPACE: Final = "-"
_STUDENT_95: Final = {
    2: 12.71,
    3: 4.30,
    4: 3.18,
    5: 2.78,
    6: 2.57,
    7: 2.45,
    8: 2.36,
    9: 2.31,
    10: 2.26,
}

Cell = tuple[str, str, str, int]  # epsilon, space, noise, seed


def cells(
    epsilons: list[str], spaces: list[str], noises: list[str], seeds: list[int]
) -> list[Cell]:
    """Return the cells asked for, each once."""
    found: dict[Cell, None] = {}
    for seed, epsilon, space, noise in product(seeds, epsilons, spaces, noises):
        where = (NO_SPACE, NO_SPACE) if epsilon == "inf" else (space, noise)
        found[epsilon, *where, seed] = None
    return list(found)


def options(cell: Cell) -> dict[str, Any]:
    """Return the configuration of a cell; whatever it does not name is the default."""
    epsilon, space, noise, seed = cell
    if epsilon == "inf":
        return {"seed": seed, "privacy.enabled": False}
    return {
        "seed": seed,
        "privacy.epsilon": float(epsilon),
        "privacy.space": space,
        "privacy.noise": noise,
    }


def run(cell: Cell) -> dict[str, Any]:
    from fedmpt.cli.console import Console
    from fedmpt.config import load_config
    from fedmpt.engine.train import train

    with tempfile.TemporaryDirectory() as folder:
        config = load_config(options=options(cell))
        summary = train(config, folder=Path(folder) / "run", listener=Console())
    epsilon, space, noise, seed = cell
    spent = [account["epsilon"] for account in summary["privacy"]["clients"]]
    return {
        **{"epsilon": epsilon, "space": space, "noise": noise, "seed": seed},
        "largest_epsilon": max(spent, default=None),
        **{name: summary[name] for name in ("zero_shot", "final", "rounds", "seconds")},
    }


def key(row: dict[str, Any]) -> Cell:
    return row["epsilon"], row["space"], row["noise"], row["seed"]


def interval(values: list[float]) -> str:
    """Return mean and half the 95 % confidence interval (Student), or the value alone."""
    if len(values) < 2:
        return f"{values[0]:.1f}"
    half = _STUDENT_95.get(len(values), 2.0) * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.1f} ± {half:.1f}"


def table(rows: list[dict[str, Any]]) -> None:
    print("| epsilon | space | noise | seeds | zero-shot mAP | mAP | gain | CF1 | OF1 |")
    print("|---|---|---|---|---|---|---|---|---|")
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(key(row)[:3], []).append(row)
    for (epsilon, space, noise), some in sorted(
        groups.items(), key=lambda item: (float(item[0][0]), item[0])
    ):
        frozen = [row["zero_shot"]["mAP"] for row in some]
        final = [row["final"]["mAP"] for row in some]
        columns = [
            interval(frozen),
            interval(final),
            interval([after - before for after, before in zip(final, frozen, strict=True)]),
            *(interval([row["final"][metric] for row in some]) for metric in ("CF1", "OF1")),
        ]
        print(f"| {epsilon} | {space} | {noise} | {len(some)} | {' | '.join(columns)} |")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m experiments.utility", description=__doc__)
    parser.add_argument("--epsilons", nargs="+", default=list(EPSILONS), choices=EPSILONS)
    parser.add_argument("--spaces", nargs="+", default=list(SPACES), choices=SPACES)
    parser.add_argument("--noises", nargs="+", default=list(NOISES), choices=NOISES)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--table", action="store_true", help="print what there is, run nothing")
    given = parser.parse_args(arguments)
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    done = {key(row) for row in rows}
    asked = [] if given.table else cells(given.epsilons, given.spaces, given.noises, given.seeds)
    for cell in asked:
        if cell in done:
            continue
        rows.append(run(cell))
        RESULTS.write_text(json.dumps(rows, indent=2) + "\n")
    table(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
