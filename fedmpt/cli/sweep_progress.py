"""How far a sweep is, on standard error: one bar over cells on a terminal, a line a cell elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fedmpt.sweep.cells import Cell
from fedmpt.sweep.run import Failure


class SweepProgress:
    """Watches a sweep."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
        self._bar = Progress(
            TextColumn("cells"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None)
        self._running: list[str] = []
        self._cells = self._done = 0

    def __enter__(self) -> SweepProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def planned(self, *, cells: int, finished: int, jobs: int) -> None:
        """Say how much there is to do."""
        self._cells, self._done = cells, finished
        self._bar.update(self._task, total=cells, completed=finished)
        self._console.print(f"{cells} cells, {finished} finished before, {jobs} at a time")

    def started(self, cell: Cell) -> None:
        """A cell runs now."""
        self._running.append(cell.name)
        self._show(cell)

    def finished(self, cell: Cell, seconds: float) -> None:
        """A cell is done."""
        self._ended(cell, f"done in {seconds:.0f} s")

    def failed(self, failure: Failure) -> None:
        """A cell failed."""
        self._ended(
            failure.cell,
            f"FAILED with exit code {failure.exit_code}: {failure.reason}; log: {failure.log}",
        )

    def interrupted(self) -> None:
        """The user stopped the sweep."""
        self._bar.stop()
        self._console.print(
            f"stopped with {self._done} of {self._cells} cells finished; the same call goes on from here"
        )

    def tell(self, lines: Sequence[str], *, folder: Path) -> None:
        """Say this, and where the results are."""
        for line in (*lines, f"results: {folder}"):
            self._console.print(line)

    def _ended(self, cell: Cell, text: str) -> None:
        self._running.remove(cell.name)
        self._done += 1
        self._bar.update(self._task, completed=self._done)
        self._console.print(
            f"{self._done}/{self._cells} {cell.condition.label}, seed {cell.seed}: {text}"
        )
        self._show(cell)

    def _show(self, cell: Cell) -> None:
        running = f"{len(self._running)} running" if self._running else ""
        self._bar.update(self._task, description=f"{running}, last {cell.condition.label}")
