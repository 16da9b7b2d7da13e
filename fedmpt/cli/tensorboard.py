"""A run's figures for TensorBoard, in the run folder; needs the extra ``tensorboard``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

from fedmpt.engine.listener import Preview, RoundRecord
from fedmpt.errors import UsageError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER: Final = "tensorboard"  # inside the run folder
_METRICS: Final = "metrics/"


class TensorBoard:
    """Writes one scalar a figure and round; a context manager.

    A resumed run writes into the same folder, and what a stopped process wrote of rounds that are done again is hidden.
    """

    def __init__(self) -> None:
        """Find the package.

        Raises:
            UsageError: it is not installed.
        """
        self._make = _writer_class()
        self._folder: Path | None = None
        self._writer: SummaryWriter | None = None
        self._round = -1

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def progress(self, label: str, done: int, total: int) -> None:
        """Write nothing: how far a step is belongs on a terminal."""

    def preview(self, preview: Preview) -> None:
        """Remember where the run folder is."""
        self._folder = Path(preview.folder) / FOLDER

    def round_done(self, record: RoundRecord) -> None:
        """Write the figures of a round; a run that tunes nothing has no preview, and no rounds worth a chart.

        The last round may be told twice, the second time with its metrics.
        """
        if self._folder is None:
            return
        if self._writer is None:
            self._writer = self._make(str(self._folder), purge_step=record.round)
        told_before = record.round == self._round
        self._round = record.round
        for name, value in figures(record):
            if not told_before or name.startswith(_METRICS):
                self._writer.add_scalar(name, value, record.round)
        self._writer.flush()

    def warning(self, text: str) -> None:
        """Write a warning beside the round before it."""
        if self._writer is not None:
            self._writer.add_text("warning", text, max(0, self._round))
            self._writer.flush()


def figures(record: RoundRecord) -> Iterator[tuple[str, float]]:
    """Yield a round's scalars: (tag, value); what a round does not have is left out."""
    metrics = record.metrics
    if metrics is not None:
        for name in ("mAP", "CF1", "OF1"):
            yield f"{_METRICS}{name}", getattr(metrics, name)
    if record.shared is not None:
        yield f"{_METRICS}mAP_shared", record.shared.mAP
    if record.by_client:
        own = [each[0] for each in record.by_client]
        yield from (
            (f"{_METRICS}mAP_lowest_client", min(own)),
            (f"{_METRICS}mAP_highest_client", max(own)),
        )
    if not record.round:
        return
    if record.epsilon is not None:
        yield from zip(("epsilon/smallest", "epsilon/largest"), record.epsilon, strict=True)
    if record.train_loss is not None:
        yield "train/loss", record.train_loss
    yield "clients/in_sum", len(record.survivors)
    yield "clients/dropped", len(record.dropped)
    yield "aggregation/attempts", record.attempts
    yield "aggregation/clipped_share", record.clipped
    yield "aggregation/bytes_up_per_client", record.bytes_up
    for phase, seconds in record.seconds:
        yield f"seconds/{phase}", seconds


def _writer_class() -> Callable[..., SummaryWriter]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError(
            "--tensorboard: the package tensorboard is not installed; pip install 'fedmpt[tensorboard]'"
        ) from error
    return SummaryWriter
