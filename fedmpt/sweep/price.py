"""What a sweep spent of its clients' privacy, read from the ledgers of every run in its folder.

Three figures, and who each holds against:

1. One run alone: against somebody who sees one run and whose choice of it depends on no private data.
2. The composition of every run on a client's holding: against everybody else, since the server and the other clients
   see sums of every candidate's updates, and a table or curve shows results of all of them. A grid has a fixed number
   of candidates, so this is its price, also of the best cell.
3. Selection alone (`privacy.selection`): of another procedure, with a secret random number of candidates and nothing
   released but the best. It holds for no sweep over a grid and is given as a comparison only.
"""

from __future__ import annotations

import tomllib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from fedmpt.runstore import LEDGER_FOLDER
from fedmpt.sweep.run import CELLS, UNFINISHED
from privacy import Event, NeighbouringRelation, PLDAccountant, PrivacyUnit, read_ledger
from privacy.selection import CandidateLaw, Curve, curve_epsilon, renyi_curve, selection_curve

LAWS: Final = (CandidateLaw.GEOMETRIC, CandidateLaw.POISSON)


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepPrice:
    """What all runs in a sweep's folder cost, unfinished ones included. Add or remove one; per unit of privacy.

    Attributes:
        unit: of privacy, ``example`` or ``client``.
        delta: of all figures: the largest that any client's claim has.
        integer_noise: whether the noise of any run is of integers. Accountants count it as Gaussian, and what that
            leaves out of delta was bounded for each run by itself: of all figures only ``single`` is then proven.
        runs: private runs.
        single: largest epsilon of a client in one run (PLD).
        holdings: distinct holdings; another seed or partition deals the data out anew. Where a client is the unit:
            clients, for a client is the same whatever images it was dealt.
        runs_on_holding: most runs on one holding.
        composition: largest epsilon of all runs on one holding together (PLD).
        any_image: bound on what any one image loses in all runs, in whichever client's holding it was (RDP, at
            ``delta``); None where there is one holding a client, so that ``composition`` says it, or for clients.
        selection: law -> epsilon of releasing only the best of a random number of candidates with mean ``runs`` (RDP,
            at ``delta``); hypothetical.
    """

    unit: str
    delta: float
    integer_noise: bool
    runs: int
    single: float
    holdings: int
    runs_on_holding: int
    composition: float
    any_image: float | None
    selection: dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Spending:
    run: Path
    holding: str
    unit: str
    delta: float
    claimed_delta: float
    integer_noise: bool
    events: tuple[Event, ...]


def sweep_prices(folder: Path, accountant: PLDAccountant) -> list[SweepPrice]:
    """Return what the private runs in a sweep's folder cost, one figure for each unit of privacy."""
    by_unit: dict[str, list[_Spending]] = defaultdict(list)
    for entry in _spendings(folder):
        by_unit[entry.unit].append(entry)
    return [_price(entries, accountant) for _, entries in sorted(by_unit.items())]


def open_runs(folder: Path) -> int:
    """Return how many runs in a sweep's folder trained without privacy."""
    return sum(
        not config["privacy"]["enabled"] and config["method"]["name"] != "zero-shot"
        for config in map(_config, _run_folders(folder))
    )


def _price(entries: list[_Spending], accountant: PLDAccountant) -> SweepPrice:
    by_holding: dict[str, list[_Spending]] = defaultdict(list)
    by_run: dict[Path, list[Curve]] = defaultdict(list)
    delta = max(entry.delta for entry in entries)  # at which every client's figure holds
    curves: dict[tuple[Event, ...], Curve] = {}
    for entry in entries:
        by_holding[entry.holding].append(entry)
        if entry.events not in curves:
            curves[entry.events] = renyi_curve(entry.events)
        by_run[entry.run].append(curves[entry.events])
    worst = [np.maximum.reduce(found) for found in by_run.values()]  # an image is in one holding
    clients = max(len(found) for found in by_run.values())
    dealt_anew = len(by_holding) > clients
    return SweepPrice(
        unit=entries[0].unit,
        delta=max(entry.claimed_delta for entry in entries),
        integer_noise=any(entry.integer_noise for entry in entries),
        runs=len(by_run),
        single=max(accountant.epsilon(entry.events, entry.delta) for entry in entries),
        holdings=len(by_holding),
        runs_on_holding=max(len(found) for found in by_holding.values()),
        composition=max(
            accountant.epsilon([event for one in found for event in one.events], delta)
            for found in by_holding.values()
        ),
        any_image=curve_epsilon(np.sum(worst, axis=0), delta)
        if dealt_anew and entries[0].unit == "example"
        else None,
        selection={
            law.value: curve_epsilon(selection_curve(worst, mean=len(worst), law=law), delta)
            for law in LAWS
        },
    )


def _spendings(folder: Path) -> Iterator[_Spending]:
    for run in _run_folders(folder):
        for path in sorted((run / LEDGER_FOLDER).glob("client-*.jsonl")):
            history = read_ledger(path)
            events = _merged(history.events())
            if events:
                by_client = history.terms.unit is PrivacyUnit.CLIENT
                yield _Spending(
                    run=run,
                    holding=path.name if by_client else history.terms.holding,
                    unit=history.terms.unit.value,
                    delta=history.terms.delta,
                    claimed_delta=history.claimed_delta,
                    integer_noise=history.integer_noise,
                    events=events,
                )


def _merged(events: tuple[Event, ...]) -> tuple[Event, ...]:
    """Return the same composition with equal mechanisms counted, which is far quicker to account for."""
    steps: dict[tuple[float, float, NeighbouringRelation], int] = defaultdict(int)
    for event in events:
        steps[event.sample_rate, event.noise_multiplier, event.relation] += event.steps
    return tuple(
        Event(
            sample_rate=rate,
            noise_multiplier=multiplier,
            steps=count,
            relation=relation,
            unit=events[0].unit,
        )
        for (rate, multiplier, relation), count in sorted(steps.items())
    )


def _run_folders(folder: Path) -> list[Path]:
    return sorted(
        path.parent
        for place in (CELLS, UNFINISHED)
        for path in (folder / place).glob("*/config.toml")
    )


def _config(run: Path) -> dict[str, Any]:
    return tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))
