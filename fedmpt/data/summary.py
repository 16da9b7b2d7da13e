"""What is in a data set, in numbers: what ``fedmpt data check`` shows before anything is trained.

Numbers and class names only; no file name and no single image.

Letters: ``n`` images, ``C`` classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from fedmpt.data.dataset import Dataset, Split

STRONGEST_PAIRS: Final = 10
_FEWEST_TOGETHER: Final = 3  # images; of rarer pairs the correlation is chance


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitSummary:
    """One split.

    Attributes:
        images: readable images of the split.
        left_out: listed images that are no part of it, by reason.
        without_label: images without any positive.
        unknown_labels: labels of -1.
        labels_per_image: number of images by number of positives.
        mean_labels: positives an image.
        repeated: images whose file has the same content as an earlier one of the split.
        frequency: positives of every class.
        never_positive: classes without a positive.
    """

    images: int
    left_out: dict[str, int]
    without_label: int
    unknown_labels: int
    labels_per_image: dict[int, int]
    mean_labels: float
    repeated: int
    frequency: dict[str, int]
    never_positive: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two classes that appear together.

    Attributes:
        first: name of a class.
        second: name of another.
        together: training images that show both.
        correlation: Pearson correlation of the two labels over the training images, -1 to 1.
    """

    first: str
    second: str
    together: int
    correlation: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """A data set in numbers.

    Attributes:
        name: the data set.
        classes: classes trained on, in label order.
        scored: classes tested on, in label order.
        source: of the zero-shot split, in words; None without one.
        train: the training split.
        test: the test split.
        in_both: test images whose file has the same content as a training image.
        pairs: the most correlated pairs of classes of the training split, strongest first.
    """

    name: str
    classes: list[str]
    scored: list[str]
    source: str | None
    train: SplitSummary
    test: SplitSummary
    in_both: int
    pairs: list[Pair]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values that any JSON writer takes."""
        return asdict(self)

    def remarks(self) -> Iterator[str]:
        """Yield what the user should know, most serious first."""
        if self.in_both:
            yield f"{self.in_both} test images are training images too (same file content)"
        for split, part in (("training", self.train), ("test", self.test)):
            if part.never_positive:
                names = ", ".join(part.never_positive[:8])
                more = len(part.never_positive) - 8
                consequence = "cannot be learnt" if split == "training" else "is not scored"
                yield (
                    f"a class without a positive {split} image {consequence}: "
                    f"{names}{f' and {more} more' if more > 0 else ''}"
                )
            if part.repeated:
                yield f"{part.repeated} {split} images repeat another one of the split"
            if part.unknown_labels:
                yield f"{part.unknown_labels} {split} labels are unknown: no loss or metric counts them"


def summarise(dataset: Dataset) -> Summary:
    """Return a data set in numbers."""
    train_content = set(dataset.train.content)
    held_out = dataset.held_out
    return Summary(
        name=dataset.name,
        classes=list(dataset.classes),
        scored=list(dataset.scored),
        source=held_out.source if held_out is not None else None,
        train=_summarise(dataset.train, dataset.classes),
        test=_summarise(dataset.test, dataset.scored),
        in_both=sum(content in train_content for content in dataset.test.content),
        pairs=_pairs(dataset.train, dataset.classes),
    )


def _summarise(split: Split, classes: tuple[str, ...]) -> SplitSummary:
    positive = split.labels == 1  # [n, C]
    counts = positive.sum(axis=1)  # [n]
    frequency = dict(zip(classes, positive.sum(axis=0).tolist(), strict=True))
    return SplitSummary(
        images=len(split),
        left_out=dict(split.left_out),
        without_label=int((counts == 0).sum()),
        unknown_labels=int((split.labels == -1).sum()),
        labels_per_image=dict(sorted(Counter(counts.tolist()).items())),
        mean_labels=float(counts.mean()),
        repeated=len(split) - len(set(split.content)),
        frequency=frequency,
        never_positive=[name for name, count in frequency.items() if not count],
    )


def _pairs(split: Split, classes: tuple[str, ...]) -> list[Pair]:
    """Return the most correlated pairs, of equal ones the first in label order."""
    positive = (split.labels == 1).astype(
        np.float32
    )  # [n, C]; float32 multiplies fast, exact below 2^24
    together = positive.T @ positive  # [C, C]
    n, present = len(split), positive.sum(axis=0, dtype=np.float64)  # [C]
    covariance = together.astype(np.float64) / n - np.outer(present, present) / n**2  # [C, C]
    deviation = np.sqrt(present / n * (1 - present / n))  # [C]
    product = np.outer(deviation, deviation)  # [C, C]
    correlation = np.divide(covariance, product, out=np.zeros_like(product), where=product > 0)
    first, second = np.triu_indices(len(classes), k=1)
    often = together[first, second] >= _FEWEST_TOGETHER
    first, second = first[often], second[often]
    order = np.argsort(-correlation[first, second], kind="stable")[:STRONGEST_PAIRS]
    return [
        Pair(
            first=classes[first[rank]],
            second=classes[second[rank]],
            together=int(together[first[rank], second[rank]]),
            correlation=float(correlation[first[rank], second[rank]]),
        )
        for rank in order
    ]
