"""Zero-shot splits on any data set: nothing of an unseen class is trained on, and all is counted."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fedmpt.data.dataset import Dataset, Protocol, Split
from fedmpt.data.unseen import draw_unseen, hold_out
from fedmpt.errors import DataError, UsageError


def shade(row: int) -> Image.Image:
    return Image.new("RGB", (1, 1), (row, 0, 0))


def split(seed: int, n: int, C: int, rate: float = 0.15) -> Split:
    labels = (np.random.default_rng(seed).random((n, C)) < rate).astype(np.int8)
    return Split(labels=labels, content=tuple(f"{seed}-{i}" for i in range(n)), open_image=shade)


def dataset(C: int = 8) -> Dataset:
    return Dataset(
        name="made",
        classes=tuple(f"class {c}" for c in range(C)),
        train=split(1, 200, C),
        test=split(2, 100, C),
    )


@pytest.mark.parametrize("protocol", ["fzsl", "fgzsl"])
def test_split_trains_on_no_image_of_an_unseen_class_and_counts_what_it_leaves_out(
    protocol: Protocol,
) -> None:
    before = dataset()
    after = hold_out(before, protocol=protocol, unseen=["class 5", "class 2"], source="test")
    held, trained = [2, 5], [0, 1, 3, 4, 6, 7]
    keep = ~(before.train.labels[:, held] == 1).any(axis=1)
    np.testing.assert_array_equal(after.train.labels, before.train.labels[keep][:, trained])
    assert after.classes == tuple(before.classes[c] for c in trained)
    scored = held if protocol == "fzsl" else list(range(8))
    assert after.scored == tuple(before.classes[c] for c in scored)
    shown = (before.test.labels[:, scored] == 1).any(axis=1)
    np.testing.assert_array_equal(after.test.labels, before.test.labels[shown][:, scored])
    assert dict(after.train.left_out) == {"shows an unseen class": int((~keep).sum())}
    assert dict(after.test.left_out) == {"shows no scored class": int((~shown).sum())}
    assert after.held_out is not None
    assert after.held_out.unseen == ("class 2", "class 5")


def test_images_stay_with_their_labels_and_content() -> None:
    before = dataset()
    after = hold_out(before, protocol="fzsl", unseen=["class 0", "class 1"], source="test")
    rows = np.flatnonzero(~(before.train.labels[:, :2] == 1).any(axis=1))
    for position in (0, len(rows) - 1):
        assert after.train.open_image(position).getpixel((0, 0)) == (rows[position], 0, 0)
        assert after.train.content[position] == before.train.content[rows[position]]
    with pytest.raises(IndexError):
        after.train.open_image(len(rows))
    with pytest.raises(IndexError):
        after.train.open_image(-1)


def test_classes_in_neither_part_are_neither_trained_nor_scored() -> None:
    after = hold_out(
        dataset(),
        protocol="fgzsl",
        unseen=["class 0", "class 1"],
        seen=["class 2", "class 3", "class 4"],
        source="test",
    )
    assert after.classes == ("class 2", "class 3", "class 4")
    assert after.scored == tuple(f"class {c}" for c in range(5))


def test_drawn_classes_depend_on_the_seed_alone_and_leave_most_images() -> None:
    made = dataset(20)
    made.train.labels[:, 3] = 1  # in every image: holding it out would leave none
    made.test.labels[:, 4] = 0  # in no test image: it could not be scored
    draws = [draw_unseen(made, share=0.25, seed=seed) for seed in range(30)]
    assert all(len(set(drawn)) == 5 for drawn in draws)
    assert not {"class 3", "class 4"} & {name for drawn in draws for name in drawn}
    assert len(set(draws)) > 20
    assert draws[7] == draw_unseen(made, share=0.25, seed=7)


@pytest.mark.parametrize(
    ("unseen", "message"),
    [
        (["class 1", "unicorn"], "'unicorn' is none of the 8 classes"),
        (["class 1"], "1 unseen and 7 seen"),
        ([f"class {c}" for c in range(7)], "7 unseen and 1 seen"),
    ],
)
def test_split_that_cannot_be_is_refused(unseen: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        hold_out(dataset(), protocol="fzsl", unseen=unseen, source="test")


def test_split_without_any_image_left_is_refused() -> None:
    made = dataset()
    made.train.labels[:, 0] = 1
    with pytest.raises(DataError, match="no training image is left"):
        hold_out(made, protocol="fzsl", unseen=["class 0", "class 1"], source="test")


def test_share_that_leaves_too_few_classes_is_refused() -> None:
    with pytest.raises(UsageError, match=r"unseen_share=0\.9"):
        draw_unseen(dataset(), share=0.9, seed=0)
