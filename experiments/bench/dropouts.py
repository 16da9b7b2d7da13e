"""Rounds that still give the exact sum when clients vanish: every subset that the threshold allows, at every stage.

Both systems run with the same number of clients and the same threshold. A round counts if the mean it gives is that of
the clients whose vectors were taken in, to within the system's own rounding; anything else (no result, another one)
does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import combinations

from experiments.bench.rounds import Case, Inputs, Runner
from secagg import RoundAborted, default_colluders, threshold

CLIENTS = 6
LENGTH = 20
THRESHOLD = threshold(CLIENTS, default_colluders(CLIENTS))
TOLERANCE = 1e-5  # several times the coarser of the two grids


def subsets() -> Iterator[tuple[int, ...]]:
    """Everybody that may be lost at once."""
    for size in range(1, CLIENTS - THRESHOLD + 1):
        yield from combinations(range(CLIENTS), size)


def finished(attempt: Runner, stages: Iterable[str]) -> dict[str, tuple[int, int]]:
    """{stage: (rounds that gave the right mean, rounds)}."""
    case = Case(clients=CLIENTS, length=LENGTH, threshold=THRESHOLD)
    inputs = case.inputs(seed=5)
    found = {}
    for stage in stages:
        good = [
            _is_right(attempt, replace(case, lost=dict.fromkeys(gone, stage)), inputs)
            for gone in subsets()
        ]
        found[stage] = (sum(good), len(good))
    return found


def _is_right(attempt: Runner, case: Case, inputs: Inputs) -> bool:
    try:
        measured = attempt(case, inputs)
    except RoundAborted:
        return False
    return measured.error is not None and measured.error < TOLERANCE


def summary(found: dict[str, tuple[int, int]]) -> str:
    """All stages together, and each."""
    each = ", ".join(f"{stage} {one}/{of}" for stage, (one, of) in found.items())
    return f"{share(found):.0%} ({each})"


def share(found: dict[str, tuple[int, int]]) -> float:
    """The part of all rounds that finished."""
    good, rounds = (sum(column) for column in zip(*found.values(), strict=True))
    return good / rounds
