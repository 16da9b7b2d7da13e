"""SCPNet: text features spread over a graph of similar labels by a small graph network.

The graph comes from CLIP's text features of the class names alone, so every client has the same and nothing of
anybody's labels is in it. Self-supervision between views of an image needs live images: `fedmpt.methods.scpnet_views`.

Source: SCPNet, CVPR 2023, section 3.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from fedmpt.clip.backbone import Backbone
from fedmpt.clip.text import normalise
from fedmpt.config import SCPNetConfig
from fedmpt.methods.base import Parameters
from fedmpt.methods.prompts import encode_context, frozen_features, start_tokens
from fedmpt.methods.text_method import PromptEncoder

_SLOPE: Final = 0.2  # of the leaky rectifier
_NEIGHBOURS: Final = {20: 20, 80: 62, 81: 50}  # by number of classes: VOC, COCO, NUS
_NEIGHBOUR_SHARE: Final = 0.75  # of the classes, for other numbers
_RELATION_TEMPERATURE: Final = {20: 0.3}  # by number of classes: VOC
_OTHER_TEMPERATURE: Final = 0.2


class GraphPrompts(PromptEncoder):
    """``[context] {class}.`` followed by three graph layers, added to what went in.

    Blocks: ``context`` ``[k, W]``, ``graph_1`` ``[D, 2 D]``, ``graph_2`` ``[2 D, 2 D]``, ``graph_3`` ``[2 D, D]``.
    """

    def __init__(
        self, backbone: Backbone, classes: tuple[str, ...], settings: SCPNetConfig
    ) -> None:
        self.classes = classes
        self._backbone = backbone
        self._settings = settings
        self._suffixes = backbone.text.suffixes(classes)
        self._graph = propagation_matrix(
            frozen_features(backbone, classes),
            neighbours=settings.neighbours
            or _NEIGHBOURS.get(len(classes), round(_NEIGHBOUR_SHARE * len(classes))),
            share=settings.neighbour_share,
        )
        temperature = _RELATION_TEMPERATURE.get(len(classes), _OTHER_TEMPERATURE)
        self.relations = relation_matrix(self._graph, temperature=temperature)  # [C, C]

    def initial(self, random: torch.Generator) -> Parameters:
        """Return "a photo of a" (or its end) and layers drawn uniformly within 1 / sqrt(fan-out)."""
        D = self._backbone.width
        values = {"context": start_tokens(self._backbone, random, self._settings.tokens, "phrase")}
        widths = (D, 2 * D, 2 * D, D)
        for layer in range(1, 4):
            shape, bound = widths[layer - 1 : layer + 1], 1 / math.sqrt(widths[layer])
            values[f"graph_{layer}"] = bound * (2 * torch.rand(shape, generator=random) - 1)
        return values

    def encode(self, parameters: Parameters) -> Tensor:
        """Return text features ``[C, D]``."""
        text = encode_context(self._backbone, self._suffixes, parameters["context"])
        spread = text
        for layer in (1, 2):
            spread = self._graph @ (spread @ parameters[f"graph_{layer}"])
            spread = functional.leaky_relu(spread, _SLOPE)
        return normalise(text + self._graph @ (spread @ parameters["graph_3"]))

    def for_classes(self, classes: tuple[str, ...]) -> GraphPrompts:
        """Return the encoder over the graph of other classes."""
        return GraphPrompts(self._backbone, classes, self._settings)


def relation_matrix(graph: Tensor, *, temperature: float) -> Tensor:
    """Return how much of each class's probability a class takes over: the softmax of a row's kept entries, ``[C, C]``.

    Args:
        graph: from `propagation_matrix`; entries that were not kept are 0.
        temperature: of the softmax.
    """
    return torch.where(graph > 0, graph / temperature, -math.inf).softmax(dim=1)


def propagation_matrix(features: Tensor, *, neighbours: int, share: float) -> Tensor:
    """Return the matrix that spreads features over similar classes.

    Args:
        features: ``[C, D]`` of unit length.
        neighbours: entries kept a row, the largest, the class itself among them.
        share: what the other kept classes get of a row.

    Returns:
        ``[C, C]`` with rows summing to 1 and diagonal ``1 - share``; the identity where a row keeps no other class.
    """
    similarity = features @ features.T
    kept = similarity.topk(min(neighbours, len(features)), dim=1).indices
    others = torch.zeros_like(similarity).scatter(1, kept, similarity.gather(1, kept).clamp(min=0))
    others.fill_diagonal_(0)
    totals = others.sum(dim=1, keepdim=True)
    spread = share * others / totals.clamp(min=torch.finfo(totals.dtype).tiny)
    return spread + torch.diag(1 - spread.sum(dim=1))
