"""Published zero-shot lists in every format that circulates, and splits made without them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fedmpt.config import DataConfig
from fedmpt.data.class_names import COCO_SEEN_48, COCO_UNSEEN_17, NUS_CONCEPTS
from fedmpt.data.dataset import Dataset, Protocol, Split
from fedmpt.data.registry import load_dataset
from fedmpt.errors import DataError, UsageError
from tests.fedmpt.test_coco import write_official
from tests.fedmpt.trees import (
    TAGS,
    shade_of,
    write_coco_instances,
    write_coco_named,
    write_image,
    write_named,
    write_nus,
    write_nus_arrays,
    write_nus_named,
)

PROTOCOLS: tuple[Protocol, ...] = ("fzsl", "fgzsl")


def load(root: Path, name: str, protocol: Protocol, **settings: object) -> Dataset:
    config = DataConfig(name=name, root=str(root), protocol=protocol, **settings)  # type: ignore[arg-type]
    return load_dataset(config, seed=0, cache_dir=root.parent / "cache")


def names_of(split: Split, classes: tuple[str, ...]) -> list[set[str]]:
    return [{classes[c] for c in np.flatnonzero(row)} for row in split.labels]


@pytest.mark.parametrize("write", [write_coco_named, write_coco_instances])
@pytest.mark.parametrize("name", ["coco", "coco2014"])
def test_both_formats_of_cocos_split_give_the_same_data(
    tmp_path: Path, write: object, name: str
) -> None:
    root = write(tmp_path / "coco")  # type: ignore[operator]
    fzsl, fgzsl = (load(root, name, protocol) for protocol in PROTOCOLS)
    assert set(fzsl.classes) == set(fgzsl.classes) == set(COCO_SEEN_48)
    assert set(fzsl.scored) == set(COCO_UNSEEN_17)
    assert set(fgzsl.scored) == set(COCO_SEEN_48 + COCO_UNSEEN_17)
    assert names_of(fzsl.train, fzsl.classes) == [{"person", "zebra"}]
    assert names_of(fzsl.test, fzsl.scored) == [{"cat"}]
    assert names_of(fgzsl.test, fgzsl.scored) == [{"cat"}, {"dog", "person"}]
    assert shade_of(fgzsl.train.open_image(0)) == 9
    assert fzsl.held_out is not None
    assert "published lists" in fzsl.held_out.source


def test_cocos_instances_lists_may_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    root = write_coco_instances(tmp_path / "coco", folder="annotations/ZSIS")
    assert len(load(root, "coco2014", "fzsl").scored) == 17


def test_listed_image_that_is_nowhere_is_counted(tmp_path: Path) -> None:
    root = write_coco_named(tmp_path / "coco")
    (root / "val2014" / "COCO_val2014_000000000073.jpg").unlink()
    assert dict(load(root, "coco", "fgzsl").test.left_out) == {"missing": 1}


def test_without_lists_cocos_classes_are_held_out_on_all_images(tmp_path: Path) -> None:
    """The source says that figures do not compare with those of the published sample."""
    root = tmp_path / "coco"
    categories = [
        {"id": number, "name": name}
        for number, name in enumerate((*COCO_SEEN_48, *COCO_UNSEEN_17, "hair drier"), start=1)
    ]
    ids = {item["name"]: item["id"] for item in categories}
    shown = [["person", "hair drier"], ["zebra"], ["cat", "person"], ["hair drier"], ["dog"]]
    for split, first in (("train", 10), ("test", 20)):
        images = [{"id": first + i, "file_name": f"{first + i}.png"} for i in range(5)]
        for i in range(5):
            write_image(root / "images" / f"{first + i}.png", first + i)
        content = {
            "images": images,
            "categories": categories,
            "annotations": [
                {"image_id": first + i, "category_id": ids[name]}
                for i, names in enumerate(shown)
                for name in names
            ],
        }
        (root / f"instances_{split}.json").write_text(json.dumps(content))
    fzsl, fgzsl = (load(root, "coco", protocol) for protocol in PROTOCOLS)
    assert set(fzsl.classes) == set(COCO_SEEN_48)
    assert names_of(fzsl.train, fzsl.classes) == [{"person"}, {"zebra"}, set()]
    assert dict(fzsl.train.left_out) == {"shows an unseen class": 2}
    assert names_of(fzsl.test, fzsl.scored) == [{"cat"}, {"dog"}]
    assert names_of(fgzsl.test, fgzsl.scored) == [
        {"person"},
        {"zebra"},
        {"cat", "person"},
        {"dog"},
    ]
    assert fzsl.held_out is not None
    assert "do not compare" in fzsl.held_out.source


def test_classes_named_by_the_user_override_published_lists(tmp_path: Path) -> None:
    root = write_official(tmp_path / "coco")
    (root / "annotations" / "train_48_filtered.json").write_text("not read")
    with pytest.raises(DataError, match="test_17_filtered"):
        load(root, "coco2014", "fzsl")
    with pytest.raises(UsageError, match="a zero-shot protocol needs at least 2 of each"):
        load(root, "coco2014", "fzsl", unseen=("toothbrush",))


@pytest.mark.parametrize("train_name", ["train_925_filtered.json", "train_81_filtered.json"])
def test_nus_wides_lists_with_named_labels_are_read_under_either_name(
    tmp_path: Path, train_name: str
) -> None:
    root = write_nus_named(tmp_path / "nus", train_name=train_name)
    fzsl, fgzsl = (load(root, "nuswide", protocol) for protocol in PROTOCOLS)
    assert (len(fzsl.classes), len(fzsl.scored), len(fgzsl.scored)) == (925, 81, 1006)
    assert names_of(fzsl.train, fzsl.classes) == [{"tag 001", "tag 924"}]
    assert names_of(fgzsl.test, fgzsl.scored) == [{"zebra", "tag 000"}, {"airport"}]
    # of two files called 0000.jpg the one in the listed folder is taken
    assert shade_of(fzsl.train.open_image(0)) == 0


def test_list_of_the_wrong_classes_is_refused(tmp_path: Path) -> None:
    """A list called train_81 that really holds the 81 concepts is no zero-shot list."""
    root = write_nus_named(tmp_path / "nus")
    write_named(
        root / "annotations" / "train_925_filtered.json", NUS_CONCEPTS, [("0000.jpg", ["zebra"])]
    )
    with pytest.raises(DataError, match=r"shares 81 of its 81 classes .* fzsl needs 0 shared"):
        load(root, "nuswide", "fzsl")
    write_named(
        root / "annotations" / "train_925_filtered.json", TAGS[:9], [("0000.jpg", ["tag_001"])]
    )
    write_named(
        root / "annotations" / "test_1006_filtered.json", NUS_CONCEPTS, [("0001.jpg", ["zebra"])]
    )
    with pytest.raises(DataError, match=r"shares 0 .* fgzsl needs 9 shared"):
        load(root, "nuswide", "fgzsl")


def test_nus_wides_arrays_are_read_and_their_pickle_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = write_nus_arrays(tmp_path / "nus")
    fzsl, fgzsl = (load(tmp_path / "nus", "nuswide", protocol) for protocol in PROTOCOLS)
    assert set(fzsl.classes) == {name.replace("_", " ") for name in TAGS}
    assert fzsl.scored == NUS_CONCEPTS
    assert fgzsl.scored == tuple(name.replace("_", " ") for name in names)
    assert names_of(fzsl.train, fzsl.classes) == [{"tag 000"}, {"tag 924"}]
    assert names_of(fzsl.test, fzsl.scored) == [{"zebra"}, {"airport"}]
    assert names_of(fgzsl.test, fgzsl.scored) == [{"tag 000", "zebra"}, {"tag 924", "airport"}]
    assert [shade_of(fgzsl.test.open_image(i)) for i in (0, 1)] == [20, 21]
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("narrow", [True, False])
def test_arrays_may_hold_the_columns_of_their_part_alone_and_nothing_else(
    tmp_path: Path, narrow: bool
) -> None:
    write_nus_arrays(tmp_path / "nus")
    path = tmp_path / "nus" / "annotations" / "zsl" / "formatted_val_all_labels_filtered.npy"
    np.save(path, np.load(path)[:, 500:581] if narrow else np.load(path)[:, 500:600])
    if narrow:
        fzsl = load(tmp_path / "nus", "nuswide", "fzsl")
        assert names_of(fzsl.test, fzsl.scored) == [{"zebra"}, {"airport"}]
    else:
        with pytest.raises(
            DataError, match=r"2 rows .* of 81 or 1006 labels; its shape is \(2, 100"
        ):
            load(tmp_path / "nus", "nuswide", "fzsl")


def test_array_that_would_have_to_be_unpickled_is_refused(tmp_path: Path) -> None:
    write_nus_arrays(tmp_path / "nus")
    path = tmp_path / "nus" / "annotations" / "zsl" / "formatted_train_images_filtered.npy"
    np.save(path, np.array(["0000.jpg", None], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read without unpickling"):
        load(tmp_path / "nus", "nuswide", "fzsl")


def test_nus_wide_without_lists_is_refused_unless_classes_are_named(tmp_path: Path) -> None:
    root = write_nus(tmp_path / "nus")
    with pytest.raises(DataError, match="the 925/81 split needs its published lists"):
        load(root, "nuswide", "fzsl")
    held = load(root, "nuswide", "fgzsl", unseen=("airport", "animal"))
    assert (len(held.classes), len(held.scored)) == (79, 81)


def test_file_name_in_two_places_that_the_folder_does_not_tell_apart_is_refused(
    tmp_path: Path,
) -> None:
    root = write_nus_named(tmp_path / "nus")
    write_image(root / "Flickr" / "a" / "actor" / "0000.jpg", 1)
    with pytest.raises(DataError, match="1 listed images fit several files"):
        load(root, "nuswide", "fzsl")


def test_classes_are_drawn_for_a_data_set_without_lists(tmp_path: Path) -> None:
    root = tmp_path / "own"
    rows = ["image,split," + ",".join(f"c{i}" for i in range(10))]
    for i in range(60):
        write_image(root / f"{i}.png", i)
        present = [int(c in (i % 10, (i // 10) % 10)) for c in range(10)]
        rows.append(f"{i}.png,{'test' if i % 2 else 'train'}," + ",".join(map(str, present)))
    (root / "labels.csv").write_text("\n".join(rows))
    fzsl, fgzsl = (load(root, "table", protocol, unseen_share=0.2) for protocol in PROTOCOLS)
    assert fzsl.held_out is not None
    assert fgzsl.held_out is not None
    assert fzsl.held_out.unseen == fgzsl.held_out.unseen
    assert fzsl.held_out.source == "classes drawn with seed 0"
    assert (len(fzsl.classes), len(fzsl.scored), len(fgzsl.scored)) == (8, 2, 10)
