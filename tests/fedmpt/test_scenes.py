"""What makes ``scenes`` a fair benchmark: it repeats exactly, its labels are true, its bias is where it should be."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chi2

from fedmpt.data import scenes as scenery
from fedmpt.data.scenes import (
    CLASSES,
    CONTEXTS,
    SCENE_STYLES,
    UNSEEN,
    SceneSettings,
    SplitName,
    atlas,
    render,
    render_with_owners,
    scene_contexts,
    scene_recipe,
    scene_unseen_labels,
    scenes,
)
from fedmpt.errors import UsageError

ATLAS = Path(scenery.__file__).with_name("sprites")
SMALL = SceneSettings(train_size=400, test_size=400)
PAIRS = len(CLASSES) * (len(CLASSES) - 1) // 2


def dependence(labels: NDArray[np.int8]) -> float:
    """Sum over pairs of classes of Pearson's chi-square of their 2 x 2 table."""
    correlations = np.corrcoef(labels.T.astype(float))
    upper = correlations[np.triu_indices(len(CLASSES), 1)]
    return float(len(labels) * np.square(upper).sum())


def p_value(labels: NDArray[np.int8]) -> float:
    return float(chi2.sf(dependence(labels), PAIRS))


def shown(recipe: scenery.Recipe) -> set[str]:
    return {atlas()[placement.sprite].label for placement in recipe.placements}


def test_an_image_is_the_same_whenever_it_is_opened() -> None:
    first, second = (scenes(train_size=30, test_size=5) for _ in range(2))
    forwards = [np.asarray(first.train.open_image(i)) for i in range(30)]
    backwards = [np.asarray(second.train.open_image(i)) for i in reversed(range(30))]
    np.testing.assert_array_equal(forwards, backwards[::-1])
    assert first.train.content == second.train.content


def test_an_image_does_not_depend_on_how_many_others_there_are() -> None:
    few, many = scenes(train_size=5, test_size=5), scenes(train_size=50, test_size=9)
    assert few.train.content == many.train.content[:5]
    np.testing.assert_array_equal(few.test.open_image(4), many.test.open_image(4))


def test_seed_split_resolution_and_bias_each_change_what_they_name() -> None:
    base = scenes(train_size=40, test_size=40)
    assert not set(base.train.content) & set(base.test.content)
    assert len({*base.train.content, *base.test.content}) == 80
    other_seed = scenes(train_size=40, test_size=40, seed=1)
    assert not set(base.train.content) & set(other_seed.train.content)
    larger = scenes(train_size=40, test_size=40, resolution=96)
    assert larger.train.open_image(0).size == (96, 96)
    assert not set(base.train.content) & set(larger.train.content)
    np.testing.assert_array_equal(base.train.labels, larger.train.labels)
    unbiased = scenes(train_size=40, test_size=40, bias=0.0)
    assert base.test.content == unbiased.test.content
    assert base.train.content != unbiased.train.content


def test_every_label_is_an_object_that_shows_and_every_object_is_labelled() -> None:
    found = scenes(train_size=150, test_size=150)
    for name, split in (("train", found.train), ("test", found.test)):
        for i in range(len(split)):
            recipe = scene_recipe(SMALL, "train" if name == "train" else "test", i)
            labelled = {CLASSES[c] for c in np.flatnonzero(split.labels[i])}
            assert labelled == shown(recipe) & set(CLASSES)
            _, owners = render_with_owners(recipe, 64)
            assert {
                atlas()[recipe.placements[p - 1].sprite].label for p in np.unique(owners) if p
            } >= labelled


def test_no_object_is_hidden_by_more_than_three_quarters() -> None:
    for i in range(100):
        recipe = scene_recipe(SMALL, "test", i)
        _, owners = render_with_owners(recipe, 64)
        for number, placement in enumerate(recipe.placements, start=1):
            alone = scenery.Recipe(context=-1, background="sky", texture=0, placements=(placement,))
            whole = (render_with_owners(alone, 64)[1] > 0).sum()
            assert (owners == number).sum() > whole / 4


def test_an_image_holds_one_to_six_labelled_objects_and_some_clutter() -> None:
    splits: tuple[SplitName, ...] = ("train", "test")
    for i, split in itertools.product(range(200), splits):
        kinds = [atlas()[p.sprite].kind for p in scene_recipe(SMALL, split, i).placements]
        assert 1 <= kinds.count("seen") <= 6
        assert kinds.count("clutter") + kinds.count("unseen") >= 1
        assert "extra" not in kinds


