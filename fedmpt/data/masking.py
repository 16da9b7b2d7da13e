"""Hiding training labels, as in the benchmark of partially labelled clients.

The mask is drawn once per seed, before training, over the whole training split: it is the same for
every method and does not depend on how images are spread over clients. Test labels are never
touched, but by `mask_test_labels`, which exists to show what that does to figures. Partition
first, then mask, so that clients do not depend on the mask either.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypeAlias

import numpy as np

from fedmpt.data.dataset import Dataset, LabelMatrix
from fedmpt.errors import UsageError
from fedmpt.seeds import generator

MaskMode: TypeAlias = Literal["drop_positive", "ignore"]


def mask_labels(dataset: Dataset, *, probability: float, mode: MaskMode, seed: int) -> Dataset:
    """Return ``dataset`` with part of its training labels hidden; the test split stays as it is.

    Args:
        dataset: the data set; not changed.
        probability: share of labels to hide, 0 <= probability < 1.
        mode: ``drop_positive`` turns each positive into a negative independently with
            ``probability`` (a false negative, as in the paper's benchmark); ``ignore`` turns each
            label, positive or negative, into -1 (unknown) independently with ``probability``
            (DualCoOp's protocol).
        seed: experiment seed. A higher probability hides a superset of what a lower one hides.

    Raises:
        UsageError: if ``probability`` is outside [0, 1) or ``mode`` is unknown.
    """
    if not 0 <= probability < 1:
        raise UsageError(
            f"mask={probability}: must be at least 0 and below 1 (1 would hide every label)"
        )
    if mode not in ("drop_positive", "ignore"):
        raise UsageError(f"mask mode {mode!r}: must be drop_positive or ignore")
    if probability == 0:
        return dataset
    labels = dataset.train.labels  # [n, C]
    hidden = generator(seed, "mask").random(labels.shape, dtype=np.float32) < probability  # [n, C]
    masked: LabelMatrix = labels.copy()
    if mode == "drop_positive":
        masked[hidden & (labels == 1)] = 0
    else:
        masked[hidden] = -1
    return replace(dataset, train=replace(dataset.train, labels=masked))


def mask_test_labels(dataset: Dataset, *, probability: float, seed: int) -> Dataset:
    """Return ``dataset`` with each positive *test* label turned into a negative with ``probability``.

    The paper's released code does so on most data sets. Figures on such a test set are of no use but to compare with
    that code's.

    Args:
        dataset: the data set; not changed.
        probability: 0 <= probability < 1.
        seed: experiment seed.
    """
    labels: LabelMatrix = dataset.test.labels.copy()
    hidden = generator(seed, "mask test").random(labels.shape, dtype=np.float32) < probability
    labels[hidden & (labels == 1)] = 0
    return replace(dataset, test=replace(dataset.test, labels=labels))
