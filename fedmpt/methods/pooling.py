"""Scores of single-prompt methods: similarities pooled over patches.

Dimensions: ``B`` images, ``M`` patches, ``C`` classes, ``D`` width.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

POOLING_SCALE: Final = 20.0  # DualCoOp's temperature of the softmax over patches


def pooled_similarity(patches: Tensor, text: Tensor) -> Tensor:
    """Return cosines averaged over patches with weights that grow with the cosine.

    Args:
        patches: ``[B, M, D]`` of unit length.
        text: ``[C, D]`` of unit length.

    Returns:
        ``[B, C]``, in [-1, 1].

    Source: DualCoOp, arXiv 2206.09541, section 3.2.
    """
    cosines = patches @ text.T  # [B, M, C]
    return ((POOLING_SCALE * cosines).softmax(dim=1) * cosines).sum(dim=1)


def offset_probabilities(similarity: Tensor, *, scale: float) -> Tensor:
    """Return ``sigmoid(scale * (s - mean of s))``, one mean over all images and classes: ``[n, C]`` -> ``[n, C]``.

    CLIP's cosines are all positive, so a plain sigmoid at scale 100 is 1 for every class. One common offset uses no
    label and leaves every ranking as it is; a mean for each image would not, and would make the frozen model look worse
    than it is.
    """
    return torch.sigmoid(scale * (similarity - similarity.mean()))
