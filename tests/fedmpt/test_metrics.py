"""Metrics against scikit-learn, by hand, and under transformations that must not matter."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score

from fedmpt.errors import DataError, RunError
from fedmpt.metrics import (
    average_precision,
    combine_thresholds,
    evaluate,
    oracle_grid,
    top_k,
    tuned_threshold,
)


def random_case(
    seed: int, *, n: int = 60, C: int = 7, levels: int | None = 8
) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Scores with many ties (or none) and labels with a positive in each class."""
    random = np.random.default_rng(seed)
    scores = random.random((n, C), dtype=np.float32)
    if levels is not None:
        scores = np.round(scores * levels).astype(np.float32) / np.float32(levels)
    labels = (random.random((n, C)) < 0.3).astype(np.int8)
    labels[random.integers(n, size=C), np.arange(C)] = 1
    return scores, labels


@pytest.mark.parametrize("levels", [1, 2, 8, None])
@pytest.mark.parametrize("seed", range(5))
def test_average_precision_equals_scikit_learn_with_and_without_ties(
    seed: int, levels: int | None
) -> None:
    scores, labels = random_case(seed, levels=levels)
    expected = [average_precision_score(labels[:, c], scores[:, c]) for c in range(labels.shape[1])]
    np.testing.assert_allclose(average_precision(scores, labels), expected, rtol=0, atol=1e-12)
    assert evaluate(scores, labels).mAP == pytest.approx(100 * np.mean(expected))


def test_average_precision_is_the_same_whatever_the_size_of_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores, labels = random_case(0)
    whole = average_precision(scores, labels)
    monkeypatch.setattr("fedmpt.metrics._BLOCK_ENTRIES", 2 * len(scores))
    np.testing.assert_array_equal(average_precision(scores, labels), whole)


def test_average_precision_of_a_hand_made_ranking() -> None:
    scores = np.array([[0.9], [0.8], [0.7], [0.6]], dtype=np.float32)
    labels = np.array([[1], [0], [1], [0]], dtype=np.int8)
    assert average_precision(scores, labels)[0] == pytest.approx((1 + 2 / 3) / 2)


def test_average_precision_of_constant_scores_is_the_share_of_positives() -> None:
    labels = np.array([[1], [0], [0], [0]], dtype=np.int8)
    assert average_precision(np.zeros((4, 1), dtype=np.float32), labels)[0] == pytest.approx(0.25)


def test_class_without_positives_is_left_out_of_class_means_and_counted() -> None:
    scores, labels = random_case(1)
    labels[:, 2] = 0
    metrics = evaluate(scores, labels)
    rest = np.delete(np.arange(labels.shape[1]), 2)
    alone = evaluate(scores[:, rest], labels[:, rest])
    assert (metrics.classes_without_positives, metrics.classes_scored) == (1, 6)
    assert metrics.AP[2] is None
    assert metrics.mAP == pytest.approx(alone.mAP)
    assert pytest.approx(alone.CF1) == metrics.CF1
    assert metrics.OF1 < alone.OF1  # its false positives count in micro F1


def test_the_two_definitions_of_class_f1_differ_and_both_are_reported() -> None:
    # Class 0: precision 1, recall 1/2. Class 1: precision 1/2, recall 1.
    scores = np.array([[0.9, 0.9], [0.1, 0.9], [0.1, 0.1]], dtype=np.float32)
    labels = np.array([[1, 1], [1, 0], [0, 0]], dtype=np.int8)
    metrics = evaluate(scores, labels)
    assert (metrics.CP, metrics.CR) == (75.0, 75.0)
    assert pytest.approx(75.0) == metrics.CF1
    assert metrics.CF1_mean == pytest.approx(100 * 2 / 3)
    assert pytest.approx(100 * 2 / 3) == metrics.OF1


def test_class_without_predictions_counts_precision_zero() -> None:
    scores = np.array([[0.9, 0.1], [0.1, 0.1]], dtype=np.float32)
    labels = np.array([[1, 1], [0, 0]], dtype=np.int8)
    metrics = evaluate(scores, labels)
    assert (metrics.CP, metrics.CR, metrics.CF1_mean) == (50.0, 50.0, 50.0)


@pytest.mark.parametrize("seed", range(3))
def test_f1_scores_equal_scikit_learn(seed: int) -> None:
    scores, labels = random_case(seed)
    predicted = scores > 0.5
    metrics = evaluate(scores, labels)
    assert metrics.CF1_mean == pytest.approx(100 * f1_score(labels, predicted, average="macro"))
    assert pytest.approx(100 * f1_score(labels, predicted, average="micro")) == metrics.OF1


def test_score_at_the_threshold_is_not_a_prediction() -> None:
    scores = np.array([[0.5], [0.75]], dtype=np.float32)
    labels = np.array([[0], [1]], dtype=np.int8)
    assert evaluate(scores, labels).OF1 == 100.0


def test_top_k_takes_the_first_of_equal_classes_and_never_an_unknown_label() -> None:
    scores = np.array([[0.5, 0.5, 0.5, 0.9]], dtype=np.float32)
    labels = np.array([[1, 0, 1, -1]], dtype=np.int8)
    assert top_k(scores, labels, 2).tolist() == [[True, True, False, False]]
    assert top_k(scores, labels, 9).tolist() == [[True, True, True, False]]


