"""The feature bank: patch and global features of a split, computed once, then memory-mapped.

A bank is a folder below the cache directory, named by a digest of everything that decides its
values: the backbone, the preprocessing, and the content of each image in order. It is filled in a
folder of its own and renamed when complete, so a bank that has its final name was finished; a
checksum every few hundred images finds what was damaged later. A fill that was interrupted goes on
after its last finished chunk.

Reading leaves nothing behind: pages of the mapping are given back once their rows are copied, so
that a process which has read all of a bank is no larger than before. A bank may exceed memory.

Features of private images are private too: folders are made readable by their owner alone.

Letters: ``n`` images, ``M`` patches, ``D`` feature width, ``b`` images of a batch.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import shutil
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedmpt.data.dataset import Split
from fedmpt.errors import FedMPTError, RunError, UsageError

Prepared = TypeVar("Prepared")  # an image as the encoder takes it
Encoded: TypeAlias = tuple[NDArray[np.float32], NDArray[np.float32]]  # [b, M, D], [b, D]
Progress: TypeAlias = Callable[[int, int], None]  # images done, images in all
Rows: TypeAlias = NDArray[np.int64] | Sequence[int] | slice

_FORMAT = 1
_CHUNK_IMAGES = 256  # committed, and checksummed, together; rounded up to whole batches
_ITEM_BYTES = 2  # float16
_MOST_DECODERS = 16
_PATCHES, _GLOBALS, _RECORD = "patches.f16", "globals.f16", "bank.json"


class _Chunk(msgspec.Struct, frozen=True, array_like=True):
    """Checksums (CRC-32) of one run of images; it finds accidents, not forgery."""

    images: int
    patches: int
    globals: int


class _Record(msgspec.Struct, frozen=True):
    """What a bank's folder says of itself: its shape, and the chunks that are finished."""

    format: int
    key: str
    images: int
    patch_count: int
    width: int
    chunks: list[_Chunk]

    @property
    def done(self) -> int:
        return sum(chunk.images for chunk in self.chunks)


class _DamagedError(Exception):
    """A bank does not hold what its record says."""


def cache_directory() -> Path:
    """Return the folder for what can be computed again: ``$FEDMPT_CACHE``, or ``~/.cache/fedmpt``.

    Raises:
        UsageError: if neither can be determined.
    """
    configured = os.environ.get("FEDMPT_CACHE")
    try:
        return Path(configured).expanduser() if configured else Path.home() / ".cache" / "fedmpt"
    except RuntimeError as error:
        raise UsageError("no home folder for the cache; set FEDMPT_CACHE to a folder") from error


def bank_key(*, backbone: str, preprocessing: str, content: Sequence[str]) -> str:
    """Return the name of a bank: a digest of all that decides its values.

    Args:
        backbone: fingerprint of the frozen image tower, weights included.
        preprocessing: fingerprint of what happens to an image before it.
        content: digest of each image, in order.
    """
    state = hashlib.sha256(b"fedmpt feature bank %d" % _FORMAT)
    for part in (backbone, preprocessing, *content):
        data = part.encode()
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class FeatureBank:
    """Patch and global features of a split, memory-mapped; only the rows asked for are read.

    Attributes:
        key: what `bank_key` names it.
        stored_patches: read-only float16 ``[n, M, D]``, memory-mapped.
        stored_globals: read-only float16 ``[n, D]``, memory-mapped.
    """

    key: str
    stored_patches: NDArray[np.float16]
    stored_globals: NDArray[np.float16]

    def __len__(self) -> int:
        return int(self.stored_patches.shape[0])

    @property
    def patch_count(self) -> int:
        """M, patches of an image."""
        return int(self.stored_patches.shape[1])

    @property
    def width(self) -> int:
        """D, width of a feature."""
        return int(self.stored_patches.shape[2])

    def patches(self, rows: Rows) -> NDArray[np.float32]:
        """Return patch features of some images as a new float32 array ``[b, M, D]``."""
        return self.patches_half(rows).astype(np.float32)

    def patches_half(self, rows: Rows) -> NDArray[np.float16]:
        """Return patch features of some images as stored, a new float16 array ``[b, M, D]``."""
        return _copied(self.stored_patches, rows)

    def global_features(self, rows: Rows = slice(None)) -> NDArray[np.float32]:
        """Return global features of some images (all by default), a new float32 ``[b, D]``."""
        return _copied(self.stored_globals, rows).astype(np.float32)


