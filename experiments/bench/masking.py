"""What masking costs in a round of the default federation, and what it changes in the model it leaves.

All clients and the server share one process, so the cost is the sum over them, one after the other; a real client pays
its own part. The change is measured without privacy, because noise never comes from the experiment seed.
"""

from __future__ import annotations

from statistics import fmean

from experiments.bench.federation import run
from experiments.bench.table import show
from fedmpt.config import load_config

ROUNDS = 3


def main() -> None:
    private = run(train__rounds=ROUNDS, secagg__mode="masking")
    seconds = private.summary["seconds_by_phase"]
    shares = [phase["secagg"] / (phase["train"] + phase["secagg"]) for phase in private.phases]
    masked, plain = (
        run(train__rounds=ROUNDS, secagg__mode=mode, privacy__enabled=False)
        for mode in ("masking", "none")
    )
    difference = max(
        float((masked.model[name] - plain.model[name]).abs().max()) for name in masked.model
    )
    moved = max(float(value.abs().max()) for value in masked.model.values())
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
            ["largest difference of models, masking against none", f"{difference:.3e}"],
            ["quantisation grid", f"{grid:.3e}"],
            ["largest value in the model", f"{moved:.3e}"],
        ],
        f"{private.summary['clients']} clients, {ROUNDS} rounds, seed {private.summary['seed']}; time: privacy on, "
        f"{private.summary['parameters']} parameters; difference: privacy off, {masked.summary['parameters']} "
        "parameters.",
    )


if __name__ == "__main__":
    main()
