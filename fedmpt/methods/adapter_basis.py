"""Fixed projections of FedMPT's adapters, made from class names: public, so they cost no privacy and need no training.

An adapter adds ``f W_down K W_out`` to a patch feature f; only the core K is tuned. Three facts about CLIP features
decide the projections; docs/results.md has what each is worth:

- Text features have a long common part. Moving patches along it changes no class probability, which are taken over
  classes, but all transport marginals: a direction without gradient in which noise does harm. Nothing points there.
- Along the directions in which class texts differ, logits are many times steeper than across. A step that is
  safe there is far too short elsewhere, so these directions are shrunk.
- Across, an adapter only lengthens a patch: it makes it less certain. From a core of zero this has no gradient, so
  the core starts at a random value there.

Dimensions: ``C`` classes, ``D`` width, ``R`` rank, ``O`` output directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

UNIT: Final = 10.0  # length of an output direction; keeps the core's own values near 0.1, as secure sums clip at 1
TEXT_GAIN: Final = 0.3  # length, in that unit, of output directions along which class texts differ
FREE_DIRECTIONS: Final = 16  # output directions across those
FREE_LENGTH: Final = 3.0  # of what the start adds across, in units of the projected patch
_SEED: Final = 0  # of the directions that class names leave open; public


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterBasis:
    """The projections, and how many of the output directions are text directions.

    Attributes:
        down: float32 ``[D, R]``, orthonormal columns.
        out: float32 ``[O, D]``, orthogonal rows: ``text_count`` of length ``UNIT * TEXT_GAIN``, then others of `UNIT`.
        text_count: how many.
    """

    down: Tensor
    out: Tensor
    text_count: int

    def start(self, conditions: int, random: torch.Generator) -> Tensor:
        """Return a core ``[N, R, O]``, on the CPU: zero towards text directions, random across them."""
        rank, directions = self.down.shape[1], self.out.shape[0]
        core = torch.randn(conditions, rank, directions, generator=random)
        core *= FREE_LENGTH / UNIT / max(1, directions - self.text_count) ** 0.5
        core[:, :, : self.text_count] = 0.0
        return core


def adapter_basis(text: Tensor, rank: int) -> AdapterBasis:
    """Return the projections for the frozen text features of the classes.

    Both take the leading ``min(rank, C - 1)`` directions in which class texts differ, orthogonal to their mean; the
    output gets `FREE_DIRECTIONS` more across them, drawn from a public seed.

    Args:
        text: float32 ``[C, D]``, C > 1.
        rank: wanted rank; R is smaller where there are fewer classes.

    Source: the idea of a fixed down-projection is FFA-LoRA's, arXiv 2403.12313; theirs is random.
    """
    width = text.shape[1]
    common = text.double().mean(dim=0).cpu()  # [D]
    common = common / common.norm()
    centred = text.double().cpu() - text.double().cpu().mean(dim=0)
    centred = centred - torch.outer(centred @ common, common)
    count = min(rank, len(text) - 1, width - 1)
    directions = torch.linalg.svd(centred, full_matrices=False)[2][:count]  # [count, D]
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    directions = directions * largest.sign()  # the sign of a singular vector is arbitrary
    random = torch.Generator().manual_seed(_SEED)
    free = min(FREE_DIRECTIONS, width - 1 - count)
    filling = torch.randn(free, width, generator=random, dtype=torch.float64)
    frame = torch.linalg.qr(torch.cat([common[None], directions, filling]).T)[0].T
    out = UNIT * torch.cat([TEXT_GAIN * directions, frame[1 + count :]])  # [count + free, D]
    return AdapterBasis(
        down=directions.T.float().contiguous().to(text.device),
        out=out.float().contiguous().to(text.device),
        text_count=count,
    )
