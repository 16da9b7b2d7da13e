"""Masking hides the asked share of training labels and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fedmpt.data.dataset import Dataset, Split
from fedmpt.data.masking import mask_labels
from fedmpt.errors import UsageError


def blank(_: int) -> Image.Image:
    return Image.new("RGB", (2, 2))


def dataset(n: int = 400, C: int = 20) -> Dataset:
    labels = (np.random.default_rng(0).random((n, C)) < 0.4).astype(np.int8)
    split = Split(labels=labels, content=tuple(map(str, range(n))), open_image=blank)
    return Dataset(
        name="made", classes=tuple(f"class {c}" for c in range(C)), train=split, test=split
    )


def test_dropping_turns_only_positives_into_negatives_at_about_the_asked_rate() -> None:
    before = dataset()
    after = mask_labels(before, probability=0.6, mode="drop_positive", seed=1)
    changed = before.train.labels != after.train.labels
    assert (before.train.labels[changed] == 1).all()
    assert (after.train.labels[changed] == 0).all()
    assert changed.sum() / before.train.labels.sum() == pytest.approx(0.6, abs=0.03)


def test_ignoring_makes_labels_of_both_kinds_unknown_at_about_the_asked_rate() -> None:
    before = dataset()
    after = mask_labels(before, probability=0.3, mode="ignore", seed=1)
    unknown = after.train.labels == -1
    for value in (0, 1):
        of_value = before.train.labels == value
        assert unknown[of_value].mean() == pytest.approx(0.3, abs=0.03)
    np.testing.assert_array_equal(after.train.labels[~unknown], before.train.labels[~unknown])


@pytest.mark.parametrize("mode", ["drop_positive", "ignore"])
def test_test_split_and_the_given_data_set_are_untouched(mode: str) -> None:
    before = dataset()
    copy = before.train.labels.copy()
    after = mask_labels(before, probability=0.9, mode=mode, seed=3)  # type: ignore[arg-type]
    assert after.test is before.test
    np.testing.assert_array_equal(before.train.labels, copy)
    assert after.train.content == before.train.content


def test_mask_is_the_same_with_the_same_seed_and_another_with_another() -> None:
    first, again, other = (
        mask_labels(dataset(), probability=0.5, mode="drop_positive", seed=seed).train.labels
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_higher_probability_hides_a_superset() -> None:
    low, high = (
        mask_labels(dataset(), probability=p, mode="ignore", seed=1).train.labels == -1
        for p in (0.2, 0.7)
    )
    assert (high | ~low).all()


def test_probability_zero_changes_nothing() -> None:
    before = dataset()
    assert mask_labels(before, probability=0, mode="ignore", seed=0) is before


@pytest.mark.parametrize("probability", [-0.1, 1.0, float("nan")])
def test_probability_out_of_range_is_refused(probability: float) -> None:
    with pytest.raises(UsageError, match="mask="):
        mask_labels(dataset(), probability=probability, mode="ignore", seed=0)


def test_unknown_mode_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="drop_positive or ignore"):
        mask_labels(dataset(), probability=0.5, mode="hide", seed=0)  # type: ignore[arg-type]
