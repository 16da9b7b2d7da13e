"""NUS-WIDE, MultiScene-Clean and MLRSNet as they are published, with their known quirks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedmpt.config import DataConfig
from fedmpt.data.class_names import NUS_CONCEPTS
from fedmpt.data.dataset import Dataset, Split
from fedmpt.data.folder import ReadPolicy
from fedmpt.data.mlrsnet import read_mlrsnet
from fedmpt.data.multiscene import read_multiscene
from fedmpt.data.nuswide import read_nuswide
from fedmpt.data.registry import load_dataset
from fedmpt.errors import DataError, UsageError
from tests.fedmpt.trees import (
    MLRSNET_LABELS,
    diagonal,
    shade_of,
    write_mlrsnet,
    write_multiscene,
    write_named,
    write_nus,
)


def shades(split: Split) -> list[int]:
    return [shade_of(split.open_image(row)) for row in range(len(split))]


@pytest.mark.parametrize("groundtruth", [True, False])
@pytest.mark.parametrize("concept_list", [True, False])
def test_nus_wide_is_read_from_its_lists_wherever_the_labels_lie(
    tmp_path: Path, groundtruth: bool, concept_list: bool
) -> None:
    dataset = read_nuswide(write_nus(tmp_path, groundtruth=groundtruth, concept_list=concept_list))
    assert dataset.classes == NUS_CONCEPTS
    expected = diagonal(6, 81)
    expected[2] = 0
    np.testing.assert_array_equal(dataset.train.labels, expected)
    np.testing.assert_array_equal(dataset.test.labels, expected[:4])
    assert shades(dataset.train) == list(range(6))
    assert shades(dataset.test) == list(range(100, 104))


def test_nus_wide_without_tags_leaves_training_images_out_but_no_test_image(tmp_path: Path) -> None:
    dataset = load_dataset(
        DataConfig(name="nuswide", root=str(write_nus(tmp_path))), seed=0, cache_dir=tmp_path / "c"
    )
    assert (len(dataset.train), len(dataset.test)) == (5, 4)
    assert dict(dataset.train.left_out) == {"has fewer than 1 labels": 1}


def test_nus_wide_images_that_could_not_be_fetched_are_counted(tmp_path: Path) -> None:
    write_nus(tmp_path)
    for image in sorted((tmp_path / "Flickr" / "actor").iterdir())[:3]:
        image.unlink()
    dataset = read_nuswide(tmp_path)
    assert (len(dataset.train), dataset.train.skipped, dataset.test.skipped) == (3, 3, 0)
    assert dict(dataset.train.left_out) == {"missing": 3}
    with pytest.raises(DataError, match=r"3 of 10 images cannot be read \(3 missing\)"):
        read_nuswide(tmp_path, policy=ReadPolicy(strict=True))


def test_nus_wide_images_may_lie_flat(tmp_path: Path) -> None:
    write_nus(tmp_path)
    (tmp_path / "Flickr" / "actor").rename(tmp_path / "images")
    (tmp_path / "Flickr").rmdir()
    assert len(read_nuswide(tmp_path).train) == 6


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "Groundtruth/TrainTestLabels/Labels_cat_Train.txt",
            "0\n1\n",
            "has 2 labels and the train",
        ),
        ("Groundtruth/TrainTestLabels/Labels_cat_Test.txt", "0\n1\n2\n0\n", "other values than 0"),
        ("Groundtruth/TrainTestLabels/Labels_cat_Test.txt", None, "no such file"),
        ("ImageList/TrainImagelist.txt", None, "no such file"),
        ("ImageList/TrainImagelist.txt", "..\\..\\x.jpg\n" * 6, "6 listed images lie outside"),
    ],
)
def test_nus_wide_that_does_not_fit_together_is_refused(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    write_nus(tmp_path)
    (tmp_path / name).unlink() if text is None else (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_nuswide(tmp_path)


def test_nus_wide_without_list_of_concepts_needs_all_81(tmp_path: Path) -> None:
    write_nus(tmp_path, concept_list=False)
    (tmp_path / "Groundtruth/TrainTestLabels/Labels_cat_Train.txt").unlink()
    with pytest.raises(DataError, match="80 of the 81 concepts and of 0 others"):
        read_nuswide(tmp_path)


def test_multiscene_is_read_in_order_of_its_header_with_names_spelt_right(tmp_path: Path) -> None:
    dataset = read_multiscene(write_multiscene(tmp_path))
    spelt = {13: "oil field", 26: "solar panel", 33: "wind turbine", 12: "lake or pond"}
    assert {column: dataset.classes[column] for column in spelt} == spelt
    assert dataset.classes[:3] == ("apron", "baseball field", "basketball field")
    assert (len(dataset.classes), len(set(dataset.classes))) == (36, 36)
    np.testing.assert_array_equal(dataset.train.labels, diagonal(4, 36))
    np.testing.assert_array_equal(dataset.test.labels, diagonal(3, 36))
    assert (shades(dataset.train), shades(dataset.test)) == ([0, 1, 2, 3], [50, 51, 52])


def test_multiscene_with_other_columns_is_refused(tmp_path: Path) -> None:
    write_multiscene(tmp_path)
    text = (tmp_path / "Test.csv").read_text()
    (tmp_path / "Test.csv").write_text(text.replace("Apron,BaseballField", "BaseballField,Apron"))
    with pytest.raises(DataError, match=r"Test\.csv: its columns differ from those of Tra\.csv"):
        read_multiscene(tmp_path)
    (tmp_path / "Test.csv").write_text("stem,Apron\nimg_50,1\n")
    with pytest.raises(DataError, match="has 2 columns and must have the stem and 36"):
        read_multiscene(tmp_path)


@pytest.mark.parametrize("missing", ["images", "Tra.csv", "Test.csv"])
def test_multiscene_names_what_is_missing_and_what_belongs_there(
    tmp_path: Path, missing: str
) -> None:
    write_multiscene(tmp_path)
    (tmp_path / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=f"{missing}: no such .*--data-root must hold images/"):
        read_multiscene(tmp_path)


def test_multiscene_image_listed_twice_is_refused(tmp_path: Path) -> None:
    write_multiscene(tmp_path)
    lines = (tmp_path / "Tra.csv").read_text().splitlines()
    (tmp_path / "Tra.csv").write_text("\n".join([*lines, lines[-1]]))
    with pytest.raises(DataError, match="listed twice"):
        read_multiscene(tmp_path)


def by_content(dataset: Dataset) -> dict[str, list[int]]:
    labels = np.concatenate([dataset.train.labels, dataset.test.labels]).tolist()
    return dict(zip(dataset.train.content + dataset.test.content, labels, strict=True))


@pytest.mark.parametrize("labels", ["Labels", "labels"])
def test_mlrsnet_is_read_whatever_the_spelling_of_folders(tmp_path: Path, labels: str) -> None:
    dataset = read_mlrsnet(write_mlrsnet(tmp_path, labels=labels), seed=0)
    assert dataset.classes == tuple("harbor" if x == "habor" else x for x in MLRSNET_LABELS)
    assert (len(dataset.train), len(dataset.test), dataset.train.skipped) == (24, 6, 0)
    found = by_content(dataset)
    assert len(found) == 30
    plain = read_mlrsnet(tmp_path, seed=5)
    assert by_content(plain) == found
    for labels_of, shade in zip(dataset.test.labels, shades(dataset.test), strict=True):
        category, number = np.flatnonzero(labels_of)
        assert shade == 50 * category + number - 10


def test_mlrsnet_draws_a_fifth_of_every_category_from_the_seed(tmp_path: Path) -> None:
    write_mlrsnet(tmp_path)
    first, again, other = (read_mlrsnet(tmp_path, seed=seed) for seed in (1, 1, 2))
    for dataset in (first, other):
        assert dataset.test.labels[:, :3].sum(axis=0).tolist() == [2, 2, 2]
    assert first.test.content == again.test.content != other.test.content
    with pytest.raises(UsageError, match="test_fraction"):
        read_mlrsnet(tmp_path, seed=0, test_fraction=1.0)


@pytest.mark.parametrize("suffix", ["json", "txt", "csv"])
def test_mlrsnet_follows_a_published_split_and_counts_what_is_in_neither_list(
    tmp_path: Path, suffix: str
) -> None:
    write_mlrsnet(tmp_path)
    train = [f"airport/airport_{i:05d}.jpg" for i in (1, 2)]
    test = [f"Images\\harbor_port\\harbor_port_{i:05d}.jpg" for i in (3, 4, 5)]
    for name, images in (("train", train), ("test", test)):
        path = tmp_path / f"{name}.{suffix}"
        if suffix == "json":
            write_named(path, MLRSNET_LABELS, [(image, []) for image in images])
        else:
            path.write_text("\n".join(["image", *images] if suffix == "csv" else images))
    dataset = read_mlrsnet(tmp_path, seed=0)
    assert (len(dataset.train), len(dataset.test)) == (2, 3)
    assert dict(dataset.train.left_out) == {"in neither list of the split": 25}


def test_mlrsnet_by_category_tests_on_categories_that_are_not_trained_on(tmp_path: Path) -> None:
    write_mlrsnet(tmp_path)
    (tmp_path / "train.txt").write_text("airport_00001.jpg\n")  # no list is followed
    (tmp_path / "test.txt").write_text("airport_00002.jpg\n")
    dataset = read_mlrsnet(tmp_path, seed=0, by_category=True)
    assert dataset.train.labels[:, :3].sum(axis=0).tolist() == [10, 0, 0]
    assert dataset.test.labels[:, :3].sum(axis=0).tolist() == [0, 10, 10]


def test_mlrsnet_lists_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write_mlrsnet(tmp_path)
    (tmp_path / "train.txt").write_text("airport_00001.jpg\nmoon_00001.jpg\n")
    with pytest.raises(DataError, match=r"test\.txt is not beside it"):
        read_mlrsnet(tmp_path, seed=0)
    (tmp_path / "test.txt").write_text("airport_00001.jpg\n")
    with pytest.raises(DataError, match="1 images without labels and 1 images twice"):
        read_mlrsnet(tmp_path, seed=0)


def test_mlrsnet_folder_without_labels_is_counted_and_table_without_folder_refused(
    tmp_path: Path,
) -> None:
    write_mlrsnet(tmp_path)
    (tmp_path / "Labels" / "airport.csv").rename(tmp_path / "airport.csv")
    dataset = read_mlrsnet(tmp_path, seed=0)
    assert dict(dataset.train.left_out) == {"in a folder without a table of labels": 10}
    (tmp_path / "airport.csv").rename(tmp_path / "Labels" / "moon.csv")
    with pytest.raises(DataError, match=r"moon\.csv: Images has no folder of that category"):
        read_mlrsnet(tmp_path, seed=0)


def test_mlrsnet_missing_image_is_counted(tmp_path: Path) -> None:
    write_mlrsnet(tmp_path)
    (tmp_path / "Images" / "airport" / "airport_00003.jpg").unlink()
    dataset = read_mlrsnet(tmp_path, seed=0)
    assert dataset.train.skipped + dataset.test.skipped == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,cat\nairport_00001.jpg,1\n", "columns differ"),
        ("picture,cat\nairport_00001.jpg,1\n", "first column must be called image"),
        ("image\n", "holds no row"),
    ],
)
def test_mlrsnet_malformed_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    write_mlrsnet(tmp_path)
    (tmp_path / "Labels" / "harbor&port.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_mlrsnet(tmp_path, seed=0)


def test_messages_of_tables_hold_no_cell(tmp_path: Path) -> None:
    write_mlrsnet(tmp_path)
    path = tmp_path / "Labels" / "airport.csv"
    path.write_text(path.read_text().replace(",1,0", ",secret,0", 1))
    with pytest.raises(DataError, match="must be 0, 1 or -1") as error:
        read_mlrsnet(tmp_path, seed=0)
    assert "secret" not in str(error.value)
