"""The card of a run's tuned model."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from typing import Any

from fedmpt.engine.prepare import Federation
from fedmpt.inference.card import (
    BackboneCard,
    Card,
    PrivacyCard,
    TunedTensors,
    shapes,
)
from privacy import display_epsilon


def run_card(
    federation: Federation, summary: dict[str, Any], tensors: TunedTensors, data: bytes
) -> Card:
    """Return the card of a finished run.

    Args:
        federation: the run.
        summary: its ``summary.json``.
        tensors: the tuned model.
        data: the contents of ``model.safetensors``.
    """
    config, backbone = federation.config, federation.backbone
    figures = {"tuned": "final", "tuned_shared": "final_shared"}
    figures |= {name: name for name in ("zero_shot", "zero_shot_class_token")}
    return Card(
        schema="fedmpt.model/1",
        fedmpt=version("fedmpt"),
        method=config.method,
        classes=federation.dataset.classes,
        conditions=config.method.fedmpt.conditions or () if config.method.name == "fedmpt" else (),
        data=federation.dataset.name,
        seed=config.seed,
        rounds=summary["rounds"],
        clients=summary["clients"],
        secure_aggregation=config.secagg.mode,
        backbone=BackboneCard(
            name=config.backbone.name,
            pretrained=config.backbone.pretrained,
            fingerprint=backbone.fingerprint,
            preprocessing=backbone.preprocessing,
        ),
        parameters=shapes(tensors.parameters),
        constants=shapes(tensors.constants),
        model_sha256=hashlib.sha256(data).hexdigest(),
        metrics={name: summary[key] for name, key in figures.items() if summary[key] is not None},
        privacy=_privacy(summary["privacy"], tuned=bool(tensors.parameters)),
        compatibility=summary["compatibility"],
    )


def _privacy(account: dict[str, Any], *, tuned: bool) -> PrivacyCard:
    unit = account["unit"]
    if not tuned:
        guarantee = "nothing was tuned, so nothing of any image is in this model"
        return PrivacyCard(enabled=False, guarantee=guarantee, unit=unit)
    clients = {str(client["client"]): float(client["epsilon"]) for client in account["clients"]}
    if not account["enabled"] or not clients:
        guarantee = (
            "none: the run had no differential privacy; the model may reveal training images"
        )
        return PrivacyCard(enabled=False, guarantee=guarantee, unit=unit)
    largest = max(clients.values())
    return PrivacyCard(
        enabled=True,
        guarantee=(
            f"differential privacy of {account['protected']}, against {account['against']}: epsilon "
            f"{display_epsilon(largest)} at delta {account['delta']:g} in this run, for adding or removing one {unit}"
        ),
        unit=unit,
        delta=float(account["delta"]),
        largest_epsilon=largest,
        epsilon=clients,
    )
