"""What a sweep found: one row a finished cell, estimates a condition, and the differences to a reference."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from fedmpt.errors import UsageError
from fedmpt.sweep.cells import PRIVACY, Cell, Condition, columns_of
from fedmpt.sweep.grid import Grid
from fedmpt.sweep.price import SweepPrice, open_runs, sweep_prices
from fedmpt.sweep.run import LOGS, Failure, run_folder, summary_of
from fedmpt.sweep.statistics import (
    Estimate,
    PairedDifference,
    Share,
    estimate,
    paired,
    share,
)
from privacy import PLDAccountant

METRICS: Final = ("mAP", "CF1", "OF1")
GAIN: Final = "mAP"  # whose gain over zero-shot is compared


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One finished cell.

    Attributes:
        condition: its label.
        seed: its experiment seed.
        name: its folder inside ``cells/``.
        final: metric -> percent, after the last round.
        zero_shot: metric -> percent, of the frozen model.
        epsilon: largest that a client spent; None without privacy.
        seconds: that it took.
        clients: ``min`` and ``max`` -> metric -> percent, where ``final`` is a mean over clients' models; else None.
    """

    condition: str
    seed: int
    name: str
    final: dict[str, float]
    zero_shot: dict[str, float]
    epsilon: float | None
    seconds: float
    clients: dict[str, dict[str, float]] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The finished cells of one condition.

    Attributes:
        condition: which.
        rows: by seed; may be empty.
        final: metric -> estimate; empty without rows.
        zero_shot: metric -> estimate.
        gain: metric -> estimate of final less zero-shot, paired by seed.
        against: metric -> difference to the reference; empty for the reference and where no seed is shared.
        kept: share of the gain in mAP that is left of a run without privacy; None where there is none to compare with.
        kept_of: label of that condition without privacy; None without ``kept``.
    """

    condition: Condition
    rows: tuple[Row, ...]
    final: dict[str, Estimate]
    zero_shot: dict[str, Estimate]
    gain: dict[str, Estimate]
    against: dict[str, PairedDifference]
    kept: Share | None = None
    kept_of: str | None = None

    @property
    def epsilon(self) -> float | None:
        """Largest epsilon that a client spent in one run."""
        return max((row.epsilon for row in self.rows if row.epsilon is not None), default=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class FailedCell:
    """A cell that did not finish.

    Attributes:
        condition: its label.
        seed: its experiment seed.
        exit_code: of its process.
        reason: the last line that it said.
        log: all that it said; a path inside the sweep's folder.
    """

    condition: str
    seed: int
    exit_code: int
    reason: str
    log: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepResults:
    """All that a sweep's files say.

    Attributes:
        axes: names of the settings by which conditions differ.
        outcomes: one a condition, in the grid's order, baselines last.
        reference: what conditions are compared with, in words.
        failures: cells that did not finish.
        prices: what the private runs cost together, by unit of privacy.
        open_runs: runs that trained without privacy.
    """

    axes: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    reference: str
    failures: tuple[FailedCell, ...]
    prices: tuple[SweepPrice, ...]
    open_runs: int


@dataclass(frozen=True, kw_only=True, slots=True)
class References:
    """What conditions are compared with.

    Attributes:
        name: in words.
        labels: label of a condition -> label of the condition that it is compared with.
    """

    name: str
    labels: Mapping[str, str]


def references_of(grid: Grid, cells: Sequence[Cell]) -> References:
    """Return what conditions are compared with: what was asked for, else the first without privacy, else the first.

    A label asks for that condition; a part of one (``method=fedmpt``) for the condition that has these values and
    agrees in all others, so each condition is compared with its own counterpart, and one without any with none.

    Raises:
        UsageError: no condition is of that label or has these values.
    """
    conditions = {cell.condition.label: cell.condition for cell in cells}
    in_grid = [one for one in conditions.values() if one.baseline is None]
    if grid.reference is None:
        without = [one for one in in_grid if one.epsilon is None]
        first = (without or in_grid or list(conditions.values()))[0].label
        return References(name=first, labels=dict.fromkeys(conditions, first))
    if grid.reference in conditions:
        return References(name=grid.reference, labels=dict.fromkeys(conditions, grid.reference))
    given = dict(part.partition("=")[::2] for part in grid.reference.split())
    known = {
        one.settings: one.label for one in in_grid if given.items() <= dict(one.settings).items()
    }
    if not given or not known:
        raise UsageError(
            f"--reference {grid.reference}: no such condition; there are: {'; '.join(conditions)}"
        )
    labels = {}
    for one in in_grid:
        wanted = tuple((name, given.get(name, value)) for name, value in one.settings)
        if wanted in known:
            labels[one.label] = known[wanted]
    return References(name=f"{grid.reference}, all else equal", labels=labels)


def gather(
    grid: Grid, cells: Sequence[Cell], failures: Sequence[Failure], folder: Path
) -> SweepResults:
    """Read every finished cell and what all of them cost."""
    references = references_of(grid, cells)
    conditions = {cell.condition.label: cell.condition for cell in cells}
    rows: dict[str, list[Row]] = {label: [] for label in conditions}
    for cell in cells:
        summary = summary_of(cell, folder)
        if summary is not None:
            rows[cell.condition.label].append(_row(cell, run_folder(cell, folder).name, summary))
    ordered = sorted(conditions.values(), key=lambda one: one.baseline is not None)
    counterparts = _counterparts(grid, ordered)
    return SweepResults(
        axes=tuple(column.name for column in columns_of(grid)),
        outcomes=tuple(
            _with_share(
                _outcome(one, rows[one.label], rows.get(references.labels.get(one.label, ""), [])),
                counterparts,
                rows,
            )
            for one in ordered
        ),
        reference=references.name,
        failures=tuple(
            FailedCell(
                condition=failure.cell.condition.label,
                seed=failure.cell.seed,
                exit_code=failure.exit_code,
                reason=failure.reason,
                log=f"{LOGS}/{failure.log.name}",
            )
            for failure in failures
        ),
        prices=tuple(sweep_prices(folder, PLDAccountant())),
        open_runs=open_runs(folder),
    )


def _row(cell: Cell, name: str, summary: dict[str, Any]) -> Row:
    spent = [account["epsilon"] for account in summary["privacy"]["clients"]]
    return Row(
        condition=cell.condition.label,
        seed=cell.seed,
        name=name,
        final={metric: summary["final"][metric] for metric in METRICS},
        zero_shot={metric: summary["zero_shot"][metric] for metric in METRICS},
        epsilon=max(spent, default=None),
        seconds=summary["seconds"],
        clients=summary.get("final_clients"),
    )


def _outcome(condition: Condition, rows: list[Row], reference: list[Row]) -> Outcome:
    def over(value: Callable[[Row, str], float]) -> dict[str, Estimate]:
        return {m: estimate([value(row, m) for row in rows]) for m in METRICS} if rows else {}

    against = {}
    if rows and rows != reference:
        for metric in METRICS:
            ours = {row.seed: row.final[metric] for row in rows}
            theirs = {row.seed: row.final[metric] for row in reference}
            difference = paired(ours, theirs)
            if difference is not None:
                against[metric] = difference
    return Outcome(
        condition=condition,
        rows=tuple(rows),
        final=over(lambda row, metric: row.final[metric]),
        zero_shot=over(lambda row, metric: row.zero_shot[metric]),
        gain=over(lambda row, metric: row.final[metric] - row.zero_shot[metric]),
        against=against,
    )


def _counterparts(grid: Grid, conditions: Sequence[Condition]) -> dict[str, str]:
    """Return, by private condition, the one without privacy that agrees with it otherwise, else the first of them."""
    shared = [not column.key.startswith(PRIVACY) for column in columns_of(grid)]
    in_grid = [one for one in conditions if one.baseline is None]
    without = [one for one in in_grid if one.epsilon is None]
    if not without:
        return {}

    def others(condition: Condition) -> list[tuple[str, str]]:
        return list(itertools.compress(condition.settings, shared))

    return {
        one.label: next((w for w in without if others(w) == others(one)), without[0]).label
        for one in in_grid
        if one.epsilon is not None
    }


def _with_share(
    outcome: Outcome, counterparts: Mapping[str, str], rows: Mapping[str, Sequence[Row]]
) -> Outcome:
    """Add what an outcome keeps of the gain without privacy."""
    label = counterparts.get(outcome.condition.label)
    if label is None:
        return outcome
    ours, theirs = (
        {row.seed: row.final[GAIN] - row.zero_shot[GAIN] for row in some}
        for some in (outcome.rows, rows[label])
    )
    kept = share(ours, theirs)
    return outcome if kept is None else replace(outcome, kept=kept, kept_of=label)
