"""What masking costs in a round of the default federation, and what it changes in the model it leaves.

All clients and the server share one process, so the cost is the sum over them, one after the other; a real client pays
its own part. The change is measured without privacy, because noise never comes from the experiment seed, and after one
round: updates are rounded to the grid at random, in both modes, so even two runs without masking differ, and training
amplifies that from round to round.
"""

from __future__ import annotations

from statistics import fmean

from experiments.bench.federation import Run, run
from experiments.bench.table import show
from fedmpt.config import load_config

ROUNDS = 3


def main() -> None:
    private = run(train__rounds=ROUNDS, secagg__mode="masking")
    seconds = private.summary["seconds_by_phase"]
    shares = [phase["secagg"] / (phase["train"] + phase["secagg"]) for phase in private.phases]
    masked, plain, again = (
        run(train__rounds=1, secagg__mode=mode, privacy__enabled=False)
        for mode in ("masking", "none", "none")
    )
    secagg = load_config().secagg
    grid = secagg.clip / (2 ** (secagg.bits - 1) - 1)
    show(
        "masking",
        ("quantity", "value"),
        [
            ["train, s", f"{seconds['train']:.2f}"],
            ["secagg, s", f"{seconds['secagg']:.2f}"],
            [
                "secagg / (train + secagg), wall",
                f"{seconds['secagg'] / (seconds['train'] + seconds['secagg']):.1%} "
                f"(rounds: {', '.join(f'{share:.1%}' for share in shares)})",
            ],
            [
                "whole round, wall s / CPU s",
                f"{fmean(private.wall):.2f} / {fmean(private.cpu):.2f}",
            ],
            ["after 1 round, masking against none", f"{_difference(masked, plain):.3e}"],
            ["after 1 round, none against none again", f"{_difference(again, plain):.3e}"],
            ["quantisation grid", f"{grid:.3e}"],
        ],
        f"{private.summary['clients']} clients, {ROUNDS} rounds, seed {private.summary['seed']}; time: privacy on, "
        f"{private.summary['parameters']} parameters; largest difference of models: privacy off, "
        f"{masked.summary['parameters']} parameters.",
    )


def _difference(one: Run, other: Run) -> float:
    return max(float((one.model[name] - other.model[name]).abs().max()) for name in one.model)


if __name__ == "__main__":
    main()
