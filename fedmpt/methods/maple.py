"""MaPLe: learnt tokens in the first blocks of both towers, the image side's mapped from the text side's.

The visual tokens are made without any image, so `encode_text` returns them behind the text features: under privacy the
gradient of an example is clipped and noised there, in C D + depth k V values, and crosses the maps afterwards.

Dimensions: ``B`` images, ``M`` patches, ``C`` classes, ``D`` joint, ``W`` text and ``V`` image width, ``k`` tokens.

Source: MaPLe, CVPR 2023 (arXiv 2210.03117), section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedmpt.clip.text import DeepTokens
from fedmpt.clip.vision import run_block
from fedmpt.config import MaPLeConfig
from fedmpt.errors import UsageError
from fedmpt.methods.base import Parameters
from fedmpt.methods.image_method import ImageMethod
from fedmpt.methods.pooling import Head
from fedmpt.methods.prompts import START_PHRASE, encode_context, fresh_linear, fresh_tokens


class MaPLe(ImageMethod[MaPLeConfig, Head]):
    """The method for one backbone and one list of classes.

    Blocks: ``context`` ``[k, W]``, ``deep`` ``[depth - 1, k, W]`` and one linear map W -> V a depth, ``maps_weight``
    ``[depth, V, W]`` and ``maps_bias`` ``[depth, V]``.
    """

    name = "maple"

    def _set_up(self) -> None:
        shallower = min(self._backbone.text.layers, len(self._tower.blocks))
        self._depth = self._settings.depth or max(1, 3 * shallower // 4)
        if self._depth > shallower:
            raise UsageError(
                f"method.maple.depth={self._depth}: the shallower tower of this backbone has {shallower} blocks"
            )
        deep = ("deep",) if self._depth > 1 else ()
        self.prompt_blocks = ("context", *deep, "maps_weight", "maps_bias")
        self._suffixes = self._backbone.text.suffixes(self.classes)

    def _initial(self, random: torch.Generator) -> Parameters:
        """Start the context with the first words of "a photo of a", and the deeper maps as copies of one."""
        count, W, V = self._settings.tokens, self._backbone.text.width, self._tower.width
        context = fresh_tokens(random, count, W)
        phrase = self._backbone.text.words(START_PHRASE).cpu()[:count]
        context[: len(phrase)] = phrase
        shallow, deep = (fresh_linear(random, "map", W, V) for _ in range(2))
        maps = [shallow] + (self._depth - 1) * [deep]
        values = {"context": context}
        if self._depth > 1:
            values["deep"] = fresh_tokens(random, self._depth - 1, count, W)
        return values | {
            "maps_weight": torch.stack([one["map_weight"] for one in maps]),
            "maps_bias": torch.stack([one["map_bias"] for one in maps]),
        }

    def encode_text(self, parameters: Parameters) -> Tensor:
        """Return text features and visual tokens as one vector ``[C D + depth k V]``."""
        context, later = parameters["context"], parameters.get("deep", ())
        deep = {index: DeepTokens(tokens=tokens) for index, tokens in enumerate(later, 1)}
        text = encode_context(self._backbone, self._suffixes, context, deep)
        tokens = torch.stack([context, *later])  # [depth, k, W]
        visual = tokens @ parameters["maps_weight"].mT + parameters["maps_bias"].unsqueeze(1)
        return torch.cat([text.flatten(), visual.flatten()])

    def score(self, parameters: Parameters, text: Tensor, patches: Tensor) -> Tensor:
        """Return probabilities ``[B, C]`` from pixels ``[B, M, Q]``."""
        del parameters
        features, visual = self._unpack(text)
        tower, kept = self._tower, 1 + patches.shape[1]
        tokens = torch.cat([tower.embed(patches), visual[0].expand(len(patches), -1, -1)], dim=1)
        tokens = tower.enter(tokens)
        for index, block in enumerate(tower.blocks):
            if 1 <= index < self._depth:
                own = visual[index].expand(len(patches), -1, -1)
                tokens = torch.cat([tokens[:, :kept], own], dim=1)
            tokens, _ = run_block(block, tokens)
        return self._head(features, tower.features(tokens[:, 1:kept]))

    def _unpack(self, packed: Tensor) -> tuple[Tensor, Tensor]:
        """Return text features ``[C, D]`` and visual tokens ``[depth, k, V]``."""
        size = len(self.classes) * self._backbone.width
        visual = packed[size:].reshape(self._depth, self._settings.tokens, -1)
        return packed[:size].reshape(len(self.classes), -1), visual
