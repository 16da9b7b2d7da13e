"""A run's folder: what is kept of a run, written so that a reader never sees half a file.

``config.toml`` the resolved configuration; ``metrics.jsonl`` one line a round, round 0 being zero-shot;
``warnings.jsonl`` what went wrong on the way, if anything did; ``ledger/`` one privacy ledger a client (elsewhere if
runs share it) and ``ledger.json`` where they are; ``model.safetensors`` the tuned parameters and ``card.json`` what
they are, unless clients train alone; ``partition.json`` who holds which images, and how many of what;
``protocol.json`` what the benchmark fixed before training; ``roster.json`` the public keys and ``transcripts/`` one
public log of signatures a round, both for ``python -m secagg.transcript``; ``state.safetensors`` what the next round
starts from; ``local/`` what clients keep to themselves; ``tensorboard/`` where it was asked for; ``summary.json`` the
result; ``lock`` is held by the process that works on the run.

A resumed run has new keys: ``roster-0007.json`` (with CKKS, also ``transcripts/key-setup-0007.bin``) is of those of
rounds 7 and later, until the next such file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from fedmpt.errors import StorageError, UsageError

LEDGER_FOLDER: Final = "ledger"
SUMMARY_FILE: Final = "summary.json"
METRICS_FILE: Final = "metrics.jsonl"
WARNINGS_FILE: Final = "warnings.jsonl"
STATE_FILE: Final = "state.safetensors"
ROUND_SCHEMA: Final = "fedmpt.round/1"  # of a line of metrics.jsonl; docs/events.md
WARNING_SCHEMA: Final = "fedmpt.warning/1"  # of a line of warnings.jsonl
SUMMARY_SCHEMA: Final = "fedmpt.summary/1"
_LOCK_FILE: Final = "lock"


@contextlib.contextmanager
def storing(what: Path) -> Iterator[None]:
    """Turn a failure of the disk into a `StorageError` that names the file and the remedy."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(
            f"{what}: cannot be written ({reason}); what was written before is whole: free space or mend permissions"
        ) from error


def write_whole(target: Path, data: bytes) -> None:
    """Write a file whole or not at all; it is on disk on return.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    partial = target.with_name(target.name + ".partial")
    with storing(target):
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
            _sync_folder(target.parent)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


def make_folders(folder: Path) -> None:
    """Create a folder and those above it that are missing; a loss of power does not take them back.

    Raises:
        OSError: one cannot be created.
    """
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir(exist_ok=True)
        _sync_folder(one.parent)


def _sync_folder(folder: Path) -> None:
    """Wait until what was created or renamed in a folder is on disk under its name."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_schema(where: Path | str, found: object, known: str) -> None:
    """Raise a `UsageError` unless what was read is of the version that this one writes.

    Args:
        where: what was read.
        found: the schema that it names.
        known: the one that is read here.
    """
    if found != known:
        raise UsageError(
            f"{where}: is of schema {found}, and this version of fedmpt reads {known}; use the version that wrote it"
        )


def new_folder(folder: Path) -> None:
    """Create a folder for ``--out``.

    Raises:
        UsageError: it exists already, or cannot be created.
    """
    try:
        make_folders(folder.parent)
        folder.mkdir()
        _sync_folder(folder.parent)
    except FileExistsError as error:
        raise UsageError(
            f"--out {folder}: exists already; give another folder, a finished run is never overwritten"
        ) from error
    except OSError as error:
        raise UsageError(f"--out {folder}: cannot be created ({error.strerror})") from error


def of_stretch(name: str, first_round: int) -> str:
    """Return the name of a file of the stretch of a run that began with a round: the first stretch has bare names."""
    return name if first_round == 1 else f"{name}-{first_round:04d}"


class RunStore:
    """One run folder, locked against other processes until `close`; a context manager."""

    def __init__(self, folder: Path) -> None:
        """Create the folder.

        Raises:
            UsageError: the folder exists already, or cannot be created.
        """
        self.folder = folder
        self._lock = -1
        new_folder(folder)
        self._take_lock("--out")

    @classmethod
    def reopen(cls, folder: Path) -> RunStore:
        """Open the folder of a run that did not end.

        Raises:
            UsageError: it is no run folder, its run is finished, another process works on it, or it cannot be written.
        """
        if not (folder / "config.toml").is_file():
            raise UsageError(
                f"--resume {folder}: no run to go on with (it has no config.toml); give the folder of a run"
            )
        store = cls.__new__(cls)
        store.folder, store._lock = folder, -1
        store._take_lock("--resume")
        if (folder / SUMMARY_FILE).exists():
            store.close()
            raise UsageError(f"--resume {folder}: the run is finished; start another one")
        return store

    def _take_lock(self, option: str) -> None:
        try:
            self._lock = os.open(self.folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise UsageError(
                f"{option} {self.folder}: another process works on this run; wait for it or end it"
            ) from error
        except OSError as error:
            raise UsageError(
                f"{option} {self.folder}: cannot be written ({error.strerror}); mend its permissions"
            ) from error

    def close(self) -> None:
        """Give the lock back."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> RunStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def write_transcript(self, name: str, log: bytes) -> None:
        """Write the public log of a round's aggregation, or of the set-up of its key."""
        with storing(self.folder / "transcripts"):
            (self.folder / "transcripts").mkdir(exist_ok=True)
        self.write_bytes(f"transcripts/{name}.bin", log)

    def write_text(self, name: str, text: str) -> None:
        """Write a file whole or not at all."""
        self.write_bytes(name, text.encode())

    def write_json(self, name: str, value: Any) -> None:
        """Write ``value`` as indented JSON, whole or not at all."""
        self.write_text(name, json.dumps(value, indent=2, allow_nan=False) + "\n")

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all."""
        write_whole(self.folder / name, data)

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``."""
        self._append(METRICS_FILE, line)

    def append_warning(self, line: dict[str, Any]) -> None:
        """Add one line to ``warnings.jsonl``, in place of one that a crash or a full disk tore."""
        path = self.folder / WARNINGS_FILE
        with storing(path):
            before = path.read_bytes() if path.exists() else b""
        whole = before[: before.rfind(b"\n") + 1]
        if whole != before:
            self.write_bytes(WARNINGS_FILE, whole)
        self._append(WARNINGS_FILE, line)

    def _append(self, name: str, line: dict[str, Any]) -> None:
        path = self.folder / name
        with storing(path), path.open("a", encoding="utf-8") as file:
            file.write(_line(line))
            file.flush()
            os.fsync(file.fileno())

    def rewrite_metrics(self, lines: list[dict[str, Any]]) -> None:
        """Write ``metrics.jsonl`` anew, whole or not at all: a torn line goes, a missing one comes."""
        self.write_text(METRICS_FILE, "".join(map(_line, lines)))


def _line(values: dict[str, Any]) -> str:
    return json.dumps(values, allow_nan=False) + "\n"
