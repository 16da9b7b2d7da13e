"""How far apart a backbone's cosines lie, as the scale that its softmaxes are to be sharpened by.

Published scales belong to the cosines they were chosen on. How far cosines of patches and texts spread differs between
CLIPs by factors, at the same logit scale: that one is trained on class tokens. A softmax over patches at DualCoOp's 20
is nearly a plain mean on one backbone and well chosen on another. The rule: the scale is one over the spread, so that
what enters a softmax spreads by about one, on every backbone.

The spread is that of made-up images and public words. It depends on the frozen model alone, on no label and no image of
anybody, so it costs no privacy and holds for any list of classes.
"""

from __future__ import annotations

import math
from typing import Final

import torch

from fedmpt.clip.backbone import Backbone
from fedmpt.data.class_names import VOC_CLASSES
from fedmpt.methods.pooling import made_up_images
from fedmpt.methods.prompts import frozen_features

# A made-up image tells a scale to a factor of about 1.5, and figures hardly change within one; a coarse series says so,
# and does not move with rounding errors.
SERIES: Final = (5.0, 10.0, 20.0, 50.0, 100.0, 200.0)


@torch.no_grad()
def cosine_scale(backbone: Backbone) -> float:
    """Return the number of `SERIES` nearest to one over the standard deviation of the backbone's cosines."""
    patches, _ = backbone.encode_images(made_up_images())
    return nearest_of_series(1 / float((patches @ frozen_features(backbone, VOC_CLASSES).T).std()))


def nearest_of_series(scale: float) -> float:
    """Return the number of `SERIES` with the smallest ratio to ``scale``, which is above 0."""
    return min(SERIES, key=lambda known: abs(math.log(known / scale)))
