"""Where in an image the score of a class comes from.

FedMPT's map is its own: what each patch adds to the prediction. Of other methods it is gradient times input: the
positive part, patch by patch, of the product of a patch and the gradient of "log-odds of the class less the mean
log-odds of all classes", for what all classes share says nothing of where one was seen. That is of no use for FedMPT:
where a patch shows a class beyond doubt, its softmax over classes has no gradient left.

Letters: ``B`` images, ``M`` patches, ``C`` classes.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from fedmpt.inference.model import TunedModel

_EDGE: Final = 1e-6  # probabilities are kept so far from 0 and 1 before log-odds


def gradient_maps(model: TunedModel, patches: Tensor, classes: Tensor) -> Tensor:
    """Return the map of one class an image, float32 ``[B, M]``, at least 0.

    Args:
        model: the tuned model.
        patches: of images, ``[B, M, .]``: features, or pixels for methods that prepare them.
        classes: int64 ``[B]``, the class of each image.
    """
    leaves, method = patches.detach().clone().requires_grad_(), model.method
    with torch.no_grad():
        text = method.encode_text(model.parameters)
    with torch.enable_grad():
        inputs = leaves if method.pixel_shape is None else method.prepare_images(leaves)
        odds = torch.logit(method.score(model.parameters, text, inputs), eps=_EDGE)  # [B, C]
        own = odds.gather(1, classes.unsqueeze(1)).squeeze(1)
        (gradient,) = torch.autograd.grad((own - odds.mean(dim=1)).sum(), leaves)
    return (gradient * leaves.detach()).sum(dim=-1).clamp(min=0)


def own_maps(model: TunedModel, inputs: Tensor, classes: Tensor) -> Tensor:
    """Return FedMPT's own map of one class an image, conditions mixed by the gate: ``[B, M]``."""
    evidence = model.evidence(inputs)  # [B, N, M, C]
    mixed = (model.gate_weights(inputs)[:, :, None, None] * evidence).sum(dim=1)  # [B, M, C]
    return mixed.gather(2, classes[:, None, None].expand(-1, mixed.shape[1], 1)).squeeze(2)
