"""How far a long step is, on standard error: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

_LINE_EVERY_S: Final = 30.0  # where there is no terminal
_SHORTEST_S: Final = 1.0  # after which a pace means something


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """How fast a step goes, from when it was first heard of; what an earlier process did does not count.

    Attributes:
        images_a_second: since then; 0 if it cannot be told yet.
        left_s: seconds that the rest takes at this pace; None if it cannot be told.
    """

    images_a_second: float
    left_s: float | None

    @classmethod
    def of(cls, *, done: int, total: int, done_before: int, seconds: float) -> Pace:
        """Return the pace of ``done - done_before`` images in ``seconds``."""
        if done <= done_before or seconds < _SHORTEST_S:
            return cls(images_a_second=0.0, left_s=None)
        rate = (done - done_before) / seconds
        return cls(images_a_second=rate, left_s=(total - done) / rate)

    def __str__(self) -> str:
        if self.left_s is None:
            return ""
        rate = f"{self.images_a_second:,.{0 if self.images_a_second >= 10 else 1}f} images/s"
        return f"{rate}, {duration(self.left_s)} left" if self.left_s else rate


def duration(seconds: float) -> str:
    """Return a time to wait as people say it: ``40 s``, ``5 min``, ``2 h 10 min``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


class ProgressBar:
    """Shows one step at a time."""

    def __init__(
        self, console: Console | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._clock = clock
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._label = ""
        self._since = self._told = 0.0
        self._done_before = 0

    def progress(self, label: str, done: int, total: int) -> None:
        """Show how far a step is; ``done`` of ``total`` images."""
        now = self._clock()
        if label != self._label:
            self.end()
            self._label, self._since, self._told, self._done_before = label, now, now, done
        pace = Pace.of(
            done=done, total=total, done_before=self._done_before, seconds=now - self._since
        )
        if self._console.is_terminal:
            self._draw(label, done, total, pace)
        elif done >= total:
            self._console.print(f"{label}: {total} images" + (f", {pace}" if str(pace) else ""))
        elif now - self._told >= _LINE_EVERY_S:
            self._told = now
            self._console.print(f"{label}: {done} of {total} images, {pace}")
        if done >= total:
            self.end()

    def _draw(self, label: str, done: int, total: int, pace: Pace) -> None:
        if self._bar is None:
            self._bar = Progress(
                TextColumn(label),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[pace]}"),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task(label, total=total, pace="")
        self._bar.update(self._task, completed=done, pace=str(pace))

    def end(self) -> None:
        """Take the bar away; the next step is a new one, whatever its name."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        self._label = ""
