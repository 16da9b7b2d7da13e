"""The feature bank computes once, survives interruption, and never hands out damaged features."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fedmpt.data import features
from fedmpt.data.dataset import Split
from fedmpt.data.features import FeatureBank, bank_key, cache_directory, open_or_fill
from fedmpt.errors import FedMPTError, RunError, UsageError

M, D = 3, 4


def shade(row: int) -> Image.Image:
    return Image.new("RGB", (2, 2), (row, 0, 0))


def split(n: int = 20, open_image: Callable[[int], Image.Image] = shade) -> Split:
    return Split(
        labels=np.zeros((n, 1), dtype=np.int8),
        content=tuple(f"{i:04x}" for i in range(n)),
        open_image=open_image,
    )


def as_it_is(image: Image.Image) -> Image.Image:
    return image


class Encoder:
    """Encodes an image's number; counts what it was asked for, and may fail after some images."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.images = 0
        self.fail_after = fail_after

    def __call__(self, images: list[Image.Image]) -> tuple[NDArray[np.float32], ...]:
        if self.fail_after is not None and self.images >= self.fail_after:
            raise KeyboardInterrupt
        self.images += len(images)
        rows = np.array([np.asarray(image)[0, 0, 0] for image in images])
        offsets = np.arange(M * D, dtype=np.float32).reshape(M, D) / 16
        patches = (rows[:, None, None] + offsets).astype(np.float32)  # [b, M, D]
        return patches, patches.mean(axis=1).astype(np.float32)


def fill(cache: Path, encoder: Encoder, n: int = 20, **settings: object) -> FeatureBank:
    arguments = {
        "backbone": "b",
        "preprocessing": "p",
        "split": split(n),
        "prepare": as_it_is,
        "batch_size": 4,
        **settings,
    }
    return open_or_fill(cache, encode=encoder, **arguments)  # type: ignore[arg-type]


def assert_right(bank: FeatureBank, n: int = 20) -> None:
    patches, globals_ = Encoder()([shade(row) for row in range(n)])
    np.testing.assert_array_equal(bank.patches(slice(None)), patches.astype(np.float16))
    np.testing.assert_array_equal(bank.global_features(), globals_.astype(np.float16))


def bank_folder(cache: Path) -> Path:
    (folder,) = (path for path in (cache / "features").iterdir() if path.is_dir())
    return folder


def test_bank_holds_what_the_encoder_returned_in_half_precision(tmp_path: Path) -> None:
    bank = fill(tmp_path, Encoder())
    assert (len(bank), bank.patch_count, bank.width) == (20, M, D)
    assert_right(bank)
    rows = np.array([7, 2, 2])
    assert bank.patches(rows).dtype == np.float32
    assert bank.patches_half(rows).dtype == np.float16
    np.testing.assert_array_equal(bank.patches(rows), bank.patches_half(rows).astype(np.float32))
    np.testing.assert_array_equal(bank.patches([2])[0], bank.patches(rows)[1])
    assert bank.global_features(rows).shape == (3, D)


def test_bank_is_memory_mapped_and_hands_out_copies(tmp_path: Path) -> None:
    bank = fill(tmp_path, Encoder())
    assert isinstance(bank.stored_patches, np.memmap)
    assert not bank.stored_patches.flags.writeable
    for copy in (bank.patches([1]), bank.patches_half(slice(1, 2)), bank.global_features([1])):
        copy[:] = -1
    assert_right(bank)


def test_second_call_encodes_nothing(tmp_path: Path) -> None:
    fill(tmp_path, Encoder())
    again = Encoder(fail_after=0)
    assert_right(fill(tmp_path, again))
    assert again.images == 0


@pytest.mark.parametrize("other", [{"backbone": "c"}, {"preprocessing": "q"}, {"split": split(19)}])
def test_other_backbone_preprocessing_or_images_have_a_bank_of_their_own(
    tmp_path: Path, other: dict[str, object]
) -> None:
    fill(tmp_path, Encoder())
    encoder = Encoder()
    fill(tmp_path, encoder, **other)  # type: ignore[arg-type]
    assert encoder.images >= 19