def test_classes_occur_together_by_chance_in_test_and_by_context_in_training() -> None:
    found = scenes(train_size=1500)
    assert p_value(found.test.labels) > 0.001
    assert dependence(found.train.labels) > 10 * PAIRS


def test_without_bias_training_is_as_independent_as_test() -> None:
    found = scenes(train_size=1500, test_size=1, bias=0.0)
    assert p_value(found.train.labels) > 0.001
    settings = SceneSettings(train_size=50, test_size=1, bias=0.0)
    assert set(scene_contexts(settings)) == {-1}


def test_a_biased_image_obeys_its_context() -> None:
    contexts = scene_contexts(SMALL)
    assert 0.7 < (contexts >= 0).mean() < 0.9
    for i in np.flatnonzero(contexts >= 0):
        recipe, context = scene_recipe(SMALL, "train", int(i)), CONTEXTS[contexts[i]]
        assert recipe.background in context.backgrounds
        assert shown(recipe) & set(CLASSES) <= {label for pair in context.pairs for label in pair}


def test_every_class_has_different_partners_in_different_contexts() -> None:
    partners: dict[str, set[str]] = {name: set() for name in CLASSES}
    for a, b in itertools.chain.from_iterable(context.pairs for context in CONTEXTS):
        partners[a].add(b)
        partners[b].add(a)
    assert all(len(found) >= 2 for found in partners.values())
    assert {"chair", "bicycle"} <= partners["cat"]


def test_train_and_test_share_some_sprites_of_a_class_and_keep_others_apart() -> None:
    roles = {
        label: {s.role for s in atlas() if s.label == label and s.style in SCENE_STYLES}
        for label in CLASSES
    }
    assert all("both" in found for found in roles.values())
    assert sum("test" in found for found in roles.values()) >= 14
    splits: tuple[tuple[SplitName, SplitName], ...] = (("train", "test"), ("test", "train"))
    for split, other in splits:
        used = {p.sprite for i in range(400) for p in scene_recipe(SMALL, split, i).placements}
        assert {atlas()[s].role for s in used} == {split, "both"}
        assert other not in {atlas()[s].role for s in used}


def test_every_class_is_drawn_in_each_style_of_the_federated_scenes() -> None:
    for label in CLASSES + UNSEEN:
        styles = {s.style for s in atlas() if s.label == label}
        assert styles >= set(SCENE_STYLES), label
        several = 3 if label in CLASSES else 2
        assert sum(s.label == label and s.style in SCENE_STYLES for s in atlas()) >= several


def test_unseen_classes_appear_in_test_only_and_their_labels_are_true() -> None:
    assert not set(UNSEEN) & set(CLASSES)
    assert len(UNSEEN) >= 10
    labels = scene_unseen_labels(SMALL)
    assert labels.shape == (400, len(UNSEEN))
    assert labels.sum(0).min() >= 5
    for i in range(400):
        assert not shown(scene_recipe(SMALL, "train", i)) & set(UNSEEN)
        truth = shown(scene_recipe(SMALL, "test", i)) & set(UNSEEN)
        assert {UNSEEN[u] for u in np.flatnonzero(labels[i])} == truth


def test_the_atlas_is_small_and_each_picture_names_its_licence() -> None:
    assert sum(path.stat().st_size for path in ATLAS.iterdir()) <= 4_000_000
    attribution = (ATLAS / "ATTRIBUTION.md").read_text()
    licences = {part for s in atlas() for part in s.licence.split(" AND ")}
    assert licences == {"Apache-2.0", "CC-BY-4.0", "MIT"}
    for name in licences | {s.style for s in atlas()}:
        assert name in attribution
    assert {path.name for path in ATLAS.glob("LICENSE*")} >= {
        "LICENSE-Apache-2.0.txt",
        "LICENSE-CC-BY-4.0.txt",
        "LICENSE-MIT-fluent.txt",
    }


def test_an_image_is_opened_as_rgb_at_the_resolution_asked_for() -> None:
    for resolution in (32, 64, 128):
        image = render(scene_recipe(SMALL, "test", 0), resolution)
        assert (image.mode, image.size) == ("RGB", (resolution, resolution))


def test_an_image_outside_the_split_is_refused() -> None:
    with pytest.raises(IndexError):
        scenes(train_size=2, test_size=2).train.open_image(2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train_size", 0),
        ("test_size", -1),
        ("bias", 1.5),
        ("bias", float("nan")),
        ("resolution", 8),
        ("resolution", 1024),
        ("seed", -1),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"{name}={value}"):
        scenes(**{name: value})  # type: ignore[arg-type]
