"""Data sets by name: what each name needs, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from fedmpt.data.registry import NAMES, DataSettings, load_dataset
from fedmpt.errors import DataError, UsageError


def write_table(root: Path) -> Path:
    rows = ["image,cat"]
    for i in range(10):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(root / f"{i}.png")
        rows.append(f"{i}.png,{i % 2}")
    (root / "labels.csv").write_text("\n".join(rows))
    return root


def test_embedded_data_set_needs_no_folder() -> None:
    settings = DataSettings(train_size=5, test_size=3, resolution=32)
    dataset = load_dataset("scenes", data_root=None, seed=0, settings=settings)
    assert (len(dataset.train), len(dataset.test)) == (5, 3)
    assert dataset.name == "scenes"


def test_folder_is_read_with_its_settings(tmp_path: Path) -> None:
    dataset = load_dataset(
        "table",
        data_root=write_table(tmp_path),
        seed=0,
        settings=DataSettings(test_fraction=0.5),
        cache_dir=tmp_path / "cache",
    )
    assert (dataset.name, len(dataset.train), len(dataset.test)) == ("table", 5, 5)


def test_strict_reading_and_the_list_of_unreadable_images_reach_the_reader(tmp_path: Path) -> None:
    write_table(tmp_path)
    (tmp_path / "3.png").write_bytes(b"damaged")
    target = tmp_path / "unreadable.tsv"
    with pytest.raises(DataError, match="1 of 10 images"):
        load_dataset(
            "table",
            data_root=tmp_path,
            seed=0,
            strict=True,
            settings=DataSettings(unreadable_list=target),
            cache_dir=tmp_path / "cache",
        )
    assert "3.png" in target.read_text()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "scenes"])
def test_data_set_of_a_folder_needs_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("FEDMPT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UsageError, match="--data-root DIR"):
        load_dataset(name, data_root=None, seed=0)
    with pytest.raises(DataError, match="no such folder"):
        load_dataset(name, data_root=tmp_path / "absent", seed=0)


def test_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="scenes, coco, coco2014, voc, voc2007, table"):
        load_dataset("imagenet", data_root=None, seed=0)
