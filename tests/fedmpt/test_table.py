"""Tables of labels: both forms, both separators, the drawn split, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedmpt.data.dataset import Dataset
from fedmpt.data.folder import ReadPolicy
from fedmpt.data.table import read_table
from fedmpt.errors import DataError, UsageError

COLUMNS = """\
image,split,brown_bear,cat
a.png,train,1,0
b.png,train,0,-1

sub/c.png,test,1,1
"""


def write(root: Path, text: str, *, name: str = "labels.csv", images: int = 0) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")
    (root / "sub").mkdir(exist_ok=True)
    names = ["a.png", "b.png", "sub/c.png", *(f"{i}.png" for i in range(images))]
    for shade, image in enumerate(names):
        Image.new("RGB", (6, 6), (shade, 0, 0)).save(root / image)
    return root


def read(root: Path) -> Dataset:
    return read_table(root, seed=0)


def test_one_column_a_class_is_read_in_order_of_the_header(tmp_path: Path) -> None:
    dataset = read(write(tmp_path, COLUMNS))
    assert dataset.classes == ("brown bear", "cat")
    assert dataset.train.labels.tolist() == [[1, 0], [0, -1]]
    assert dataset.test.labels.tolist() == [[1, 1]]
    assert dataset.test.open_image(0).getpixel((0, 0)) == (2, 0, 0)


@pytest.mark.parametrize("separator", [";", "|", ", "])
def test_one_column_of_names_gives_sorted_classes(tmp_path: Path, separator: str) -> None:
    text = (
        "split\tlabels\timage\n"
        f"train\tdog{separator}brown_bear\ta.png\n"
        "train\t\tb.png\n"
        f"test\tant{separator}\tsub/c.png\n"
    )
    dataset = read(write(tmp_path, text, name="labels.tsv"))
    assert dataset.classes == ("ant", "brown bear", "dog")
    assert dataset.train.labels.tolist() == [[0, 1, 1], [0, 0, 0]]
    assert dataset.test.labels.tolist() == [[1, 0, 0]]


@pytest.mark.parametrize("cell", ['"[""dog"", ""brown_bear""]"', "\"['dog', 'brown_bear']\""])
def test_class_names_may_be_written_as_a_list(tmp_path: Path, cell: str) -> None:
    text = f"image,split,labels\na.png,train,{cell}\nb.png,train,[]\nsub/c.png,test,dog\n"
    dataset = read(write(tmp_path, text))
    assert dataset.classes == ("brown bear", "dog")
    assert dataset.train.labels.tolist() == [[1, 1], [0, 0]]


def test_images_may_lie_under_images_and_the_file_may_start_with_a_mark(tmp_path: Path) -> None:
    write(tmp_path / "images", COLUMNS)
    (tmp_path / "labels.csv").write_text("\ufeff" + COLUMNS, encoding="utf-8")
    assert len(read(tmp_path).train) == 2


def many(root: Path, n: int = 20) -> Path:
    rows = "".join(f"{i}.png,{i % 2}\n" for i in range(n))
    return write(root, f"file,cat\n{rows}", images=n)


def test_drawn_split_is_a_fifth_and_depends_on_the_seed_alone(tmp_path: Path) -> None:
    many(tmp_path)
    first, again, other = (read_table(tmp_path, seed=seed) for seed in (1, 1, 2))
    assert (len(first.train), len(first.test)) == (16, 4)
    assert first.test.content == again.test.content
    assert first.test.content != other.test.content
    assert len({*first.train.content, *first.test.content}) == 20


def test_drawn_split_has_an_image_on_either_side_however_small_the_table(tmp_path: Path) -> None:
    many(tmp_path, n=2)
    for fraction in (0.01, 0.99):
        dataset = read_table(tmp_path, seed=0, test_fraction=fraction)
        assert (len(dataset.train), len(dataset.test)) == (1, 1)


def test_missing_image_is_skipped_and_counted_or_refused_if_strict(tmp_path: Path) -> None:
    write(tmp_path, COLUMNS)
    (tmp_path / "b.png").unlink()
    dataset = read(tmp_path)
    assert (dataset.train.skipped, dataset.train.labels.tolist()) == (1, [[1, 0]])
    with pytest.raises(DataError, match="1 of 3 images cannot be read"):
        read_table(tmp_path, seed=0, policy=ReadPolicy(strict=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no row"),
        ("image,cat\n", "holds no row"),
        ("image,cat\na.png,1\n", "one image cannot be split"),
        ("picture,cat\na.png,1\nb.png,0\n", "no column called image"),
        ("image;cat\na.png;1\nb.png;0\n", "separated by semicolons or tabs; save it with commas"),
        ("image\na.png\nb.png\n", "names no class"),
        ("image,cat,cat\na.png,1,1\nb.png,0,0\n", "two columns have the same name"),
        ("image,a_b,a b\na.png,1,1\nb.png,0,0\n", "'a b' appears twice"),
        ("image,cat,\na.png,1,1\nb.png,0,0\n", "a class has no name"),
        ("image,labels,age\na.png,cat,70\nb.png,cat,71\n", "labels column and 1 further"),
        ("image,labels\na.png,\nb.png,\n", "names no class"),
        ("image,cat\na.png,1\nb.png\n", "line 3 has 1 cells and the header 2"),
        ("image,cat\na.png,1\n,0\n", "line 3: the image column is empty"),
        ("image,cat\na.png,1\na.png,0\n", "1 rows repeat an image"),
        ("image,cat\na.png,1\n\nb.png,secret\n", "line 4, column 'cat': must be 0, 1 or -1"),
        ("image,cat\na.png,1\nb.png,\n", "line 3, column 'cat': must be"),
        ("image,split,cat\na.png,train,1\nb.png,secret,0\n", "line 3, column 'split': must be"),
        ("image,split,cat\na.png,train,1\nb.png,train,0\n", "no row of split test"),
        ("image,split,cat\na.png,test,1\nb.png,test,0\n", "no row of split train"),
        ('image,cat\n"a.png,1\n', "cannot be read as a table"),
        ("image,labels\na.png,[secret\nb.png,cat\n", "line 2, column 'labels': begins with"),
        ("image,labels\na.png,[1]\nb.png,cat\n", "line 2, column 'labels': begins with"),
        ("image,cat\n../secret.png,1\nb.png,0\n", "1 listed images lie outside this folder"),
        ("image,cat\n/secret.png,1\nb.png,0\n", "1 listed images lie outside this folder"),
    ],
)
def test_malformed_table_is_refused_without_its_content(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(DataError, match=message) as error:
        read(write(tmp_path, text))
    assert "secret" not in str(error.value)
    assert ".png" not in str(error.value)


def test_table_that_is_not_text_is_refused(tmp_path: Path) -> None:
    write(tmp_path, COLUMNS)
    (tmp_path / "labels.csv").write_bytes(b"image,cat\n\xff\xfe,1\n")
    with pytest.raises(DataError, match="cannot be read as UTF-8"):
        read(tmp_path)


def test_folder_without_a_table_or_with_two_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="a file, and a folder is needed"):
        read(tmp_path / "file")
    with pytest.raises(DataError, match=r"no table of labels; the folder needs labels\.csv"):
        read(tmp_path)
    write(tmp_path, COLUMNS)
    write(tmp_path, COLUMNS, name="labels.tsv")
    with pytest.raises(DataError, match="keep one"):
        read(tmp_path)


@pytest.mark.parametrize("fraction", [0.0, 1.0, float("nan")])
def test_test_fraction_out_of_range_is_refused(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(UsageError, match="test_fraction="):
        read_table(tmp_path, seed=0, test_fraction=fraction)


@pytest.mark.real
def test_real_table_gives_the_same_labels_as_the_instances_files() -> None:
    from fedmpt.data.coco import read_coco

    root = Path(__file__).parents[3] / "shared" / "real" / "photos"
    if not root.is_dir():
        pytest.skip(f"{root} is absent")
    by_content: list[dict[str, list[int]]] = []
    for dataset in (read_table(root, seed=0), read_coco(root)):
        labels = np.concatenate([dataset.train.labels, dataset.test.labels]).tolist()
        content = dataset.train.content + dataset.test.content
        by_content.append(dict(zip(content, labels, strict=True)))
    assert len(by_content[0]) == 817
    assert by_content[0] == by_content[1]
