"""FedMVP: image patches read descriptions of the classes, and what they gather enters the image tower as tokens.

Descriptions of classes go through frozen CLIP once; clients tune the network between them and the patches.

Dimensions: ``B`` images, ``M`` patches, ``C`` classes, ``A`` descriptions in all, ``D`` joint and ``V`` image width.

Source: FedMVP, ICCV 2025, section 3.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from fedmpt.config import FedMVPConfig
from fedmpt.errors import UsageError
from fedmpt.methods.attention import cross_block, fresh_cross_block
from fedmpt.methods.base import Parameters
from fedmpt.methods.image_method import ImageMethod
from fedmpt.methods.pooling import Head
from fedmpt.methods.prompts import fresh_linear, linear

_HEADS: Final = 4
_CONSISTENCY: Final = 10 / 32  # ten times the mean over a batch of 32, as a weight of each example
_GENERAL: Final = (  # where no descriptions are given
    "a photo of a {}.",
    "a photo of a {}, seen as a whole.",
    "a photo of a {}, seen in part.",
    "a photo of a {} among other things.",
)


class FedMVP(ImageMethod[FedMVPConfig, Head]):
    """The published design, for one backbone and one list of classes.

    Blocks: the map ``context`` D -> V and those of a cross-attention block of width V.
    """

    name = "fedmvp"
    prompt_blocks = ("context_weight", "context_bias")

    def _set_up(self) -> None:
        settings, backbone = self._settings, self._backbone
        self._heads = settings.heads or _HEADS
        if self._tower.width % self._heads or backbone.patches % settings.image_tokens:
            raise UsageError(
                f"method.fedmvp: {self._heads} heads must divide the image tower's width {self._tower.width}, and "
                f"{settings.image_tokens} image_tokens its {backbone.patches} patches"
            )
        weight = settings.consistency_weight
        self._consistency = _CONSISTENCY if weight is None else weight
        sentences = descriptions(self.classes, settings.descriptors)
        encoded = backbone.encode_sentences([one for many in sentences for one in many])
        self._described = encoded  # [A, D]
        groups = torch.split(encoded, [len(many) for many in sentences])
        self._class_means = torch.stack([group.mean(dim=0) for group in groups])  # [C, D]

    def _initial(self, random: torch.Generator) -> Parameters:
        V = self._tower.width
        return {
            **fresh_linear(random, "context", self._backbone.width, V),
            **fresh_cross_block(random, V, V),
        }

    def encode_text(self, parameters: Parameters) -> Tensor:
        """Return the descriptions in the image tower's width: ``[A, V]``."""
        return linear(parameters, "context", self._described)

    def score(self, parameters: Parameters, text: Tensor, patches: Tensor) -> Tensor:
        """Return probabilities ``[B, C]`` from pixels ``[B, M, Q]``."""
        return self._head(self._class_means, self._prompted(parameters, text, patches)[:, 1:])

    def example_losses(
        self, parameters: Parameters, text: Tensor, patches: Tensor, labels: Tensor
    ) -> Tensor:
        """Return loss plus distance of the class token from frozen CLIP's on the mirror image: ``[B]``."""
        features = self._prompted(parameters, text, patches)
        scores = self._head(self._class_means, features[:, 1:])
        tower = self._tower
        with torch.no_grad():
            mirrored = tower.run(tower.enter(tower.embed(tower.mirror(patches))))
            frozen = tower.features(mirrored[:, :1])
        distance = 1 - (features[:, 0] * frozen[:, 0]).sum(dim=-1)
        return self.loss(scores, labels) + self._consistency * distance

    def _prompted(self, parameters: Parameters, text: Tensor, pixels: Tensor) -> Tensor:
        """Return features of class token and patches with the visual prompt in place: ``[B, 1 + M, D]``."""
        tower = self._tower
        tokens = tower.embed(pixels)  # [B, 1 + M, V]
        read = cross_block(parameters, tokens[:, 1:], text, heads=self._heads, norm_values=False)
        groups = read.reshape(len(read), self._settings.image_tokens, -1, tower.width)
        prompted = tower.enter(torch.cat([tokens, groups.mean(dim=2)], dim=1))
        return tower.features(tower.run(prompted)[:, : tokens.shape[1]])


def descriptions(classes: tuple[str, ...], file: str | None) -> list[list[str]]:
    """Return the sentences that describe every class.

    Args:
        classes: class names.
        file: JSON object from class to a list of sentences; None for a few general templates.

    Raises:
        UsageError: the file cannot be read, or lacks sentences for a class.
    """
    if file is None:
        return [[template.format(name) for template in _GENERAL] for name in classes]
    try:
        given = json.loads(Path(file).read_text(encoding="utf-8"))
        sentences = [[str(one) for one in given[name]] for name in classes]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"method.fedmvp.descriptors={file}: {type(error).__name__} ({error}); "
            "give a JSON object from every class to a list of sentences"
        ) from error
    if not all(sentences):
        raise UsageError(f"method.fedmvp.descriptors={file}: a class has no sentence")
    return sentences
