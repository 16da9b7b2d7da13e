"""A tuned model, ready to score images: the one way from pixels to scores outside of training.

Dimensions: ``B`` images, ``N`` conditions, ``M`` patches, ``C`` classes.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fedmpt.clip.backbone import Backbone, load_backbone
from fedmpt.errors import UsageError, WeightsError
from fedmpt.inference.card import Card, TunedTensors, fitting_parameters, read_model
from fedmpt.methods.base import Method, Parameters
from fedmpt.methods.fedmpt import FedMPT
from fedmpt.methods.registry import build_method

DEFAULT_THRESHOLD = 0.5


class TunedModel:
    """A method with tuned parameters on its backbone, for one list of classes.

    Attributes:
        card: what the model says of itself.
        backbone: the frozen CLIP.
        method: the method for `classes`.
        parameters: its tuned parameters.
        classes: what is scored, in the order of scores.
    """

    def __init__(
        self, card: Card, backbone: Backbone, method: Method, parameters: Parameters
    ) -> None:
        self.card = card
        self.backbone = backbone
        self.method = method
        self.parameters = parameters
        self.classes = method.classes
        with torch.no_grad():
            self._text = method.encode_text(parameters)

    def for_classes(self, classes: tuple[str, ...]) -> TunedModel:
        """Return the model for other classes, seen in training or not.

        Raises:
            UsageError: the method has no prompts for other classes, or needs more classes.
        """
        if classes == self.classes:
            return self
        return TunedModel(
            self.card, self.backbone, self.method.for_classes(classes), self.parameters
        )

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The score of each class above which it is present: tuned ones for the classes they were tuned for."""
        tuned = self.card.thresholds
        if tuned is not None and self.classes == self.card.classes:
            return tuple(tuned.values)
        return (DEFAULT_THRESHOLD,) * len(self.classes)

    @torch.no_grad()
    def inputs(self, pixels: Tensor) -> Tensor:
        """Return what the method takes of preprocessed images ``[B, 3, height, width]``: ``[B, M, .]``.

        Features of the frozen tower, or what a method that changes the tower prepares of pixels.
        """
        if self.method.pixel_shape:
            patches = self.backbone.image_tower.patchify(pixels).to(self.backbone.device)
            return self.method.prepare_images(patches)
        patches, _ = self.backbone.encode_pixels(pixels)
        return patches

    @torch.no_grad()
    def score(self, inputs: Tensor) -> Tensor:
        """Return probabilities ``[B, C]`` for `inputs`."""
        return self.method.score(self.parameters, self._text, inputs)

    @property
    def conditions(self) -> tuple[str, ...]:
        """The conditions between which a gate chooses; empty for methods without."""
        return self.method.conditions if isinstance(self.method, FedMPT) else ()

    @torch.no_grad()
    def gate_weights(self, inputs: Tensor) -> Tensor:
        """Return the weight of each condition for each image, rows summing to 1: ``[B, N]``."""
        return self._fedmpt().gate_weights(self.parameters, inputs)

    @torch.no_grad()
    def evidence(self, inputs: Tensor) -> Tensor:
        """Return what each patch adds to the prediction of each class under each condition: ``[B, N, M, C]``."""
        return self._fedmpt().evidence(self.parameters, self._text, inputs)

    def _fedmpt(self) -> FedMPT:
        if not isinstance(self.method, FedMPT):
            raise UsageError(
                f"region maps and conditions are FedMPT's: a model of {self.method.name} has none"
            )
        return self.method


def load_tuned(
    folder: Path,
    *,
    device: str = "cpu",
    backbone: str | None = None,
    pretrained: str | None = None,
    local: Path | None = None,
) -> TunedModel:
    """Load the tuned model of a run folder or a bundle, for the classes it was tuned on.

    Args:
        folder: a run folder or a bundle.
        device: ``cpu`` or ``cuda``.
        backbone: where the backbone lies here, if not under the name it had; the fingerprint decides.
        pretrained: its weights, likewise.
        local: file of a client's own blocks, for methods where clients keep some; None for the shared part alone.

    Raises:
        UsageError: the folder cannot be used.
        WeightsError: the backbone cannot be had, or is not the one that the model was tuned on.
    """
    card, tensors = read_model(folder)
    frozen = open_backbone(card, device=device, backbone=backbone, pretrained=pretrained)
    return assemble(card, tensors, frozen, local=local)


def open_backbone(
    card: Card, *, device: str, backbone: str | None, pretrained: str | None
) -> Backbone:
    """Load the backbone of a card and require its fingerprint; arguments as for `load_tuned`."""
    wanted = card.backbone
    name = backbone or wanted.name
    weights = pretrained or (wanted.pretrained if backbone is None else None)
    try:
        found = load_backbone(name, pretrained=weights, device=device)
    except WeightsError as error:
        if backbone is not None or pretrained is not None:
            raise
        raise WeightsError(
            f"{error}. The model was tuned on this backbone: if it lies elsewhere here, say where with --backbone "
            "and --pretrained"
        ) from error
    if found.fingerprint != wanted.fingerprint:
        raise WeightsError(
            f"backbone {found.name} has fingerprint {found.fingerprint}, the model was tuned on {wanted.name} with "
            f"fingerprint {wanted.fingerprint}: weights or preprocessing differ and scores would mean nothing; give "
            "the right one with --backbone and --pretrained"
        )
    return found


def assemble(
    card: Card, tensors: TunedTensors, backbone: Backbone, *, local: Path | None = None
) -> TunedModel:
    """Put a tuned model together on a backbone that has the card's fingerprint.

    Raises:
        UsageError: the tensors are not those of the card's method, or ``local`` does not fit.
    """
    method = build_method(backbone, card.classes, card.method)
    method = method.with_constants(_moved(tensors.constants, backbone))
    parameters = _moved(fitting_parameters(method, tensors, local), backbone)
    return TunedModel(card, backbone, method, parameters)


def _moved(tensors: Parameters, backbone: Backbone) -> Parameters:
    return {name: value.to(backbone.device) for name, value in tensors.items()}
