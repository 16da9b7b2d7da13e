"""How long a table will take and how much memory a run needs, from runs of one round.

Every method of the table is probed once, on the data and backbone of the table: a probe also fills the feature cache
and shows before hours of work whether a method runs at all. A quick slice is about as short as its probes would be, so
it has two at most: of a method that trains on features, and of one that trains on pixels. What a probe says of the
first round is taken for all: rounds in which fewer clients train cost their share. Evaluation of personalised methods
grows with the number of clients, which is not modelled; probes run beside each other as the runs do.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import msgspec

from fedmpt.config import Config
from fedmpt.engine.defaults import resolve
from fedmpt.methods.registry import runs_image_tower
from fedmpt.sweep.cells import Cell
from fedmpt.sweep.run import summary_of
from fedmpt.tables.plan import TablePlan, named_cell

PROBES: Final = "probes"
_MEMORY_TABLE: Final = Path("/proc/meminfo")


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What is left to do.

    Attributes:
        runs: runs that are not finished.
        seconds: that they will take, all jobs together; None if no probe finished.
        peak_bytes: largest resident memory of one process; None if no probe finished.
        available_bytes: memory that is free now; None where the system does not say.
        unknown: methods without a probe; they are taken to cost as much as the mean of the others of their kind (of all
            others if none of it was probed), which train on features, or on pixels.
    """

    runs: int
    seconds: float | None
    peak_bytes: int | None
    available_bytes: int | None
    unknown: tuple[str, ...]

    def lines(self, *, jobs: int) -> list[str]:
        """Return it in words."""
        if not self.runs:
            return ["every run of this table is finished"]
        if self.seconds is None or self.peak_bytes is None:
            return [f"{self.runs} runs to do; no probe finished, so there is no estimate"]
        said = [
            f"{self.runs} runs to do, about {_duration(self.seconds / jobs)} with {jobs} at a time; a process takes up "
            f"to {_size(self.peak_bytes)}"
        ]
        if self.available_bytes is not None:
            said[0] += f", {_size(self.available_bytes)} are free"
            if self.peak_bytes * jobs > self.available_bytes:
                most = max(1, self.available_bytes // self.peak_bytes)
                said.append(f"MEMORY: {jobs} at a time may not fit; use --jobs {most}")
        if self.unknown:
            others = ", ".join(self.unknown)
            said.append(
                f"not probed, taken as the mean of the others that train on the same: {others}"
            )
        return said


def probes(plan: TablePlan, folder: Path) -> list[Cell]:
    """Return one run of one round for each method that has unfinished runs; of a quick slice, for each kind of them."""
    waiting = [cell for cell in plan.cells if summary_of(cell, folder) is None]
    first: dict[str | bool, Cell] = {}
    for cell in waiting:
        first.setdefault(_kind(cell.config) if plan.request.quick else _method(cell.config), cell)
    return [
        named_cell(_one_round(cell.config), f"probe of {_method(cell.config)}")
        for cell in first.values()
    ]


def estimate_table(plan: TablePlan, folder: Path, found: Sequence[Cell]) -> Estimate:
    """Return what is left to do.

    Args:
        plan: the table's runs.
        folder: that they are in.
        found: the probes, whether they finished or not.
    """
    summaries = {
        _method(cell.config): summary
        for cell in found
        if (summary := summary_of(cell, folder / PROBES)) is not None
    }
    waiting = [cell.config for cell in plan.cells if summary_of(cell, folder) is None]
    known = [
        (_kind(one), _seconds(one, summaries[name]))
        for one in waiting
        if (name := _method(one)) in summaries
    ]
    others = [one for one in waiting if _method(one) not in summaries]
    unknown = tuple(dict.fromkeys(_method(one) for one in others))
    guessed = [_mean(known, _kind(one)) for one in others] if known else []
    return Estimate(
        runs=len(waiting),
        seconds=sum(seconds for _, seconds in known) + sum(guessed) if known else None,
        peak_bytes=max((one["peak_memory_bytes"] for one in summaries.values()), default=None),
        available_bytes=_available_bytes(),
        unknown=unknown,
    )


def _method(config: Config) -> str:
    variant = config.method.fedmvp.variant if config.method.name == "fedmvp" else ""
    return " ".join(filter(None, (config.method.name, variant)))


def _kind(config: Config) -> bool:
    return runs_image_tower(config.method)


def _mean(known: Sequence[tuple[bool, float]], kind: bool) -> float:
    """Return the mean seconds of a run of a kind; of all runs if there is none of it."""
    alike = [seconds for its_kind, seconds in known if its_kind == kind]
    return fmean(alike or [seconds for _, seconds in known])


def _one_round(config: Config) -> Config:
    train = msgspec.structs.replace(config.train, rounds=1)
    clients = msgspec.structs.replace(config.clients, participation=1.0)
    return msgspec.structs.replace(config, train=train, clients=clients)


def _seconds(config: Config, probe: Mapping[str, Any]) -> float:
    """Return what a run will take: what its probe took besides its phases, and every round as the probe's."""
    phases = probe["seconds_by_phase"]
    rounds = resolve(config, data_name=config.data.name).train.rounds or 1
    outside = probe["seconds"] - sum(phases.values())
    evaluated = phases["evaluate"] / 2  # the frozen CLIP, and the one round
    training = (phases["train"] + phases["secagg"]) * config.clients.participation
    times = 1 + math.ceil(rounds / config.evaluation.every)
    return float(outside + times * evaluated + rounds * training)


def _available_bytes() -> int | None:
    try:
        lines = _MEMORY_TABLE.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def usable_cores() -> int:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
