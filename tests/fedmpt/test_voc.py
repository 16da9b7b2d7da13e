"""Pascal VOC: difficult instances, where trees may lie, names, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from fedmpt.data.class_names import VOC_CLASSES
from fedmpt.data.folder import ReadPolicy
from fedmpt.data.voc import Difficult, read_voc
from fedmpt.errors import DataError, UsageError

Objects = list[tuple[str, int]]
TRAIN: dict[str, Objects] = {
    "000001": [("dog", 0), ("person", 1)],
    "000002": [("person", 1), ("person", 0)],
    "000003": [],
}
TEST: dict[str, Objects] = {"000004": [("diningtable", 0)], "000005": [("dog", 1)]}


def annotation(name: str, objects: Objects) -> str:
    items = "".join(
        f"<object><name>{label}</name><pose>Left</pose><difficult>{difficult}</difficult>"
        "<part><name>head</name></part></object>"
        for label, difficult in objects
    )
    return f"<annotation><filename>{name}.jpg</filename>{items}</annotation>"


def write_tree(tree: Path, lists: Mapping[str, Mapping[str, Objects]]) -> Path:
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tree / folder).mkdir(parents=True, exist_ok=True)
    for list_name, images in lists.items():
        (tree / "ImageSets" / "Main" / list_name).write_text("".join(f"{i}\n" for i in images))
        for name, objects in images.items():
            (tree / "Annotations" / f"{name}.xml").write_text(annotation(name, objects))
            shade = (int(name), 0, 0)
            Image.new("RGB", (8, 8), shade).save(tree / "JPEGImages" / f"{name}.jpg")
    return tree


def write_merged(root: Path) -> Path:
    write_tree(root / "VOCdevkit/VOC2007", {"trainval.txt": TRAIN, "test.txt": TEST})
    return root


def write_two(root: Path) -> Path:
    write_tree(root / "trainval/VOCdevkit/VOC2007", {"trainval.txt": TRAIN, "train.txt": TRAIN})
    write_tree(root / "test/VOCdevkit/VOC2007", {"test.txt": TEST})
    return root


@pytest.mark.parametrize("layout", ["root", "devkit", "tree", "two"])
def test_one_merged_tree_or_two_are_found_from_any_level(tmp_path: Path, layout: str) -> None:
    below = {"root": "", "devkit": "VOCdevkit", "tree": "VOCdevkit/VOC2007", "two": ""}
    (write_two if layout == "two" else write_merged)(tmp_path)
    dataset = read_voc(tmp_path / below[layout], year_2007=True)
    assert (len(dataset.train), len(dataset.test), len(dataset.classes)) == (3, 2, 20)
    dog, person, table = (VOC_CLASSES.index(name) for name in ("dog", "person", "diningtable"))
    assert dataset.train.labels[:, [dog, person]].tolist() == [[1, 0], [0, 1], [0, 0]]
    assert dataset.train.labels.sum() == 2
    assert dataset.test.labels[:, [dog, table]].tolist() == [[0, 1], [0, 0]]
    assert dataset.test.open_image(1).size == (8, 8)


@pytest.mark.parametrize(("difficult", "label"), [("negative", 0), ("positive", 1), ("ignore", -1)])
def test_class_seen_only_as_difficult_is_what_was_asked_for(
    tmp_path: Path, difficult: Difficult, label: int
) -> None:
    dataset = read_voc(write_merged(tmp_path), year_2007=True, difficult=difficult)
    person = VOC_CLASSES.index("person")
    assert dataset.train.labels[:, person].tolist() == [label, 1, 0]


def test_names_are_spoken_unless_the_raw_ones_are_asked_for(tmp_path: Path) -> None:
    write_merged(tmp_path)
    spoken = read_voc(tmp_path, year_2007=True).classes
    assert {"dining table", "potted plant", "tv monitor"} < set(spoken)
    assert read_voc(tmp_path, year_2007=True, spoken_names=False).classes == VOC_CLASSES


def test_classes_of_ones_own_are_those_of_the_annotations(tmp_path: Path) -> None:
    write_tree(tmp_path, {"train.txt": {"7": [("sea_gull", 0)]}, "val.txt": {"8": [("crab", 0)]}})
    dataset = read_voc(tmp_path)
    assert dataset.classes == ("crab", "sea gull")
    assert dataset.train.labels.tolist() == [[0, 1]]
    with pytest.raises(DataError, match=r"trainval\.txt and test\.txt"):
        read_voc(tmp_path, year_2007=True)


def test_other_years_are_passed_over_where_2007_is_asked_for(tmp_path: Path) -> None:
    write_merged(tmp_path)
    write_tree(tmp_path / "VOCdevkit/VOC2012", {"trainval.txt": TEST})
    assert len(read_voc(tmp_path, year_2007=True).train) == 3
    with pytest.raises(DataError, match=r"2 trees hold ImageSets/Main/trainval\.txt"):
        read_voc(tmp_path)


def test_object_outside_the_twenty_classes_is_refused(tmp_path: Path) -> None:
    write_tree(tmp_path, {"trainval.txt": {"7": [("crab", 0)]}, "test.txt": TEST})
    with pytest.raises(DataError, match="'crab', which is none of the 20"):
        read_voc(tmp_path, year_2007=True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<annotation>",
        "<annotation><object></object></annotation>",
        '<!DOCTYPE a [<!ENTITY b "c">]><annotation></annotation>',
        None,
    ],
)
def test_annotation_that_cannot_be_read_is_refused_with_a_count_and_no_name(
    tmp_path: Path, text: str | None
) -> None:
    write_merged(tmp_path)
    path = tmp_path / "VOCdevkit/VOC2007/Annotations/000002.xml"
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(DataError, match="1 of 3 annotations are missing") as error:
        read_voc(tmp_path, year_2007=True)
    assert "000002" not in str(error.value)


@pytest.mark.parametrize("missing", ["JPEGImages", "Annotations", "ImageSets"])
def test_missing_folder_is_refused_with_what_belongs_there(tmp_path: Path, missing: str) -> None:
    write_merged(tmp_path)
    shutil.rmtree(tmp_path / "VOCdevkit/VOC2007" / missing)
    with pytest.raises(DataError, match=f"{missing}.*--data-root must hold VOCdevkit"):
        read_voc(tmp_path, year_2007=True)


def test_missing_image_is_skipped_and_counted_or_refused_if_strict(tmp_path: Path) -> None:
    write_merged(tmp_path)
    (tmp_path / "VOCdevkit/VOC2007/JPEGImages/000001.jpg").write_bytes(b"damaged")
    assert read_voc(tmp_path, year_2007=True).train.skipped == 1
    with pytest.raises(DataError, match="1 of 5 images cannot be read"):
        read_voc(tmp_path, year_2007=True, policy=ReadPolicy(strict=True))


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"\n", "is empty"), (b"000001\n000001 1\n", "listed twice"), (b"\xff\xfe", "cannot be read")],
)
def test_malformed_list_of_images_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    write_merged(tmp_path)
    (tmp_path / "VOCdevkit/VOC2007/ImageSets/Main/trainval.txt").write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_voc(tmp_path, year_2007=True)


def test_unknown_treatment_of_difficult_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="negative, positive or ignore"):
        read_voc(tmp_path, difficult="maybe")  # type: ignore[arg-type]


def test_missing_root_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read_voc(tmp_path / "absent")
