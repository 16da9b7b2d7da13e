"""What methods share on the text side: how learnt tokens start, and how prompts of one context become features.

Dimensions: ``k`` learnt tokens, ``C`` classes, ``W`` text width, ``D`` joint width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from fedmpt.clip.backbone import Backbone
from fedmpt.clip.text import DeepTokens, Suffixes, normalise
from fedmpt.config import PromptStart
from fedmpt.methods.base import Parameters
from fedmpt.seeds import seed_of

TOKEN_SPREAD: Final = 0.02  # standard deviation of fresh tokens, CLIP's own
START_PHRASE: Final = (
    "a photo of a"  # section 3.1: templates are initialised as "A photo of a [CLASS]"
)
TEMPLATE: Final = START_PHRASE + " {}."


def fresh_tokens(random: torch.Generator, *shape: int) -> Tensor:
    """Return tokens drawn from N(0, 0.02)."""
    return TOKEN_SPREAD * torch.randn(shape, generator=random)


def drawn(
    backbone: Backbone, seed: int, initial: Callable[[torch.Generator], Parameters]
) -> Parameters:
    """Return what ``initial`` draws for the experiment seed ``seed``, where the backbone lives."""
    random = torch.Generator().manual_seed(seed_of(seed, "initial-parameters"))
    return {name: value.to(backbone.device) for name, value in initial(random).items()}


def start_tokens(
    backbone: Backbone, random: torch.Generator, count: int, start: PromptStart
) -> Tensor:
    """Return a context ``[count, W]``: fresh tokens, for ``phrase`` with "a photo of a" as its last ones."""
    tokens = fresh_tokens(random, count, backbone.text.width)
    if start == "phrase":
        phrase = backbone.text.words(START_PHRASE).cpu()[-count:]
        tokens[-len(phrase) :] = phrase
    return tokens


def encode_context(
    backbone: Backbone,
    suffixes: Suffixes,
    context: Tensor,
    deep: Mapping[int, DeepTokens] | None = None,
) -> Tensor:
    """Encode ``[start] [context] {class}.`` for every class: float32 ``[C, D]`` of unit length.

    Arguments as in `raw_context_features`.
    """
    return normalise(raw_context_features(backbone, suffixes, context, deep))


def raw_context_features(
    backbone: Backbone,
    suffixes: Suffixes,
    context: Tensor,
    deep: Mapping[int, DeepTokens] | None = None,
) -> Tensor:
    """Encode ``[start] [context] {class}.`` for every class, as long as the text tower makes it.

    Args:
        backbone: the frozen CLIP.
        suffixes: the classes' ends of prompts.
        context: float32 ``[k, W]``, or ``[C, k, W]`` for a context of each class.
        deep: learnt tokens of later blocks.

    Returns:
        float32 ``[C, D]``.
    """
    start = backbone.text.start.expand(*context.shape[:-2], 1, -1)
    prefix = torch.cat([start, context], dim=-2)
    return backbone.text.encode([prefix], suffixes, deep)[0]


def frozen_features(
    backbone: Backbone, classes: tuple[str, ...], template: str = TEMPLATE
) -> Tensor:
    """Return CLIP's own text features of the classes: float32 ``[C, D]`` of unit length."""
    return backbone.encode_sentences([template.format(name.replace("_", " ")) for name in classes])


def fresh_linear(
    random: torch.Generator, name: str, inputs: int, outputs: int, *, bias: bool = True
) -> Parameters:
    """Return a linear map ``NAME_weight [outputs, inputs]`` (uniform, bound 1 / sqrt(inputs)) and ``NAME_bias`` (0)."""
    bound = 1 / math.sqrt(inputs)
    weight = bound * (2 * torch.rand(outputs, inputs, generator=random) - 1)
    return {f"{name}_weight": weight} | ({f"{name}_bias": torch.zeros(outputs)} if bias else {})


def linear(parameters: Parameters, name: str, x: Tensor) -> Tensor:
    """Apply the linear map ``name``: ``[..., inputs]`` -> ``[..., outputs]``."""
    return functional.linear(x, parameters[f"{name}_weight"], parameters.get(f"{name}_bias"))
