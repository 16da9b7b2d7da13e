"""Rules that fill the settings left to them, once data set and backbone are known.

The values were chosen by measurement on ``scenes`` with seeds that no table reports; docs/results.md has the figures.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from fedmpt.config import Config
from fedmpt.methods.fedmpt import CONDITIONS, DEFAULT_CONDITIONS

T = TypeVar("T")

ROUNDS: Final = 20
PAPER_RANK: Final = 32


def resolve(config: Config, *, data_name: str) -> Config:
    """Return ``config`` with every rule applied; what was given stays as it is."""
    private = config.privacy.enabled
    method, train, privacy = config.method.fedmpt, config.train, config.privacy
    conditions = method.conditions
    if conditions is None:
        conditions = CONDITIONS.get(data_name, DEFAULT_CONDITIONS)
    replace = msgspec.structs.replace
    return replace(
        config,
        method=replace(
            config.method,
            fedmpt=replace(
                method,
                conditions=conditions,
                adapter_rank=_given(method.adapter_rank, 2 if private else PAPER_RANK),
                gate_rank=_given(method.gate_rank, 2 if private else PAPER_RANK),
            ),
        ),
        train=replace(
            train,
            rounds=_given(train.rounds, ROUNDS),
            batch_size=_given(train.batch_size, 128 if private else 32),
            lr=_given(train.lr, 0.01 if private else 0.001),
            optimizer=_given(train.optimizer, "adam" if private else "sgd"),
        ),
        privacy=replace(
            privacy,
            clip=_given(privacy.clip, 1.0),
        ),
    )


def _given(value: T | None, rule: T) -> T:
    return rule if value is None else value
