"""Multi-label metrics: mAP, CF1 and OF1, at a fixed or chosen threshold and at the top k.

Three choices in use elsewhere change the figures, so they are stated here once:

- A class without a positive in the evaluated split has no average precision and no recall. It is
  left out of class means and counted (other codes give it 0; their mAP is ours times scored classes
  over all classes).
- CF1 is the harmonic mean of mean class precision and mean class recall (ML-GCN, RAM). The mean of
  per-class F1 (DualCoOp, SCPNet) is reported beside it as ``CF1_mean``. A class without predictions
  has precision 0 in both.
- A label of -1 is unknown: its score enters no metric.

Letters: ``n`` images, ``C`` classes, ``T`` thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedmpt.errors import DataError, RunError

Scores: TypeAlias = NDArray[np.float32]  # [n, C]
Labels: TypeAlias = NDArray[np.int8]  # [n, C]: 1, 0 or -1 (unknown)
Counts: TypeAlias = NDArray[np.int64]  # [C]

ORACLE_GRID = tuple(step / 10 for step in range(1, 10))
_NOT_AVERAGED = ("threshold", "classes_scored", "classes_without_positives", "AP")
TUNING_GRID = tuple(step / 100 for step in range(1, 100))

_BLOCK_ENTRIES = 1 << 22  # scores sorted at a time, so that memory stays below about 300 MB


@dataclass(frozen=True, kw_only=True, slots=True)
class Metrics:
    """Multi-label metrics of one set of scores; every figure in percent (0..100).

    Attributes:
        mAP: mean over scored classes of non-interpolated average precision.
        CF1: harmonic mean of ``CP`` and ``CR``.
        OF1: F1 from counts summed over classes.
        CF1_mean: mean over scored classes of per-class F1, the other definition of CF1.
        CP: mean over scored classes of precision.
        CR: mean over scored classes of recall.
        OP: precision from summed counts.
        OR: recall from summed counts.
        CF1_top3: CF1 where each image's three highest scores are its predictions.
        OF1_top3: OF1 likewise.
        CF1_top5: CF1 where each image's five highest scores are its predictions.
        OF1_top5: OF1 likewise.
        CF1_oracle_optimistic: CF1 at the best of nine thresholds, chosen on these labels; see `OracleGrid`.
        CF1_mean_oracle_optimistic: CF1_mean likewise.
        OF1_oracle_optimistic: OF1 likewise.
        threshold: a class is predicted where its score is above this; a score, not a percentage.
        classes_scored: classes with a positive.
        classes_without_positives: classes left out of class means.
        AP: average precision of each class in label order; None without a positive.
    """

    mAP: float  # noqa: N815 - the field's name
    CF1: float
    OF1: float
    CF1_mean: float
    CP: float
    CR: float
    OP: float
    OR: float
    CF1_top3: float
    OF1_top3: float
    CF1_top5: float
    OF1_top5: float
    CF1_oracle_optimistic: float
    CF1_mean_oracle_optimistic: float
    OF1_oracle_optimistic: float
    threshold: float
    classes_scored: int
    classes_without_positives: int
    AP: tuple[float | None, ...]

    def as_dict(self) -> dict[str, float | int | list[float | None]]:
        """Return the metrics as plain values that any JSON writer takes."""
        return {
            "mAP": self.mAP,
            "CF1": self.CF1,
            "OF1": self.OF1,
            "CF1_mean": self.CF1_mean,
            "CP": self.CP,
            "CR": self.CR,
            "OP": self.OP,
            "OR": self.OR,
            "CF1_top3": self.CF1_top3,
            "OF1_top3": self.OF1_top3,
            "CF1_top5": self.CF1_top5,
            "OF1_top5": self.OF1_top5,
            **self.oracle(),
            "threshold": self.threshold,
            "classes_scored": self.classes_scored,
            "classes_without_positives": self.classes_without_positives,
            "AP": list(self.AP),
        }

    def oracle(self) -> dict[str, float]:
        """Return the figures at thresholds chosen on the evaluated labels, under names that carry the warning."""
        return {
            "CF1_oracle_optimistic": self.CF1_oracle_optimistic,
            "CF1_mean_oracle_optimistic": self.CF1_mean_oracle_optimistic,
            "OF1_oracle_optimistic": self.OF1_oracle_optimistic,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class OracleGrid:
    """The best of each F1 over a grid of thresholds, chosen on the very labels it is scored on.

    **Optimistic**: each figure picks its own threshold with the test labels in hand. It exists to
    compare with published figures made this way and must never be shown without that word. Figures
    in percent.
    """

    CF1: float
    CF1_threshold: float
    CF1_mean: float
    CF1_mean_threshold: float
    OF1: float
    OF1_threshold: float

    def as_dict(self) -> Mapping[str, float]:
        """Return the figures under names that carry the warning."""
        return {
            "CF1_oracle_optimistic": self.CF1,
            "CF1_oracle_threshold": self.CF1_threshold,
            "CF1_mean_oracle_optimistic": self.CF1_mean,
            "CF1_mean_oracle_threshold": self.CF1_mean_threshold,
            "OF1_oracle_optimistic": self.OF1,
            "OF1_oracle_threshold": self.OF1_threshold,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class _F1:
    """F1 and what it is made of, as fractions."""

    CP: float
    CR: float
    CF1: float
    CF1_mean: float
    OP: float
    OR: float
    OF1: float


def _check(scores: Scores, labels: Labels) -> None:
    if scores.ndim != 2 or scores.shape != labels.shape:
        raise ValueError(f"scores {scores.shape} and labels {labels.shape} must both be [n, C]")
    if np.isnan(scores).any():
        raise RunError(
            "the scores hold NaN: training diverged; lower the learning rate or the clipping norm"
        )
    if not (labels == 1).any():
        raise DataError(
            "no label of the evaluated images is positive: no metric is defined; "
            "check the test labels"
        )


def _harmonic(precision: float, recall: float) -> float:
    total = precision + recall
    return 2 * precision * recall / total if total > 0 else 0.0


def _ratio(numerator: Counts, denominator: Counts) -> NDArray[np.float64]:
    """Return ``numerator / denominator``, 0 where the denominator is."""
    return np.asarray(numerator / np.maximum(denominator, 1), dtype=np.float64)


def average_precision(scores: Scores, labels: Labels) -> NDArray[np.float64]:
    """Return the non-interpolated average precision of each class.

    Entries with equal scores share one rank, the last of the group, so the result does not depend
    on their order (as in scikit-learn's ``average_precision_score``).

    | class has | result |
    |---|---|
    | no positive | NaN |
    | only positives, or all scores equal | share of positives among known labels |

    Args:
        scores: float32 ``[n, C]``, higher means more likely.
        labels: int8 ``[n, C]``; -1 entries are left out.

    Returns:
        float64 ``[C]`` in 0..1.
    """
    n, C = scores.shape
    result = np.full(C, np.nan)
    width = max(1, _BLOCK_ENTRIES // max(1, n))
    for start in range(0, C if n else 0, width):
        columns = slice(start, start + width)
        order = np.argsort(-scores[:, columns], axis=0, kind="stable")  # [n, c]
        ranked = np.take_along_axis(scores[:, columns], order, axis=0)  # [n, c]
        truth = np.take_along_axis(labels[:, columns], order, axis=0)  # [n, c]
        positive = truth == 1
        hits = np.cumsum(positive, axis=0)  # [n, c]
        known = np.cumsum(truth != -1, axis=0)  # [n, c]
        rank = np.arange(n)[:, None]  # [n, 1]
        ends_group = np.vstack([ranked[1:] != ranked[:-1], np.ones((1, ranked.shape[1]), bool)])
        end = np.where(ends_group, rank, n - 1)  # [n, c]
        end = np.minimum.accumulate(end[::-1], axis=0)[::-1]  # [n, c] the last row of each group
        precision = np.take_along_axis(hits, end, axis=0) / np.maximum(
            np.take_along_axis(known, end, axis=0), 1
        )  # [n, c]
        total = hits[-1]  # [c]
        mean = (precision * positive).sum(axis=0) / np.maximum(total, 1)  # [c]
        result[columns] = np.where(total > 0, mean, np.nan)
    return result


def _f1(predicted: NDArray[np.bool_], labels: Labels) -> _F1:
    """Return F1 of predictions ``[n, C]``; unknown labels count nowhere."""
    positive = labels == 1
    hits: Counts = (predicted & positive).sum(axis=0)  # [C]
    claimed: Counts = (predicted & (labels != -1)).sum(axis=0)  # [C]
    present: Counts = positive.sum(axis=0)  # [C]
    scored = present > 0  # [C]
    precision = _ratio(hits, claimed)[scored]
    recall = _ratio(hits, present)[scored]
    class_f1 = _ratio(2 * hits, claimed + present)[scored]
    CP, CR = float(precision.mean()), float(recall.mean())
    OP = float(hits.sum() / max(1, claimed.sum()))
    OR = float(hits.sum() / present.sum())
    return _F1(
        CP=CP,
        CR=CR,
        CF1=_harmonic(CP, CR),
        CF1_mean=float(class_f1.mean()),
        OP=OP,
        OR=OR,
        OF1=_harmonic(OP, OR),
    )


def top_k(scores: Scores, labels: Labels, k: int) -> NDArray[np.bool_]:
    """Return predictions ``[n, C]``: the ``k`` highest known scores of each image.

    Of equal scores the class that comes first is taken. With fewer than ``k`` known labels, all of
    them are predicted.
    """
    known = labels != -1
    order = np.argsort(np.where(known, -scores, np.inf), axis=1, kind="stable")[:, :k]  # [n, k]
    predicted = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(predicted, order, True, axis=1)
    predicted &= known
    return predicted


def evaluate(scores: Scores, labels: Labels, threshold: float = 0.5) -> Metrics:
    """Return every metric of one set of scores.

    Args:
        scores: float32 ``[n, C]``; probabilities where ``threshold`` is meant as one.
        labels: int8 ``[n, C]``; 1 present, 0 absent, -1 unknown.
        threshold: a class is predicted where its score is above this.

    Raises:
        ValueError: if the shapes differ or are not ``[n, C]``.
        DataError: if no label is positive.
        RunError: if a score is NaN.
    """
    _check(scores, labels)
    precision = average_precision(scores, labels) * 100  # [C]
    scored = ~np.isnan(precision)
    at_threshold = _f1(scores > threshold, labels)
    top3 = _f1(top_k(scores, labels, 3), labels)
    top5 = _f1(top_k(scores, labels, 5), labels)
    oracle = oracle_grid(scores, labels)
    return Metrics(
        mAP=float(precision[scored].mean()),
        CF1=100 * at_threshold.CF1,
        OF1=100 * at_threshold.OF1,
        CF1_mean=100 * at_threshold.CF1_mean,
        CP=100 * at_threshold.CP,
        CR=100 * at_threshold.CR,
        OP=100 * at_threshold.OP,
        OR=100 * at_threshold.OR,
        CF1_top3=100 * top3.CF1,
        OF1_top3=100 * top3.OF1,
        CF1_top5=100 * top5.CF1,
        OF1_top5=100 * top5.OF1,
        CF1_oracle_optimistic=oracle.CF1,
        CF1_mean_oracle_optimistic=oracle.CF1_mean,
        OF1_oracle_optimistic=oracle.OF1,
        threshold=threshold,
        classes_scored=int(scored.sum()),
        classes_without_positives=int((~scored).sum()),
        AP=tuple(None if np.isnan(value) else float(value) for value in precision),
    )


def mean_metrics(several: Sequence[Metrics]) -> Metrics:
    """Return the mean of every percentage over several models, all evaluated on the same labels and threshold."""
    first = several[0]
    names = [field.name for field in fields(Metrics) if field.name not in _NOT_AVERAGED]
    means: dict[str, Any] = {
        name: float(np.mean([getattr(one, name) for one in several])) for name in names
    }
    by_class = zip(*(one.AP for one in several), strict=True)
    precision = tuple(None if values[0] is None else float(np.mean(values)) for values in by_class)
    return replace(first, AP=precision, **means)


def tuned_threshold(scores: Scores, labels: Labels, grid: Sequence[float] = TUNING_GRID) -> float:
    """Return the threshold of ``grid`` with the highest OF1 on *training* scores.

    Of equal ones it is the lowest. It is computed from labels: a client under differential privacy
    must not release it unless its cost is accounted.

    Raises:
        ValueError: if the shapes differ or ``grid`` is empty.
        DataError: if no label is positive.
        RunError: if a score is NaN.
    """
    _check(scores, labels)
    if not grid:
        raise ValueError("the grid of thresholds is empty")
    thresholds = np.sort(np.asarray(grid, dtype=np.float64))  # [T]
    positive = np.sort(scores[labels == 1])
    known = np.sort(scores[labels != -1])
    hits = positive.size - np.searchsorted(positive, thresholds, side="right")  # [T]
    claimed = known.size - np.searchsorted(known, thresholds, side="right")  # [T]
    return float(thresholds[np.argmax(2 * hits / (claimed + positive.size))])


def combine_thresholds(thresholds: Sequence[float], sizes: Sequence[int]) -> float:
    """Return the mean of clients' thresholds weighted by their numbers of images.

    Raises:
        ValueError: if the lengths differ or no size is positive.
    """
    if len(thresholds) != len(sizes) or sum(sizes) <= 0 or min(sizes) < 0:
        raise ValueError(f"{len(thresholds)} thresholds with sizes {tuple(sizes)}")
    return float(np.average(thresholds, weights=sizes))


def oracle_grid(scores: Scores, labels: Labels, grid: Sequence[float] = ORACLE_GRID) -> OracleGrid:
    """Return the best CF1s and OF1 over ``grid``, each at its own threshold: optimistic.

    Of thresholds with equal figures the first is named.

    Raises:
        ValueError: if the shapes differ or ``grid`` is empty.
        DataError: if no label is positive.
        RunError: if a score is NaN.
    """
    _check(scores, labels)
    if not grid:
        raise ValueError("the grid of thresholds is empty")
    results = [(_f1(scores > threshold, labels), threshold) for threshold in grid]
    best_class = max(results, key=lambda pair: pair[0].CF1)
    best_mean = max(results, key=lambda pair: pair[0].CF1_mean)
    best_overall = max(results, key=lambda pair: pair[0].OF1)
    return OracleGrid(
        CF1=100 * best_class[0].CF1,
        CF1_threshold=best_class[1],
        CF1_mean=100 * best_mean[0].CF1_mean,
        CF1_mean_threshold=best_mean[1],
        OF1=100 * best_overall[0].OF1,
        OF1_threshold=best_overall[1],
    )
