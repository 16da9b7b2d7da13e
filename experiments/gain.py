"""How much tuning gains over the frozen CLIP on ``scenes``: the default run over several seeds.

``python -m experiments.gain open`` trains without privacy, ``private`` with the defaults (epsilon 8, masking). Each
writes ``experiments/results/gain_MODE.json``; ``table`` prints both as Markdown.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

SEEDS: Final = range(5)
RESULTS: Final = Path(__file__).parent / "results"
MODES: Final = {"open": {"privacy.enabled": False}, "private": {}}
_FIELDS: Final = ("zero_shot", "zero_shot_class_token", "final", "rounds", "parameters", "seconds")


def run(mode: str) -> None:
    from fedmpt.cli.console import Console
    from fedmpt.config import load_config
    from fedmpt.engine.train import train

    rows: list[dict[str, Any]] = []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            config = load_config(options={"seed": seed} | MODES[mode])
            summary = train(config, folder=Path(folder) / "run", listener=Console())
        epsilons = [account["epsilon"] for account in summary["privacy"]["clients"]]
        rows.append(
            {"seed": seed, "largest_epsilon": max(epsilons, default=None)}
            | {field: summary[field] for field in _FIELDS}
        )
        (RESULTS / f"gain_{mode}.json").write_text(json.dumps(rows, indent=2) + "\n")


def table() -> None:
    print("| run | seeds | zero-shot mAP | final mAP | gain | final CF1 | final OF1 |")
    print("|---|---|---|---|---|---|---|")
    for mode in MODES:
        rows = json.loads((RESULTS / f"gain_{mode}.json").read_text())
        final = [row["final"]["mAP"] for row in rows]
        frozen = [row["zero_shot"]["mAP"] for row in rows]
        gain = [after - before for after, before in zip(final, frozen, strict=True)]
        cells = [
            _spread(frozen),
            _spread(final),
            _spread(gain),
            *(_spread([row["final"][metric] for row in rows]) for metric in ("CF1", "OF1")),
        ]
        print(f"| {mode} | {len(rows)} | {' | '.join(cells)} |")


def _spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ± {deviation:.1f}"


def main(arguments: list[str]) -> int:
    if arguments == ["table"]:
        table()
    elif len(arguments) == 1 and arguments[0] in MODES:
        run(arguments[0])
    else:
        print("usage: python -m experiments.gain open|private|table", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
