"""What readers of data sets share about folders and names: finding files, and names as they are read out.

Copies of one data set differ in the spelling of folders and in where images lie; what is looked for
is found in every usual spelling, and what is missing is named together with what belongs there.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from fedmpt.errors import DataError


def require_root(root: Path) -> Path:
    """Return the folder given by ``--data-root`` if it is one.

    Raises:
        DataError: if it is not.
    """
    return require_folder(
        root, what="data root", remedy="give the data set's folder with --data-root"
    )


def require_folder(path: Path, *, what: str, remedy: str) -> Path:
    """Return ``path`` if it is a folder.

    Raises:
        DataError: if it is not; the message says which folder was looked for and what to do.
    """
    if path.is_file():
        raise DataError(f"{path}: a file, and a folder is needed ({what}); {remedy}")
    if not path.is_dir():
        raise DataError(f"{path}: no such folder ({what}); {remedy}")
    return path


def require_file(path: Path, *, what: str, remedy: str) -> Path:
    """Return ``path`` if it is a file.

    Raises:
        DataError: if it is not; the message says which file was looked for and what to do.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file ({what}); {remedy}")
    return path


def prompt_name(name: str) -> str:
    """Return a class name as it is read out: underscores and runs of blanks become one blank."""
    return " ".join(name.replace("_", " ").split())


def require_distinct(names: Sequence[str], *, where: str) -> tuple[str, ...]:
    """Return ``names`` as a tuple if they are non-empty, distinct and at least one.

    Raises:
        DataError: otherwise.
    """
    if not names:
        raise DataError(f"{where}: names no class; at least one is needed")
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated or not all(names):
        reason = f"class {repeated[0]!r} appears twice" if repeated else "a class has no name"
        raise DataError(f"{where}: {reason}; give each class its own name")
    return tuple(names)


def spoken(name: str) -> str:
    """Return a name in CamelCase as it is read out: "BaseballField" becomes "baseball field"."""
    return prompt_name(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)).lower()


def name_key(name: str) -> str:
    """Return what spellings of one name share: its letters and digits, in lower case."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def find_entry(folder: Path, *names: str) -> Path | None:
    """Return the entry of ``folder`` with one of ``names``, upper and lower case being the same.

    Earlier names win; None if there is none.
    """
    entries = {entry.name.lower(): entry for entry in sorted(folder.iterdir())}
    return next((entries[name.lower()] for name in names if name.lower() in entries), None)


def find_by_name(listed: Sequence[str], folders: Sequence[Path]) -> list[Path]:
    """Return where images lie whose listed paths begin elsewhere: they are found by file name.

    Where several files of a name lie below ``folders``, the name of the folder decides. An image
    that is nowhere gets a path in the first folder, at which it will be found missing.

    Raises:
        DataError: if a listed image fits several files.
    """
    files: dict[str, list[Path]] = {}
    for folder in folders:
        for parent, _, names in os.walk(folder):
            for name in names:
                files.setdefault(name, []).append(Path(parent, name))
    found: list[Path] = []
    ambiguous = 0
    for text in listed:
        path = PurePosixPath(text.strip().replace("\\", "/"))
        candidates = files.get(path.name, [])
        if len(candidates) > 1:
            candidates = [file for file in candidates if file.parent.name == path.parent.name]
            ambiguous += len(candidates) > 1
        found.append(candidates[0] if candidates else folders[0] / path.name)
    if ambiguous:
        raise DataError(
            f"{folders[0]}: {ambiguous} listed images fit several files of the same name; "
            "keep each image once"
        )
    return found
