"""Methods by name, written out in one place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, TypeAlias

from fedmpt.clip.backbone import Backbone
from fedmpt.config import MethodConfig
from fedmpt.errors import UsageError
from fedmpt.methods.base import Method
from fedmpt.methods.coop import CoOpPrompts
from fedmpt.methods.dpfpl import FactoredPrompts
from fedmpt.methods.dualcoop import DualPrompts
from fedmpt.methods.fedmpt import FedMPT
from fedmpt.methods.fedmvp import FedMVP
from fedmpt.methods.fedmvp_reduced import ReducedFedMVP
from fedmpt.methods.fedpgp import PersonalPrompts
from fedmpt.methods.fedtpg import GeneratedPrompts
from fedmpt.methods.losses import weighted
from fedmpt.methods.maple import MaPLe
from fedmpt.methods.pooling import (
    PairHead,
    SinglePromptHead,
    head_scale,
    pooling_scale,
)
from fedmpt.methods.poscoop import PositivePrompts
from fedmpt.methods.ram import RAM
from fedmpt.methods.scpnet import GraphPrompts
from fedmpt.methods.scpnet_views import SCPNetViews
from fedmpt.methods.tcp import KnowledgePrompts
from fedmpt.methods.text_method import PromptEncoder, TextMethod
from fedmpt.methods.zero_shot import FrozenPrompts

Build: TypeAlias = Callable[[Backbone, tuple[str, ...], MethodConfig], Method]
MakeEncoder: TypeAlias = Callable[[Backbone, tuple[str, ...], MethodConfig], PromptEncoder]


def _fedmpt(backbone: Backbone, classes: tuple[str, ...], config: MethodConfig) -> Method:
    conditions = config.fedmpt.conditions
    if conditions is None:
        raise UsageError("method.fedmpt.conditions must be resolved before a method is built")
    return FedMPT(backbone, classes, config.fedmpt, conditions)


def _maple(backbone: Backbone, classes: tuple[str, ...], config: MethodConfig) -> Method:
    head = SinglePromptHead.of(backbone, classes, config.head)
    loss = weighted(config.loss, scale=head.scale)
    return MaPLe(backbone, classes, config.maple, head, loss)


def _ram(backbone: Backbone, classes: tuple[str, ...], config: MethodConfig) -> Method:
    loss = weighted(config.loss, scale=head_scale(backbone, config.head))
    return RAM(backbone, classes, config.ram, config.head, loss)


def _fedmvp(backbone: Backbone, classes: tuple[str, ...], config: MethodConfig) -> Method:
    head = SinglePromptHead.of(backbone, classes, config.head)
    loss = weighted(config.loss, scale=head.scale)
    kind = FedMVP if config.fedmvp.variant == "official" else ReducedFedMVP
    return kind(backbone, classes, config.fedmvp, head, loss)


def _graph_prompts(
    backbone: Backbone, classes: tuple[str, ...], config: MethodConfig
) -> PromptEncoder:
    return GraphPrompts(backbone, classes, config.scpnet)


def _scpnet(backbone: Backbone, classes: tuple[str, ...], config: MethodConfig) -> Method:
    if not config.scpnet.self_supervision:
        return _single(_graph_prompts)(backbone, classes, config)
    head = SinglePromptHead.of(backbone, classes, config.head)
    loss = weighted(config.loss, scale=head.scale)
    return SCPNetViews(backbone, classes, config.scpnet, head, loss)


def _single(make: MakeEncoder, *, aggregation: Literal["fedavg", "fedawa"] = "fedavg") -> Build:
    """Return the builder of a method with one text feature a class."""

    def build(backbone: Backbone, classes: tuple[str, ...], config: MethodConfig) -> Method:
        head = SinglePromptHead.of(backbone, classes, config.head)
        loss = weighted(config.loss, scale=head.scale)
        encoder = make(backbone, classes, config)
        return TextMethod(config.name, backbone, encoder, head, loss, aggregation=aggregation)

    return build


def _paired(make: MakeEncoder) -> Build:
    """Return the builder of a method with a positive and a negative text feature a class."""

    def build(backbone: Backbone, classes: tuple[str, ...], config: MethodConfig) -> Method:
        head = PairHead(pooling_scale(config.head))
        loss = weighted(config.loss, scale=head.scale)
        encoder = make(backbone, classes, config)
        return TextMethod(config.name, backbone, encoder, head, loss)

    return build


def _coop_prompts(
    backbone: Backbone, classes: tuple[str, ...], config: MethodConfig
) -> PromptEncoder:
    return CoOpPrompts(backbone, classes, config.coop)


METHODS: Final[dict[str, Build]] = {
    "fedmpt": _fedmpt,
    "dualcoop": _paired(lambda b, classes, config: DualPrompts(b, classes, config.dualcoop)),
    "poscoop": _paired(lambda b, classes, config: PositivePrompts(b, classes, config.poscoop)),
    "scpnet": _scpnet,
    "tcp": _single(lambda b, classes, config: KnowledgePrompts(b, classes, config.tcp)),
    "fedtpg": _single(lambda b, classes, config: GeneratedPrompts(b, classes, config.fedtpg)),
    "fedpgp": _single(lambda b, classes, config: PersonalPrompts(b, classes, config.fedpgp)),
    "dpfpl": _single(lambda b, classes, config: FactoredPrompts(b, classes, config.dpfpl)),
    "fedawa": _single(_coop_prompts, aggregation="fedawa"),
    "maple": _maple,
    "ram": _ram,
    "fedmvp": _fedmvp,
    "coop": _single(_coop_prompts),
    "promptfl": _single(_coop_prompts),
    "zero-shot": _single(lambda b, classes, config: FrozenPrompts(b, classes)),
}


_THROUGH_THE_TOWER: Final = frozenset({"maple", "ram", "fedmvp"})


def runs_image_tower(config: MethodConfig) -> bool:
    """Say, without building it, whether a method runs the image tower in training; such a run costs many times more."""
    return config.name in _THROUGH_THE_TOWER


def check_method(name: str) -> None:
    """Raise a `UsageError` unless there is a method of that name."""
    if name not in METHODS:
        raise UsageError(f"--method {name}: no such method; choose one of {', '.join(METHODS)}")


def build_method(backbone: Backbone, classes: tuple[str, ...], config: MethodConfig) -> Method:
    """Return the method ``config.name`` for a backbone and classes; settings must be resolved.

    Raises:
        UsageError: the name is unknown or a setting is missing or cannot be used.
    """
    check_method(config.name)
    return METHODS[config.name](backbone, classes, config)
