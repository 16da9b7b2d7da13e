"""What works on this machine: one line a thing, each with its remedy where something is missing."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec

from fedmpt.config import Config
from fedmpt.errors import FedMPTError

State = Literal["ok", "warn", "fail"]
OLDEST_PYTHON: Final = (3, 11)
_MODULES: Final = {  # of packages whose module is called otherwise
    "open_clip_torch": "open_clip",
    "dp-accounting": "dp_accounting",
    "scikit-learn": "sklearn",
    "pillow": "PIL",
}
_SCARCE: Final = 2e9  # bytes of free disk below which a large feature bank will not fit
_KNOWN_WEIGHTS: Final = (("ViT-B-16", "openai"),)  # what published figures are made with


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One thing that was looked at.

    Attributes:
        name: what.
        state: ``ok``; ``warn`` where a part of the product is missing; ``fail`` where the product does not work.
        text: what was found.
        remedy: what to do; empty if all is well.
    """

    name: str
    state: State
    text: str
    remedy: str = ""


def diagnose(config: Config) -> Iterator[Line]:
    """Yield what is found, a line at a time.

    Args:
        config: whose backbone, data and device are looked at.
    """
    yield _python()
    yield from _packages()
    for check in (_device, _threads, _backbone, _published, _data, _cache):
        yield from _guarded(check, config)


def _guarded(check: Callable[[Config], Iterator[Line]], config: Config) -> Iterator[Line]:
    """Turn what keeps a check from ending into a line."""
    name = check.__name__.strip("_")
    try:
        yield from check(config)
    except FedMPTError as error:
        yield Line(name=name, state="fail", text="cannot be used", remedy=str(error))
    except ImportError as error:
        yield Line(
            name=name, state="fail", text=f"needs {error.name}", remedy="install what is missing"
        )


def _python() -> Line:
    found = platform.python_version()
    if sys.version_info < OLDEST_PYTHON:
        return Line(name="python", state="fail", text=found, remedy="install Python 3.11 or newer")
    return Line(
        name="python", state="ok", text=f"{found}, {platform.system()} {platform.machine()}"
    )


def _packages() -> Iterator[Line]:
    try:
        required = importlib.metadata.requires("fedmpt") or []
        own = importlib.metadata.version("fedmpt")
    except importlib.metadata.PackageNotFoundError:
        yield Line(
            name="fedmpt",
            state="fail",
            text="not installed",
            remedy="run pip install -e . -c constraints.txt in the project's folder",
        )
        return
    yield Line(name="fedmpt", state="ok", text=own)
    for requirement in required:
        specification, _, condition = requirement.partition(";")
        match = re.match(r"[A-Za-z0-9._-]+", specification)
        if match is None:
            continue
        extra = re.search(r"extra == [\"']([^\"']+)", condition)
        yield _package(match.group(), specification.strip(), extra.group(1) if extra else None)


def _package(name: str, specification: str, extra: str | None) -> Line:
    """Return the state of one package; one of an extra is optional."""
    floor = re.search(r">=\s*([0-9.]+)", specification)
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        if extra is not None:
            return Line(
                name=name,
                state="warn",
                text=f"not installed (optional: {extra})",
                remedy=f"pip install -c constraints.txt 'fedmpt[{extra}]' if you need it",
            )
        return Line(
            name=name,
            state="fail",
            text="not installed",
            remedy=f"pip install -c constraints.txt '{specification}'",
        )
    if floor is not None and _numbers(found) < _numbers(floor.group(1)):
        return Line(
            name=name,
            state="fail",
            text=f"{found}, too old",
            remedy=f"pip install -c constraints.txt '{specification}'",
        )
    broken = "" if extra is not None else _import_error(_MODULES.get(name, name))
    if broken:
        return Line(
            name=name,
            state="fail",
            text=f"{found}, but it cannot be imported ({broken})",
            remedy=f"pip install --force-reinstall -c constraints.txt '{specification}'",
        )
    return Line(name=name, state="ok", text=found + (f" (optional: {extra})" if extra else ""))


