"""The bundled backbone is the file its card describes, and was never shown a federated picture."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from sklearn.metrics import average_precision_score
from torch import Tensor

from experiments import pretrain_tiny
from fedmpt.clip.backbone import TINY, Backbone, load_backbone
from fedmpt.data.scenes import (
    CLASSES,
    PRETRAIN_STYLES,
    SCENE_STYLES,
    UNSEEN,
    Recipe,
    atlas,
    scenes,
)

WEIGHTS = TINY / "open_clip_model.safetensors"


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    return dict(json.loads((TINY / "card.json").read_text()))


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return load_backbone("tiny")


def zero_shot(backbone: Backbone, count: int) -> dict[str, float]:
    """Zero-shot mAP in % on the first test images, written apart from the script that made the card."""
    found = scenes(train_size=1, test_size=count)
    patches, whole = backbone.encode_images([found.test.open_image(i) for i in range(count)])
    words = backbone.encode_sentences([f"a photo of a {name}." for name in CLASSES])
    cosines = patches @ words.T

    def average(scores: Tensor) -> float:
        truth, values = found.test.labels, scores.numpy()
        columns = range(len(CLASSES))
        return 100 * float(
            np.mean([average_precision_score(truth[:, c], values[:, c]) for c in columns])
        )

    def pooled(scale: float) -> Tensor:
        return ((scale * cosines).softmax(1) * cosines).sum(1)

    return {
        "class_token": average(whole @ words.T),
        "pooled_25": average(pooled(25)),
        "pooled_100": average(pooled(100)),
    }


def test_the_weights_are_the_file_that_the_card_names(card: dict[str, Any]) -> None:
    content = WEIGHTS.read_bytes()
    assert hashlib.sha256(content).hexdigest() == card["weights"]["sha256"]
    assert len(content) == card["weights"]["bytes"]


def test_the_backbone_takes_at_most_16_mb_in_the_repository() -> None:
    assert sum(path.stat().st_size for path in TINY.iterdir()) <= 16_000_000


def test_the_weights_are_half_precision_and_finite() -> None:
    with safe_open(WEIGHTS, "pt") as file:
        for name in file.keys():  # noqa: SIM118  (not a dict)
            tensor = file.get_tensor(name)
            assert tensor.dtype == torch.float16
            assert torch.isfinite(tensor).all()


def test_zero_shot_is_what_the_card_says(card: dict[str, Any], tiny: Backbone) -> None:
    assert zero_shot(tiny, 300) == pytest.approx(card["check"]["mAP"], abs=0.5)


def test_zero_shot_leaves_room_and_patches_carry_the_signal(card: dict[str, Any]) -> None:
    figures = card["zero_shot"]["mAP in %"]["scenes test, 20 classes"]
    assert 35 <= figures["class_token"]["mean"] <= 75
    assert figures["pooled_25"]["mean"] >= figures["class_token"]["mean"] - 5
    assert list(figures["class_token"]["classes"]) == list(CLASSES)


def test_the_card_tells_how_the_file_was_made(card: dict[str, Any], tiny: Backbone) -> None:
    training = card["training"]
    assert {"steps", "samples", "seconds", "seed", "scenes", "styles"} <= set(training)
    assert training["samples"] == training["steps"] * training["batch"]
    assert card["logit_scale"] == pytest.approx(100.0, abs=0.2)
    config = json.loads((TINY / "open_clip_config.json").read_text())
    assert config == pretrain_tiny.CONFIG


def test_pretraining_and_federated_scenes_share_no_picture() -> None:
    assert not set(PRETRAIN_STYLES) & set(SCENE_STYLES)
    for index in range(200):
        recipe = pretrain_tiny.draw_recipe(index, seed=0)
        assert {atlas()[p.sprite].style for p in recipe.placements} <= set(PRETRAIN_STYLES)


def captions(count: int) -> list[str]:
    rng = np.random.default_rng(0)

    def both(recipe: Recipe) -> list[str]:
        phrases = [pretrain_tiny.region_phrase(recipe, p, rng) for p in recipe.placements]
        return [pretrain_tiny.scene_caption(recipe, rng), *phrases]

    return [text for i in range(count) for text in both(pretrain_tiny.draw_recipe(i, seed=0))]


def test_captions_use_every_condition_word_and_every_class() -> None:
    said = " ".join(captions(400))
    for word in (*pretrain_tiny.CONDITIONS, *CLASSES, *UNSEEN):
        assert re.search(rf"\b{word}\b", said), word


def test_a_position_said_is_the_position_drawn() -> None:
    rng = np.random.default_rng(0)
    for index in range(100):
        recipe = pretrain_tiny.draw_recipe(index, seed=0)
        for placement in recipe.placements:
            text = pretrain_tiny.region_phrase(recipe, placement, rng)
            if "position" in text and re.search(r"\bleft\b", text):
                assert placement.x < 0.5
            if "position" in text and re.search(r"\bbottom\b", text):
                assert placement.y > 0.5


def test_no_caption_is_cut_off() -> None:
    tokens = pretrain_tiny.tokenizer()(captions(300))
    assert (tokens[:, -1] == 0).all()


def test_a_phrase_reserves_places_for_learnt_vectors() -> None:
    ids, free = pretrain_tiny.PhraseWriter(pretrain_tiny.labels(), seed=0).write()
    assert ids.shape == free.shape == (len(pretrain_tiny.labels()), 32)
    assert free.any()
    assert (ids[free] == ids[free][0]).all()
    assert (ids.argmax(1) > free.int().sum(1)).all()  # the class name follows


def test_drawing_does_not_depend_on_how_it_is_cut_into_chunks() -> None:
    whole = pretrain_tiny.draw_scenes(0, 6, seed=3)
    halves = [pretrain_tiny.draw_scenes(a, b, seed=3) for a, b in ((0, 2), (2, 6))]
    for column, parts in zip(whole, zip(*halves, strict=True), strict=True):
        np.testing.assert_array_equal(column, np.concatenate(parts))


def test_a_checkpoint_is_written_whole_and_loads_as_open_clip(tmp_path: Path) -> None:
    model = pretrain_tiny.new_model(0)
    pretrain_tiny.save(model.state_dict(), {"steps": 0}, tmp_path)
    loaded = load_backbone(f"local-dir:{tmp_path}")
    assert loaded.patches == 64
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "card.json",
        "open_clip_config.json",
        "open_clip_model.safetensors",
    ]
