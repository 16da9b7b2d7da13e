"""Named sets of training settings: the paper's one loop for all methods, and each method's own optimiser.

A preset fills what the user left open, before the rules of `fedmpt.engine.defaults` do. ``native`` is the ``paper``
loop with the optimiser, learning rate, batch and local epochs of the method's own publication; where a method trains
two groups of parameters differently, the second is given by multipliers of the learning rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec

from fedmpt.config import TrainConfig

_LONG: Final = 200  # rounds of the larger data sets
_LONG_DATA: Final = ("coco2014", "nuswide", "mlrsnet")
_ROUNDS: Final = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimiser:
    """A local optimiser and its passes; the defaults are the paper's common one."""

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.001
    momentum: float = 0.9
    weight_decay: float = 1e-5
    batch_size: int = 32
    local_epochs: int = 1
    lr_multipliers: Mapping[str, float] = field(default_factory=dict)


PAPER: Final = Optimiser()
_RATES_ON: Final = {("dualcoop", "coco2014"): 0.002}  # native ones that the data set decides
NATIVE: Final[dict[str, Optimiser]] = {
    "dualcoop": Optimiser(lr=0.001),
    "poscoop": Optimiser(lr=0.5, weight_decay=0.0, lr_multipliers={"context": 0.01}),
    "scpnet": Optimiser(optimizer="adam", lr=4e-5),
    "tcp": Optimiser(optimizer="adam", lr=2e-3),
    "fedtpg": Optimiser(lr=0.003, batch_size=200),
    "fedpgp": Optimiser(lr=0.001, local_epochs=2),
    "maple": Optimiser(lr=0.0035, batch_size=4),
    "ram": Optimiser(optimizer="adamw", lr=5e-6),
    "fedmvp": Optimiser(lr=0.003, batch_size=128),
}


def preset(train: TrainConfig, *, method: str, data_name: str) -> TrainConfig:
    """Return the training settings with what the preset says in the places left open."""
    if train.preset is None:
        return train
    native = train.preset == "native"
    chosen = NATIVE.get(method, PAPER) if native else PAPER
    lr = _RATES_ON.get((method, data_name), chosen.lr) if native else chosen.lr
    values: dict[str, Any] = {
        "rounds": _LONG if data_name in _LONG_DATA else _ROUNDS,
        "batch_size": chosen.batch_size,
        "local_epochs": chosen.local_epochs,
        "lr": lr,
        "optimizer": chosen.optimizer,
        "momentum": chosen.momentum,
        "weight_decay": chosen.weight_decay,
    }
    still_open = {name: value for name, value in values.items() if getattr(train, name) is None}
    if not train.lr_multipliers:
        still_open["lr_multipliers"] = dict(chosen.lr_multipliers)
    return msgspec.structs.replace(train, **still_open)
