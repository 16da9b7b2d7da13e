"""Runs to compare with, as settings on top of a run's own."""

from __future__ import annotations

from typing import Final

BASELINES: Final[dict[str, dict[str, object]]] = {
    "zero-shot": {"method.name": "zero-shot", "privacy.enabled": False},  # nothing is learnt
    "centralised": {  # one holder of all data; privacy as the run has it
        "clients.count": 1,
        "clients.partition": "iid",
        "clients.participation": 1.0,
        "secagg.mode": "none",
        "secagg.dropout": 0.0,
    },
}