def _copied(stored: NDArray[np.float16], rows: Rows) -> NDArray[np.float16]:
    """Return rows of a stored array as a new one, and give back the memory that reading them took.

    Pages of a mapping count as the process's own until they are let go; those that are read again
    come from the system's cache.
    """
    taken = stored[rows]  # already a copy, unless of a slice
    copy = np.array(taken) if isinstance(rows, slice) else np.asarray(taken)
    mapping = getattr(stored, "_mmap", None)  # none where a bank was put together in memory
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
        mapping.madvise(mmap.MADV_DONTNEED)
    return copy


def _cache_error(directory: Path, error: OSError) -> FedMPTError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = "the disk is full" if full else (error.strerror or type(error).__name__)
    return RunError(
        f"the feature cache {directory} cannot be written: {reason}; "
        "make room or set FEDMPT_CACHE to a folder on another disk"
        if full
        else f"the feature cache {directory} cannot be used: {reason}; "
        "set FEDMPT_CACHE to a folder that can be written"
    )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes; it goes when the process ends, however it ends.

    Where the platform has no such lock (Windows) there is none: one process at a time may fill a
    bank there.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sync_directory(path: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_record(folder: Path, record: _Record) -> None:
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=_RECORD)
    with os.fdopen(handle, "wb") as file:
        file.write(msgspec.json.encode(record))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / _RECORD)
    _sync_directory(folder)


def _read_record(folder: Path, *, key: str, images: int) -> _Record:
    try:
        record = msgspec.json.decode((folder / _RECORD).read_bytes(), type=_Record)
    except (FileNotFoundError, msgspec.DecodeError) as error:
        raise _DamagedError from error
    shape_is_sane = record.patch_count > 0 and record.width > 0
    chunks_are_sane = all(chunk.images > 0 for chunk in record.chunks) and record.done <= images
    if (record.format, record.key, record.images) != (_FORMAT, key, images) or not (
        shape_is_sane and chunks_are_sane
    ):
        raise _DamagedError
    return record


def _row_bytes(record: _Record) -> tuple[int, int]:
    """Return bytes of one image's patch features and of its global feature."""
    globals_ = record.width * _ITEM_BYTES
    return record.patch_count * globals_, globals_


def _sound_chunks(folder: Path, record: _Record) -> list[_Chunk]:
    """Return the leading chunks whose checksums hold."""
    patch_bytes, global_bytes = _row_bytes(record)
    sound: list[_Chunk] = []
    try:
        with (folder / _PATCHES).open("rb") as patches, (folder / _GLOBALS).open("rb") as globals_:
            for chunk in record.chunks:
                if (
                    _checksum(patches, chunk.images, patch_bytes) != chunk.patches
                    or _checksum(globals_, chunk.images, global_bytes) != chunk.globals
                ):
                    break
                sound.append(chunk)
    except FileNotFoundError:
        return []
    return sound


