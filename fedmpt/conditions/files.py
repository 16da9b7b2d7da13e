"""What training reads: a list of conditions, from a result or from a plain JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import TypeGuard

from fedmpt.conditions.prompts import CONDITIONS
from fedmpt.conditions.record import SCHEMA, read_record, read_tree
from fedmpt.errors import UsageError


def read_conditions(file: Path) -> tuple[str, ...]:
    """Return the conditions of a result of ``fedmpt conditions``, or of a plain JSON list of words.

    Raises:
        UsageError: the file cannot be read, was changed, or holds no conditions.
    """
    words = read_tree(file)
    if isinstance(words, dict) and words.get("schema") == SCHEMA:
        words = read_record(file).result.chosen.get(CONDITIONS)
    if not _are_words(words):
        raise UsageError(
            f"{file}: holds no conditions; give a result of `fedmpt conditions`, or a JSON list of words"
        )
    return tuple(words)


def _are_words(value: object) -> TypeGuard[list[str] | tuple[str, ...]]:
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all(isinstance(one, str) and one.strip() for one in value)
    )
