"""A run's warnings, kept with the run: what was said on a terminal that nobody watched is there on the next morning."""

from __future__ import annotations

import contextlib

from fedmpt.engine.listener import Preview, RoundRecord
from fedmpt.errors import StorageError
from fedmpt.runstore import WARNING_SCHEMA, RunStore


class WarningLog:
    """A listener that adds every warning to ``warnings.jsonl``.

    Args:
        store: of the run.
        done: rounds that were completed before.
    """

    def __init__(self, store: RunStore, *, done: int) -> None:
        self._store = store
        self._done = done

    def progress(self, label: str, done: int, total: int) -> None:
        """See `Listener`."""

    def preview(self, preview: Preview) -> None:
        """See `Listener`."""

    def round_done(self, record: RoundRecord) -> None:
        """See `Listener`."""
        self._done = record.round

    def warning(self, text: str) -> None:
        """See `Listener`."""
        line = {"schema": WARNING_SCHEMA, "round": self._done, "text": text}
        with contextlib.suppress(StorageError):  # a full disk is what many a warning is about
            self._store.append_warning(line)
