"""What a finished run says of itself: the contents of ``summary.json``."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

import numpy as np

from fedmpt.config import Config
from fedmpt.engine.authors_code import compatibility_note
from fedmpt.engine.integer_terms import arithmetic_of, claimed
from fedmpt.engine.listener import RoundRecord
from fedmpt.engine.prepare import Federation
from fedmpt.engine.protocol import top_k_figures
from fedmpt.engine.share_terms import claim
from fedmpt.errors import RunError
from fedmpt.metrics import Metrics
from fedmpt.protect import MODES
from fedmpt.runstore import SUMMARY_SCHEMA
from secagg import statement

_HEADLINE: Final = ("mAP", "CF1", "OF1")


def make_summary(
    federation: Federation,
    records: Sequence[RoundRecord],
    *,
    class_token: Metrics,
    phases: Mapping[str, float],
    accounts: list[dict[str, object]],
    name: str | None,
    folder: Path,
    seconds: float,
) -> dict[str, Any]:
    """Return the contents of ``summary.json``.

    Args:
        federation: the prepared run.
        records: of every round that was done, round 0 first.
        class_token: metrics of the frozen CLIP with its class token in place of patches.
        phases: seconds spent on training, secure aggregation and evaluation.
        accounts: every client's privacy account; none without privacy.
        name: of the run on the clients' ledgers; None without privacy.
        folder: the run folder.
        seconds: the run took.
    """
    config, rounds = federation.config, records[1:]
    first, final, shared = records[0].metrics, records[-1].metrics, records[-1].shared
    if first is None or final is None:
        raise RunError("the first and the last round of a run must be evaluated")
    sent = [record.bytes_up for record in rounds]
    cohort = len(federation.schedule[0]) if federation.schedule else 0
    protected, against = claim(config, cohort=max(1, cohort))
    return {
        "schema": SUMMARY_SCHEMA,
        "method": config.method.name,
        "data": config.data.name,
        "backbone": federation.backbone.name,
        "seed": config.seed,
        "rounds": len(rounds),
        "clients": len(federation.partition),
        "parameters": federation.tuned_values,
        "backbone_parameters": federation.backbone.parameters,
        "preset": config.train.preset,
        "compatibility": compatibility_note(config),
        "folder": str(folder),
        "protocol": config.data.protocol,
        "protocol_digests": federation.protocol_digests,
        "zero_shot": _headline(first),
        "zero_shot_class_token": _headline(class_token),
        "final": _headline(final),
        "final_shared": _headline(shared) if shared else None,
        "final_clients": _by_client(records[-1]),
        "final_top_k": top_k_figures(final),
        "final_oracle": final.oracle(),
        "final_AP": dict(zip(federation.dataset.scored, final.AP, strict=True)),
        "privacy": {
            "run": name,
            "enabled": config.privacy.enabled,
            "target_epsilon": config.privacy.epsilon if config.privacy.enabled else None,
            "delta": _delta(accounts, config),
            "unit": config.privacy.unit,
            "noise": config.privacy.noise,
            "protected": protected,
            "against": against,
            "relation": "add_or_remove_one",
            "clients": accounts,
        },
        "secagg": {
            "mode": config.secagg.mode,
            "statement": sent_in_words(config),
            "bytes_up_per_client_round": float(np.mean(sent)) if sent else 0.0,
            "seconds": phases["secagg"],
            "dropped": sum(len(record.dropped) for record in rounds),
            "clipped_share": max((record.clipped for record in rounds), default=0.0),
        },
        "images_skipped": federation.dataset.train.skipped + federation.dataset.test.skipped,
        "partition_digest": federation.partition.digest,
        "seconds": seconds,
        "seconds_by_phase": dict(phases),
        "peak_memory_bytes": _peak_memory_bytes(),
    }


def _delta(accounts: list[dict[str, object]], config: Config) -> float | None:
    """Return the delta that is proven; accounts have their ledgers', which is smaller where noise is of integers."""
    if not accounts:
        return None
    return claimed(cast("float", accounts[0]["delta"]), arithmetic_of(config.privacy))


def sent_in_words(config: Config) -> str:
    """Return who could read what clients send, in a sentence."""
    if config.train.weighting == "none":
        return "Every client trains alone: nothing of any model is sent."
    return statement(MODES[config.secagg.mode], verify_sum=config.secagg.ckks_verify)


def _by_client(record: RoundRecord) -> dict[str, dict[str, float]] | None:
    """Return the worst and the best client by metric, where each has a model of its own."""
    if not record.by_client:
        return None
    by_metric = dict(zip(_HEADLINE, zip(*record.by_client, strict=True), strict=True))
    return {
        "min": {name: min(values) for name, values in by_metric.items()},
        "max": {name: max(values) for name, values in by_metric.items()},
    }


def _headline(metrics: Metrics) -> dict[str, float]:
    return {"mAP": metrics.mAP, "CF1": metrics.CF1, "OF1": metrics.OF1}


def _peak_memory_bytes() -> int:
    """Return the largest resident memory that this process has had, also before the run."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
