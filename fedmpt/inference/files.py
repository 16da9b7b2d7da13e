"""The images that a user names: files and folders to a list in a fixed order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from fedmpt.errors import UsageError


@dataclass(frozen=True, slots=True)
class Found:
    """What lies under the given paths.

    Attributes:
        images: image files, each once: in the order given, folders by path below them.
        passed_over: other files in the folders.
    """

    images: tuple[Path, ...]
    passed_over: int


def find_images(paths: Sequence[Path]) -> Found:
    """Return the image files of files and folders, folders with all below them.

    A file that is named is taken whatever it is called; in folders file names decide, and hidden files are left alone.

    Raises:
        UsageError: a path does not exist, or there is no image.
    """
    images: dict[Path, None] = {}
    passed_over = 0
    suffixes = Image.registered_extensions()
    for path in paths:
        if path.is_dir():
            below = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p, path))
            taken = [p for p in below if p.suffix.lower() in suffixes]
            passed_over += len(below) - len(taken)
            images.update(dict.fromkeys(taken))
        elif path.exists():
            images[path] = None
        else:
            raise UsageError(f"{path}: no such file or folder")
    if not images:
        raise UsageError(
            f"{', '.join(map(str, paths))}: no image file there; give files, or folders that hold some"
        )
    return Found(tuple(images), passed_over)


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)