def test_key_depends_on_the_order_of_images_and_on_where_parts_end() -> None:
    keys = {
        bank_key(backbone=backbone, preprocessing=preprocessing, content=content)
        for backbone, preprocessing, content in [
            ("a", "b", ["1", "2"]),
            ("a", "b", ["2", "1"]),
            ("a", "b", ["12"]),
            ("ab", "", ["1", "2"]),
            ("", "ab", ["1", "2"]),
        ]
    }
    assert len(keys) == 5


def test_interrupted_fill_goes_on_after_its_last_finished_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "_CHUNK_IMAGES", 8)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, Encoder(fail_after=12))
    rest = Encoder()
    assert_right(fill(tmp_path, rest))
    assert rest.images == 12  # 8 of 20 were finished


def test_interrupted_fill_may_go_on_with_another_batch_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "_CHUNK_IMAGES", 8)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, Encoder(fail_after=16))
    assert_right(fill(tmp_path, Encoder(), batch_size=7))
    assert_right(fill(tmp_path, Encoder(fail_after=0)))


def test_damaged_part_of_an_interrupted_fill_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "_CHUNK_IMAGES", 4)
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, Encoder(fail_after=12))
    flip(bank_folder(tmp_path) / "patches.f16", position=5 * M * D * 2)
    rest = Encoder()
    assert_right(fill(tmp_path, rest))
    assert rest.images == 16  # only the first chunk of 4 was sound


def flip(path: Path, *, position: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 2)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0\0")


def remove(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip, cut, lengthen, remove, empty])
@pytest.mark.parametrize("name", ["patches.f16", "globals.f16", "bank.json"])
def test_damaged_bank_is_found_and_computed_again(
    tmp_path: Path, damage: Callable[[Path], None], name: str
) -> None:
    fill(tmp_path, Encoder())
    damage(bank_folder(tmp_path) / name)
    again = Encoder()
    assert_right(fill(tmp_path, again))
    assert again.images == 20
    assert_right(fill(tmp_path, Encoder(fail_after=0)))
    assert not list((tmp_path / "features").glob("discarded-*"))


def test_without_verification_sizes_are_still_checked(tmp_path: Path) -> None:
    fill(tmp_path, Encoder())
    cut(bank_folder(tmp_path) / "patches.f16")
    again = Encoder()
    assert_right(fill(tmp_path, again, verify=False))
    assert again.images == 20


@pytest.mark.parametrize(
    ("field", "value"), [("key", "0" * 64), ("images", 19), ("format", 0), ("width", -4)]
)
def test_record_of_another_bank_is_not_taken(tmp_path: Path, field: str, value: object) -> None:
    fill(tmp_path, Encoder())
    record = bank_folder(tmp_path) / "bank.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), field: value}))
    again = Encoder()
    assert_right(fill(tmp_path, again))
    assert again.images == 20


