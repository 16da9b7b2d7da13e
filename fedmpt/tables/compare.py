"""A table's measured figures beside the published ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from fedmpt.errors import UsageError
from fedmpt.sweep.statistics import Estimate, estimate
from fedmpt.tables.definition import TableDefinition
from fedmpt.tables.measure import COSTS, METRICS, OPTIMISTIC, Measured
from fedmpt.tables.plan import TablePlan
from fedmpt.tables.published import BEST_GAIN, PublishedTable, read_published

OWN: Final = "FedMPT"
BEST_GAIN_ROW: Final = "FedMPT less the best other"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One figure of a table.

    Attributes:
        row: its row.
        column: its column; empty where there is one.
        metric: its name.
        measured: mean over seeds with its interval; None where nothing was run.
        published: as printed; None where nothing was.
        comparable: whether the published figure is of the same data.
        note: why the published figure must be read with care; empty where it need not.
    """

    row: str
    column: str
    metric: str
    measured: Estimate | None
    published: float | None
    comparable: bool
    note: str = ""

    @property
    def difference(self) -> float | None:
        """Measured less published; None where either is missing or they are of different data."""
        if self.measured is None or self.published is None or not self.comparable:
            return None
        return self.measured.mean - self.published


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A table, measured and published.

    Attributes:
        plan: what was run.
        published_data: data set that the published figures are of; None where there are none.
        entries: (row, column, metric) -> figure.
    """

    plan: TablePlan
    published_data: str | None
    entries: Mapping[tuple[str, str, str], Entry]

    @property
    def definition(self) -> TableDefinition:
        """The table."""
        return self.plan.definition

    @property
    def comparable(self) -> bool:
        """Whether published figures are of the data that was used."""
        return self.published_data == self.plan.request.data

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of rows, in order."""
        return tuple(dict.fromkeys(row for row, _, _ in self.entries))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of columns, in order."""
        return tuple(dict.fromkeys(column for _, column, _ in self.entries))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of figures, in order, without those that are kept for the files alone."""
        names = dict.fromkeys(metric for _, _, metric in self.entries)
        return tuple(name for name in names if name not in OPTIMISTIC)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries.values())


def compare(plan: TablePlan, measured: Measured, *, beside: str | None = None) -> Comparison:
    """Return a table's figures beside the published ones of the same data, or of ``beside``.

    Args:
        plan: what was run.
        measured: what it gave.
        beside: data set whose published figures are shown, without differences, where none are of the data used.

    Raises:
        UsageError: nothing was published of ``beside``, or it is not needed.
    """
    definition, data = plan.definition, plan.request.data
    published = (
        PublishedTable(()) if definition.published is None else read_published(definition.published)
    )
    source = published_source(published, data=data, beside=beside)
    found = dict(measured)
    if any(row.method == BEST_GAIN for row in published):
        found |= _best_gains(plan, measured)
    entries = {}
    for row, column, metric in _places(plan, found, published, source):
        line = None
        if source is not None:
            method = BEST_GAIN if row == BEST_GAIN_ROW else row
            line = published.row(source, method, column)
        by_seed = found.get((row, column, metric), {})
        entries[row, column, metric] = Entry(
            row=row,
            column=column,
            metric=metric,
            measured=estimate(list(by_seed.values())) if by_seed else None,
            published=None if line is None else line.figures.get(metric),
            comparable=source == data,
            note=line.note
            if line is not None and {metric, "setting", "method", "conditions"} & {*line.marked}
            else "",
        )
    return Comparison(plan=plan, published_data=source, entries=entries)


def published_source(published: PublishedTable, *, data: str, beside: str | None) -> str | None:
    """Return of which data set published figures are shown; None if of none.

    Raises:
        UsageError: nothing was published of ``beside``, or it is not needed.
    """
    known = published.datasets
    if beside is None:
        return data if data in known else None
    if data in known and beside != data:
        raise UsageError(
            f"--beside {beside}: the paper has figures of {data} itself; leave --beside out"
        )
    if beside not in known:
        there = f"it has figures of {', '.join(known)}" if known else "nothing was printed"
        raise UsageError(f"--beside {beside}: not in this table; {there}")
    return beside


def _places(
    plan: TablePlan, found: Measured, published: PublishedTable, source: str | None
) -> Iterator[tuple[str, str, str]]:
    """Yield every place of the table, row by row: what is planned, and what was published beyond it."""
    definition = plan.definition
    metrics: tuple[str, ...] = {
        "metrics": (*METRICS, *OPTIMISTIC),
        "cost": COSTS,
        "convergence": ("mAP",),
        "significance": METRICS,
    }[definition.kind]
    columns = [column.name for column in plan.columns]
    rows = [row.name for row in definition.rows]
    if definition.kind == "significance":
        rows = list(dict.fromkeys(row for row, _, _ in found))
        rows += [
            line.method for line in published if line.dataset == source and line.method not in rows
        ]
    elif any(row == BEST_GAIN_ROW for row, _, _ in found):
        rows.append(BEST_GAIN_ROW)
    if definition.average is not None and plan.columns == definition.columns:
        columns.append(definition.average)
    if definition.kind == "convergence":  # rounds that neither were done nor printed
        there = {column for _, column, _ in found}
        there |= {line.setting for line in published if line.dataset == source}
        columns = [column for column in columns if column in there] or columns
    for row in rows:
        for column in columns:
            for metric in metrics:
                yield row, column, metric


def _best_gains(plan: TablePlan, measured: Measured) -> Measured:
    """Return how far FedMPT is above the best other row of each column, by seed."""
    gains: Measured = {}
    others = [row.name for row in plan.definition.rows if row.name != OWN]
    for row, column, metric in measured:
        if row != OWN:
            continue
        ours = measured[row, column, metric]
        theirs = [found for other in others if (found := measured.get((other, column, metric)))]
        if not theirs:
            continue
        best = max(theirs, key=lambda by_seed: estimate(list(by_seed.values())).mean)
        common = {seed: ours[seed] - best[seed] for seed in ours.keys() & best.keys()}
        if common:
            gains[BEST_GAIN_ROW, column, metric] = common
    return gains
