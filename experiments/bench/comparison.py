"""Rows of a table that sets our figures beside a peer's, with the target and whether it was reached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from experiments.bench.rounds import Case, Measured, Runner, Span

HEADER = ("figure", "ours", "peer", "peer / ours", "target", "reached")
MISSING = "not measured"


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a figure should be.

    Attributes:
        text: as shown.
        at_most: for our figure, in the unit of its row.
        ratio: least ratio of the peer's figure to ours.
    """

    text: str
    at_most: float | None = None
    ratio: float | None = None

    def verdict(self, own: float, peer: float | None) -> str:
        """Whether it was reached, and which half of it was not."""
        if self.at_most is not None and own > self.at_most:
            return "no"
        if self.ratio is None:
            return "-" if self.at_most is None else "yes"
        if peer is None:
            return "yes, ratio not measured"
        return "yes" if peer / own >= self.ratio else "figure yes, ratio no"


NONE = Target(text="-")


def alternate(
    case: Case, own: Runner, peer: Runner | None, *, repetitions: int
) -> tuple[list[Measured], list[Measured]]:
    """Both systems on the same inputs, in turn."""
    done: tuple[list[Measured], list[Measured]] = ([], [])
    for repetition in range(repetitions):
        inputs = case.inputs(seed=repetition)
        for found, runner in zip(done, (own, peer), strict=True):
            if runner is not None:
                found.append(runner(case, inputs))
    return done


def spread(values: list[float], form: str) -> str:
    """The median, and the range of several."""
    text = format(median(values), form)
    if len(values) == 1:
        return f"{text} (once)"
    return f"{text} ({format(min(values), form)} to {format(max(values), form)})"


def row(name: str, own: list[float], peer: list[float], form: str, target: Target) -> list[str]:
    """One figure of both; `peer` is empty where it was not measured."""
    return [
        name,
        spread(own, form),
        spread(peer, form) if peer else MISSING,
        f"{median(peer) / median(own):.1f}" if peer else "-",
        target.text,
        target.verdict(median(own), median(peer) if peer else None),
    ]


def timed(
    name: str,
    own: list[Measured],
    peer: list[Measured],
    pick: Callable[[Measured], Span],
    *,
    cpu: Target = NONE,
    wall: Target = NONE,
) -> list[list[str]]:
    """Two rows in milliseconds: processor time and wall time, each with its target."""
    rows = []
    for clock, target in (("cpu", cpu), ("wall", wall)):
        figures = [[1e3 * getattr(pick(one), clock) for one in side] for side in (own, peer)]
        unit = "CPU ms" if clock == "cpu" else "wall ms"
        rows.append(row(f"{name}, {unit}", *figures, ".1f", target))
    return rows
