"""Running the cells of a sweep, each in a process of its own, so that one that fails takes nothing else along.

A sweep's folder: ``cells/NAME/`` the run folders, ``settings/NAME.toml`` what each cell was asked, ``logs/NAME.log``
what it said, ``unfinished/`` run folders of cells that stopped before they could be resumed, kept because whatever lies
in a ledger was spent. A cell's name holds the digest of its configuration, so a cell that is finished is never run
again, one that was stopped is resumed after its last completed round, and one whose settings have changed is another.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from fedmpt.config import to_toml
from fedmpt.errors import RunError, UsageError
from fedmpt.runstore import STATE_FILE, SUMMARY_FILE, SUMMARY_SCHEMA, require_schema, write_whole
from fedmpt.sweep.cells import Cell

CELLS: Final = "cells"
UNFINISHED: Final = "unfinished"
LOGS: Final = "logs"
_POLL_S: Final = 0.1
_GRACE_S: Final = 10.0  # for a process that was asked to stop
_THREADS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

Command = Callable[
    [Path, Path, bool], list[str]
]  # (settings file, run folder, resumed) -> what is executed


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A cell that did not finish.

    Attributes:
        cell: which.
        exit_code: of its process.
        reason: the last line that it said.
        log: all that it said.
    """

    cell: Cell
    exit_code: int
    reason: str
    log: Path


class Watcher(Protocol):
    """Is told how far a sweep is."""

    def planned(self, *, cells: int, finished: int, jobs: int) -> None:
        """Say how many cells there are, and how many of them were finished before."""
        ...

    def started(self, cell: Cell) -> None:
        """A cell runs now."""
        ...

    def finished(self, cell: Cell, seconds: float) -> None:
        """A cell is done."""
        ...

    def failed(self, failure: Failure) -> None:
        """A cell failed; the others go on."""
        ...


def train_command(settings: Path, folder: Path, resumed: bool) -> list[str]:
    """Return the command that runs one cell, or goes on with one that was stopped."""
    code = "from fedmpt.cli import main; main()"
    how = ["--resume", str(folder)]
    if not resumed:
        how = ["--config", str(settings), "--out", str(folder)]
    return [sys.executable, "-c", code, "train", "--json", *how]


def default_jobs() -> int:
    """Return half of the cores that this process may use, at least 1."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (usable or 1) // 2)


def run_folder(cell: Cell, folder: Path) -> Path:
    """Return the run folder of a cell in a sweep's folder: that of its configuration, also if another grid named it."""
    found = sorted((folder / CELLS).glob(f"*-{cell.digest}"))
    return found[0] if found else folder / CELLS / cell.name


def summary_of(cell: Cell, folder: Path) -> dict[str, Any] | None:
    """Return the summary of a finished cell, or None.

    Raises:
        RunError: it cannot be read.
        UsageError: another version of fedmpt wrote it.
    """
    path = run_folder(cell, folder) / SUMMARY_FILE
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path}: cannot be read ({error}); move the folder away to run the cell again"
        ) from error
    if not isinstance(summary, dict):
        raise RunError(f"{path}: not a JSON object; move the folder away to run the cell again")
    require_schema(path, summary.get("schema"), SUMMARY_SCHEMA)
    return summary


def run_cells(
    cells: Sequence[Cell],
    folder: Path,
    *,
    jobs: int,
    watcher: Watcher,
    command: Command = train_command,
) -> list[Failure]:
    """Run every cell that is not finished, and return those that failed.

    Args:
        cells: of the sweep.
        folder: of the sweep; made where it is missing.
        jobs: processes at a time, each of one thread; where there is one, the environment may say otherwise.
        watcher: told what happens.
        command: what runs a cell.

    Raises:
        UsageError: the folder cannot be written, or another process works in it.
        KeyboardInterrupt: passed on after the running cells were stopped; the same call goes on from there.
    """
    if jobs < 1:
        raise UsageError(f"--jobs {jobs}: give at least 1")
    with _claimed(folder) as lock:
        waiting = [cell for cell in cells if summary_of(cell, folder) is None]
        watcher.planned(cells=len(cells), finished=len(cells) - len(waiting), jobs=jobs)
        running: list[_Running] = []
        failures: list[Failure] = []
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    cell = waiting.pop(0)
                    running.append(
                        _Running(cell, folder, command=command, alone=jobs == 1, lock=lock)
                    )
                    watcher.started(cell)
                time.sleep(_POLL_S)
                for process in [one for one in running if one.ended]:
                    running.remove(process)
                    failure = process.failure()
                    if failure is None:
                        watcher.finished(process.cell, process.seconds)
                    else:
                        failures.append(failure)
                        watcher.failed(failure)
        finally:
            for process in running:
                process.stop()
    return failures


class _Running:
    """One cell's process."""

    def __init__(
        self, cell: Cell, folder: Path, *, command: Command, alone: bool, lock: int
    ) -> None:
        self.cell = cell
        self._folder = folder
        self._run_folder = run_folder(cell, folder)
        self._log = folder / LOGS / f"{cell.name}.log"
        self._started = time.monotonic()
        resumed = _can_go_on(self._run_folder)
        if not resumed:
            _set_aside(self._run_folder, folder / UNFINISHED)
        settings = folder / "settings" / f"{cell.name}.toml"
        write_whole(settings, to_toml(cell.config).encode())
        single = dict.fromkeys(_THREADS, "1")
        environment = single | dict(os.environ) if alone else dict(os.environ) | single
        with self._log.open("ab" if resumed else "wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 -- this program itself
                command(settings, self._run_folder, resumed),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches this process alone, which then stops the cells
                pass_fds=(lock,),  # cells that outlive this process keep the folder claimed
            )

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def failure(self) -> Failure | None:
        """Return what went wrong, once the process has ended; a run that cannot be resumed is set aside."""
        code = self._process.wait()
        if code == 0 and summary_of(self.cell, self._folder) is not None:
            return None
        if not _can_go_on(self._run_folder):
            _set_aside(self._run_folder, self._folder / UNFINISHED)
        return Failure(cell=self.cell, exit_code=code, reason=self._last_words(), log=self._log)

    def _last_words(self) -> str:
        try:
            lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError as error:  # somebody cleared logs meanwhile: the other cells go on
            return f"its log cannot be read ({error.strerror})"
        return lines[-1].strip() if lines else "it said nothing"

    def stop(self) -> None:
        """End the process, kindly first."""
        self._process.terminate()
        try:
            self._process.wait(timeout=_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _can_go_on(run: Path) -> bool:
    """Say whether a run that was stopped has a checkpoint; before its first one it has charged nothing."""
    return (run / STATE_FILE).exists()


def _set_aside(run: Path, place: Path) -> None:
    """Keep the folder of a run that did not finish under a name of its own."""
    if not run.exists():
        return
    number = 1
    while (place / f"{run.name}.{number}").exists():
        number += 1
    run.rename(place / f"{run.name}.{number}")


@contextmanager
def _claimed(folder: Path) -> Iterator[int]:
    """Hold a sweep's folder for this process and its cells; the value is the lock's file descriptor."""
    try:
        for name in (CELLS, UNFINISHED, LOGS, "settings"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise UsageError(
            f"--out {folder}: cannot be written ({error.strerror}); give another folder"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"--out {folder}: another sweep is at work in it; wait for it, or give another folder"
            ) from error
        yield lock.fileno()
