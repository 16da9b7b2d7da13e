"""Methods that change the image tower: they train through it, a few examples at a time.

What no training changes of an image is computed once, by `prepare_images`, and kept: all pieces of it in one array.

Dimensions: ``B`` images, ``M`` patches, ``C`` classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from fedmpt.clip.backbone import Backbone
from fedmpt.config import LossConfig
from fedmpt.methods.base import Method, Parameters
from fedmpt.methods.losses import configured_loss
from fedmpt.methods.prompts import drawn

SettingsT = TypeVar("SettingsT")
HeadT = TypeVar("HeadT")


class ImageMethod(Method, Generic[SettingsT, HeadT]):
    """What such methods have in common: one constructor, a seeded start, the asymmetric loss."""

    examples_per_chunk = 4
    pixel_shape: tuple[int, int]  # never None

    def __init__(
        self,
        backbone: Backbone,
        classes: tuple[str, ...],
        settings: SettingsT,
        head: HeadT,
        loss: LossConfig,
    ) -> None:
        """Fix what no training changes.

        Args:
            backbone: the frozen CLIP.
            classes: the scored classes, in label order.
            settings: of the method.
            head: how similarities become probabilities.
            loss: the loss.

        Raises:
            UsageError: the settings do not fit the backbone or the classes.
        """
        self.classes = classes
        self._backbone = backbone
        self._tower = backbone.image_tower
        self.pixel_shape = (backbone.patches, self._tower.patch_values)
        self._settings = settings
        self._head = head
        self._loss = loss
        self._set_up()

    @abstractmethod
    def _set_up(self) -> None:
        """Fix the rest, the method's own, from what the constructor was given."""

    @abstractmethod
    def _initial(self, random: torch.Generator) -> Parameters:
        """Return the tunable tensors at the start, on the CPU."""

    def initial_parameters(self, seed: int) -> Parameters:
        """Return the starting parameters of the experiment seed ``seed``."""
        return drawn(self._backbone, seed, self._initial)

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return the asymmetric loss of each example: ``[B]``."""
        return configured_loss(scores, labels, self._loss)

    def for_classes(self, classes: tuple[str, ...]) -> Self:
        """Return the method for other classes."""
        return type(self)(self._backbone, classes, self._settings, self._head, self._loss)


def pack(*pieces: Tensor) -> Tensor:
    """Return pieces ``[B, rows, width]``, each of its own size, as one array, padded to the widest."""
    widest = max(piece.shape[-1] for piece in pieces)
    return torch.cat([functional.pad(one, (0, widest - one.shape[-1])) for one in pieces], dim=1)


def unpack(packed: Tensor, *shapes: Sequence[int]) -> list[Tensor]:
    """Return the pieces that `pack` was given, by their ``(rows, width)``."""
    pieces = torch.split(packed, [rows for rows, _ in shapes], dim=1)
    return [piece[..., :width] for piece, (_, width) in zip(pieces, shapes, strict=True)]
