"""COCO's instances format: ids, crowds, both layouts, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedmpt.data.coco import read_coco
from fedmpt.data.folder import ReadPolicy
from fedmpt.errors import DataError

CATEGORIES = [
    {"id": 90, "name": "toothbrush", "supercategory": "indoor"},
    {"id": 1, "name": "person", "supercategory": "person"},
    {"id": 67, "name": "dining_table", "supercategory": "furniture"},
]


def instances(first: int) -> dict[str, Any]:
    """Three images: a person twice and a toothbrush; a crowd of persons; nothing."""
    return {
        "info": {"year": 2014},
        "images": [
            {"id": first + i, "file_name": f"{first + i:012d}.jpg", "width": 8, "height": 8}
            for i in range(3)
        ],
        "annotations": [
            {"id": 1, "image_id": first, "category_id": 1, "iscrowd": 0, "bbox": [0, 0, 1, 1]},
            {"id": 2, "image_id": first, "category_id": 1, "iscrowd": 0, "segmentation": [[1.5]]},
            {"id": 3, "image_id": first, "category_id": 90, "iscrowd": 0},
            {"id": 4, "image_id": first + 1, "category_id": 1, "iscrowd": 1},
            {"id": 5, "image_id": 999_999, "category_id": 1, "iscrowd": 0},
        ],
        "categories": CATEGORIES,
    }


def write_split(listing: Path, images: Path, content: dict[str, Any]) -> None:
    listing.parent.mkdir(parents=True, exist_ok=True)
    listing.write_text(json.dumps(content))
    images.mkdir(parents=True, exist_ok=True)
    for image in content["images"]:
        Image.new("RGB", (8, 8), (image["id"] % 256, 0, 0)).save(images / image["file_name"])


def write_plain(root: Path) -> Path:
    write_split(root / "instances_train.json", root / "images", instances(10))
    write_split(root / "instances_test.json", root / "images", instances(20))
    return root


def write_official(root: Path) -> Path:
    for part, first in (("train", 10), ("val", 20)):
        listing = root / "annotations" / f"instances_{part}2014.json"
        write_split(listing, root / f"{part}2014", instances(first))
    return root


def write_2017(root: Path) -> Path:
    for part, first in (("train", 10), ("val", 20)):
        listing = root / "annotations" / f"instances_{part}2017.json"
        write_split(listing, root / f"{part}2017", instances(first))
    return root


def write_exported(root: Path) -> Path:
    for part, first in (("train", 10), ("valid", 20)):
        write_split(root / part / "_annotations.coco.json", root / part, instances(first))
    return root


@pytest.mark.parametrize("write", [write_plain, write_official, write_2017, write_exported])
def test_every_layout_gives_contiguous_labels_in_order_of_category_id(
    tmp_path: Path, write: Any
) -> None:
    dataset = read_coco(write(tmp_path))
    assert dataset.classes == ("person", "dining table", "toothbrush")
    assert dataset.train.labels.tolist() == [[1, 0, 1], [1, 0, 0], [0, 0, 0]]
    assert dataset.train.labels.dtype == np.int8
    assert (len(dataset.train), len(dataset.test)) == (3, 3)
    assert dataset.train.open_image(2).size == (8, 8)
    assert not set(dataset.train.content) & set(dataset.test.content)


def test_plain_layout_is_read_though_a_folder_of_annotations_lies_beside_it(tmp_path: Path) -> None:
    (write_plain(tmp_path) / "annotations").mkdir()
    assert len(read_coco(tmp_path).train) == 3


def test_crowds_can_be_left_out(tmp_path: Path) -> None:
    dataset = read_coco(write_plain(tmp_path), crowd=False)
    assert dataset.train.labels.tolist() == [[1, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_missing_image_is_skipped_and_counted_or_refused_if_strict(tmp_path: Path) -> None:
    write_official(tmp_path)
    (tmp_path / "val2014" / "000000000021.jpg").unlink()
    dataset = read_coco(tmp_path)
    assert (dataset.test.skipped, dataset.test.labels.tolist()) == (1, [[1, 0, 1], [0, 0, 0]])
    with pytest.raises(DataError, match="1 of 6 images cannot be read"):
        read_coco(tmp_path, policy=ReadPolicy(strict=True))


def test_official_layout_is_required_where_it_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="instances_train2014"):
        read_coco(write_plain(tmp_path), official_only=True)


@pytest.mark.parametrize("missing", ["instances_train.json", "instances_test.json", "images"])
def test_missing_part_is_refused_with_what_belongs_there(tmp_path: Path, missing: str) -> None:
    write_plain(tmp_path)
    os.rename(tmp_path / missing, tmp_path / "elsewhere")
    with pytest.raises(DataError, match=rf"{missing}: no such .*--data-root must hold"):
        read_coco(tmp_path)


def test_missing_root_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read_coco(tmp_path / "absent")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("categories", None, "not a COCO instances file"),
        ("images", [{"id": 1}], "not a COCO instances file"),
        ("images", [{"id": 1, "file_name": "a"}] * 2, "two images have the same id"),
        ("categories", [*CATEGORIES, CATEGORIES[0]], "two categories have the same id"),
        ("categories", [*CATEGORIES, {"id": 5, "name": "person"}], "'person' appears twice"),
        ("categories", CATEGORIES[1:], "category_id 90, which categories do not list"),
        ("categories", [], "names no class"),
    ],
)
def test_malformed_instances_are_refused(
    tmp_path: Path, key: str, value: Any, message: str
) -> None:
    write_plain(tmp_path)
    for split, first in (("train", 10), ("test", 20)):
        content = {**instances(first), key: value}
        (tmp_path / f"instances_{split}.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        read_coco(tmp_path)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe{}", b"[]"])
def test_file_that_is_no_json_object_is_refused(tmp_path: Path, data: bytes) -> None:
    write_plain(tmp_path)
    (tmp_path / "instances_test.json").write_bytes(data)
    with pytest.raises(DataError, match=r"instances_test\.json: not a COCO instances file"):
        read_coco(tmp_path)


def test_splits_with_different_categories_are_refused(tmp_path: Path) -> None:
    write_plain(tmp_path)
    content = {**instances(20), "categories": [*CATEGORIES, {"id": 3, "name": "car"}]}
    (tmp_path / "instances_test.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="categories differ"):
        read_coco(tmp_path)


@pytest.mark.real
def test_real_photographs_load_with_the_labels_of_their_table() -> None:
    root = Path(__file__).parents[3] / "shared" / "real" / "photos"
    if not root.is_dir():
        pytest.skip(f"{root} is absent")
    dataset = read_coco(root, policy=ReadPolicy(strict=True))
    assert (len(dataset.train), len(dataset.test), len(dataset.classes)) == (563, 254, 80)
    assert dataset.train.labels.sum(axis=1).mean() == pytest.approx(3.60, abs=0.01)
    assert dataset.train.open_image(0).mode == "RGB"
