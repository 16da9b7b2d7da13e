"""The frozen image tower run block by block, for methods that put learnt tokens into it.

Images come as the pixels of their patches, so that a row of a feature bank and a row of pixels look alike.

Dimensions: ``B`` images, ``M`` patches, ``V`` width of the tower, ``D`` joint width, ``L`` tokens, ``H`` heads,
``Q`` values of a patch (3 colours of p x p pixels), ``k`` learnt tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedmpt.clip.blocks import finish, join_heads, project
from fedmpt.clip.text import normalise
from fedmpt.errors import WeightsError

if TYPE_CHECKING:
    from torch import nn


class ImageTower:
    """The image side of a CLIP with a vision transformer.

    Guarantee: ``features(run(embed(patchify(x))))`` equals the tower's own result for its class token and patches, up
    to float32 rounding; everything is differentiable and may be mapped by ``torch.func.vmap``.

    Attributes:
        blocks: the residual attention blocks.
        width: width ``V`` of a token.
        grid: patches down and across.
        patch_values: values ``Q`` of a patch.
    """

    def __init__(self, visual: nn.Module) -> None:
        """Take the image side of an open_clip model.

        Raises:
            WeightsError: the tower pools by attention or by the mean, or has other blocks than CLIP's.
        """
        parts: Any = visual
        blocks = list(parts.transformer.resblocks)
        plain = all(type(block).__name__ == "ResidualAttentionBlock" for block in blocks)
        if not plain or parts.attn_pool is not None or parts.pool_type != "tok":
            raise WeightsError(
                "the image tower is not CLIP's own (class token, plain attention blocks), which this method changes; "
                "choose another --backbone or a method that leaves the image tower alone"
            )
        self.blocks: list[Any] = blocks
        self._parts = parts
        kernel = parts.conv1.weight.detach()  # [V, 3, p, p]
        self._kernel = kernel.flatten(1)  # [V, Q]
        self._side = int(kernel.shape[-1])
        self.width = int(kernel.shape[0])
        self.grid = (int(parts.grid_size[0]), int(parts.grid_size[1]))
        self.patch_values = int(self._kernel.shape[1])

    def patchify(self, images: Tensor) -> Tensor:
        """Cut images ``[B, 3, height, width]`` into patches: ``[B, M, Q]``."""
        rows, columns = self.grid
        cut = images.reshape(len(images), 3, rows, self._side, columns, self._side)
        return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def mirror(self, pixels: Tensor) -> Tensor:
        """Return the patches ``[B, M, Q]`` of the images' mirror images."""
        cut = pixels.reshape(len(pixels), *self.grid, 3, self._side, self._side)
        return cut.flip(2, 5).reshape(pixels.shape)

    def embed(self, pixels: Tensor) -> Tensor:
        """Return class token and patch tokens with positions: ``[B, M, Q]`` -> ``[B, 1 + M, V]``."""
        patches = pixels @ self._kernel.T
        first = self._parts.class_embedding.expand(len(pixels), 1, -1)
        tokens: Tensor = torch.cat([first, patches], dim=1) + self._parts.positional_embedding
        return tokens

    def enter(self, tokens: Tensor) -> Tensor:
        """Apply the normalisation before the first block: ``[B, L, V]`` -> the same."""
        entered: Tensor = self._parts.ln_pre(tokens)
        return entered

    def run(self, tokens: Tensor) -> Tensor:
        """Run all blocks on tokens that have entered."""
        for block in self.blocks:
            tokens, _ = run_block(block, tokens)
        return tokens

    def features(self, tokens: Tensor) -> Tensor:
        """Return features in the joint space, of unit length: ``[B, L, V]`` -> ``[B, L, D]``."""
        final = self._parts.ln_post(tokens)
        projection = self._parts.proj
        return normalise(final if projection is None else final @ projection)


def run_block(block: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Run one block; return its output ``[B, L, V]`` and its values ``[B, H, L, E]``."""
    query, key, value = project(block, tokens)
    weights = (query @ key.mT).softmax(-1)  # [B, H, L, L]
    return finish(block, tokens, join_heads(weights @ value)), value


def value_attention(block: Any, value: Tensor) -> Tensor:
    """Let values attend to values, through the block's output map: ``[B, H, L, E]`` -> ``[B, L, V]``."""
    weights = (value @ value.mT * value.shape[-1] ** -0.5).softmax(-1)
    mixed: Tensor = block.ls_1(block.attn.out_proj(join_heads(weights @ value)))
    return mixed
