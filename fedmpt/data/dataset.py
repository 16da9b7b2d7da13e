"""What a multi-label data set is to the rest of the project: two splits of images with a label matrix.

A reader turns a folder (or, for ``scenes``, a recipe) into a `Dataset`. Images are opened one at a time and only when
the feature bank is filled; labels are in memory. Nothing here knows of clients or of CLIP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LabelMatrix: TypeAlias = NDArray[
    np.int8
]  # [n, C]: 1 present, 0 absent, -1 unknown (ignored by loss and metrics)


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """One split: labels in memory, images opened on demand.

    Attributes:
        labels: int8 ``[n, C]``; 1 present, 0 absent, -1 unknown.
        content: one short hexadecimal digest an image, of what decides its pixels (file bytes, or recipe); the key
            under which its features may be cached.
        open_image: opens image ``i`` (0 <= i < n) as RGB.
        skipped: how many listed images were left out because they could not be read.
    """

    labels: LabelMatrix
    content: tuple[str, ...]
    open_image: Callable[[int], Image.Image]
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.content)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """A multi-label data set.

    Attributes:
        name: as given to ``--data``.
        classes: class names as they are read out in a prompt ("dining table"), in label order.
        unseen: names of further classes that no label covers, for zero-shot benchmarks; may be empty.
        train: what clients hold.
        test: what the server evaluates on.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    unseen: tuple[str, ...] = ()
