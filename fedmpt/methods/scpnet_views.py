"""SCPNet with its self-supervision: what it is sure of in an image shall hold in a strongly changed view of it.

The views are functions of the image alone, and a class counts as sure by a fixed bound, where the original draws views
at random and adapts a bound to each class over batches: each example's loss is its own, so that it can be clipped under
privacy, and the frozen tower sees both views of an image once.

Dimensions: ``B`` images, ``M`` patches, ``C`` classes, ``D`` joint width.

Source: SCPNet, CVPR 2023, section 3.3.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from fedmpt.config import SCPNetConfig
from fedmpt.methods.base import Parameters
from fedmpt.methods.image_method import ImageMethod, pack, unpack
from fedmpt.methods.losses import PROBABILITY_FLOOR
from fedmpt.methods.pooling import Head
from fedmpt.methods.scpnet import GraphPrompts

_SURE: Final = 0.95
_MOST: Final = {
    20: 5,
    80: 2,
    81: 6,
}  # sure classes of an image, by number of classes: VOC, COCO, NUS
_OTHER_MOST: Final = 0.25  # of the classes, for other numbers
_VOC: Final = 20
_CUT: Final = 0.5  # side of what is cut out, as a share of the image's


class SCPNetViews(ImageMethod[SCPNetConfig, Head]):
    """The method for one backbone and one list of classes; blocks as in `GraphPrompts`."""

    name = "scpnet"
    examples_per_chunk = 64  # no tower runs
    prepared_as = "features of patches, as it is and in the strong view"

    def _set_up(self) -> None:
        self._prompts = GraphPrompts(self._backbone, self.classes, self._settings)
        self.prompt_blocks = tuple(self._prompts.initial(torch.Generator()))
        count = len(self.classes)
        self._most = min(count, _MOST.get(count, max(1, round(_OTHER_MOST * count))))
        weight = self._settings.relation_weight
        self._relation_weight = (2.0 if count == _VOC else 1.0) if weight is None else weight

    def _initial(self, random: torch.Generator) -> Parameters:
        return self._prompts.initial(random)

    def prepare_images(self, pixels: Tensor) -> Tensor:
        """Return frozen features of patches, as they are and in the strong view: ``[B, 2 M, D]``."""
        return pack(self._features(pixels), self._features(self.strong_view(pixels)))

    def encode_text(self, parameters: Parameters) -> Tensor:
        """Return text features ``[C, D]``."""
        return self._prompts.encode(parameters)

    def score(self, parameters: Parameters, text: Tensor, patches: Tensor) -> Tensor:
        """Return probabilities ``[B, C]`` from prepared images: of the image as it is."""
        del parameters
        return self._head(text, self._views(patches)[0])

    def example_losses(
        self, parameters: Parameters, text: Tensor, patches: Tensor, labels: Tensor
    ) -> Tensor:
        """Return the loss of the image as it is, plus what its strong view contradicts: ``[B]``."""
        del parameters
        weak, strong = (self._head(text, view) for view in self._views(patches))
        given = weak.detach()
        likeliest = torch.zeros_like(given).scatter(-1, given.topk(self._most, dim=-1).indices, 1.0)
        sure = likeliest * (given >= _SURE)
        related = given @ self._prompts.relations.T
        against = -(sure * _log(strong)).sum(dim=-1)
        apart = -(related * _log(strong) + (1 - related) * _log(1 - strong)).sum(dim=-1)
        weight = self._settings.supervision_weight * (self._loss.weight or 1.0)
        return self.loss(weak, labels) + weight * (against + self._relation_weight * apart)

    def strong_view(self, pixels: Tensor) -> Tensor:
        """Return the patches ``[B, M, Q]`` of the mirror image without colours, its middle cut out."""
        rows, columns = self._tower.grid
        mirrored = self._tower.mirror(pixels)
        colours = mirrored.reshape(*mirrored.shape[:-1], 3, -1)  # [B, M, 3, pixels of a patch]
        grey = colours.mean(dim=-2, keepdim=True).expand_as(colours).flatten(-2)
        inside = _middle(rows).unsqueeze(1) & _middle(columns)
        return torch.where(inside.flatten().unsqueeze(-1).to(grey.device), 0.0, grey)

    def _views(self, prepared: Tensor) -> list[Tensor]:
        """Return the features of patches in both views, ``[B, M, D]`` each."""
        shape = (self._backbone.patches, self._backbone.width)
        return unpack(prepared, shape, shape)

    def _features(self, pixels: Tensor) -> Tensor:
        """Return frozen CLIP's features of patches: ``[B, M, D]``."""
        tower = self._tower
        return tower.features(tower.run(tower.enter(tower.embed(pixels)))[:, 1:])


def _middle(length: int) -> Tensor:
    """Return bool ``[length]``, true in the middle half."""
    place = (torch.arange(length) + 0.5) / length
    return (place - 0.5).abs() < _CUT / 2


def _log(probabilities: Tensor) -> Tensor:
    return probabilities.clamp(PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR).log()