def test_progress_counts_images_and_is_silent_when_nothing_is_encoded(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        calls.append((done, total))

    fill(tmp_path, Encoder(), progress=progress)
    assert calls == [(4, 20), (8, 20), (12, 20), (16, 20), (20, 20)]
    calls.clear()
    fill(tmp_path, Encoder(), progress=progress)
    assert calls == []


def test_threads_that_fill_at_once_encode_once_and_agree(tmp_path: Path) -> None:
    encoder = Encoder()
    banks: list[FeatureBank] = []
    threads = [
        threading.Thread(target=lambda: banks.append(fill(tmp_path, encoder))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert encoder.images == 20
    assert len(banks) == 4
    for bank in banks:
        assert_right(bank)


def test_processes_that_fill_at_once_leave_one_sound_bank(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        import numpy as np
        from PIL import Image
        from fedmpt.data.dataset import Split
        from fedmpt.data.features import open_or_fill

        def encode(images):
            time.sleep(0.01)
            rows = np.array([np.asarray(image)[0, 0, 0] for image in images], dtype=np.float32)
            return np.tile(rows[:, None, None], (1, 3, 4)), np.tile(rows[:, None], (1, 4))

        split = Split(
            labels=np.zeros((20, 1), dtype=np.int8),
            content=tuple(map(str, range(20))),
            open_image=lambda row: Image.new("RGB", (2, 2), (row, 0, 0)),
        )
        bank = open_or_fill(
            Path(sys.argv[1]), backbone="b", preprocessing="p", split=split, encode=encode,
            prepare=lambda image: image, batch_size=2,
        )
        assert bank.global_features()[:, 0].tolist() == list(range(20))
    """)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], env=environment)
        for _ in range(2)
    ]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    assert [path.suffix for path in (tmp_path / "features").iterdir() if path.is_dir()] == [""]


def test_fill_that_is_killed_again_and_again_encodes_little_twice(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        import numpy as np
        from PIL import Image
        from fedmpt.data import features
        from fedmpt.data.dataset import Split

        def encode(images):
            with open(sys.argv[2], "ab", buffering=0) as log:
                log.write(bytes(image.getpixel((0, 0))[0] for image in images))
            time.sleep(0.02)
            rows = np.array([np.asarray(image)[0, 0, 0] for image in images], dtype=np.float32)
            return np.tile(rows[:, None, None], (1, 3, 4)), np.tile(rows[:, None], (1, 4))

        features._CHUNK_IMAGES = 4
        split = Split(
            labels=np.zeros((60, 1), dtype=np.int8),
            content=tuple(map(str, range(60))),
            open_image=lambda row: Image.new("RGB", (2, 2), (row, 0, 0)),
        )
        bank = features.open_or_fill(
            Path(sys.argv[1]), backbone="b", preprocessing="p", split=split, encode=encode,
            prepare=lambda image: image, batch_size=2,
        )
        assert bank.global_features()[:, 0].tolist() == list(range(60))
        assert bank.patches(slice(None))[:, 2, 3].tolist() == list(range(60))
    """)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    log = tmp_path / "encoded"
    command = [sys.executable, "-c", program, str(tmp_path), str(log)]
    kills = 0
    for images in (8, 21, 38):  # encoded by all processes together
        process = subprocess.Popen(command, env=environment)
        while process.poll() is None and not (log.exists() and log.stat().st_size >= images):
            time.sleep(0.002)
        kills += process.poll() is None
        process.kill()
        process.wait()
    assert kills == 3
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    encoded = log.read_bytes()
    assert set(encoded) == set(range(60))
    again = len(encoded) - 60
    assert 0 < again <= 3 * (4 + 2)  # at most an unfinished chunk, and a batch, each time


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_reading_all_of_a_bank_leaves_the_process_as_small_as_before(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import sys
        import numpy as np
        from fedmpt.data.features import FeatureBank

        def resident_mb():
            with open("/proc/self/status") as file:
                (line,) = [line for line in file if line.startswith("VmRSS")]
            return int(line.split()[1]) / 1e3

        stored = np.memmap(sys.argv[1], np.float16, mode="r", shape=(1000, 196, 512))
        bank = FeatureBank(key="", stored_patches=stored, stored_globals=stored[:, 0])
        before = resident_mb()
        for rows in np.random.default_rng(0).permutation(1000).reshape(-1, 20):
            assert not bank.patches(rows).any()
        streamed = resident_mb() - before
        assert not any(stored[row].any() for row in range(1000))  # as without giving back
        print(streamed, resident_mb() - before)
    """)
    file = tmp_path / "patches.f16"
    with file.open("wb") as sparse:
        sparse.truncate(1000 * 196 * 512 * 2)  # 200.7 MB that take no room on the disk
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", program, str(file)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    streamed, kept = map(float, done.stdout.split())
    assert streamed < 40
    assert kept > 190  # the positive control


def test_folders_of_features_are_their_owners_alone(tmp_path: Path) -> None:
    fill(tmp_path / "cache", Encoder())
    for folder in (tmp_path / "cache" / "features", bank_folder(tmp_path / "cache")):
        assert folder.stat().st_mode & 0o077 == 0


def test_cache_that_is_no_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(FedMPTError, match=r"cannot be used: .*set FEDMPT_CACHE to a folder"):
        fill(tmp_path / "cache", Encoder())


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "the disk is full; make room"),
        (errno.EROFS, r"Read-only file system; set FEDMPT_CACHE"),
    ],
)
def test_full_or_read_only_disk_is_a_clear_error_and_the_fill_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    monkeypatch.setattr(features, "_CHUNK_IMAGES", 8)
    written: list[Path] = []
    write_record = features._write_record

    def refuse_the_second(folder: Path, record: features._Record) -> None:
        written.append(folder)
        if len(written) == 2:
            raise OSError(number, os.strerror(number))
        write_record(folder, record)

    with monkeypatch.context() as patched:
        patched.setattr(features, "_write_record", refuse_the_second)
        with pytest.raises(RunError, match=message):
            fill(tmp_path, Encoder())
    rest = Encoder()
    assert_right(fill(tmp_path, rest))
    assert rest.images == 12


def test_disk_without_room_for_the_bank_is_refused_before_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(RunError, match=r"needs 0\.0 MB and its disk has 0\.0 MB left"):
        fill(tmp_path, Encoder())


def test_complete_bank_opens_from_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, Encoder())

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert_right(fill(tmp_path, Encoder(fail_after=0)))


@pytest.mark.parametrize(
    ("patches", "globals_", "message"),
    [
        (np.zeros((4, M)), np.zeros((4, D)), r"not \[b, M, D\]"),
        (np.zeros((3, M, D)), np.zeros((4, D)), "instead of"),
        (np.zeros((4, M, D)), np.zeros((4, D + 1)), "instead of"),
        (np.full((4, M, D), 1e6), np.zeros((4, D)), "not finite in float16"),
        (np.zeros((4, M, D)), np.full((4, D), np.nan), "not finite in float16"),
    ],
)
def test_encoder_that_returns_other_shapes_or_values_is_refused(
    tmp_path: Path, patches: NDArray[np.float64], globals_: NDArray[np.float64], message: str
) -> None:
    with pytest.raises(RunError, match=message):
        open_or_fill(
            tmp_path,
            backbone="b",
            preprocessing="p",
            split=split(),
            prepare=as_it_is,
            encode=lambda _: (patches.astype(np.float32), globals_.astype(np.float32)),
            batch_size=4,
        )


def test_error_of_the_encoder_is_not_blamed_on_the_cache(tmp_path: Path) -> None:
    class Broken(Encoder):
        def __call__(self, images: list[Image.Image]) -> tuple[NDArray[np.float32], ...]:
            raise OSError("device lost")

    with pytest.raises(RunError, match="encoder failed: device lost"):
        fill(tmp_path, Broken())


def test_error_of_an_image_passes_through(tmp_path: Path) -> None:
    def refuse(row: int) -> Image.Image:
        if row == 9:
            raise UsageError("this image")
        return shade(row)

    with pytest.raises(UsageError, match="this image"):
        fill(tmp_path, Encoder(), split=split(open_image=refuse))


def test_empty_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 images"):
        fill(tmp_path, Encoder(), n=0)
    with pytest.raises(ValueError, match="batches of 0"):
        fill(tmp_path, Encoder(), batch_size=0)


def test_cache_directory_is_that_of_the_environment_or_below_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FEDMPT_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.delenv("FEDMPT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "fedmpt"
