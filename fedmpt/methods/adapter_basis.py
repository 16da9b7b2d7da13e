"""Fixed projections of FedMPT's adapters, made from class names: public, so they cost no privacy and need no training.

An adapter adds ``f W_down K W_out`` to a patch feature f; only the core K is tuned. Three facts about CLIP features
decide the projections; docs/results.md has what each is worth:

- Text features have a long common part. Moving patches along it changes no class probability, which are taken over
  classes, but all transport marginals: a direction without gradient in which noise does harm. Nothing points there.
- Along the directions in which class texts differ, logits are many times steeper than across. A step that is
  safe there is far too short elsewhere, so these directions are shrunk.
- Across, an adapter only lengthens a patch: it makes it less certain. From a core of zero this has no gradient, so
  the core starts at a random value there.

A fourth fact decides how the cores of several conditions are tuned: what all conditions would add alike grows fastest
and helps least. It is a block of its own, with a lower rate (`to_blocks`).

Dimensions: ``C`` classes, ``D`` width, ``R`` rank, ``O`` output directions, ``N`` conditions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from scipy.linalg import helmert
from torch import Tensor

from fedmpt.methods.base import Parameters

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


def to_blocks(cores: Tensor) -> Parameters:
    """Return the cores of all conditions as the blocks that are tuned, in coordinates turned among conditions.

    Args:
        cores: ``[N, R, O]``.

    Returns:
        ``adapter_common`` ``[R, O]``, the mean core times the root of N, and ``adapter_core`` ``[N - 1, R, O]``,
        Helmert contrasts: how conditions differ. The turn is orthonormal: lengths are those of the cores, and noise
        that is alike in all coordinates stays so. With one condition ``adapter_core`` ``[1, R, O]`` is its core.
    """
    if len(cores) == 1:
        return {"adapter_core": cores}
    turned = torch.tensordot(_turn(cores), cores, dims=1)
    return {"adapter_common": turned[0], "adapter_core": turned[1:]}


def to_cores(blocks: Parameters) -> Tensor:
    """Return the cores ``[N, R, O]`` that blocks stand for: the inverse of `to_blocks`."""
    if "adapter_common" not in blocks:
        return blocks["adapter_core"]
    turned = torch.cat([blocks["adapter_common"].unsqueeze(0), blocks["adapter_core"]])
    cores: Tensor = torch.tensordot(_turn(turned).T, turned, dims=1)
    return cores


def _turn(cores: Tensor) -> Tensor:
    """Return the orthonormal ``[N, N]`` whose first row is a mean, times the root of N, and the others contrasts."""
    turn: Tensor = torch.from_numpy(helmert(len(cores), full=True)).to(cores)
    return turn


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
