"""Data sets by name: what each name needs, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from fedmpt.config import DataConfig, ScenesConfig
from fedmpt.data.registry import NAMES, load_dataset
from fedmpt.data.scenes import UNSEEN
from fedmpt.errors import DataError, UsageError

SCENES = ScenesConfig(train_size=20, test_size=60, resolution=32)


def write_table(root: Path) -> Path:
    rows = ["image,cat"]
    for i in range(10):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(root / f"{i}.png")
        rows.append(f"{i}.png,{i % 2}")
    (root / "labels.csv").write_text("\n".join(rows))
    return root


def test_embedded_data_set_needs_no_folder() -> None:
    dataset = load_dataset(DataConfig(scenes=SCENES), seed=0)
    assert (len(dataset.train), len(dataset.test)) == (20, 60)
    assert (dataset.name, dataset.held_out, dataset.scored) == ("scenes", None, dataset.classes)


def test_embedded_data_set_refuses_a_folder_that_it_would_not_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="reads no folder; say what the folder holds with --data"):
        load_dataset(DataConfig(root=str(tmp_path)), seed=0)


def test_folder_is_read_with_its_settings(tmp_path: Path) -> None:
    dataset = load_dataset(
        DataConfig(name="table", root=str(write_table(tmp_path)), test_fraction=0.5),
        seed=0,
        cache_dir=tmp_path / "cache",
    )
    assert (dataset.name, len(dataset.train), len(dataset.test)) == ("table", 5, 5)


def test_images_with_too_few_labels_are_left_out_and_counted(tmp_path: Path) -> None:
    config = DataConfig(
        name="table", root=str(write_table(tmp_path)), min_labels_train=1, min_labels_test=1
    )
    dataset = load_dataset(config, seed=0, cache_dir=tmp_path / "cache")
    assert len(dataset.train) + len(dataset.test) == 5
    left_out = dict(dataset.train.left_out), dict(dataset.test.left_out)
    assert sum(part.get("has fewer than 1 labels", 0) for part in left_out) == 5
    assert dataset.train.skipped == 0
    for split in (dataset.train, dataset.test):
        assert all(
            split.open_image(row).getpixel((0, 0))[0] % 2 == 1  # type: ignore[index]
            for row in range(len(split))
        )
    with pytest.raises(UsageError, match="min_labels"):
        load_dataset(
            DataConfig(name="table", root=str(tmp_path), min_labels_train=2),
            seed=0,
            cache_dir=tmp_path / "cache",
        )


def test_strict_reading_and_the_list_of_unreadable_images_reach_the_reader(tmp_path: Path) -> None:
    write_table(tmp_path)
    (tmp_path / "3.png").write_bytes(b"damaged")
    target = tmp_path / "unreadable.tsv"
    with pytest.raises(DataError, match="1 of 10 images"):
        load_dataset(
            DataConfig(name="table", root=str(tmp_path), strict=True),
            seed=0,
            unreadable_list=target,
            cache_dir=tmp_path / "cache",
        )
    assert "3.png" in target.read_text()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "scenes"])
def test_data_set_of_a_folder_needs_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="--data-root DIR"):
        load_dataset(DataConfig(name=name), seed=0, cache_dir=tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        load_dataset(
            DataConfig(name=name, root=str(tmp_path / "absent")), seed=0, cache_dir=tmp_path
        )


def test_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="scenes, table, coco, voc, coco2014, voc2007, nuswide"):
        load_dataset(DataConfig(name="imagenet"), seed=0)


def test_scenes_hold_out_their_own_unseen_classes() -> None:
    fzsl, fgzsl = (
        load_dataset(DataConfig(scenes=SCENES, protocol=protocol), seed=0)
        for protocol in ("fzsl", "fgzsl")  # type: ignore[arg-type]
    )
    standard = load_dataset(DataConfig(scenes=SCENES), seed=0)
    assert fzsl.scored == UNSEEN
    assert fgzsl.scored == standard.classes + UNSEEN
    assert fzsl.classes == fgzsl.classes == standard.classes
    assert 0 < len(fzsl.test) < len(fgzsl.test) == 60
    assert (fzsl.test.labels.sum(axis=1) > 0).all()
    assert dict(fzsl.test.left_out)["shows no scored class"] == 60 - len(fzsl.test)


def test_classes_are_held_out_under_a_zero_shot_protocol_only() -> None:
    with pytest.raises(UsageError, match=r"data\.unseen is for --protocol"):
        load_dataset(DataConfig(scenes=SCENES, unseen=("cat", "dog")), seed=0)