def _checksum(file: BinaryIO, rows: int, row_bytes: int) -> int | None:
    """Return the CRC-32 of the next ``rows`` rows of a file; None if it ends before."""
    value = 0
    rows_at_once = max(1, (1 << 22) // row_bytes)
    for start in range(0, rows, rows_at_once):
        expected = min(rows_at_once, rows - start) * row_bytes
        data = file.read(expected)
        if len(data) < expected:
            return None
        value = zlib.crc32(data, value)
    return value


def _open(folder: Path, *, key: str, images: int, verify: bool) -> FeatureBank:
    """Open a complete bank.

    Raises:
        _DamagedError: if there is none, or it is not what its record says.
    """
    record = _read_record(folder, key=key, images=images)
    for name, row_bytes in zip((_PATCHES, _GLOBALS), _row_bytes(record), strict=True):
        path = folder / name
        if not path.is_file() or path.stat().st_size != images * row_bytes:
            raise _DamagedError
    if record.done != images or (verify and _sound_chunks(folder, record) != record.chunks):
        raise _DamagedError
    M, D = record.patch_count, record.width
    return FeatureBank(
        key=key,
        stored_patches=np.memmap(folder / _PATCHES, np.float16, mode="r", shape=(images, M, D)),
        stored_globals=np.memmap(folder / _GLOBALS, np.float16, mode="r", shape=(images, D)),
    )


def _images(
    split: Split,
    *,
    start: int,
    batch_size: int,
    prepare: Callable[[Image.Image], Prepared],
) -> Iterator[list[Prepared]]:
    """Yield batches of images from ``start`` on, preparing the next while the last is used.

    A thread holds one image in full size; what waits is prepared, and as small as the encoder takes it.
    """

    def prepared(row: int) -> Prepared:
        return prepare(split.open_image(row))

    batches = [
        range(first, min(first + batch_size, len(split)))
        for first in range(start, len(split), batch_size)
    ]
    with ThreadPoolExecutor(min(_MOST_DECODERS, os.cpu_count() or 1)) as pool:
        waiting: deque[list[Future[Prepared]]] = deque()
        try:
            for batch in batches:
                waiting.append([pool.submit(prepared, row) for row in batch])
                if len(waiting) > 1:
                    yield [future.result() for future in waiting.popleft()]
            while waiting:
                yield [future.result() for future in waiting.popleft()]
        finally:
            pool.shutdown(cancel_futures=True)


def _halved(values: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float16]:
    """Return encoder output as float16 after checking its shape and range."""
    if values.shape != shape:
        raise RunError(f"the image encoder returned an array {values.shape} instead of {shape}")
    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(values, dtype=np.float16)
    if not np.isfinite(half).all():
        raise RunError(
            "the image encoder returned values that are not finite in float16; check the backbone's "
            "weights and preprocessing, and on a GPU try --set backbone.precision=bfloat16"
        )
    return half


def _require_room(directory: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < needed_bytes:
        raise RunError(
            f"the feature cache {directory} needs {needed_bytes / 1e6:,.1f} MB and its disk has "
            f"{free_bytes / 1e6:,.1f} MB left; make room or set FEDMPT_CACHE to a folder on "
            "another disk"
        )


def _resume(folder: Path, *, key: str, images: int) -> _Record | None:
    """Return the record of an interrupted fill, cut back to its sound chunks; None if none."""
    try:
        record = _read_record(folder, key=key, images=images)
    except _DamagedError:
        return None
    return msgspec.structs.replace(record, chunks=_sound_chunks(folder, record))


def _fill(
    folder: Path,
    *,
    key: str,
    split: Split,
    prepare: Callable[[Image.Image], Prepared],
    encode: Callable[[list[Prepared]], Encoded],
    batch_size: int,
    progress: Progress | None,
) -> None:
    """Compute what an unfinished bank lacks; each chunk is on disk before the record names it."""
    n = len(split)
    record = _resume(folder, key=key, images=n)
    done = 0 if record is None else record.done
    batches_a_chunk = -(-_CHUNK_IMAGES // batch_size)
    chunk_images, patch_sum, global_sum = 0, 0, 0
    with (folder / _PATCHES).open("ab") as patches, (folder / _GLOBALS).open("ab") as globals_:
        for file, row_bytes in zip(
            (patches, globals_), (0, 0) if record is None else _row_bytes(record), strict=True
        ):
            file.truncate(done * row_bytes)
        batches = _images(split, start=done, batch_size=batch_size, prepare=prepare)
        for number, images in enumerate(batches, 1):
            try:
                patch_values, global_values = encode(images)
            except OSError as error:  # not the cache's: say so
                raise RunError(f"the image encoder failed: {error}") from error
            if record is None:
                if patch_values.ndim != 3 or not patch_values.size:
                    raise RunError(
                        f"the image encoder returned patches {patch_values.shape}, "
                        "which is not [b, M, D]"
                    )
                _, M, D = patch_values.shape
                record = _Record(
                    format=_FORMAT, key=key, images=n, patch_count=M, width=D, chunks=[]
                )
                _require_room(folder.parent.parent, n * sum(_row_bytes(record)))
            b, M, D = len(images), record.patch_count, record.width
            patch_data = _halved(patch_values, (b, M, D)).tobytes()
            global_data = _halved(global_values, (b, D)).tobytes()
            patches.write(patch_data)
            globals_.write(global_data)
            patch_sum = zlib.crc32(patch_data, patch_sum)
            global_sum = zlib.crc32(global_data, global_sum)
            chunk_images += b
            done += b
            if number % batches_a_chunk == 0 or done == n:
                for file in (patches, globals_):
                    file.flush()
                    os.fsync(file.fileno())
                chunk = _Chunk(images=chunk_images, patches=patch_sum, globals=global_sum)
                record = msgspec.structs.replace(record, chunks=[*record.chunks, chunk])
                _write_record(folder, record)
                chunk_images, patch_sum, global_sum = 0, 0, 0
            if progress is not None:
                progress(done, n)


def _discard(folder: Path) -> None:
    """Remove a bank; under a fresh name first, so that none is ever half removed under its own."""
    grave = tempfile.mkdtemp(dir=folder.parent, prefix="discarded-")
    os.replace(folder, Path(grave) / folder.name)
    shutil.rmtree(grave)


def open_or_fill(
    cache_dir: Path,
    *,
    backbone: str,
    preprocessing: str,
    split: Split,
    prepare: Callable[[Image.Image], Prepared],
    encode: Callable[[list[Prepared]], Encoded],
    batch_size: int = 64,
    progress: Progress | None = None,
    verify: bool = True,
) -> FeatureBank:
    """Return the bank of a split, computing what is not in the cache.

    Guarantee: every row returned was computed by an ``encode`` of the same fingerprints from an
    image of the same content, and with ``verify`` its checksum held when the bank was opened.

    | cache holds | what happens |
    |---|---|
    | the complete bank | opened; nothing is encoded |
    | an interrupted fill | finished chunks are checked and kept, the rest is encoded |
    | a damaged or cut bank | removed and computed again |
    | a fill under way in another process | waited for, then opened |

    Args:
        cache_dir: cache directory; made if need be.
        backbone: fingerprint of the frozen image tower, weights included.
        preprocessing: fingerprint of what happens to an image before it.
        split: the images; ``open_image`` is called from several threads.
        prepare: maps an image of any size to what ``encode`` takes; called from several threads.
        encode: maps b prepared images to float32 patches ``[b, M, D]`` and globals ``[b, D]``, always the
            same for the same images.
        batch_size: images a call of ``encode``.
        progress: called with (done, total) after each batch, and not at all if nothing is encoded.
        verify: read the whole bank once and compare checksums (about 1 GB a second); otherwise
            sizes only.

    Raises:
        ValueError: if the split is empty or ``batch_size`` is below 1.
        RunError: if the cache cannot be written, or ``encode`` returns another shape or values that
            are not finite.
        DataError: if an image can no longer be decoded.
    """
    if not len(split) or batch_size < 1:
        raise ValueError(f"{len(split)} images in batches of {batch_size}: both must be at least 1")
    n = len(split)
    key = bank_key(backbone=backbone, preprocessing=preprocessing, content=split.content)
    banks = cache_dir / "features"
    final, unfinished = banks / key, banks / f"{key}.partial"
    try:
        with contextlib.suppress(
            _DamagedError
        ):  # a complete bank opens without a lock, even in a read-only cache
            return _open(final, key=key, images=n, verify=verify)
        banks.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(banks / f"{key}.lock"):
            with contextlib.suppress(
                _DamagedError
            ):  # another process may have finished it meanwhile
                return _open(final, key=key, images=n, verify=verify)
            if final.exists():
                _discard(final)
            unfinished.mkdir(mode=0o700, exist_ok=True)
            _fill(
                unfinished,
                key=key,
                split=split,
                prepare=prepare,
                encode=encode,
                batch_size=batch_size,
                progress=progress,
            )
            os.replace(unfinished, final)
            _sync_directory(banks)
            return _open(final, key=key, images=n, verify=False)
    except _DamagedError:
        message = f"the feature cache {cache_dir} changed while it was written; start again"
    except OSError as error:
        raise _cache_error(cache_dir, error) from error
    raise RunError(message)
