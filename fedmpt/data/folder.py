"""What readers of image folders share: opening, probing and digesting image files.

A reader lists paths with labels (`Listing`); `read_splits` turns the two lists into two `Split`s.
Each file is read once, digested, and probed from the same bytes: JPEG is decoded at an eighth of
its size in grey (finds truncation at a fraction of the cost), PNG has its checksums verified,
anything else is decoded. What was found is remembered in a digest index keyed by a hash of the path
and the file's size and times, so that a later start only asks the file system for those. Pixels are
decoded in full only by `Split.open_image`, when features are computed.

File names may identify patients: they appear in no message and in no index, only in the list that
the user asks for with ``ReadPolicy.unreadable_list``.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec
import numpy as np
import PIL
from PIL import Image

from fedmpt.data.dataset import Dataset, HeldOut, LabelMatrix, Split
from fedmpt.errors import DataError, UsageError

Progress: TypeAlias = Callable[[int, int], None]  # images done, images in all
Problem: TypeAlias = Literal["", "missing", "unreadable", "damaged"]

_DIGEST_BYTES = 16
_PROBE_SCALE = 8  # the coarsest scale that JPEG decoders offer
_MAX_READERS = 8
_INDEX_VERSION = 1
# A file changed so shortly before it was read may change again within one tick of the file
# system's clock.
_SETTLED_NS = 2_000_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """The images of one split as a reader lists them, before any is opened.

    Attributes:
        paths: one path an image.
        labels: int8 ``[n, C]``, row by row the labels of ``paths``.
        left_out: images that the source lists and that the reader leaves out: (reason, number).
    """

    paths: tuple[Path, ...]
    labels: LabelMatrix
    left_out: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadPolicy:
    """What to do about images that cannot be read, and where to remember what was found.

    Attributes:
        strict: refuse the data set when any image cannot be read, instead of leaving it out and
            counting it.
        digest_index: folder of digest indexes; None remembers nothing.
        unreadable_list: file to which split, reason and path of each image left out are written,
            tab-separated; None writes none. It holds file names: keep it where the images may lie.
        progress: called with (done, total) now and then.
    """

    strict: bool = False
    digest_index: Path | None = None
    unreadable_list: Path | None = None
    progress: Progress | None = None


class _Finding(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What was found in one file, with the state of the file for which it holds."""

    size: int
    modified_ns: int
    changed_ns: int
    digest: str
    problem: Problem


class _Index(msgspec.Struct, frozen=True):
    """Findings by digest of the path below the root; valid for one version of Pillow."""

    version: int
    pillow: str
    findings: dict[str, _Finding]


def open_rgb(path: Path) -> Image.Image:
    """Open an image file as RGB, 8 bits a channel.

    Transparency is dropped; 16-bit grey is mapped linearly (65535 becomes 255); orientation tags
    are not applied, as in CLIP's own preprocessing. The file is closed on return.

    Raises:
        DataError: if the file cannot be decoded. The message does not name it.
    """
    try:
        with Image.open(path) as image:
            return _as_rgb(image)
    except (
        Exception
    ):  # decoders raise nearly anything on damaged bytes, and their messages hold the path
        message = (
            "an image of the data set can no longer be decoded; "
            "it was changed or removed after the data set was read: start again"
        )
    raise DataError(message)


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, also where Pillow widens it to 32 bits
        grey = np.clip(np.asarray(image, dtype=np.int64), 0, 65535) >> 8  # [H, W]
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if (
        "transparency" in image.info
    ):  # Pillow warns when a palette with transparency loses it in one step
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _open_row(paths: Sequence[Path], row: int) -> Image.Image:
    if not 0 <= row < len(paths):
        raise IndexError(f"image {row} of {len(paths)}")
    return open_rgb(paths[row])


