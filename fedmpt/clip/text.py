"""Encoding many prompts that share a beginning, through a frozen causal text tower.

CLIP's text tower is causal: what stands before the class name does not see the class name, so the start token, learnt
tokens and condition words are run once per prefix and their keys and values serve all classes. Tokens processed fall
from ``N * C * (P + S)`` to ``N * P + N * C * S``, exactly, and the sentence stops at its end token.

Dimensions: ``N`` prefixes, ``C`` classes, ``P`` prefix tokens, ``S`` suffix tokens, ``W`` text width, ``H`` heads,
``E`` = W / H, ``D`` width of the joint space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from fedmpt.clip.blocks import finish, join_heads, project, project_keys, project_queries
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


@dataclass(frozen=True, kw_only=True, slots=True)
class DeepTokens:
    """Learnt tokens that enter a prefix behind its start token, before one block of the tower.

    Attributes:
        tokens: float32 ``[k, W]``, or ``[C, k, W]`` for tokens of each class. From the first block with tokens of each
            class on, nothing is shared over classes any more.
        extra: whether they are additional and gone after that block; otherwise they take the place of the k tokens
            behind the start token and stay.
    """

    tokens: Tensor
    extra: bool = False

    def enter(self, head: Tensor) -> Tensor:
        """Put the tokens into ``[G, 1 or C, P, W]``."""
        tokens = self.tokens if self.tokens.dim() == 3 else self.tokens.unsqueeze(0)
        classes = max(head.shape[1], tokens.shape[0])
        head = head.expand(-1, classes, -1, -1)
        tokens = tokens.expand(len(head), classes, -1, -1)  # [G, 1 or C, k, W]
        behind = 1 if self.extra else 1 + tokens.shape[-2]
        return torch.cat([head[..., :1, :], tokens, head[..., behind:, :]], dim=-2)

    def leave(self, head: Tensor) -> Tensor:
        """Take additional tokens out again."""
        if not self.extra:
            return head
        return torch.cat([head[..., :1, :], head[..., 1 + self.tokens.shape[-2] :, :]], dim=-2)


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
    def layers(self) -> int:
        """Number of blocks."""
        return len(self._blocks)

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

    def encode(
        self,
        prefixes: Sequence[Tensor],
        suffixes: Suffixes,
        deep: Mapping[int, DeepTokens] | None = None,
    ) -> Tensor:
        """Encode every prefix with every suffix.

        Args:
            prefixes: N tensors float32 ``[P_n, W]``, or ``[C, P_n, W]`` where each class has its own; start token
                included, without positions. Lengths may differ.
            suffixes: the ends, from `suffixes`.
            deep: learnt tokens that enter before later blocks, by index of the block.

        Returns:
            float32 ``[N, C, D]``, not normalised.

        Raises:
            UsageError: a sentence is longer than the tower's context.
        """
        longest = max(prefix.shape[-2] for prefix in prefixes) + suffixes.embeddings.shape[1]
        if longest > self.context_length:
            raise UsageError(
                f"a prompt of {longest} tokens: this text tower takes {self.context_length}; use fewer learnt tokens "
                "or shorter class names"
            )
        features: list[Tensor | None] = [None] * len(prefixes)
        for shape in sorted({prefix.shape for prefix in prefixes}):
            members = [index for index, prefix in enumerate(prefixes) if prefix.shape == shape]
            encoded = self._encode_group(
                torch.stack([prefixes[index] for index in members]), suffixes, deep or {}
            )
            for row, index in enumerate(members):
                features[index] = encoded[row]
        return torch.stack([feature for feature in features if feature is not None])

    def _encode_group(
        self, prefixes: Tensor, suffixes: Suffixes, deep: Mapping[int, DeepTokens]
    ) -> Tensor:
        """Encode prefixes of one shape: ``[G, P, W]`` or ``[G, C, P, W]`` -> ``[G, C, D]``."""
        groups, prefix_length, width = prefixes.shape[0], prefixes.shape[-2], prefixes.shape[-1]
        count, suffix_length, _ = suffixes.embeddings.shape
        positions = self._positions
        head = prefixes + positions[:prefix_length]
        if head.dim() == 3:
            head = head.unsqueeze(1)  # [G, 1 or C, P, W]: 1 as long as all classes share it
        tail = suffixes.embeddings + positions[prefix_length : prefix_length + suffix_length]
        tail = tail.expand(groups, count, suffix_length, width)  # [G, C, S, W]
        mask = _causal(suffix_length, head.device)
        for index, block in enumerate(self._blocks[:-1]):
            learnt = deep.get(index)
            if learnt is not None:
                head = learnt.enter(head)
            query, key, value = project(block, head)  # each [G, 1 or C, H, P, E]
            tail_query, *tail_keys = project(block, tail)  # each [G, C, H, S, E]
            tail = self._read(block, tail, tail_query, tail_keys, (key, value), mask)
            weights = (query @ key.mT + _causal(head.shape[-2], head.device)).softmax(-1)
            head = finish(block, head, join_heads(weights @ value))
            if learnt is not None:
                head = learnt.leave(head)
        # Of the last block, only what the end tokens become is read.
        block, learnt = self._blocks[-1], deep.get(len(self._blocks) - 1)
        prefix = project_keys(block, head if learnt is None else learnt.enter(head))
        ends = suffixes.end.view(1, count, 1, 1).expand(groups, count, 1, width)
        last = tail.gather(2, ends)  # [G, C, 1, W]
        mask = mask[suffixes.end].view(count, 1, 1, suffix_length)
        query, own = project_queries(block, last), project_keys(block, tail)
        last = self._read(block, last, query, own, prefix, mask)
        pooled = self._ln_final(last.squeeze(2))  # [G, C, W]
        if isinstance(self._projection, torch.nn.Linear):
            return self._projection(pooled)  # type: ignore[no-any-return]
        return pooled @ self._projection  # type: ignore[no-any-return]

    @staticmethod
    def _read(
        block: Any,
        tokens: Tensor,
        query: Tensor,
        own: Sequence[Tensor],
        prefix: Sequence[Tensor],
        mask: Tensor,
    ) -> Tensor:
        """Run one block on ``R`` tokens of every suffix, which read the prefix and their suffix.

        Args:
            block: the block.
            tokens: ``[G, C, R, W]``.
            query: their queries ``[G, C, H, R, E]``.
            own: keys and values of the suffixes, ``[G, C, H, S, E]`` each.
            prefix: keys and values of the prefixes, ``[G, 1 or C, H, P, E]`` each.
            mask: added to how they read suffixes, 0 or minus infinity: ``[R, S]``, or ``[C, 1, 1, S]`` for one of each.

        Returns:
            ``[G, C, R, W]``.
        """
        (own_key, own_value), (key, value) = own, prefix
        scores = [_times_shared(query, key.mT), query @ own_key.mT + mask]
        weights = torch.cat(scores, dim=-1).softmax(-1)  # [G, C, H, R, P + S]
        to_prefix, to_own = torch.split(weights, [key.shape[-2], own_key.shape[-2]], dim=-1)
        mixed = _times_shared(to_prefix, value) + to_own @ own_value  # [G, C, H, R, E]
        return finish(block, tokens, join_heads(mixed))


def _times_shared(rows: Tensor, matrix: Tensor) -> Tensor:
    """Return ``rows @ matrix``, ``[G, C, H, R, X] @ [G, 1 or C, H, X, Y]``.

    Where the classes share the matrix, their rows are multiplied together: few large products in place of many small.
    """
    if matrix.shape[1] != 1:
        return rows @ matrix
    groups, count, heads, length, _ = rows.shape
    together = rows.transpose(1, 2).flatten(2, 3) @ matrix.squeeze(1)  # [G, H, C R, Y]
    return together.reshape(groups, heads, count, length, -1).transpose(1, 2)


def normalise(features: Tensor) -> Tensor:
    """Return features of unit Euclidean length over their last axis."""
    return functional.normalize(features, dim=-1)


def _causal(length: int, device: torch.device) -> Tensor:
    """Additive causal mask ``[length, length]``."""
    return torch.full((length, length), float("-inf"), device=device).triu(1)
