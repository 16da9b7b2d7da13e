"""A bundle: the tuned model alone, to be carried to where it is used.

It holds what a run released, never what lies beside it in the run folder (ledgers, partition, logs of rounds).
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from fedmpt.errors import UsageError
from fedmpt.inference.card import (
    CARD_FILE,
    MODEL_FILE,
    Card,
    ThresholdCard,
    card_text,
    read_model,
)
from fedmpt.runstore import new_folder, write_whole


def export(run: Path, out: Path, *, thresholds: ThresholdCard | None = None) -> Card:
    """Write the bundle ``out`` of a run folder (or of a bundle) and return its card.

    Args:
        run: a finished run.
        out: the folder to create.
        thresholds: chosen on public data; None keeps what the card has.

    Raises:
        UsageError: the run holds no model, or ``out`` exists.
        StorageError: the disk is full.
    """
    card, _ = read_model(run)
    if thresholds is not None:
        if len(thresholds.values) != len(card.classes):
            raise UsageError(f"{len(thresholds.values)} thresholds for {len(card.classes)} classes")
        card = msgspec.structs.replace(card, thresholds=thresholds)
    new_folder(out)
    write_whole(out / MODEL_FILE, (run / MODEL_FILE).read_bytes())
    write_whole(out / CARD_FILE, card_text(card).encode())
    return card
