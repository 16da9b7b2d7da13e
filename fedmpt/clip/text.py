"""Encoding many prompts that share a beginning, through a frozen causal text tower.

CLIP's text tower is causal: what stands before the class name does not see the class name, so the start token, learnt
tokens and condition words are run once per prefix and their keys and values serve all classes. Tokens processed fall
from ``N * C * (P + S)`` to ``N * P + N * C * S``, exactly, and the sentence stops at its end token.

Dimensions: ``N`` prefixes, ``C`` classes, ``P`` prefix tokens, ``S`` suffix tokens, ``W`` text width, ``H`` heads,
``E`` = W / H, ``D`` width of the joint space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from fedmpt.errors import UsageError, WeightsError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True, slots=True)
class Suffixes:
    """The class-specific ends of prompts: class name, full stop, end token.

    Attributes:
        embeddings: float32 ``[C, S, W]``, without positions; padding behind the end token is arbitrary.
        end: int64 ``[C]``, index of the end token, at which the feature is read.
    """

    embeddings: Tensor
    end: Tensor


class TextTower:
    """The frozen text side of a CLIP, with prefixes shared over classes.

    Guarantee: ``encode(prefixes, suffixes)`` equals the tower's own encoding of each whole sentence up to float32
    rounding, and is differentiable in the prefixes.

    Attributes:
        start: embedding of the start token, float32 ``[1, W]``.
    """

    def __init__(self, model: nn.Module, tokenizer: Callable[[list[str]], Tensor]) -> None:
        """Take the text side out of an open_clip model.

        Args:
            model: a ``CLIP`` or ``CustomTextCLIP`` of open_clip in evaluation mode.
            tokenizer: its tokenizer: list of n strings -> int64 ``[n, context]``.

        Raises:
            WeightsError: the tower is not causal, has extra class tokens, does not pool at the end token, or consists
                of other blocks than CLIP's; sharing a prefix would then change the result.
        """
        parts: Any = model.text if hasattr(model, "text") else model
        pool = getattr(parts, "text_pool_type", getattr(parts, "pool_type", None))
        blocks = getattr(getattr(parts, "transformer", None), "resblocks", None)
        if blocks is None or pool not in ("argmax", "eos"):
            raise WeightsError(
                f"text tower {type(parts).__name__} with pooling {pool!r}: prompts are tuned "
                "on causal CLIP text towers that read the feature at the end token; choose another --backbone"
            )
        if getattr(parts, "attn_mask", None) is None or getattr(parts, "cls_emb", None) is not None:
            raise WeightsError(
                "the text tower is not causal or appends a class token; choose another --backbone"
            )
        if any(type(block).__name__ != "ResidualAttentionBlock" for block in blocks):
            raise WeightsError(
                "the text tower has non-standard attention blocks; choose another --backbone"
            )
        self._blocks: list[Any] = list(blocks)
        self._ln_final = parts.ln_final
        self._projection = parts.text_projection
        self._embedding: Tensor = parts.token_embedding.weight.detach()
        self._positions: Tensor = parts.positional_embedding.detach()
        self._tokenizer = tokenizer
        start = tokenizer([""])[0, :1].to(self.device)
        self.start: Tensor = self._embedding[start]

    @property
    def width(self) -> int:
        """Width ``W`` of a token embedding."""
        return int(self._embedding.shape[1])

    @property
    def context_length(self) -> int:
        """Longest sentence in tokens, start and end token included."""
        return int(self._positions.shape[0])

    @property
    def device(self) -> torch.device:
        """Where the tower lives."""
        return self._embedding.device

    def words(self, text: str) -> Tensor:
        """Return the embeddings of the tokens of ``text``, without start and end token: float32 ``[k, W]``."""
        ids = self._tokenizer([text])[0]
        end = int(ids.argmax())
        return self._embedding[ids[1:end].to(self.device)]

    def suffixes(self, classes: Sequence[str]) -> Suffixes:
        """Return the embedded ends "{class}." of prompts for ``classes``, truncated to the longest of them."""
        ids = self._tokenizer([f"{name.replace('_', ' ')}." for name in classes])
        end = ids.argmax(dim=1) - 1
        ids = ids[:, 1 : int(end.max()) + 2].to(self.device)
        return Suffixes(embeddings=self._embedding[ids], end=end.to(self.device))

    def encode(self, prefixes: Sequence[Tensor], suffixes: Suffixes) -> Tensor:
        """Encode every prefix with every suffix.

        Args:
            prefixes: N tensors float32 ``[P_n, W]``, start token included, without positions. Lengths may differ.
            suffixes: the ends, from `suffixes`.

        Returns:
            float32 ``[N, C, D]``, not normalised.

        Raises:
            UsageError: a sentence is longer than the tower's context.
        """
        longest = max(len(prefix) for prefix in prefixes) + suffixes.embeddings.shape[1]
        if longest > self.context_length:
            raise UsageError(
                f"a prompt of {longest} tokens: this text tower takes {self.context_length}; use fewer learnt tokens "
                "or shorter class names"
            )
        features: list[Tensor | None] = [None] * len(prefixes)
        for length in sorted({len(prefix) for prefix in prefixes}):
            members = [index for index, prefix in enumerate(prefixes) if len(prefix) == length]
            encoded = self._encode_group(
                torch.stack([prefixes[index] for index in members]), suffixes
            )
            for row, index in enumerate(members):
                features[index] = encoded[row]
        return torch.stack([feature for feature in features if feature is not None])

    def _encode_group(self, prefixes: Tensor, suffixes: Suffixes) -> Tensor:
        """Encode prefixes of one length: ``[G, P, W]`` -> ``[G, C, D]``."""
        groups, prefix_length, width = prefixes.shape
        count, suffix_length, _ = suffixes.embeddings.shape
        positions = self._positions
        head = prefixes + positions[:prefix_length]  # [G, P, W]
        tail = suffixes.embeddings + positions[prefix_length : prefix_length + suffix_length]
        tail = tail.expand(groups, count, suffix_length, width)  # [G, C, S, W]
        head_mask = _causal(prefix_length, head.device)
        tail_mask = _causal(suffix_length, head.device)
        last = len(self._blocks) - 1
        for index, block in enumerate(self._blocks):
            heads = block.attn.num_heads
            query, key, value = _project(block, head, heads)  # each [G, H, P, E]
            if index < last:  # nobody reads the prefix's own output of the last block
                weights = (query @ key.transpose(-1, -2) + head_mask).softmax(-1)  # [G, H, P, P]
                head = _finish(block, head, (weights @ value).transpose(-2, -3).flatten(-2))
            tail = self._tail_block(block, tail, key, value, tail_mask)
        ends = suffixes.end.view(1, count, 1, 1).expand(groups, count, 1, width)
        pooled = self._ln_final(tail.gather(2, ends).squeeze(2))  # [G, C, W]
        if isinstance(self._projection, torch.nn.Linear):
            return self._projection(pooled)  # type: ignore[no-any-return]
        return pooled @ self._projection  # type: ignore[no-any-return]

    @staticmethod
    def _tail_block(block: Any, tail: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """Run one block on the suffixes, against the prefix's keys and values: ``[G, C, S, W]`` -> the same."""
        prefix_length = key.shape[-2]
        query, own_key, own_value = _project(
            block, tail, block.attn.num_heads
        )  # each [G, C, H, S, E]
        scores = torch.cat(
            [
                query @ key.unsqueeze(1).transpose(-1, -2),  # [G, C, H, S, P]
                query @ own_key.transpose(-1, -2) + mask,  # [G, C, H, S, S]
            ],
            dim=-1,
        )
        weights = scores.softmax(-1)
        mixed = weights[..., :prefix_length] @ value.unsqueeze(1)
        mixed = mixed + weights[..., prefix_length:] @ own_value  # [G, C, H, S, E]
        return _finish(block, tail, mixed.transpose(-2, -3).flatten(-2))


def normalise(features: Tensor) -> Tensor:
    """Return features of unit Euclidean length over their last axis."""
    return functional.normalize(features, dim=-1)


def _causal(length: int, device: torch.device) -> Tensor:
    """Additive causal mask ``[length, length]``."""
    return torch.full((length, length), float("-inf"), device=device).triu(1)


def _project(block: Any, x: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries (scaled), keys and values of a block: ``[..., L, W]`` -> three ``[..., H, L, E]``."""
    packed = functional.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias)
    query, key, value = (
        part.reshape(*part.shape[:-1], heads, -1).transpose(-2, -3)
        for part in packed.chunk(3, dim=-1)
    )
    return query * query.shape[-1] ** -0.5, key, value


def _finish(block: Any, x: Tensor, attended: Tensor) -> Tensor:
    """Apply what follows attention in a block: output projection, residuals and feed-forward."""
    x = x + block.ls_1(block.attn.out_proj(attended))
    x = x + block.ls_2(block.mlp(block.ln_2(x)))
    return x