def _import_error(module: str) -> str:
    """Import a module; return what kept it from being imported, or nothing."""
    try:
        if module in ("torchvision", "open_clip"):
            from fedmpt.clip._torchvision import ensure_torchvision

            ensure_torchvision()
        importlib.import_module(module)
    except Exception as error:  # a broken binary raises nearly anything
        return f"{type(error).__name__}: {error}"[:160]
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _device(config: Config) -> Iterator[Line]:
    import torch

    from fedmpt.clip.backbone import automatic_precision, resolve_device

    name = resolve_device(config.device)
    precision = config.backbone.precision
    if precision == "auto":
        precision = automatic_precision(name)
    if name == "cuda":
        properties = torch.cuda.get_device_properties(0)
        text = f"cuda: {properties.name}, {properties.total_memory / 1e9:.0f} GB"
    else:
        text = "cpu" if config.device == "cpu" else "cpu (torch sees no CUDA device)"
    yield Line(name="device", state="ok", text=f"{text}; images are encoded in {precision}")


def _threads(config: Config) -> Iterator[Line]:
    del config
    import torch

    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    used = torch.get_num_threads()
    text = f"{used} of torch on {cores} cores"
    if used > cores:
        yield Line(
            name="threads",
            state="warn",
            text=text,
            remedy=f"set OMP_NUM_THREADS={cores}: more threads than cores wait for each other",
        )
    else:
        yield Line(name="threads", state="ok", text=text)


def _backbone(config: Config) -> Iterator[Line]:
    from fedmpt.clip.backbone import load_backbone

    backbone = load_backbone(config.backbone.name, pretrained=config.backbone.pretrained)
    yield Line(
        name="backbone",
        state="ok",
        text=f"{backbone.name}: {backbone.patches} patches of width {backbone.width}, "
        f"fingerprint {backbone.fingerprint[:16]}...",
    )


def _published(config: Config) -> Iterator[Line]:
    del config
    from fedmpt.clip._torchvision import ensure_torchvision

    ensure_torchvision()
    from fedmpt.clip.weights import cached, published

    for architecture, tag in _KNOWN_WEIGHTS:
        name = f"{architecture} {tag}"
        file = cached(architecture, tag)
        if file is not None:
            yield Line(name=name, state="ok", text=f"cached: {file}")
            continue
        yield Line(
            name=name,
            state="warn",
            text=f"not on this machine (needed for nothing but --backbone {architecture})",
            remedy=f"--pretrained {tag} downloads it where there is a connection; elsewhere fetch "
            f"{published(architecture, tag)}, and give it with --pretrained {tag}=FILE",
        )


def _data(config: Config) -> Iterator[Line]:
    from fedmpt.data.registry import NAMES, load_dataset

    if config.data.name == "scenes":
        scenes = msgspec.structs.replace(config.data.scenes, train_size=1, test_size=1)
        small = msgspec.structs.replace(config.data, scenes=scenes)
        load_dataset(small, seed=config.seed).train.open_image(0)
        yield Line(
            name="data",
            state="ok",
            text=f"scenes is embedded; on disk: {', '.join(NAMES[1:])}, with --data-root",
        )
        return
    dataset = load_dataset(config.data, seed=config.seed)
    skipped = dataset.train.skipped + dataset.test.skipped
    yield Line(
        name="data",
        state="warn" if skipped else "ok",
        text=f"{dataset.name}: {len(dataset.train)} training and {len(dataset.test)} test images, "
        f"{len(dataset.classes)} classes" + (f", {skipped} cannot be read" if skipped else ""),
        remedy="replace the images that cannot be read, or go on without them" if skipped else "",
    )


def _cache(config: Config) -> Iterator[Line]:
    del config
    from fedmpt.data.features import cache_directory

    folder = cache_directory()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(existing, os.W_OK):
        yield Line(
            name="cache",
            state="fail",
            text=f"{folder} cannot be written",
            remedy="set FEDMPT_CACHE to a folder that can be written",
        )
        return
    size = sum(_size(path) for path in folder.rglob("*")) if folder.exists() else 0
    free = shutil.disk_usage(existing).free
    text = f"{folder}: {size / 1e6:,.1f} MB of features, {free / 1e9:,.1f} GB free"
    if free < _SCARCE:
        yield Line(
            name="cache",
            state="warn",
            text=text,
            remedy="make room, or set FEDMPT_CACHE to a folder on another disk",
        )
    else:
        yield Line(name="cache", state="ok", text=text)


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):  # removed since it was listed
        return path.stat().st_size if path.is_file() else 0
    return 0
