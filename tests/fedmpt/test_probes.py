"""Probes find a gradient where training has one, and refuse a start that has none."""

from __future__ import annotations

import pytest

from fedmpt.clip.backbone import Backbone, load_backbone
from fedmpt.config import load_config
from fedmpt.data.class_names import VOC_CLASSES
from fedmpt.engine import probes
from fedmpt.engine.probes import typical_norms
from fedmpt.errors import UsageError
from fedmpt.methods.base import Method
from fedmpt.methods.registry import build_method
from privacy import DPSpace

NEAREST = probes._NOISES[:1]


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return load_backbone("tiny")


def _coop(backbone: Backbone, pooling: float) -> Method:
    config = load_config(options={"method.name": "coop", "method.head.pooling": pooling})
    return build_method(backbone, VOC_CLASSES, config.method)


def _norms(method: Method) -> dict[str, float]:
    return typical_norms(method, method.initial_parameters(0), space=DPSpace.TEXT)


def test_probes_move_away_from_texts_only_where_all_scores_are_saturated(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, steep = _coop(tiny, 20.0), _coop(tiny, 100.0)
    far = _norms(usual), _norms(steep)
    monkeypatch.setattr(probes, "_NOISES", NEAREST)
    assert _norms(usual) == far[0]  # what norms were chosen with stays to the last bit
    assert all(norm > 0 for norm in far[1].values())
    with pytest.raises(UsageError, match="its scores are saturated, so nothing would be learnt"):
        _norms(steep)
