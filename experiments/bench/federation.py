"""A short federated run in a temporary folder, with the clocks read at every round."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from fedmpt.config import load_config
from fedmpt.engine.listener import Preview, RoundRecord
from fedmpt.engine.train import train


@dataclass(slots=True)
class Watch:
    """A listener that keeps every round's record and when it was done."""

    records: list[RoundRecord] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def progress(self, label: str, done: int, total: int) -> None:
        """Nothing is shown."""

    def preview(self, preview: Preview) -> None:
        """Nothing is shown."""

    def warning(self, text: str) -> None:
        """Let a measurement that lost a client be seen."""
        print(f"warning: {text}")

    def round_done(self, record: RoundRecord) -> None:
        """Read the clocks."""
        self.records.append(record)
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What a run cost and left.

    Attributes:
        summary: contents of ``summary.json``.
        model: its final tunable parameters.
        phases: seconds by phase, one a round.
        wall: wall seconds of every round.
        cpu: CPU seconds of every round, all threads of the process.
    """

    summary: dict[str, Any]
    model: dict[str, Tensor]
    phases: list[dict[str, float]]
    wall: list[float]
    cpu: list[float]


def run(**options: object) -> Run:
    """Run a federation with the given settings; ``__`` in a name stands for a dot."""
    watch = Watch()
    config = load_config(options={key.replace("__", "."): v for key, v in options.items()})
    with tempfile.TemporaryDirectory() as folder:
        summary = train(config, folder=Path(folder) / "run", listener=watch)
        model = load_file(Path(folder) / "run" / "model.safetensors")
    return Run(
        summary=summary,
        model=model,
        phases=[dict(record.seconds) for record in watch.records[1:]],
        wall=_differences(watch.wall),
        cpu=_differences(watch.cpu),
    )


def _differences(readings: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(readings)]
