"""How far a private step moves a block: rates for backbones whose gradients are of another size, and for local blocks.

Without privacy Adam takes steps of a chosen length, whatever the size of gradients. Under it SGD does not: clipping and
noise are in units of each block's typical gradient norm (`fedmpt.engine.probes`), and the rate turns them back into raw
ones. Rates were chosen on one backbone. Where gradients are 30 times larger, so is each step, and its noise alone
ruins in one round what the frozen model knew. The rule: a step is as long as where the rate was chosen.

Public, like the probes: a function of the frozen model, the public start and the class names.
"""

from __future__ import annotations

from typing import Final

import msgspec

from fedmpt.config import Config
from fedmpt.engine.probes import typical_norms
from fedmpt.methods.base import Method, Parameters
from privacy import DPSpace

# Typical gradient norms of FedMPT's blocks with the bundled backbone and the classes of `scenes`.
USUAL_NORMS: Final = {
    "condition_tokens": 0.06,
    "class_tokens": 0.04,
    "adapter_common": 1.0,
    "adapter_core": 0.8,
    "gate_down": 0.0023,
    "gate_up": 0.0026,
}
# Norms within this factor are taken for the usual ones: class lists and seeds change them by less.
SAME: Final = 4.0


# Adam takes full steps out of noise alone. Averaging over clients cancels most of that, but not in a block that stays
# on its client. Chosen with FedPGP at epsilon 8 and four clients, 10 rounds, seed 101: mAP 17 at 1, 46 at 0.3, and 49,
# the frozen model's, at 0.1.
LOCAL_RATE: Final = 0.1


def hold_back_local(
    config: Config, method: Method, parameters: Parameters, *, given: frozenset[str]
) -> Config:
    """Return ``config`` with lower private rates of blocks that stay on a client beside others that are averaged.

    Args:
        config: the resolved configuration.
        method: the method.
        parameters: its starting parameters.
        given: blocks whose multiplier the user set; they keep it.
    """
    train, local = config.train, set(method.local_blocks)
    if not config.privacy.enabled or train.lr_unit != "block" or not set(parameters) - local:
        return config
    rates = dict(train.lr_multipliers)
    for name in sorted(local - given):
        rates[name] = LOCAL_RATE * rates.get(name, 1.0)
    replace = msgspec.structs.replace
    return replace(config, train=replace(train, lr_multipliers=rates))


def match_steps(
    config: Config, method: Method, parameters: Parameters, *, given: frozenset[str]
) -> Config:
    """Return ``config`` with lower rates of the blocks whose private steps would be longer than usual.

    A block's rate is divided by how many times its gradients exceed the usual ones, a prompt's twice by that: the
    encoder that makes its gradient steep makes text features move as much further with every step.

    Args:
        config: the resolved configuration.
        method: the method.
        parameters: its starting parameters.
        given: blocks whose multiplier the user set; they keep it.
    """
    train = config.train
    if not config.privacy.enabled or train.optimizer != "sgd":
        return config
    if config.method.name != "fedmpt" or train.preset is not None:
        return config
    norms = typical_norms(method, parameters, space=DPSpace.PROMPT)
    rates = dict(train.lr_multipliers)
    for name, usual in USUAL_NORMS.items():
        excess = norms.get(name, 0.0) / usual
        if name not in given and excess > SAME:
            power = 2 if name in method.prompt_blocks else 1
            rates[name] = rates.get(name, 1.0) / excess**power
    replace = msgspec.structs.replace
    return replace(config, train=replace(train, lr_multipliers=rates))


# Images of all clients together from which on the rule's rate of shared noise is taken whole. It was chosen with 6,000;
# on 563 photographs it ended at mAP 24 where the frozen model has 37, 0.3 of it at 34 and a tenth at 38, while on
# 2,000 images of `scenes` the whole rate, 0.6 and 0.4 of it were alike.
MANY_IMAGES: Final = 5000


def slow_few(config: Config, *, declared: int, asked: bool) -> Config:
    """Return ``config`` with a lower rate where clients that share their noise have few images together.

    Adam takes steps of full length out of whatever gradient it is given, so few images go astray as far as many.

    Args:
        config: the resolved configuration.
        declared: images that all clients declare together.
        asked: whether the user or a preset set the rate; it then stays.
    """
    train = config.train
    if asked or train.lr is None or not (config.privacy.enabled and config.privacy.one_step_rounds):
        return config
    rate = train.lr * min(1.0, declared / MANY_IMAGES)
    return msgspec.structs.replace(config, train=msgspec.structs.replace(train, lr=rate))
