"""RAM: local features from value-value attention with adapters, matched to classes by transport, beside global ones.

Normalisation inside the adapters is over groups of channels of one image. The original's is over the batch, which would
couple examples: no clipping bound could hold, and running statistics of private images would have to be sent.

Dimensions: ``B`` images, ``M`` patches on a grid, ``C`` classes, ``D`` joint, ``W`` text and ``V`` image width.

Source: RAM, CVPR 2025; loss and logits as in FedMPT's comparison, arXiv 2605.28347.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from fedmpt.clip.text import DeepTokens
from fedmpt.clip.vision import run_block, value_attention
from fedmpt.config import HeadConfig, RAMConfig
from fedmpt.errors import UsageError
from fedmpt.methods.attention import fresh_norm, norm
from fedmpt.methods.base import Parameters
from fedmpt.methods.image_method import ImageMethod, pack, unpack
from fedmpt.methods.pooling import (
    head_scale,
    made_up_images,
    nearest_class,
    pooling_scale,
    similarity_scale,
)
from fedmpt.methods.prompts import (
    START_PHRASE,
    encode_context,
    fresh_tokens,
    frozen_features,
)
from fedmpt.methods.transport import transport_plan

_CHANNELS_OF_A_GROUP: Final = 16
_MARGINAL_TEMPERATURE: Final = 0.1  # of the softmax over patches
_TEACHER_SCALE: Final = 20.0  # of the teacher's softmax over patches
_TEACHER_REGULARISATION: Final = 0.05  # added to the entropic weight where a teacher is in the cost
_TEACHER_FLOOR: Final = 1e-6


class RAM(ImageMethod[RAMConfig, HeadConfig]):
    """The method for one backbone and one list of classes.

    Blocks: ``text_tokens`` ``[n, k, W]`` for the last n text blocks, ``image_tokens`` ``[a, 8, V]`` and an adapter for
    each of the last a image blocks.
    """

    name = "ram"
    prompt_blocks = ("text_tokens",)

    def _set_up(self) -> None:
        settings, backbone, head = self._settings, self._backbone, self._head
        layers = backbone.text.layers
        self._text_blocks = settings.text_blocks or max(1, layers // 2)
        self._adapters = settings.adapter_blocks or max(1, len(self._tower.blocks) // 4)
        if self._text_blocks > layers or self._adapters > len(self._tower.blocks):
            raise UsageError(
                f"method.ram: {self._text_blocks} text_blocks and {self._adapters} adapter_blocks, but the "
                f"towers have {layers} and {len(self._tower.blocks)} blocks"
            )
        if head.offset not in ("public", "image-mean"):
            raise UsageError(
                f"method.head.offset={head.offset} with --method ram: use public or image-mean"
            )
        if len(self.classes) < 2:
            raise UsageError(
                f"{len(self.classes)} class: RAM normalises over classes, so at least 2"
            )
        self._scale = head_scale(backbone, head)
        self._softmax_scale = similarity_scale(backbone.logit_scale, pooling_scale(head))
        self._suffixes = backbone.text.suffixes(self.classes)
        self._words = backbone.text.words(START_PHRASE)
        self._frozen = frozen_features(backbone, self.classes)
        self._first_adapter = len(self._tower.blocks) - self._adapters
        self.prepared_as = (
            f"tokens and local stream before block {self._first_adapter}, local features"
        )
        # Constants of the (global, local) logits; None takes each image's mean.
        self._offsets = self._public_offsets() if head.offset == "public" else None

    def _initial(self, random: torch.Generator) -> Parameters:
        settings, D, V = self._settings, self._backbone.width, self._tower.width
        W = self._backbone.text.width
        values = {
            "text_tokens": fresh_tokens(random, self._text_blocks, settings.text_tokens, W),
            "image_tokens": fresh_tokens(random, self._adapters, settings.image_tokens, V),
        }
        for index in range(self._adapters):
            values |= {
                f"adapter{index}_{name}": v for name, v in _fresh_adapter(random, D, V).items()
            }
        return values

    def prepare_images(self, pixels: Tensor) -> Tensor:
        """Return what `_pieces` takes apart: the frozen tower's states of pixels ``[B, M, Q]``."""
        tokens, stream = self._entered(pixels)
        _, local = self._features(None, self._frozen, tokens, stream)
        return pack(tokens, stream, local)

    def encode_text(self, parameters: Parameters) -> Tensor:
        """Return text features ``[C, D]`` of "a photo of a {class}." with tokens in the last blocks."""
        first = self._backbone.text.layers - self._text_blocks
        deep = {
            first + index: DeepTokens(tokens=tokens, extra=True)
            for index, tokens in enumerate(parameters["text_tokens"])
        }
        return encode_context(self._backbone, self._suffixes, self._words, deep)

    def score(self, parameters: Parameters, text: Tensor, patches: Tensor) -> Tensor:
        """Return the mean of global and local probabilities, ``[B, C]``, from prepared images."""
        tokens, stream, _ = self._pieces(patches)
        whole, local = self._features(parameters, text, tokens, stream)
        logits = self._logits(whole @ text.T, self._matched(local @ text.T, teacher=None))
        return torch.sigmoid(logits).mean(dim=0)

    def example_losses(
        self, parameters: Parameters, text: Tensor, patches: Tensor, labels: Tensor
    ) -> Tensor:
        """Return the losses of global and local probabilities together; labels guide the transport: ``[B]``."""
        tokens, stream, frozen = self._pieces(patches)
        whole, local = self._features(parameters, text, tokens, stream)
        matched = self._matched(local @ text.T, teacher=self._teacher(frozen, labels))
        by_global, by_local = torch.sigmoid(self._logits(whole @ text.T, matched))
        return self.loss(by_global, labels) + self.loss(by_local, labels)

    def for_classes(self, classes: tuple[str, ...]) -> RAM:
        """Return the method for other classes; softmax and transport run over exactly those, the offsets stay."""
        other = super().for_classes(classes)
        other._offsets = self._offsets
        return other

    def _logits(self, whole: Tensor, local: Tensor) -> Tensor:
        """Return centred and scaled similarities, global and local: ``[2, B, C]``."""
        both = torch.stack([whole, local])
        if self._offsets is None:
            return self._scale * (both - both.mean(dim=-1, keepdim=True))
        return self._scale * (both - both.new_tensor(self._offsets).reshape(2, 1, 1))

    def _matched(self, cosines: Tensor, *, teacher: Tensor | None) -> Tensor:
        """Return each class's cosine, averaged by what transport assigns to it: ``[B, M, C]`` -> ``[B, C]``."""
        settings = self._settings
        with torch.no_grad():
            probabilities = (self._softmax_scale * cosines).softmax(dim=-1)
            cost, regularisation = 1 - probabilities, settings.transport_weight
            if teacher is not None and settings.teacher_weight > 0:
                cost = cost - settings.teacher_weight * teacher.clamp(min=_TEACHER_FLOOR).log()
                regularisation += _TEACHER_REGULARISATION
            marginal = (cosines.amax(dim=-1) / _MARGINAL_TEMPERATURE).softmax(dim=-1)
            plan = transport_plan(
                cost,
                marginal,
                regularisation=regularisation,
                iterations=settings.transport_iterations,
            )
        return len(self.classes) * (plan * cosines).sum(dim=-2)

    @torch.no_grad()
    def _teacher(self, frozen: Tensor, labels: Tensor) -> Tensor:
        """Return where frozen CLIP sees the present classes, absent ones at the image's smallest: ``[B, M, C]``.

        Args:
            frozen: its local features, ``[B, M, D]``.
            labels: ``[B, C]``.
        """
        probabilities = (self._softmax_scale * (frozen @ self._frozen.T)).softmax(dim=-1)
        seen = (_TEACHER_SCALE * probabilities).softmax(dim=-2)
        smallest = seen.amin(dim=(-2, -1), keepdim=True)
        return torch.where((labels == 1).unsqueeze(-2), seen, smallest)

    def _pieces(self, prepared: Tensor) -> list[Tensor]:
        """Return tokens and local stream as from `_entered`, and the frozen tower's local features ``[B, M, D]``."""
        M, V = self._backbone.patches, self._tower.width
        return unpack(prepared, (1 + M, V), (1 + M, V), (M, self._backbone.width))

    def _entered(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens and local stream before the first adapter, ``[B, 1 + M, V]`` each, of pixels ``[B, M, Q]``."""
        tokens = self._tower.enter(self._tower.embed(pixels))
        stream = tokens
        for block in self._tower.blocks[: self._first_adapter]:
            tokens, stream = _run_both(block, tokens, stream)
        return tokens, stream

    def _features(
        self, parameters: Parameters | None, text: Tensor, tokens: Tensor, stream: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return global features ``[B, D]`` and local ones ``[B, M, D]``; the frozen tower's without parameters."""
        tower = self._tower
        for index, block in enumerate(tower.blocks[self._first_adapter :]):
            if parameters is None:
                tokens, stream = _run_both(block, tokens, stream)
                continue
            extra = parameters["image_tokens"][index].expand(len(tokens), -1, -1)
            tokens, stream = _run_both(block, tokens, stream, extra)
            adapted = self._adapted(parameters, f"adapter{index}", text, tokens[:, 1:])
            stream = torch.cat([stream[:, :1], stream[:, 1:] + adapted], dim=1)
        return tower.features(tokens[:, :1])[:, 0], tower.features(stream[:, 1:])

    def _adapted(self, parameters: Parameters, name: str, text: Tensor, patches: Tensor) -> Tensor:
        """Return what an adapter adds to the local stream: patches ``[B, M, V]`` -> ``[B, M, V]``."""
        grid = _on_grid(patches, self._tower.grid)  # [B, V, rows, columns]
        classes = norm(parameters, f"{name}_text_norm", text)  # [C, D]
        streams = []
        for stream in ("point", "spread"):
            kernel = parameters[f"{name}_{stream}"]
            x = functional.conv2d(grid, kernel, padding=kernel.shape[-1] // 2)
            groups = max(1, x.shape[1] // _CHANNELS_OF_A_GROUP)
            weight = parameters[f"{name}_{stream}_group_weight"]
            bias = parameters[f"{name}_{stream}_group_bias"]
            x = functional.gelu(functional.group_norm(x, groups, weight, bias))
            tokens = x.flatten(2).mT  # [B, M, D]
            query = norm(parameters, f"{name}_{stream}_norm", tokens)
            attended = (query @ classes.T / math.sqrt(classes.shape[-1])).softmax(dim=-1) @ classes
            streams.append(_on_grid(tokens + attended, self._tower.grid))
        both = torch.cat(streams, dim=1)  # [B, 2 D, rows, columns]
        pooled = torch.stack([both.mean(dim=1), both.amax(dim=1)], dim=1)
        gates = torch.sigmoid(functional.conv2d(pooled, parameters[f"{name}_gates"], padding=1))
        mixed = gates[:, :1] * streams[0] + gates[:, 1:] * streams[1]
        added: Tensor = mixed.flatten(2).mT @ parameters[f"{name}_out"].T
        return added

    @torch.no_grad()
    def _public_offsets(self) -> tuple[float, float]:
        """Return how similar made-up images are to the nearest class, globally and locally; public."""
        pixels = self._backbone.patch_pixels(made_up_images()).to(self._backbone.device)
        whole, local = self._features(None, self._frozen, *self._entered(pixels))
        matched = self._matched(local @ self._frozen.T, teacher=None)
        return nearest_class(whole @ self._frozen.T), nearest_class(matched)


def _run_both(
    block: Any, tokens: Tensor, stream: Tensor, extra: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run a block on tokens, beside ``extra`` ones, and let their values attend to each other for the local stream."""
    kept = tokens.shape[1]
    beside = tokens if extra is None else torch.cat([tokens, extra], dim=1)
    after, value = run_block(block, beside)
    return after[:, :kept], stream + value_attention(block, value[..., :kept, :])


def _on_grid(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return tokens ``[B, M, V]`` as a map ``[B, V, rows, columns]``."""
    return tokens.mT.reshape(len(tokens), tokens.shape[-1], *grid)


def _fresh_adapter(random: torch.Generator, joint: int, width: int) -> Parameters:
    """Return an adapter's parameters; its output map starts at zero, so that it adds nothing."""

    def uniform(*shape: int) -> Tensor:
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        return bound * (2 * torch.rand(shape, generator=random) - 1)

    return {
        "point": uniform(joint, width, 1, 1),
        "spread": uniform(joint, width, 3, 3),
        **fresh_norm("point_group", joint),
        **fresh_norm("spread_group", joint),
        **fresh_norm("point_norm", joint),
        **fresh_norm("spread_norm", joint),
        **fresh_norm("text_norm", joint),
        "gates": uniform(2, 2, 3, 3),
        "out": torch.zeros(width, joint),
    }
