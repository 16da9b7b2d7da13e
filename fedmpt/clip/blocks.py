"""The parts of CLIP's residual attention blocks, for running a frozen tower block by block.

Dimensions: ``L`` tokens, ``W`` width of the tower, ``H`` heads, ``E`` = W / H; ``...`` any leading axes.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional


def project(block: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries (scaled), keys and values of a block: ``[..., L, W]`` -> three ``[..., H, L, E]``."""
    heads = block.attn.num_heads
    packed = functional.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias)
    query, key, value = (split_heads(part, heads) for part in packed.chunk(3, dim=-1))
    return query * query.shape[-1] ** -0.5, key, value


def project_queries(block: Any, x: Tensor) -> Tensor:
    """Return the queries of `project` alone."""
    attention, width = block.attn, x.shape[-1]
    weight, bias = attention.in_proj_weight[:width], attention.in_proj_bias[:width]
    query: Tensor = functional.linear(block.ln_1(x), weight, bias)
    query = split_heads(query, attention.num_heads)
    scale: float = query.shape[-1] ** -0.5
    return query * scale


def project_keys(block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the keys and values of `project` alone."""
    attention, width = block.attn, x.shape[-1]
    weight, bias = attention.in_proj_weight[width:], attention.in_proj_bias[width:]
    packed = functional.linear(block.ln_1(x), weight, bias)
    key, value = (split_heads(part, attention.num_heads) for part in packed.chunk(2, dim=-1))
    return key, value


def finish(block: Any, x: Tensor, attended: Tensor) -> Tensor:
    """Apply what follows attention in a block: output projection, residuals and feed-forward."""
    x = x + block.ls_1(block.attn.out_proj(attended))
    x = x + block.ls_2(block.mlp(block.ln_2(x)))
    return x


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Return ``[..., L, W]`` as ``[..., H, L, E]``."""
    return x.reshape(*x.shape[:-1], heads, -1).transpose(-2, -3)


def join_heads(x: Tensor) -> Tensor:
    """Return ``[..., H, L, E]`` as ``[..., L, W]``."""
    return x.transpose(-2, -3).flatten(-2)
