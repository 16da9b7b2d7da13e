"""What finding the noise of the default federation takes: cold, from the cache, and by another accountant."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from experiments.bench.table import show
from fedmpt.config import load_config
from fedmpt.engine.prepare import Federation, prepare
from fedmpt.engine.sites import dp_plans
from privacy import DPPlan, PLDAccountant, PRVAccountant

GOAL_S = 30  # wall, on two cores, nothing cached
WINDOW = 0.02  # of epsilon of record below its target


class _Silence:
    def progress(self, label: str, done: int, total: int) -> None:
        del label, done, total


def _timed(call: Callable[[], object]) -> tuple[float, float]:
    """Return wall and CPU seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    federation = prepare(load_config(), progress=_Silence())
    with tempfile.TemporaryDirectory() as folder:
        plans = _plans(federation, Path(folder))  # what else planning takes is paid before
        with tempfile.TemporaryDirectory() as empty:
            cold = _timed(lambda: _plans(federation, Path(empty)))
        cached = _timed(lambda: _plans(federation, Path(folder)))
    epsilons = [
        PLDAccountant().epsilon([plan.round_event()] * plan.rounds, plan.delta) for plan in plans
    ]
    pld = _timed(lambda: _compose(PLDAccountant(), plans))
    prv = _timed(lambda: _compose(PRVAccountant(), plans))
    rows = [
        [f"{len(plans)} clients, nothing cached", *_both(cold)],
        ["the same, from the cache", *_both(cached)],
        ["their epsilons once, PLD (of record)", *_both(pld)],
        ["their epsilons once, PRV (cross-check)", *_both(prv)],
    ]
    show(
        "calibration",
        ("what", "wall s", "CPU s"),
        rows,
        f"Epsilon of record {min(epsilons):.4f} to {max(epsilons):.4f} for a target of {plans[0].target_epsilon:g}.",
    )
    if cold[0] > GOAL_S or any(not 0 <= plans[0].target_epsilon - e <= WINDOW for e in epsilons):
        raise SystemExit(
            f"calibration: {cold[0]:.0f} s cold, not {GOAL_S}, or epsilon outside {WINDOW} of its target"
        )


def _plans(federation: Federation, folder: Path) -> list[DPPlan]:
    return dp_plans(federation, cache_folder=folder, accountant=PLDAccountant())


def _compose(accountant: PLDAccountant | PRVAccountant, plans: list[DPPlan]) -> None:
    for plan in plans:
        accountant.epsilon([plan.round_event()] * plan.rounds, plan.delta)


def _both(seconds: tuple[float, float]) -> list[str]:
    return [f"{value:.2f}" for value in seconds]


if __name__ == "__main__":
    main()
