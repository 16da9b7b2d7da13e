"""Methods by name, written out in one place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from fedmpt.clip.backbone import Backbone
from fedmpt.config import MethodConfig
from fedmpt.errors import UsageError
from fedmpt.methods.base import Method
from fedmpt.methods.fedmpt import FedMPT

Build: TypeAlias = Callable[[Backbone, tuple[str, ...], MethodConfig], Method]


def _fedmpt(backbone: Backbone, classes: tuple[str, ...], config: MethodConfig) -> Method:
    conditions = config.fedmpt.conditions
    if conditions is None:
        raise UsageError("method.fedmpt.conditions must be resolved before a method is built")
    return FedMPT(backbone, classes, config.fedmpt, conditions)


METHODS: Final[dict[str, Build]] = {"fedmpt": _fedmpt}


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