def _is_damaged(data: bytes) -> bool:
    """Decide from a file's bytes, as cheaply as its format allows, whether it can be decoded."""
    try:
        with Image.open(BytesIO(data)) as image:
            if image.format == "PNG":
                image.verify()
            else:
                width, height = image.size
                scaled = max(1, width // _PROBE_SCALE), max(1, height // _PROBE_SCALE)
                image.draft("L", scaled)  # JPEG only
                image.load()
    except Exception:  # decoders raise nearly anything on damaged bytes
        return True
    return False


def _state(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _examine(path: Path, known: _Finding | None) -> _Finding:
    """Return what is found in one file, or ``known`` if the file is still in that state."""
    size, modified_ns, changed_ns = 0, 0, 0
    digest = ""
    problem: Problem = ""
    try:
        size, modified_ns, changed_ns = _state(path)
        if known is not None and (size, modified_ns, changed_ns) == (
            known.size,
            known.modified_ns,
            known.changed_ns,
        ):
            return known
        data = path.read_bytes()
        digest = hashlib.blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()
        problem = "damaged" if _is_damaged(data) else ""
    except FileNotFoundError:
        problem = "missing"
    except OSError:
        problem = "unreadable"
    return _Finding(size, modified_ns, changed_ns, digest, problem)


def _index_path(directory: Path, root: Path) -> Path:
    name = hashlib.blake2b(os.fsencode(root.resolve()), digest_size=_DIGEST_BYTES).hexdigest()
    return directory / f"{name}.msgpack"


def _path_digest(root: Path, path: Path) -> str:
    return hashlib.blake2b(
        os.fsencode(os.path.relpath(path, root)), digest_size=_DIGEST_BYTES
    ).hexdigest()


def _load_findings(path: Path) -> Mapping[str, _Finding]:
    try:
        index = msgspec.msgpack.decode(path.read_bytes(), type=_Index)
    except (OSError, msgspec.DecodeError):  # absent or damaged: found again from the files
        return {}
    if (index.version, index.pillow) != (_INDEX_VERSION, PIL.__version__):
        return {}
    return index.findings


def _save_findings(path: Path, findings: dict[str, _Finding]) -> None:
    index = _Index(version=_INDEX_VERSION, pillow=PIL.__version__, findings=findings)
    with contextlib.suppress(OSError):  # the index saves time only; without it files are read again
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(msgspec.msgpack.encode(index))
            os.replace(temporary, path)
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise


def _examine_all(root: Path, paths: Sequence[Path], policy: ReadPolicy) -> list[_Finding]:
    """Return one finding a path, from the digest index where it still holds."""
    index_path = None if policy.digest_index is None else _index_path(policy.digest_index, root)
    known = {} if index_path is None else _load_findings(index_path)
    keys = [_path_digest(root, path) for path in paths]
    started_ns = time.time_ns()
    found: list[_Finding] = []
    report_every = max(1, len(paths) // 200)
    Image.preinit()  # once, before threads ask for it
    with ThreadPoolExecutor(min(_MAX_READERS, os.cpu_count() or 1)) as pool:
        for finding in pool.map(_examine, paths, [known.get(key) for key in keys]):
            found.append(finding)
            if policy.progress is not None and (
                len(found) % report_every == 0 or len(found) == len(paths)
            ):
                policy.progress(len(found), len(paths))
    if index_path is not None:
        settled = {
            key: finding
            for key, finding in zip(keys, found, strict=True)
            if finding.digest and finding.changed_ns < started_ns - _SETTLED_NS
        }
        if any(known.get(key) is not finding for key, finding in settled.items()):
            _save_findings(index_path, {**known, **settled})
    return found


def _require_inside(root: Path, paths: Sequence[Path]) -> None:
    base = os.path.abspath(root)
    outside = sum(os.path.commonpath((base, os.path.abspath(path))) != base for path in paths)
    if outside:
        raise DataError(
            f"{root}: {outside} listed images lie outside this folder; "
            "list images by paths below it, without '..'"
        )


def _write_unreadable(target: Path, root: Path, rows: Sequence[tuple[str, str, Path]]) -> None:
    lines = [f"{split}\t{reason}\t{os.path.relpath(path, root)}\n" for split, reason, path in rows]
    try:
        target.write_text("".join(lines), encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise UsageError(
            f"unreadable_list={target}: cannot be written ({error.strerror}); choose another file"
        ) from error


def _keep_readable(listing: Listing, findings: Sequence[_Finding], *, split: str) -> Split:
    keep = [row for row, finding in enumerate(findings) if not finding.problem]
    if not keep:
        raise DataError(
            f"the {split} split has no readable image ({len(listing.paths)} listed); "
            "check that the images lie where the list says"
        )
    paths = tuple(listing.paths[row] for row in keep)
    return Split(
        labels=np.ascontiguousarray(listing.labels[keep], dtype=np.int8),  # [n, C]
        content=tuple(findings[row].digest for row in keep),
        open_image=partial(_open_row, paths),
        left_out=listing.left_out
        + tuple(sorted(Counter(item.problem for item in findings if item.problem).items())),
    )


def read_splits(
    root: Path, *, train: Listing, test: Listing, policy: ReadPolicy
) -> tuple[Split, Split]:
    """Probe and digest the images of both lists and return the readable ones as splits.

    Guarantee: row ``i`` of a split's labels, content and images belong to the same listed image, in
        listed order.

    Args:
        root: the data set's folder; paths are taken relative to it in the index and in the list of
            unreadable images.
        train: images for training.
        test: images for evaluation.
        policy: what to do about images that cannot be read.

    Raises:
        DataError: if ``policy.strict`` and any image cannot be read, if no image of a split can, or
            if a listed path leads out of ``root``.
    """
    _require_inside(root, train.paths + test.paths)
    found = _examine_all(root, train.paths + test.paths, policy)
    names = ("training",) * len(train.paths) + ("test",) * len(test.paths)
    unreadable = [
        (name, finding.problem, path)
        for name, finding, path in zip(names, found, train.paths + test.paths, strict=True)
        if finding.problem
    ]
    if policy.unreadable_list is not None:
        _write_unreadable(policy.unreadable_list, root, unreadable)
    if policy.strict and unreadable:
        counts = Counter(problem for _, problem, _ in unreadable)
        reasons = ", ".join(f"{count} {problem}" for problem, count in sorted(counts.items()))
        listed = (
            f"they are listed in {policy.unreadable_list}"
            if policy.unreadable_list is not None
            else "give unreadable_list=FILE to have them listed"
        )
        raise DataError(
            f"{len(unreadable)} of {len(found)} images cannot be read ({reasons}); {listed}, "
            "or leave out strict to skip and count them"
        )
    boundary = len(train.paths)
    return (
        _keep_readable(train, found[:boundary], split="training"),
        _keep_readable(test, found[boundary:], split="test"),
    )


def read_dataset(
    root: Path,
    *,
    name: str,
    classes: tuple[str, ...],
    train: Listing,
    test: Listing,
    policy: ReadPolicy | None,
    held_out: HeldOut | None = None,
) -> Dataset:
    """Return the data set of two lists of images, read as `read_splits` says; None is the default policy."""
    train_split, test_split = read_splits(
        root, train=train, test=test, policy=policy or ReadPolicy()
    )
    return Dataset(
        name=name, classes=classes, train=train_split, test=test_split, held_out=held_out
    )
