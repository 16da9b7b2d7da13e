"""Rules that fill the settings left to them, once data set and backbone are known.

The values were chosen on ``scenes`` with seed 101, which no table reports; docs/results.md has the figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeVar

import msgspec

from fedmpt.config import Config
from fedmpt.engine.presets import preset
from fedmpt.methods.fedmpt import CONDITIONS, DEFAULT_CONDITIONS

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """What the settings left open become."""

    rounds: int
    batch_size: int
    lr: float
    optimizer: Literal["sgd", "adam"]
    adapter_rank: int
    adapter_down: Literal["trained", "text"]
    gate_rank: int


OPEN: Final = Rule(
    rounds=20,
    batch_size=32,
    lr=0.01,
    optimizer="adam",
    adapter_rank=32,
    adapter_down="trained",
    gate_rank=32,
)
# Noise grows with the square root of the number of tuned values and is the same however few steps share it out:
# few values, large batches, few rounds.
PRIVATE: Final = Rule(
    rounds=12,
    batch_size=128,
    lr=0.05,
    optimizer="sgd",
    adapter_rank=16,
    adapter_down="text",
    gate_rank=2,
)
MOMENTUM: Final = 0.9
WEIGHT_DECAY: Final = 0.0
CLIP: Final = 1.0  # the unit of clipped gradients; block weights decide what it means


def resolve(config: Config, *, data_name: str) -> Config:
    """Return ``config`` with the preset and then every rule applied; what was given stays as it is."""
    rule = PRIVATE if config.privacy.enabled else OPEN
    method, privacy = config.method.fedmpt, config.privacy
    train = preset(config.train, method=config.method.name, data_name=data_name)
    conditions = _given(method.conditions, CONDITIONS.get(data_name, DEFAULT_CONDITIONS))
    replace = msgspec.structs.replace
    return replace(
        config,
        method=replace(
            config.method,
            fedmpt=replace(
                method,
                conditions=conditions,
                adapter_rank=_given(method.adapter_rank, rule.adapter_rank),
                adapter_down=_given(method.adapter_down, rule.adapter_down),
                gate_rank=_given(method.gate_rank, rule.gate_rank),
            ),
        ),
        train=replace(
            train,
            rounds=_given(train.rounds, rule.rounds),
            batch_size=_given(train.batch_size, rule.batch_size),
            lr=_given(train.lr, rule.lr),
            optimizer=_given(train.optimizer, rule.optimizer),
            momentum=_given(train.momentum, MOMENTUM),
            weight_decay=_given(train.weight_decay, WEIGHT_DECAY),
        ),
        privacy=replace(privacy, clip=_given(privacy.clip, CLIP)),
    )


def _given(value: T | None, rule: T) -> T:
    return rule if value is None else value
