"""DP-FPL: a context that clients share plus one of each client's own, which learns through a low-rank factorisation.

In every step the own context is split anew into ``left right + residual``, of which the factors alone have gradients;
what they say of the whole is put together as the released code does. Published with noise on the factors' gradients and
on the shared context's, clipped as means over batches, which bounds no example's part. Here examples are clipped one by
one and noised where the plan says, as for every method; the factorisation, made of released values, comes after.

Source: DP-FPL, ICLR 2025 (arXiv 2501.13904); factors as in Yu et al. 2021 (arXiv 2106.09352).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedmpt.clip.backbone import Backbone
from fedmpt.config import DPFPLConfig
from fedmpt.methods.base import Parameters
from fedmpt.methods.prompts import encode_context, fresh_tokens, start_tokens
from fedmpt.methods.text_method import PromptEncoder


class FactoredPrompts(PromptEncoder):
    """The prompt ``[shared + own] {class}.``.

    Blocks: ``shared`` ``[k, W]``; each client's ``own`` ``[k, W]``. With the own block at zero the prompt is the shared
    one.
    """

    local_blocks = ("own",)

    def __init__(self, backbone: Backbone, classes: tuple[str, ...], settings: DPFPLConfig) -> None:
        self.classes = classes
        self._backbone = backbone
        self._settings = settings
        self._suffixes = backbone.text.suffixes(classes)

    def initial(self, random: torch.Generator) -> Parameters:
        """Return fresh contexts, the same for all clients."""
        settings = self._settings
        return {
            "shared": start_tokens(self._backbone, random, settings.tokens, settings.start),
            "own": fresh_tokens(random, settings.tokens, self._backbone.text.width),
        }

    def encode(self, parameters: Parameters) -> Tensor:
        """Return text features ``[C, D]`` of the client's prompt."""
        own = learning_through_factors(parameters["own"], self._settings.rank)
        return encode_context(self._backbone, self._suffixes, parameters["shared"] + own)

    def for_classes(self, classes: tuple[str, ...]) -> FactoredPrompts:
        """Return the encoder for other classes."""
        return FactoredPrompts(self._backbone, classes, self._settings)


def learning_through_factors(context: Tensor, rank: int) -> Tensor:
    """Return ``context`` ``[k, W]`` with the gradient that factors of rank ``rank`` would give it.

    With ``U`` ``[k, r]`` and ``V`` ``[r, W]`` the first singular vectors of the context, a gradient ``g`` becomes
    ``g V'V + U U'g + U U'g V'V``: of the factors ``g V'`` and ``U'g``, put together as in the released code. (Yu et al.
    take the last term off, where it makes the sum a projection.)
    """
    with torch.no_grad():
        left, _, right = torch.linalg.svd(context, full_matrices=False)
        left, right = left[:, :rank], right[:rank]  # U, V
    in_rows = context @ right.mT @ right
    in_columns = left @ (left.mT @ context)
    # A symmetric map: what it does to values here, it does to gradients on the way back.
    through = in_rows + in_columns + left @ (left.mT @ in_rows)
    result: Tensor = context.detach() + (through - through.detach())
    return result
