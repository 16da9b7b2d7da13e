"""Coins and noise of a real run come from the operating system, never from the experiment's seed."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privacy import GaussianNoise, PoissonSampler
from privacy.discrete import DiscreteGaussianNoise
from tests.fedmpt.conftest import SmallRun

RUNS: dict[str, tuple[tuple[type, str], dict[str, Any]]] = {
    "local": ((GaussianNoise, "gaussian"), {}),
    "integer": ((DiscreteGaussianNoise, "integers"), {"privacy__arithmetic": "integer"}),
    "shares": ((DiscreteGaussianNoise, "integers"), {"privacy__noise": "shares"}),
    "client": (
        (DiscreteGaussianNoise, "integers"),
        {"privacy__noise": "shares", "privacy__unit": "client", "privacy__delta": 1e-3},
    ),
}


@pytest.mark.parametrize("mode", RUNS)
def test_coins_and_noise_are_secret_and_never_the_same_twice(
    small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Within a run, over its rounds and a second attempt, and between two runs of one seed."""
    (source, method), options = RUNS[mode]
    drawn: list[bytes] = []
    coins: dict[int, list[bytes]] = defaultdict(list)

    draw_noise, draw_batch = getattr(source, method), PoissonSampler.draw

    def noise(self: Any, size: int, **given: Any) -> Any:
        assert self.is_secret
        values = draw_noise(self, size, **given)
        if size > 100:  # not a redraw of a few
            drawn.append(np.asarray(values)[:100].tobytes())
        return values

    def batch(self: PoissonSampler, size: int) -> Any:
        assert self.is_secret
        positions = draw_batch(self, size)
        coins[size].append(positions.tobytes())
        return positions

    monkeypatch.setattr(source, method, noise)
    monkeypatch.setattr(PoissonSampler, "draw", batch)
    losses = iter([{0: "reveal", 1: "reveal"}])  # the first attempt of the first round aborts
    if mode in ("shares", "client"):
        monkeypatch.setattr(
            "fedmpt.engine.loop.simulated_losses", lambda *_, **__: next(losses, {})
        )
    for number in range(2):
        small_run(
            tmp_path / str(number),
            **{"clients__count": 5, "train__batch_size": 16, "evaluation__every": 2, **options},
        )
    assert len(drawn) >= 20  # 5 clients, 2 rounds, 2 runs
    assert len(set(drawn)) == len(drawn)
    if mode != "client":
        assert sum(len(batches) for batches in coins.values()) >= 20
        # Two batches of 24 images at rate 0.8 are equal once in ten thousand times, of 38 and more never.
        enough = [batches for size, batches in coins.items() if size > 30]
        assert sum(len(batches) for batches in enough) >= 16  # 4 of the 5 clients
        for batches in enough:
            assert len(set(batches)) == len(batches)
