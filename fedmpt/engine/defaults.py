"""Rules that fill the settings left to them, once data set and backbone are known.

The values were chosen on ``scenes`` with seed 101, which no table reports; docs/results.md has the figures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeVar

import msgspec

from fedmpt.conditions.published import CONDITIONS, DEFAULT_CONDITIONS
from fedmpt.config import Config, FedMVPConfig, PrivacyConfig
from fedmpt.engine.presets import preset
from fedmpt.methods.fedmpt import TEMPERATURE, TRANSPORT_WEIGHT
from fedmpt.methods.fedmvp import BUNDLED_DESCRIPTORS
from fedmpt.methods.pooling import similarity_scale

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """What the settings left open become."""

    rounds: int
    batch_size: int
    lr: float
    optimizer: Literal["sgd", "adam"]
    adapter_rank: int
    adapter_projections: Literal["trained", "text"]
    gate_rank: int
    temperature: float
    transport_weight: float
    lr_multipliers: Mapping[str, float] = field(default_factory=dict)  # of FedMPT's blocks
    block_shares: Mapping[str, float] = field(default_factory=dict)  # likewise


OPEN: Final = Rule(
    rounds=20,
    batch_size=32,
    lr=0.01,
    optimizer="adam",
    adapter_rank=32,
    adapter_projections="trained",
    gate_rank=32,
    temperature=TEMPERATURE,
    transport_weight=TRANSPORT_WEIGHT,
)
# Adam's steps are as long as the rate says, however few images a gradient is the mean of. The error of a mean falls as
# the square root of their number grows; so the rate rises with it, up to the number that it was chosen with.
OPEN_IMAGES: Final = 6000  # of `scenes`
# Other methods, private or not: Adam, whose steps do not depend on how large a loss is, in units of what a block's
# values are at the start. One number serves tokens of size 0.02 and layers of size 1, where one rate for all does not.
BLOCK_RATE: Final = 0.1
# Noise grows with the square root of the number of tuned values, so they are few. Given that, more steps gain more
# than their share of the noise costs.
SMALL_SHARE: Final = 0.03  # of what least noise alone would give: what hardly helps shall not cost
PRIVATE: Final = Rule(
    rounds=20,
    batch_size=128,
    lr=0.05,
    optimizer="sgd",
    adapter_rank=32,
    adapter_projections="text",
    gate_rank=1,
    temperature=3.0,
    transport_weight=0.1,
    # Prompts alone gain nothing here and lose when they move far; the adapters' core, whose unit is ten, goes far. What
    # the cores of all conditions have in common would go farthest and help least.
    lr_multipliers={
        "adapter_common": 0.03,
        "adapter_core": 0.1,
        "condition_tokens": 0.03,
        "class_tokens": 0.03,
    },
    block_shares={
        "condition_tokens": SMALL_SHARE,
        "class_tokens": SMALL_SHARE,
        "text": SMALL_SHARE,
        "gate_down": SMALL_SHARE,
        "gate_up": SMALL_SHARE,
    },
)
# A round of shared noise is one step of the server for all clients together: many rounds, and Adam, whose steps find
# the directions that plain SGD is slow in. It makes steps of the same size out of noise alone, too, so what gains
# nothing here (gate and prompts) hardly moves, and what cores have in common moves less than how they differ.
SHARED: Final = replace(
    PRIVATE,
    rounds=150,
    lr=0.02,
    optimizer="adam",
    lr_multipliers={
        "adapter_common": 0.3,
        "condition_tokens": 0.0001,
        "class_tokens": 0.0001,
        "gate_down": 0.01,
        "gate_up": 0.01,
    },
)
MOMENTUM: Final = 0.9
WEIGHT_DECAY: Final = 0.0
FULL_RATE_EPSILON: Final = (
    4.0  # below, noise would carry a client's many local steps further than its images do
)
CLIP: Final = 1.0  # the unit of clipped gradients; block weights decide what it means


def resolve(config: Config, *, data_name: str, images: int = OPEN_IMAGES) -> Config:
    """Return ``config`` with the preset and then every rule applied; what was given stays as it is.

    Args:
        config: the configuration.
        data_name: of the data set.
        images: training images of all clients; used without privacy only.
    """
    rule = _rule(config.privacy)
    slower = _slower(config.privacy, images)
    method, privacy = config.method.fedmpt, config.privacy
    train = preset(config.train, method=config.method.name, data_name=data_name)
    conditions = _given(method.conditions, CONDITIONS.get(data_name, DEFAULT_CONDITIONS))
    ours = config.method.name == "fedmpt"
    multipliers = dict(rule.lr_multipliers) if ours and config.train.preset is None else {}
    shares = dict(rule.block_shares) if ours else {}
    optimizer = _given(train.optimizer, rule.optimizer if ours else "adam")
    by_block = not ours and config.train.preset is None and optimizer != "sgd"
    unit = _given(train.lr_unit, "block" if by_block else "one")
    changed = msgspec.structs.replace
    return changed(
        config,
        method=changed(
            config.method,
            fedmvp=_described(config, data_name),
            fedmpt=changed(
                method,
                conditions=conditions,
                adapter_rank=_given(method.adapter_rank, rule.adapter_rank),
                adapter_projections=_given(method.adapter_projections, rule.adapter_projections),
                gate_rank=_given(method.gate_rank, rule.gate_rank),
                temperature=_given(method.temperature, rule.temperature),
                transport_weight=_given(method.transport_weight, rule.transport_weight),
            ),
        ),
        train=changed(
            train,
            rounds=_given(train.rounds, rule.rounds),
            local_epochs=_given(train.local_epochs, 1),
            batch_size=_given(train.batch_size, rule.batch_size),
            lr=_given(train.lr, slower * (BLOCK_RATE if unit == "block" else rule.lr)),
            lr_unit=unit,
            optimizer=optimizer,
            momentum=_given(train.momentum, MOMENTUM),
            weight_decay=_given(train.weight_decay, WEIGHT_DECAY),
            lr_multipliers=multipliers | train.lr_multipliers,
        ),
        privacy=changed(
            privacy,
            clip=_given(privacy.clip, CLIP),
            block_shares=_given(privacy.block_shares, shares),
        ),
    )


def resolve_scale(config: Config, *, logit_scale: float, pooling: float) -> Config:
    """Return ``config`` with all multipliers of cosines by the backbone; one that was given stays as it is.

    The frozen model that every run is compared with has the head of the methods with one text a class.

    Args:
        config: the configuration.
        logit_scale: the backbone's own.
        pooling: what `fedmpt.methods.cosine_scale.cosine_scale` says of it.
    """
    changed, method = msgspec.structs.replace, config.method
    head = changed(method.head, pooling=_given(method.head.pooling, pooling))
    method = changed(method, head=head)
    if method.name == "fedmpt":
        scale = similarity_scale(logit_scale, pooling)
        own = changed(method.fedmpt, similarity_scale=_given(method.fedmpt.similarity_scale, scale))
        method = changed(method, fedmpt=own)
    return changed(config, method=method)


def _rule(privacy: PrivacyConfig) -> Rule:
    if not privacy.enabled:
        return OPEN
    return SHARED if privacy.one_step_rounds else PRIVATE


def _described(config: Config, data_name: str) -> FedMVPConfig:
    """Return FedMVP's settings with the descriptors bundled for the data set; the bundled CLIP lacks their words."""
    settings = config.method.fedmvp
    bundled = data_name if data_name in BUNDLED_DESCRIPTORS else None
    if settings.variant != "official" or config.backbone.name == "tiny":
        return settings
    return msgspec.structs.replace(settings, descriptors=_given(settings.descriptors, bundled))


def _slower(privacy: PrivacyConfig, images: int) -> float:
    """Return the factor, at most 1, of the rule's learning rate where gradients are noisier than it was chosen with."""
    if not privacy.enabled:
        return min(1.0, math.sqrt(images / OPEN_IMAGES))
    return min(1.0, privacy.epsilon / FULL_RATE_EPSILON) if privacy.noise == "local" else 1.0


def _given(value: T | None, rule: T) -> T:
    return rule if value is None else value
