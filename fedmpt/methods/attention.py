"""Attention blocks with weights in named parameters, for methods that train such blocks.

Dimensions: ``Q`` queries, ``K`` context vectors, ``W`` width of queries, ``X`` width of context; ``...`` leading axes.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from fedmpt.clip.blocks import join_heads, split_heads
from fedmpt.methods.base import Parameters
from fedmpt.methods.prompts import fresh_linear, linear

FEED_FORWARD_FACTOR: Final = 8  # width of a gated feed-forward: half of it is the gate


def fresh_norm(name: str, width: int) -> Parameters:
    """Return a layer normalisation that scales by 1 and shifts by 0."""
    return {f"{name}_weight": torch.ones(width), f"{name}_bias": torch.zeros(width)}


def norm(parameters: Parameters, name: str, x: Tensor) -> Tensor:
    """Apply the layer normalisation ``name`` over the last axis."""
    return functional.layer_norm(
        x, x.shape[-1:], parameters[f"{name}_weight"], parameters[f"{name}_bias"]
    )


def fresh_attention(
    random: torch.Generator, name: str, width: int, context_width: int
) -> Parameters:
    """Return maps of queries, keys, values and output, all with biases."""
    return {
        **fresh_linear(random, f"{name}_query", width, width),
        **fresh_linear(random, f"{name}_key", context_width, width),
        **fresh_linear(random, f"{name}_value", context_width, width),
        **fresh_linear(random, f"{name}_out", width, width),
    }


def attention(
    parameters: Parameters, name: str, query: Tensor, key: Tensor, value: Tensor, *, heads: int
) -> Tensor:
    """Apply multi-head attention: queries ``[..., Q, W]``, keys and values ``[..., K, X]`` -> ``[..., Q, W]``."""
    q = split_heads(linear(parameters, f"{name}_query", query), heads)
    k = split_heads(linear(parameters, f"{name}_key", key), heads)
    v = split_heads(linear(parameters, f"{name}_value", value), heads)
    weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)
    return linear(parameters, f"{name}_out", join_heads(weights @ v))


def fresh_cross_block(random: torch.Generator, width: int, context_width: int) -> Parameters:
    """Return the parameters of `cross_block`."""
    inner = FEED_FORWARD_FACTOR * width
    return {
        **fresh_norm("query_norm", width),
        **fresh_norm("context_norm", context_width),
        **fresh_attention(random, "attention", width, context_width),
        **fresh_norm("feed_norm", width),
        **fresh_linear(random, "feed_in", width, inner),
        **fresh_linear(random, "feed_out", inner // 2, width),
    }


def fresh_low_rank(random: torch.Generator, name: str, width: int, rank: int) -> Parameters:
    """Return a residual of low rank that adds nothing: ``NAME_down`` ``[rank, width]`` and ``NAME_up`` (0)."""
    bound = 1 / math.sqrt(width)
    down = bound * (2 * torch.rand(rank, width, generator=random) - 1)
    return {f"{name}_down": down, f"{name}_up": torch.zeros(width, rank)}


def low_rank(parameters: Parameters, name: str, x: Tensor) -> Tensor:
    """Add the residual ``name``, where the parameters have it, to ``[..., width]``."""
    if f"{name}_down" not in parameters:
        return x
    return x + x @ parameters[f"{name}_down"].T @ parameters[f"{name}_up"].T


def cross_block(
    parameters: Parameters, query: Tensor, context: Tensor, *, heads: int, norm_values: bool
) -> Tensor:
    """Let queries read a context: attention without a residual, then a gated feed-forward with one.

    Args:
        parameters: from `fresh_cross_block`, and residuals ``query_adapter``, ``key_adapter`` and ``value_adapter`` of
            what attention takes in, where they are there.
        query: ``[..., Q, W]``.
        context: ``[..., K, X]``.
        heads: attention heads.
        norm_values: whether values are normalised as keys are.

    Returns:
        ``[..., Q, W]``.
    """
    key = norm(parameters, "context_norm", context)
    value = key if norm_values else context
    x = norm(parameters, "query_norm", query)
    x = attention(
        parameters,
        "attention",
        low_rank(parameters, "query_adapter", x),
        low_rank(parameters, "key_adapter", key),
        low_rank(parameters, "value_adapter", value),
        heads=heads,
    )
    inner, gate = linear(parameters, "feed_in", norm(parameters, "feed_norm", x)).chunk(2, dim=-1)
    return x + linear(parameters, "feed_out", inner * functional.gelu(gate))
