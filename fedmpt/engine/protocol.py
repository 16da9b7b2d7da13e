"""What a benchmark fixed before training, in words and as a record; the same whatever the method."""

from __future__ import annotations

from typing import Any

from fedmpt.engine.prepare import Federation
from fedmpt.metrics import Metrics


def protocol_record(federation: Federation) -> dict[str, Any]:
    """Return the contents of ``protocol.json``."""
    config, dataset = federation.config, federation.dataset
    return {
        "protocol": config.data.protocol,
        "classes": list(dataset.classes),
        "scored": list(dataset.scored),
        "source": dataset.held_out.source if dataset.held_out is not None else None,
        "left_out": {"train": dict(dataset.train.left_out), "test": dict(dataset.test.left_out)},
        "mask": {"probability": config.data.mask, "mode": config.data.mask_mode},
        "clients": len(federation.partition),
        "participation": config.clients.participation,
        "seed": config.seed,
        "digests": federation.protocol_digests,
    }


def data_line(federation: Federation) -> str:
    """Return what is trained and tested on, and what was left out, in one line."""
    dataset, data = federation.dataset, federation.config.data
    parts = [
        f"{dataset.name}: {len(dataset.train)} training and {len(dataset.test)} test images",
        f"{len(dataset.classes)} classes",
    ]
    if dataset.held_out is not None:
        parts.append(
            f"{data.protocol}: tested on {len(dataset.scored)} ({dataset.held_out.source})"
        )
    for name, split in (("training", dataset.train), ("test", dataset.test)):
        parts += [f"left out: {count} {name} images ({why})" for why, count in split.left_out]
    if data.mask:
        labels = "positive labels dropped" if data.mask_mode == "drop_positive" else "labels hidden"
        parts.append(f"{data.mask:.0%} of {labels}")
    return ", ".join(parts)


def top_k_figures(metrics: Metrics) -> dict[str, float]:
    """Return the figures by which zero-shot benchmarks compare."""
    return {
        "CF1_top3": metrics.CF1_top3,
        "OF1_top3": metrics.OF1_top3,
        "CF1_top5": metrics.CF1_top5,
        "OF1_top5": metrics.OF1_top5,
    }
