"""Zero-shot protocols on any data set: some classes are kept from training and tested on.

Training images that show an unseen class are left out, as in the published splits: otherwise
training would push down the very classes that the test asks for. Test images without any scored
class are left out too. Both are counted. Everything is drawn from the seed and the labels alone, so
it is the same for every method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedmpt.data.dataset import Dataset, HeldOut, LabelMatrix, Protocol
from fedmpt.errors import DataError, UsageError
from fedmpt.seeds import generator

# A class is drawn only where holding it out leaves most training images.
_MOST_COMMON = 0.2
_FEWEST = 2  # classes on either side: with one, a softmax over classes is constant


def draw_unseen(dataset: Dataset, *, share: float, seed: int) -> tuple[str, ...]:
    """Return names of classes to hold out, in label order.

    Classes are drawn among those with a positive test image that at most a fifth of the training
    images show.

    Args:
        dataset: the data set, not yet split.
        share: how many, as a share of the classes; at least two are drawn.
        seed: experiment seed.

    Raises:
        UsageError: if there are too few such classes.
    """
    wanted = max(_FEWEST, round(share * len(dataset.classes)))
    frequency = (dataset.train.labels == 1).mean(axis=0)  # [C]
    tested = (dataset.test.labels == 1).any(axis=0)  # [C]
    candidates = np.flatnonzero(tested & (frequency <= _MOST_COMMON))
    if wanted > min(len(candidates), len(dataset.classes) - _FEWEST):
        raise UsageError(
            f"data.unseen_share={share}: {wanted} unseen classes of {len(dataset.classes)} cannot be "
            f"drawn; {len(candidates)} have test images and are in at most {_MOST_COMMON:.0%} of "
            "the training images; lower it, or name classes in data.unseen"
        )
    drawn = generator(seed, "unseen").choice(candidates, size=wanted, replace=False)
    return tuple(dataset.classes[column] for column in sorted(drawn))


def hold_out(
    dataset: Dataset,
    *,
    protocol: Protocol,
    unseen: Sequence[str],
    source: str,
    seen: Sequence[str] | None = None,
) -> Dataset:
    """Return ``dataset`` for a zero-shot protocol.

    Args:
        dataset: a data set with the same classes in both splits.
        protocol: ``fzsl`` tests on the unseen classes, ``fgzsl`` on the seen and unseen ones.
        unseen: names of the classes kept from training.
        source: where the list of classes comes from, in words.
        seen: names of the classes trained on; None for all others.

    Raises:
        UsageError: if a name is none of the classes, or either side has fewer than two classes.
        DataError: if no training or no test image is left.
    """
    unknown = [name for name in unseen if name not in dataset.classes]
    if unknown:
        raise UsageError(
            f"data.unseen: {unknown[0]!r} is none of the {len(dataset.classes)} classes; "
            "`fedmpt data check --json` lists them"
        )
    held = [column for column, name in enumerate(dataset.classes) if name in unseen]
    trained = [
        column
        for column, name in enumerate(dataset.classes)
        if column not in held and (seen is None or name in seen)
    ]
    if len(held) < _FEWEST or len(trained) < _FEWEST:
        raise UsageError(
            f"data.unseen: {len(held)} unseen and {len(trained)} seen classes; "
            f"a zero-shot protocol needs at least {_FEWEST} of each"
        )
    scored = held if protocol == "fzsl" else sorted(held + trained)
    train = dataset.train.take(
        ~(dataset.train.labels[:, held] == 1).any(axis=1), reason="shows an unseen class"
    )
    test = dataset.test.take(
        (dataset.test.labels[:, scored] == 1).any(axis=1), reason="shows no scored class"
    )
    for split, part in (("training", train), ("test", test)):
        if not len(part):
            raise DataError(
                f"{protocol}: no {split} image is left; hold out other classes in data.unseen"
            )
    return replace(
        dataset,
        classes=tuple(dataset.classes[column] for column in trained),
        train=replace(train, labels=np.ascontiguousarray(train.labels[:, trained])),
        test=replace(test, labels=np.ascontiguousarray(test.labels[:, scored])),
        held_out=HeldOut(
            protocol=protocol,
            unseen=tuple(dataset.classes[column] for column in held),
            scored=tuple(dataset.classes[column] for column in scored),
            source=source,
        ),
    )


def add_unseen(
    dataset: Dataset,
    *,
    protocol: Protocol,
    names: Sequence[str],
    train_labels: LabelMatrix,
    test_labels: LabelMatrix,
    source: str,
) -> Dataset:
    """Return ``dataset`` for a zero-shot protocol with unseen classes that its labels do not cover.

    Args:
        dataset: a data set with the same classes in both splits.
        protocol: as for `hold_out`.
        names: names of the further classes.
        train_labels: int8 ``[n, U]``, which training images show them.
        test_labels: int8 ``[m, U]``, which test images show them.
        source: where the list of classes comes from, in words.
    """
    wide = replace(
        dataset,
        classes=dataset.classes + tuple(names),
        train=replace(dataset.train, labels=np.hstack([dataset.train.labels, train_labels])),
        test=replace(dataset.test, labels=np.hstack([dataset.test.labels, test_labels])),
    )
    return hold_out(wide, protocol=protocol, unseen=names, source=source)
