"""Probes find a gradient where training has one, and refuse a start that has none."""

from __future__ import annotations

import pytest

from fedmpt.clip.backbone import Backbone, load_backbone
from fedmpt.config import load_config
from fedmpt.data.class_names import VOC_CLASSES
from fedmpt.engine.probes import typical_norms
from fedmpt.errors import UsageError
from fedmpt.methods.base import Method
from fedmpt.methods.registry import build_method
from privacy import DPSpace


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return load_backbone("tiny")


def _coop(backbone: Backbone, pooling: float) -> Method:
    config = load_config(options={"method.name": "coop", "method.head.pooling": pooling})
    return build_method(backbone, VOC_CLASSES, config.method)


def _norms(method: Method, backbone: Backbone | None = None) -> dict[str, float]:
    start = method.initial_parameters(0)
    return typical_norms(method, start, space=DPSpace.TEXT, backbone=backbone)


def test_made_up_images_are_asked_only_where_scores_near_texts_are_saturated(
    tiny: Backbone,
) -> None:
    usual, steep = _coop(tiny, 20.0), _coop(tiny, 100.0)
    assert _norms(usual, tiny) == _norms(usual)  # what norms were chosen with stays to the last bit
    with pytest.raises(UsageError, match="its scores are saturated, so nothing would be learnt"):
        _norms(steep)
    assert all(norm > 0 for norm in _norms(steep, tiny).values())
