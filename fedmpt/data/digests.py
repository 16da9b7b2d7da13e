"""Digests of everything that a benchmark fixes before training, so that two runs can show that they shared it.

None depends on the method, on its settings or on privacy. Digests of labels are of the simulation's
whole data; a deployment on private data keeps them to itself, as it does the partition.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec
import numpy as np

from fedmpt.data.dataset import Dataset, LabelMatrix, Split
from fedmpt.data.partition import Partition


def protocol_digests(
    dataset: Dataset,
    *,
    masked: LabelMatrix,
    partition: Partition,
    schedule: Sequence[Sequence[int]],
) -> dict[str, str]:
    """Return SHA-256 digests by name.

    | name | of |
    |---|---|
    | ``classes`` | names of the training and of the scored classes, in order |
    | ``train`` | training images and their labels before masking |
    | ``test`` | test images and their labels |
    | ``mask`` | which training labels are hidden, and as what |
    | ``partition`` | who holds which training images |
    | ``schedule`` | who is asked to take part in which round |

    Args:
        dataset: the data set under its protocol, not masked.
        masked: int8 ``[n, C]``, the training labels after masking.
        partition: of the training images.
        schedule: clients of every round.
    """
    hidden = np.where(masked == dataset.train.labels, np.int8(1), masked)  # [n, C]
    return {
        "classes": _of(msgspec.json.encode([dataset.classes, dataset.scored])),
        "train": _of_split(dataset.train),
        "test": _of_split(dataset.test),
        "mask": _of(_shape(hidden), np.ascontiguousarray(hidden).tobytes()),
        "partition": _of(_shape(partition.assignment()), partition.assignment().tobytes()),
        "schedule": _of(msgspec.json.encode([list(map(int, cohort)) for cohort in schedule])),
    }


def _of_split(split: Split) -> str:
    labels = np.ascontiguousarray(split.labels)
    return _of(msgspec.json.encode(split.content), _shape(labels), labels.tobytes())


def _shape(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> bytes:
    return f"{array.dtype.str}{array.shape}".encode()


def _of(*parts: bytes) -> str:
    state = hashlib.sha256(b"fedmpt protocol 1")
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.hexdigest()
