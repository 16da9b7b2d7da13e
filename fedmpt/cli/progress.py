"""How far a long step is, on standard error: a bar on a terminal, one line at the end elsewhere."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)


class ProgressBar:
    """Shows one step at a time."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._label = ""

    def progress(self, label: str, done: int, total: int) -> None:
        """Show how far a step is; ``done`` of ``total`` images."""
        if not self._console.is_terminal:
            if done >= total:
                self._console.print(f"{label}: {total} images")
            return
        if label != self._label or self._bar is None:
            self.end()
            self._bar = Progress(
                TextColumn(label),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._bar.start()
            self._task, self._label = self._bar.add_task(label, total=total), label
        self._bar.update(self._task, completed=done)
        if done >= total:
            self.end()

    def end(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
