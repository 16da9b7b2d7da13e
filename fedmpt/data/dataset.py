"""What a multi-label data set is to the rest of the project: two splits of images with a label matrix.

A reader turns a folder (or, for ``scenes``, a recipe) into a `Dataset`. Images are opened one at a time and only when
the feature bank is filled; labels are in memory. Nothing here knows of clients or of CLIP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LabelMatrix: TypeAlias = NDArray[
    np.int8
]  # [n, C]: 1 present, 0 absent, -1 unknown (ignored by loss and metrics)
Protocol: TypeAlias = Literal["standard", "fzsl", "fgzsl"]

# Why a listed image could not be read.
UNREADABLE = ("missing", "unreadable", "damaged")


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """One split: labels in memory, images opened on demand.

    Attributes:
        labels: int8 ``[n, C]``; 1 present, 0 absent, -1 unknown.
        content: one short hexadecimal digest an image, of what decides its pixels (file bytes, or recipe); the key
            under which its features may be cached.
        open_image: opens image ``i`` (0 <= i < n) as RGB.
        left_out: images that the source lists and the split does not hold: (reason, number), reasons distinct.
        sites: int64 ``[n]``, 0, 1, ...: where each image was taken, if the source says so; None if it does not.
    """

    labels: LabelMatrix
    content: tuple[str, ...]
    open_image: Callable[[int], Image.Image]
    left_out: tuple[tuple[str, int], ...] = ()
    sites: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.content)

    @property
    def skipped(self) -> int:
        """How many listed images could not be read."""
        return sum(count for reason, count in self.left_out if reason in UNREADABLE)

    def take(self, keep: NDArray[np.bool_], *, reason: str) -> Split:
        """Return the images of which ``keep``, bool ``[n]``, is true; the others are counted under ``reason``."""
        rows = np.flatnonzero(keep)
        if len(rows) == len(self):
            return self
        counts = dict(self.left_out)
        counts[reason] = counts.get(reason, 0) + len(self) - len(rows)
        return replace(
            self,
            labels=self.labels[rows],
            content=tuple(self.content[row] for row in rows),
            open_image=partial(_open_taken, self.open_image, rows),
            left_out=tuple(counts.items()),
            sites=None if self.sites is None else self.sites[rows],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """Classes that a zero-shot protocol keeps from training.

    Attributes:
        protocol: ``fzsl``: tested on the unseen classes alone; ``fgzsl``: on seen and unseen ones.
        unseen: names of the classes kept from training.
        scored: names of the classes of the test labels, in label order.
        source: where classes and images of the split come from, in words; figures compare only within one source.
    """

    protocol: Protocol
    unseen: tuple[str, ...]
    scored: tuple[str, ...]
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """A multi-label data set.

    Attributes:
        name: as given to ``--data``.
        classes: class names as they are read out in a prompt ("dining table"), in order of the training labels.
        train: what clients hold.
        test: what the server evaluates on.
        held_out: the zero-shot split; None where training and test labels are of the same classes.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    held_out: HeldOut | None = None

    @property
    def scored(self) -> tuple[str, ...]:
        """Names of the classes of the test labels, in label order."""
        return self.classes if self.held_out is None else self.held_out.scored


def _open_taken(
    open_image: Callable[[int], Image.Image], rows: NDArray[np.int64], row: int
) -> Image.Image:
    if not 0 <= row < len(rows):
        raise IndexError(f"image {row} of {len(rows)}")
    return open_image(int(rows[row]))
