"""A data set in numbers: every figure against a count made another way."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from fedmpt.data.dataset import Dataset, HeldOut, Split
from fedmpt.data.digests import protocol_digests
from fedmpt.data.figure import partition_svg
from fedmpt.data.masking import mask_labels
from fedmpt.data.partition import Partition, partition
from fedmpt.data.summary import STRONGEST_PAIRS, summarise


def blank(_: int) -> Image.Image:
    return Image.new("RGB", (1, 1))


def split(labels: np.ndarray, content: tuple[str, ...], **counts: int) -> Split:
    return Split(
        labels=labels.astype(np.int8),
        content=content,
        open_image=blank,
        left_out=tuple(counts.items()),
    )


def small() -> Dataset:
    train = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, -1], [0, 0, 0, 0], [1, 1, 1, 0]])
    test = np.array([[0, 0, 1, 0], [0, 1, 0, 0]])
    return Dataset(
        name="made",
        classes=("ant", "bee", "cat", "dog"),
        train=split(train, ("a", "b", "c", "d", "a"), missing=2, damaged=1),
        test=split(test, ("b", "e")),
    )


def large(n: int = 300, C: int = 12) -> Dataset:
    random = np.random.default_rng(3)
    labels = random.random((n, C)) < random.random(C) * 0.4
    labels[:, 1] |= labels[:, 0]  # whoever has the first class has the second
    content = tuple(map(str, range(n)))
    return Dataset(
        name="made",
        classes=tuple(f"c{i}" for i in range(C)),
        train=split(labels, content),
        test=split(labels[:50], tuple(f"t{i}" for i in range(50))),
    )


def test_every_count_is_that_of_a_case_done_by_hand() -> None:
    summary = summarise(small())
    train = summary.train
    assert (train.images, train.left_out) == (5, {"missing": 2, "damaged": 1})
    assert (train.without_label, train.unknown_labels, train.repeated) == (1, 1, 1)
    assert train.labels_per_image == {0: 1, 1: 1, 2: 2, 3: 1}
    assert train.mean_labels == pytest.approx(8 / 5)
    assert train.frequency == {"ant": 4, "bee": 3, "cat": 1, "dog": 0}
    assert train.never_positive == ["dog"]
    assert summary.test.never_positive == ["ant", "dog"]
    assert summary.in_both == 1
    assert [(pair.first, pair.second, pair.together) for pair in summary.pairs] == [
        ("ant", "bee", 3)
    ]


def test_remarks_name_what_would_spoil_a_benchmark() -> None:
    remarks = " | ".join(summarise(small()).remarks())
    for words in (
        "1 test images are training images too",
        "without a positive training image cannot be learnt: dog",
        "without a positive test image is not scored: ant, dog",
        "1 training images repeat",
        "1 training labels are unknown",
    ):
        assert words in remarks
    assert not list(summarise(large()).remarks())


def test_pairs_are_the_most_correlated_as_numpy_counts_them() -> None:
    dataset = large()
    expected = np.corrcoef(dataset.train.labels.T)
    pairs = summarise(dataset).pairs
    assert len(pairs) == STRONGEST_PAIRS
    assert {pairs[0].first, pairs[0].second} == {"c0", "c1"}
    for pair in pairs:
        first, second = int(pair.first[1:]), int(pair.second[1:])
        assert pair.correlation == pytest.approx(expected[first, second])
        both = dataset.train.labels[:, first] & dataset.train.labels[:, second]
        assert pair.together == both.sum()
    upper = expected[np.triu_indices(12, k=1)]
    assert [pair.correlation for pair in pairs] == pytest.approx(np.sort(upper)[::-1][:10])


def test_summary_is_json_and_tells_the_source_of_a_zero_shot_split() -> None:
    held_out = HeldOut(protocol="fzsl", unseen=("x",), scored=("x", "y", "z", "w"), source="a list")
    dataset = Dataset(
        name="made",
        classes=small().classes,
        train=small().train,
        test=small().test,
        held_out=held_out,
    )
    values = json.loads(json.dumps(summarise(dataset).as_dict(), allow_nan=False))
    assert values["scored"] == ["x", "y", "z", "w"]
    assert values["source"] == "a list"
    assert list(values["test"]["frequency"]) == values["scored"]


def divided(dataset: Dataset, *, seed: int = 0, clients: int = 4) -> Partition:
    return partition(
        "label",
        features=None,
        labels=dataset.train.labels,
        clients=clients,
        seed=seed,
        minimum=10,
    )


def test_figure_is_well_formed_and_has_a_cell_for_every_client_and_class(tmp_path: Path) -> None:
    dataset = large()
    names = ("<b>&\"'", *dataset.classes[1:])
    text = partition_svg(divided(dataset), names, title="4 < 5 & so on")
    root = ElementTree.fromstring(text)  # noqa: S314 - made by the line above
    space = "{http://www.w3.org/2000/svg}"
    tips = [tip.text or "" for tip in root.iter(f"{space}title")][1:]
    assert len(tips) == 4 * 12
    assert sum(int(tip.split(": ")[-1].split(" ")[0]) for tip in tips) == dataset.train.labels.sum()
    texts = [item.text for item in root.iter(f"{space}text")]
    assert "4 < 5 & so on" in texts
    assert names[0] in texts


def test_figure_of_many_classes_shows_the_most_frequent_and_says_so() -> None:
    random = np.random.default_rng(0)
    labels = (random.random((60, 200)) < np.linspace(0.01, 0.6, 200)).astype(np.int8)
    parts = partition("iid", features=None, labels=labels, clients=3, seed=0, minimum=5)
    text = partition_svg(parts, tuple(f"c{i}" for i in range(200)), title="many")
    assert "80 most frequent of 200" in text
    assert text.count("<title>client ") == 3 * 80
    assert "c199" in text
    assert ">c0<" not in text


def digests(**changes: object) -> dict[str, str]:
    dataset = large()
    mask = changes.get("mask", 0.5)
    masked = mask_labels(
        dataset,
        probability=float(str(mask)),
        mode=changes.get("mode", "drop_positive"),  # type: ignore[arg-type]
        seed=int(str(changes.get("seed", 0))),
    )
    parts = divided(dataset, clients=int(str(changes.get("clients", 4))))
    cohorts = changes.get("schedule", ((0, 1), (2, 3)))
    return protocol_digests(
        dataset,
        masked=masked.train.labels,
        partition=parts,
        schedule=cohorts,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("changes", "differ"),
    [
        ({}, set()),
        ({"mask": 0.6}, {"mask"}),
        ({"seed": 1}, {"mask"}),
        ({"mode": "ignore"}, {"mask"}),
        ({"clients": 5}, {"partition"}),
        ({"schedule": ((0, 1), (1, 3))}, {"schedule"}),
    ],
)
def test_a_digest_changes_with_what_it_is_of_and_with_nothing_else(
    changes: dict[str, object], differ: set[str]
) -> None:
    before, after = digests(), digests(**changes)
    assert {name for name in before if before[name] != after[name]} == differ
    assert set(before) == {"classes", "train", "test", "mask", "partition", "schedule"}


def test_digests_of_splits_change_with_one_label_or_one_image() -> None:
    dataset = large()
    keys = {"masked": dataset.train.labels, "partition": divided(dataset), "schedule": ((0,),)}
    before = protocol_digests(dataset, **keys)  # type: ignore[arg-type]
    labels = dataset.test.labels.copy()
    labels[3, 4] ^= 1
    for test in (split(labels, dataset.test.content), split(dataset.test.labels, ("x",) * 50)):
        other = Dataset(name="made", classes=dataset.classes, train=dataset.train, test=test)
        after = protocol_digests(other, **keys)  # type: ignore[arg-type]
        assert {name for name in before if before[name] != after[name]} == {"test"}
