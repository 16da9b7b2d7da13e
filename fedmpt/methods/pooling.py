"""Scores of methods that compare patches with text features directly: similarities pooled over patches.

Dimensions: ``B`` images, ``M`` patches, ``C`` classes, ``D`` width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedmpt.clip.backbone import Backbone
from fedmpt.config import HeadConfig
from fedmpt.methods.prompts import START_PHRASE, frozen_features

POOLING_SCALE: Final = 20.0  # DualCoOp's temperature of the softmax over patches
_MADE_UP: Final = 16  # images
_COLOUR_GRID: Final = (4, 4)  # random colours of an image, blended to its size
_MADE_UP_SIZE: Final = (224, 224)  # pixels
HEAD_TEMPERATURE: Final = 4.0  # FedMPT's tau; at CLIP's own scale sigmoids of patches saturate
PAIR_TEMPERATURE: Final = (
    5.0  # DualCoOp's difference of a pair: the maps' scale in the maps, 5 behind
)

Head: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # (text, patches) -> probabilities [B, C]


def pooling_weights(cosines: Tensor, scale: float = POOLING_SCALE) -> Tensor:
    """Return weights over patches that grow with the cosine, columns summing to 1: ``[B, M, C]``.

    Source: DualCoOp, arXiv 2206.09541, section 3.2.
    """
    return (scale * cosines).softmax(dim=-2)


def pooled_similarity(patches: Tensor, text: Tensor, scale: float = POOLING_SCALE) -> Tensor:
    """Return cosines averaged over patches with weights that grow with the cosine.

    Args:
        patches: ``[B, M, D]`` of unit length.
        text: ``[C, D]`` of unit length.
        scale: of the softmax over patches.

    Returns:
        ``[B, C]``, in [-1, 1].
    """
    cosines = patches @ text.T  # [B, M, C]
    return (pooling_weights(cosines, scale) * cosines).sum(dim=1)


@dataclass(frozen=True, slots=True)
class SinglePromptHead:
    """Probabilities from one text feature a class.

    CLIP's cosines share a part that says nothing of classes; unless it is taken off, a sigmoid at scale 100 is near 1
    (or 0) for every class and nothing learns. What is taken off may depend on public values or on the example alone.

    Attributes:
        scale: multiplier of similarities.
        pooling: of the softmax over patches.
        offset: ``public``: one constant, how similar a made-up image is to the class nearest to it; ``image-mean``: the
            mean over the scored classes of the same image; ``anchor``: patch by patch, the cosine to a sentence without
            a class; ``none``.
        constant: the constant of ``public``.
        anchor: text feature ``[D]`` of the sentence of ``anchor``.
    """

    scale: float
    pooling: float
    offset: str
    constant: float
    anchor: Tensor

    @classmethod
    def of(
        cls, backbone: Backbone, classes: tuple[str, ...], config: HeadConfig
    ) -> SinglePromptHead:
        """Return the head that the configuration describes."""
        (anchor,) = backbone.encode_sentences([START_PHRASE.removesuffix(" of a") + "."])
        pooling = pooling_scale(config)
        constant = 0.0
        if config.offset == "public":
            constant = public_similarity(backbone, classes, pooling)
        return cls(head_scale(backbone, config), pooling, config.offset, constant, anchor)

    def __call__(self, text: Tensor, patches: Tensor) -> Tensor:
        """Return ``[B, C]`` for text ``[C, D]`` and patches ``[B, M, D]``."""
        return torch.sigmoid(self.logits(text, patches))

    def logits(self, text: Tensor, patches: Tensor) -> Tensor:
        """Return the probabilities' log-odds ``[B, C]``."""
        cosines = patches @ text.T  # [B, M, C]
        if self.offset == "anchor":
            cosines = cosines - (patches @ self.anchor).unsqueeze(-1)
        similarity = (pooling_weights(cosines, self.pooling) * cosines).sum(dim=1)  # [B, C]
        if self.offset == "image-mean":
            similarity = similarity - similarity.mean(dim=-1, keepdim=True)
        return self.scale * (similarity - self.constant)


def pooling_scale(config: HeadConfig) -> float:
    """Return the scale of the softmax over patches: by configuration, which rules have filled, else DualCoOp's."""
    return config.pooling or POOLING_SCALE


def head_scale(backbone: Backbone, config: HeadConfig) -> float:
    """Return the multiplier of similarities: by configuration, else CLIP's over the temperature of FedMPT's softmax.

    It is raised or lowered as that of pooling is, like FedMPT's own (`fedmpt.methods.cosine_scale`).
    """
    return config.scale or similarity_scale(backbone.logit_scale, pooling_scale(config)) / (
        HEAD_TEMPERATURE
    )


def similarity_scale(logit_scale: float, pooling: float) -> float:
    """Return a backbone's multiplier of cosines: its logit scale, raised or lowered as that of pooling is.

    Args:
        logit_scale: the backbone's own, about 100.
        pooling: what `fedmpt.methods.cosine_scale.cosine_scale` says of the backbone.
    """
    return logit_scale * (pooling / POOLING_SCALE)


def made_up_images() -> list[Image.Image]:
    """Return images of smooth random colours, always the same: something public to look at."""
    random = np.random.default_rng(0)
    colours = random.integers(0, 256, (_MADE_UP, *_COLOUR_GRID, 3), dtype=np.uint8)
    return [
        Image.fromarray(grid).resize(_MADE_UP_SIZE, Image.Resampling.BICUBIC) for grid in colours
    ]


def public_similarity(backbone: Backbone, classes: tuple[str, ...], pooling: float) -> float:
    """Return how similar a made-up image is to the nearest class: pooled, by frozen CLIP, a mean over the images.

    They show nothing, so a class is present from there on. A function of the frozen model and the class names alone, so
    it costs no privacy.
    """
    patches, _ = backbone.encode_images(made_up_images())
    return nearest_class(pooled_similarity(patches, frozen_features(backbone, classes), pooling))


def nearest_class(similarities: Tensor) -> float:
    """Return the mean over images of the largest similarity to a class, from ``[B, C]``."""
    return float(similarities.amax(dim=-1).mean())


@dataclass(frozen=True, slots=True)
class PairHead:
    """Probabilities from a positive and a negative text feature a class.

    The positive map's weights pool both maps; what all cosines of an image have in common cancels.

    Attributes:
        pooling: scale of the softmax over patches.

    Source: DualCoOp, arXiv 2206.09541, section 3.2-3.3.
    """

    pooling: float

    @property
    def scale(self) -> float:
        """The multiplier of the difference of a pair, 100 at DualCoOp's pooling."""
        return PAIR_TEMPERATURE * self.pooling

    def __call__(self, text: Tensor, patches: Tensor) -> Tensor:
        """Return ``[B, C]`` for text ``[2 C, D]``, positives first, and patches ``[B, M, D]``; of unit length."""
        positive, negative = (patches @ text.T).chunk(2, dim=-1)  # each [B, M, C]
        weights = pooling_weights(positive, self.pooling)
        return torch.sigmoid(self.scale * (weights * (positive - negative)).sum(dim=1))


def offset_probabilities(similarity: Tensor, *, scale: float) -> Tensor:
    """Return ``sigmoid(scale * (s - mean of s))``, one mean over all images and classes: ``[n, C]`` -> ``[n, C]``.

    One common offset uses no label and leaves every ranking as it is; a mean for each image would not.
    """
    return torch.sigmoid(scale * (similarity - similarity.mean()))
