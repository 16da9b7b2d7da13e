"""Image files are digested once, probed cheaply, and opened without leaking their names."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedmpt.data import folder
from fedmpt.data.dataset import Split
from fedmpt.data.folder import Listing, ReadPolicy, open_rgb, read_splits
from fedmpt.data.layout import prompt_name
from fedmpt.errors import DataError, UsageError


def write_image(path: Path, shade: int = 0, *, size: tuple[int, int] = (48, 32)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(shade).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def tree(root: Path, *, suffix: str = ".jpg") -> tuple[Listing, Listing]:
    """Four training and two test images; label row i of each split is the binary form of i."""
    paths = [write_image(root / f"patient_{i}{suffix}", i) for i in range(6)]
    labels = np.array([[i >> 1 & 1, i & 1] for i in range(6)], dtype=np.int8)
    return (
        Listing(paths=tuple(paths[:4]), labels=labels[:4]),
        Listing(paths=tuple(paths[4:]), labels=labels[4:]),
    )


def read(root: Path, lists: tuple[Listing, Listing], policy: ReadPolicy) -> tuple[Split, Split]:
    return read_splits(root, train=lists[0], test=lists[1], policy=policy)


def test_splits_hold_every_readable_image_with_its_labels(tmp_path: Path) -> None:
    lists = tree(tmp_path)
    train, test = read(tmp_path, lists, ReadPolicy())
    assert (len(train), len(test), train.skipped, test.skipped) == (4, 2, 0, 0)
    np.testing.assert_array_equal(train.labels, lists[0].labels)
    for row, path in enumerate(lists[0].paths):
        image = train.open_image(row)
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), np.asarray(open_rgb(path)))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_image_of_a_few_pixels_is_no_damaged_one(tmp_path: Path, suffix: str) -> None:
    paths = [write_image(tmp_path / f"{i}{suffix}", i, size=(3, 5)) for i in range(2)]
    lists = [Listing(paths=(path,), labels=np.ones((1, 1), dtype=np.int8)) for path in paths]
    train, test = read(tmp_path, (lists[0], lists[1]), ReadPolicy())
    assert (train.skipped, test.skipped, train.open_image(0).size) == (0, 0, (3, 5))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif", ".webp"])
def test_truncated_image_is_skipped_and_counted_whatever_its_format(
    tmp_path: Path, suffix: str
) -> None:
    lists = tree(tmp_path, suffix=suffix)
    data = lists[0].paths[1].read_bytes()
    lists[0].paths[1].write_bytes(data[: len(data) * 2 // 3])
    train, test = read(tmp_path, lists, ReadPolicy())
    assert (len(train), train.skipped, len(test), test.skipped) == (3, 1, 2, 0)
    np.testing.assert_array_equal(train.labels, lists[0].labels[[0, 2, 3]])
    np.testing.assert_array_equal(
        np.asarray(train.open_image(1)), np.asarray(open_rgb(lists[0].paths[2]))
    )


def test_strict_reading_counts_the_unreadable_by_reason_and_names_no_file(tmp_path: Path) -> None:
    lists = tree(tmp_path)
    lists[0].paths[0].write_bytes(b"no image")
    lists[0].paths[2].unlink()
    lists[1].paths[0].write_bytes(b"")
    with pytest.raises(DataError, match=r"3 of 6 .*2 damaged, 1 missing.*unreadable_list") as error:
        read(tmp_path, lists, ReadPolicy(strict=True))
    assert "patient" not in str(error.value)


def test_names_of_unreadable_images_go_to_the_file_asked_for_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "_SETTLED_NS", -(10**12))
    lists = tree(tmp_path / "data")
    lists[0].paths[0].write_bytes(b"no image")
    lists[1].paths[1].unlink()
    target, index = tmp_path / "unreadable.tsv", tmp_path / "index"
    policy = ReadPolicy(strict=True, unreadable_list=target, digest_index=index)
    with pytest.raises(DataError, match="listed in"):
        read(tmp_path / "data", lists, policy)
    assert target.read_text().splitlines() == [
        "training\tdamaged\tpatient_0.jpg",
        "test\tmissing\tpatient_5.jpg",
    ]
    assert all(b"patient" not in path.read_bytes() for path in index.iterdir())


def test_list_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    policy = ReadPolicy(unreadable_list=tmp_path / "absent" / "list.tsv")
    with pytest.raises(UsageError, match="unreadable_list="):
        read(tmp_path, tree(tmp_path), policy)


def test_split_without_any_readable_image_is_refused(tmp_path: Path) -> None:
    lists = tree(tmp_path)
    for path in lists[1].paths:
        path.unlink()
    with pytest.raises(DataError, match=r"test split has no readable image \(2 listed\)"):
        read(tmp_path, lists, ReadPolicy())


def test_digest_follows_the_bytes_of_the_file_and_not_its_name(tmp_path: Path) -> None:
    lists = tree(tmp_path)
    lists[0].paths[1].write_bytes(lists[0].paths[0].read_bytes())
    content = read(tmp_path, lists, ReadPolicy())[0].content
    assert content[0] == content[1]
    assert len(set(content)) == 3


def test_second_reading_decodes_no_image_and_finds_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "_SETTLED_NS", -(10**12))
    lists = tree(tmp_path / "data")
    lists[0].paths[3].write_bytes(b"no image")
    policy = ReadPolicy(digest_index=tmp_path / "index")
    first = read(tmp_path / "data", lists, policy)

    def refuse(_: bytes) -> bool:
        raise AssertionError("an image was probed again")

    monkeypatch.setattr(folder, "_is_damaged", refuse)
    again = read(tmp_path / "data", lists, policy)
    assert [split.content for split in again] == [split.content for split in first]
    assert again[0].skipped == 1


def test_changed_file_is_digested_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "_SETTLED_NS", -(10**12))
    lists = tree(tmp_path / "data")
    policy = ReadPolicy(digest_index=tmp_path / "index")
    before = read(tmp_path / "data", lists, policy)[0].content
    status = lists[0].paths[0].stat()
    write_image(lists[0].paths[0], 99)
    os.utime(lists[0].paths[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    after = read(tmp_path / "data", lists, policy)[0].content
    assert after[0] != before[0]
    assert after[1:] == before[1:]


def test_file_changed_just_before_it_was_read_is_not_remembered(tmp_path: Path) -> None:
    read(tmp_path / "data", tree(tmp_path / "data"), ReadPolicy(digest_index=tmp_path / "index"))
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("junk", [b"", b"\xc1", b"\x81\xa7version\x01"])
def test_damaged_index_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, junk: bytes
) -> None:
    monkeypatch.setattr(folder, "_SETTLED_NS", -(10**12))
    lists = tree(tmp_path / "data")
    policy = ReadPolicy(digest_index=tmp_path / "index")
    first = read(tmp_path / "data", lists, policy)
    (index,) = (tmp_path / "index").iterdir()
    index.write_bytes(junk)
    assert read(tmp_path / "data", lists, policy)[0].content == first[0].content


def test_index_that_cannot_be_written_costs_nothing_but_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "_SETTLED_NS", -(10**12))
    (tmp_path / "index").write_text("a file where a folder should be")
    train, _ = read(tmp_path, tree(tmp_path), ReadPolicy(digest_index=tmp_path / "index"))
    assert len(train) == 4


def test_progress_ends_at_the_number_of_images(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    read(tmp_path, tree(tmp_path), ReadPolicy(progress=lambda done, all: calls.append((done, all))))
    assert calls[-1] == (6, 6)


def test_image_that_vanishes_later_is_a_data_error_without_its_name(tmp_path: Path) -> None:
    lists = tree(tmp_path)
    train, _ = read(tmp_path, lists, ReadPolicy())
    lists[0].paths[0].unlink()
    with pytest.raises(DataError, match="can no longer be decoded") as error:
        train.open_image(0)
    assert "patient" not in str(error.value)
    assert error.value.__context__ is None


def test_row_outside_the_split_is_an_index_error(tmp_path: Path) -> None:
    train, _ = read(tmp_path, tree(tmp_path), ReadPolicy())
    for row in (-1, 4):
        with pytest.raises(IndexError, match="of 4"):
            train.open_image(row)


def test_split_can_be_sent_to_another_process(tmp_path: Path) -> None:
    train, _ = read(tmp_path, tree(tmp_path), ReadPolicy())
    again = pickle.loads(pickle.dumps(train))  # noqa: S301 - made here
    assert again.content == train.content
    np.testing.assert_array_equal(np.asarray(again.open_image(2)), np.asarray(train.open_image(2)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I"])
def test_images_of_every_mode_open_as_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("image.tif" if mode in ("CMYK", "I") else "image.png")
    Image.new(mode, (5, 4)).save(path)
    image = open_rgb(path)
    assert (image.mode, image.size) == ("RGB", (5, 4))


def test_palette_with_transparency_opens_without_a_warning(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "image.png", transparency=bytes([0, 128]))
    assert open_rgb(tmp_path / "image.png").getpixel((0, 0)) == (10, 20, 30)


def test_sixteen_bit_grey_keeps_its_range(tmp_path: Path) -> None:
    values = np.array([[0, 255, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "image.png")
    assert np.asarray(open_rgb(tmp_path / "image.png"))[0, :, 0].tolist() == [0, 0, 128, 255]


def test_class_names_are_written_as_they_are_read_out() -> None:
    assert prompt_name(" dining__table  top ") == "dining table top"