def test_top_3_metrics_of_a_hand_made_case() -> None:
    scores = np.array([[4, 3, 2, 1], [1, 2, 3, 4]], dtype=np.float32)
    labels = np.array([[1, 1, 0, 0], [0, 0, 0, 1]], dtype=np.int8)
    metrics = evaluate(scores, labels, threshold=10)
    assert metrics.OF1 == 0
    assert metrics.OF1_top3 == pytest.approx(100 * 2 * 0.5 * 1 / 1.5)  # 3 hits of 6 claims
    # Class precision 1, 1/2, -, 1 over classes with positives; recall 1 each.
    assert metrics.CF1_top3 == pytest.approx(100 * 2 * (5 / 6) / (1 + 5 / 6))
    assert metrics.OF1_top5 == pytest.approx(100 * 2 * (3 / 8) / (1 + 3 / 8))


def test_perfect_scores_give_one_hundred_everywhere_at_the_threshold() -> None:
    _, labels = random_case(2)
    metrics = evaluate(labels.astype(np.float32), labels)
    assert (metrics.mAP, metrics.CF1, metrics.OF1, metrics.CF1_mean) == (100, 100, 100, 100)


def test_dictionary_is_json_with_the_names_of_the_field() -> None:
    scores, labels = random_case(3)
    labels[:, 0] = 0
    values = json.loads(json.dumps(evaluate(scores, labels).as_dict(), allow_nan=False))
    assert {"mAP", "CF1", "OF1", "CF1_mean", "CF1_top3", "OF1_top5"} <= set(values)
    assert values["AP"][0] is None


def test_scores_that_hold_nan_are_refused() -> None:
    scores, labels = random_case(0)
    scores[3, 1] = math.nan
    with pytest.raises(RunError, match="NaN"):
        evaluate(scores, labels)


def test_labels_without_any_positive_are_refused() -> None:
    scores, labels = random_case(0)
    with pytest.raises(DataError, match="no label"):
        evaluate(scores, np.minimum(labels, 0))


def test_shapes_that_differ_are_refused() -> None:
    scores, labels = random_case(0)
    with pytest.raises(ValueError, match="must both be"):
        evaluate(scores[:, :3], labels)


def test_oracle_grid_is_never_below_the_fixed_threshold_and_says_that_it_is_optimistic() -> None:
    scores, labels = random_case(4, levels=None)
    fixed, oracle = evaluate(scores, labels), oracle_grid(scores, labels)
    assert oracle.CF1 >= fixed.CF1
    assert oracle.CF1_mean >= fixed.CF1_mean
    assert oracle.OF1 >= fixed.OF1
    assert pytest.approx(evaluate(scores, labels, oracle.OF1_threshold).OF1) == oracle.OF1
    figures = [name for name in oracle.as_dict() if not name.endswith("_threshold")]
    assert all("optimistic" in name for name in figures)


def test_tuned_threshold_is_the_best_of_the_grid() -> None:
    scores, labels = random_case(5, levels=None)
    labels[0, 0] = -1
    grid = (0.2, 0.4, 0.6, 0.8)
    best = max(grid, key=lambda threshold: evaluate(scores, labels, threshold).OF1)
    assert tuned_threshold(scores, labels, grid) == best


def test_combined_threshold_is_weighted_by_sizes() -> None:
    assert combine_thresholds([0.2, 0.8], [3, 1]) == pytest.approx(0.35)
    with pytest.raises(ValueError, match="sizes"):
        combine_thresholds([0.2, 0.8], [0, 0])


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_order_of_images_does_not_matter(seed: int) -> None:
    scores, labels = random_case(seed, n=20)
    order = np.random.default_rng(seed).permutation(len(scores))
    before, after = evaluate(scores, labels), evaluate(scores[order], labels[order])
    assert pytest.approx(before.AP) == after.AP
    assert pytest.approx(before.CF1) == after.CF1
    assert after.OF1_top3 == pytest.approx(before.OF1_top3)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_order_of_classes_only_permutes_average_precision(seed: int) -> None:
    scores, labels = random_case(seed, n=20)
    order = np.random.default_rng(seed).permutation(scores.shape[1])
    before, after = evaluate(scores, labels), evaluate(scores[:, order], labels[:, order])
    assert pytest.approx([before.AP[c] for c in order]) == after.AP
    assert after.mAP == pytest.approx(before.mAP)
    assert pytest.approx(before.CF1) == after.CF1
    assert pytest.approx(before.OF1) == after.OF1


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_rising_transformation_of_scores_leaves_average_precision_alone(seed: int) -> None:
    scores, labels = random_case(seed, n=20)
    np.testing.assert_array_equal(
        average_precision(scores * np.float32(4) - np.float32(1), labels),
        average_precision(scores, labels),
    )


@given(seed=st.integers(0, 2**32 - 1), unknown=st.integers(1, 10))
@settings(max_examples=40, deadline=None)
def test_unknown_labels_change_nothing_whatever_their_scores(seed: int, unknown: int) -> None:
    scores, labels = random_case(seed, n=20)
    more_scores, _ = random_case(seed + 1, n=unknown)
    more_labels = np.full_like(more_scores, -1, dtype=np.int8)
    alone = evaluate(scores, labels)
    both = evaluate(np.vstack([scores, more_scores]), np.vstack([labels, more_labels]))
    assert both.as_dict() == alone.as_dict()


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_every_figure_lies_between_zero_and_one_hundred(seed: int) -> None:
    scores, labels = random_case(seed, n=10)
    values = evaluate(scores, labels).as_dict()
    for name in ("mAP", "CF1", "OF1", "CF1_mean", "CP", "CR", "OP", "OR", "CF1_top5", "OF1_top3"):
        value = values[name]
        assert isinstance(value, float)
        assert 0 <= value <= 100 + 1e-9
