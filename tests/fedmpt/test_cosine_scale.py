"""The scale of softmaxes follows the spread of a backbone's cosines, and nothing else."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedmpt.clip.backbone import Backbone, load_backbone
from fedmpt.config import Config, load_config
from fedmpt.engine.defaults import resolve_scale
from fedmpt.methods.cosine_scale import SERIES, cosine_scale, nearest_of_series
from fedmpt.methods.pooling import (
    POOLING_SCALE,
    PairHead,
    head_scale,
    pooling_scale,
    similarity_scale,
)


def test_the_bundled_backbone_keeps_the_published_scales_to_the_last_bit() -> None:
    tiny = load_backbone("tiny")
    assert cosine_scale(tiny) == POOLING_SCALE
    assert similarity_scale(tiny.logit_scale, cosine_scale(tiny)) == tiny.logit_scale


def _backbone_of_spread(spread: float) -> Backbone:
    """A stand-in whose cosines are drawn from N(0, spread)."""

    def images(given: list[object]) -> tuple[Tensor, None]:
        random = torch.Generator().manual_seed(0)
        return torch.randn(len(given), 50, 20, generator=random), None

    stub = SimpleNamespace(
        encode_images=images,
        encode_sentences=lambda sentences: spread * torch.eye(len(sentences)),
        logit_scale=100.0,
    )
    return cast(Backbone, stub)


def _resolved(config: Config, backbone: Backbone) -> Config:
    scale = cosine_scale(backbone)
    return resolve_scale(config, logit_scale=backbone.logit_scale, pooling=scale)


@pytest.mark.parametrize(("spread", "scale"), [(0.05, 20), (0.02, 50), (0.004, 200), (1.0, 5)])
def test_cosines_that_lie_closer_are_sharpened_more(spread: float, scale: float) -> None:
    assert cosine_scale(_backbone_of_spread(spread)) == scale


@given(st.floats(min_value=4, max_value=250))
def test_the_series_is_never_further_off_than_half_its_largest_step(scale: float) -> None:
    ratio = nearest_of_series(scale) / scale
    assert abs(math.log(ratio)) <= math.log(2.5) / 2 + 1e-9


def test_fedmpts_scale_goes_with_that_of_pooling_unless_it_is_given() -> None:
    assert [similarity_scale(100.0, scale) for scale in SERIES] == [25, 50, 100, 250, 500, 1000]
    backbone = _backbone_of_spread(0.02)
    resolved = _resolved(load_config(), backbone)
    assert resolved.method.fedmpt.similarity_scale == 250.0
    own = load_config(options={"method.fedmpt.similarity_scale": 70.0})
    assert _resolved(own, backbone).method.fedmpt.similarity_scale == 70.0


@pytest.mark.parametrize("name", ["coop", "dualcoop", "ram"])
def test_the_scales_of_compared_methods_go_with_that_of_pooling_unless_given(name: str) -> None:
    backbone = _backbone_of_spread(0.02)
    resolved = _resolved(load_config(options={"method.name": name}), backbone).method.head
    assert (resolved.pooling, resolved.scale) == (50.0, None)
    assert head_scale(backbone, resolved) == 250.0 / 4
    assert PairHead(pooling_scale(resolved)).scale == 250.0
    own = load_config(options={"method.name": name, "method.head.pooling": 20})
    assert _resolved(own, backbone).method.head.pooling == 20.0
    assert head_scale(backbone, own.method.head) == 25.0


def test_pairs_are_pooled_and_compared_at_the_scale_of_the_head() -> None:
    random = torch.Generator().manual_seed(1)
    text, patches = torch.randn(6, 8, generator=random), torch.randn(2, 5, 8, generator=random)
    maps = 0.002 * patches @ text.T
    for scale in (20.0, 50.0):
        weights = torch.softmax(scale * maps[..., :3], dim=1)
        expected = torch.sigmoid(5 * scale * (weights * (maps[..., :3] - maps[..., 3:])).sum(dim=1))
        assert torch.allclose(PairHead(scale)(0.002 * text, patches), expected, atol=1e-6)
