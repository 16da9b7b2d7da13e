"""A run's folder: what is kept of a run, written so that a reader never sees half a file.

``config.toml`` the resolved configuration; ``metrics.jsonl`` one line a round, round 0 being zero-shot; ``ledger/`` one
privacy ledger a client (elsewhere if runs share it) and ``ledger.json`` where they are; ``model.safetensors`` the tuned
parameters and ``card.json`` what they are; ``partition.json`` who holds which images, and how many of what;
``protocol.json`` what the benchmark fixed before training; ``roster.json`` the public keys and ``transcripts/`` one
public log of signatures a round, both for ``python -m secagg.transcript``; ``summary.json`` the result.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

from fedmpt.errors import RunError, UsageError

LEDGER_FOLDER: Final = "ledger"


def write_whole(target: Path, data: bytes) -> None:
    """Write a file whole or not at all; it is on disk on return.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    partial = target.with_name(target.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except OSError as error:
        raise RunError(f"{target}: cannot be written ({error.strerror})") from error


class RunStore:
    """One run folder, created on construction."""

    def __init__(self, folder: Path) -> None:
        """Create the folder.

        Raises:
            UsageError: the folder exists already, or cannot be created.
        """
        self.folder = folder
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
        except FileExistsError as error:
            raise UsageError(
                f"--out {folder}: exists already; give another folder, a finished run is never overwritten"
            ) from error
        except OSError as error:
            raise UsageError(f"--out {folder}: cannot be created ({error.strerror})") from error

    def write_transcript(self, name: str, log: bytes) -> None:
        """Write the public log of a round's aggregation, or of the set-up of its key."""
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
        path = self.folder / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f"{path}: cannot be written ({error.strerror})") from error
