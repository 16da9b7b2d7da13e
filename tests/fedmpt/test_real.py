"""A really pretrained CLIP on real photographs: the figures of its own card, and predictions that see something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedmpt.clip.backbone import Backbone, load_backbone
from fedmpt.config import HeadConfig
from fedmpt.data.coco import read_coco
from fedmpt.data.dataset import Dataset
from fedmpt.data.features import FeatureBank, cache_directory
from fedmpt.engine.prepare import feature_bank
from fedmpt.methods.cosine_scale import cosine_scale
from fedmpt.methods.zero_shot import ZeroShot
from fedmpt.metrics import evaluate

PACK = Path(__file__).parents[3] / "shared" / "real"
CARD_SCALE = 50.0  # the card pools patches by a softmax at temperature 0.02
WITHIN = 0.5  # points of mAP

pytestmark = [pytest.mark.real, pytest.mark.slow]


class _Quiet:
    def progress(self, label: str, done: int, total: int) -> None:
        del label, done, total


@pytest.fixture(scope="module")
def photos() -> Dataset:
    if not PACK.is_dir():
        pytest.skip("no real photographs beside the repository (../shared/real)")
    return read_coco(PACK / "photos")


@pytest.fixture(scope="module")
def clip() -> Backbone:
    if not PACK.is_dir():
        pytest.skip("no really pretrained CLIP beside the repository (../shared/real)")
    return load_backbone(f"local-dir:{PACK / 'backbone'}")


@pytest.fixture(scope="module")
def bank(photos: Dataset, clip: Backbone) -> FeatureBank:
    """Features of the test photographs, from the user's cache where they are there."""
    assert cache_directory()
    return feature_bank(clip, photos.test, "test features", _Quiet())


def _card() -> dict[str, Any]:
    card: dict[str, Any] = json.loads((PACK / "backbone" / "card.json").read_text())
    figures: dict[str, Any] = card["zero_shot_mAP_all_seen_unseen"]["photos test"]
    return figures


def test_zero_shot_by_the_class_token_is_the_cards(
    photos: Dataset, clip: Backbone, bank: FeatureBank
) -> None:
    scores = _zero_shot(photos, clip).class_token_scores(bank).numpy()
    found = evaluate(scores, photos.test.labels).mAP
    assert found == pytest.approx(100 * _card()["cls"][0], abs=WITHIN)


def test_zero_shot_by_patches_is_the_cards_at_the_scale_that_the_rule_chooses(
    photos: Dataset, clip: Backbone, bank: FeatureBank
) -> None:
    assert cosine_scale(clip) == CARD_SCALE
    scores = _zero_shot(photos, clip).patch_scores(bank).numpy()
    found = evaluate(scores, photos.test.labels).mAP
    assert found == pytest.approx(100 * _card()["patch"][0], abs=WITHIN)


def _zero_shot(photos: Dataset, clip: Backbone) -> ZeroShot:
    return ZeroShot(clip, photos.classes, HeadConfig(pooling=cosine_scale(clip)))
