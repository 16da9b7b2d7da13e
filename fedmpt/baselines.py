"""Runs to compare with, as settings that take the place of a run's own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from fedmpt.errors import UsageError

BASELINES: Final[dict[str, dict[str, object]]] = {
    "zero-shot": {"method.name": "zero-shot"},  # nothing is learnt
    "local-only": {  # every client trains alone, in as many steps; privacy as the run has it
        "train.weighting": "none",
        "secagg.mode": "none",
        "secagg.dropout": 0.0,
    },
    "centralised": {  # one holder of all data; privacy as the run has it
        "clients.count": 1,
        "clients.partition": "iid",
        "clients.participation": 1.0,
        "secagg.mode": "none",
        "secagg.dropout": 0.0,
    },
}


def baseline_settings(name: str, *, given: Iterable[str]) -> dict[str, object]:
    """Return the settings of a baseline.

    Args:
        name: of `BASELINES`.
        given: settings that the user named, as ``key`` or ``key=value``.

    Raises:
        UsageError: no baseline of that name, or a setting that it decides was given as well.
    """
    if name not in BASELINES:
        raise UsageError(f"--baseline {name}: not known; one of {', '.join(BASELINES)}")
    settings = BASELINES[name]
    keys = {setting.partition("=")[0].strip() for setting in given}
    for key in settings:
        if key in keys:
            raise UsageError(
                f"--baseline {name} decides {key} (it is {settings[key]}); leave that out"
            )
    return dict(settings)
