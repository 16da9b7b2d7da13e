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
from fedmpt.config import load_config
from fedmpt.engine.defaults import resolve_scale
from fedmpt.methods.cosine_scale import SERIES, cosine_scale, nearest_of_series, similarity_scale
from fedmpt.methods.pooling import POOLING_SCALE


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
        encode_images=images, encode_sentences=lambda sentences: spread * torch.eye(len(sentences))
    )
    return cast(Backbone, stub)


@pytest.mark.parametrize(("spread", "scale"), [(0.05, 20), (0.02, 50), (0.004, 200), (1.0, 5)])
def test_cosines_that_lie_closer_are_sharpened_more(spread: float, scale: float) -> None:
    assert cosine_scale(_backbone_of_spread(spread)) == scale


@given(st.floats(min_value=4, max_value=250))
def test_the_series_is_never_further_off_than_half_its_largest_step(scale: float) -> None:
    ratio = nearest_of_series(scale) / scale
    assert abs(math.log(ratio)) <= math.log(2.5) / 2 + 1e-9


def test_fedmpts_scale_goes_with_that_of_pooling_unless_it_is_given() -> None:
    assert similarity_scale(100.0, 50.0) == 250.0
    assert [similarity_scale(100.0, scale) for scale in SERIES] == [25, 50, 100, 250, 500, 1000]
    resolved = resolve_scale(load_config(), 250.0)
    assert resolved.method.fedmpt.similarity_scale == 250.0
    own = load_config(options={"method.fedmpt.similarity_scale": 70.0})
    assert resolve_scale(own, 250.0).method.fedmpt.similarity_scale == 70.0
    other = load_config(options={"method.name": "coop"})
    assert resolve_scale(other, 250.0) == other
