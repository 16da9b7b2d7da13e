"""From an answer's text to the words in it; whatever cannot be used is said, never passed over.

An answer is read as JSON, alone, in a code block or between other words; a list of conditions also as numbered or
bulleted lines. Conditions are compared without regard to case, quotation marks and closing punctuation.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from fedmpt.conditions.prompts import CONDITIONS, Kind

_MOST_LETTERS: Final = {"conditions": 40, "descriptors": 120}
_MOST_WORDS: Final = {"conditions": 4, "descriptors": 20}
_MOST_STARTS: Final = 64  # places in an answer at which JSON is looked for
_LINE: Final = re.compile(r"(?:\d{1,3}[.)]|[-*\u2022\u2013]) (?P<text>.+)")
_EXPLAINED: Final = re.compile(r"(?::| [-\u2013\u2014] ).*")
_EDGES: Final = " \"'`*_.,;:[]()\u201c\u201d\u2018\u2019\u00ab\u00bb"
_WORDS: Final = re.compile(r"[^\W_]+(?:['/-][^\W_]+)*(?: [^\W_]+(?:['/-][^\W_]+)*)*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What one answer says.

    Attributes:
        items: subject -> its words in the answer's order, each once; a subject without a usable word is absent.
        refused: what was in the answer and cannot be used, each with the reason.
    """

    items: dict[str, tuple[str, ...]]
    refused: tuple[str, ...]


def read_answer(kind: Kind, subjects: Sequence[str], text: str) -> Reading:
    """Return what an answer says about each subject.

    Args:
        kind: what was asked for.
        subjects: what it was asked about.
        text: the answer.
    """
    refused: list[str] = []
    given = _lists(kind, subjects, text, refused)
    items: dict[str, tuple[str, ...]] = {}
    for subject in subjects:
        if subject not in given:
            refused.append(f"{subject}: no list in the answer")
            continue
        words: dict[str, None] = {}
        for value in given[subject]:
            word = _plain(kind, value)
            if word is None:
                refused.append(f"{subject}: {_shown(value)} is no {kind.removesuffix('s')}")
            elif word in words:
                refused.append(f"{subject}: {_shown(value)} is given twice")
            else:
                words[word] = None
        if words:
            items[subject] = tuple(words)
    return Reading(items=items, refused=tuple(refused))


def _lists(
    kind: Kind, subjects: Sequence[str], text: str, refused: list[str]
) -> dict[str, list[Any]]:
    """Return the list that an answer gives for each subject, if it gives one."""
    if kind == "descriptors":
        return _lists_by_class(subjects, text, refused)
    for value in _json_values(text):
        if isinstance(value, dict) and len(value) == 1:
            (value,) = value.values()
        if isinstance(value, list) and value:
            return {CONDITIONS: value}
    plain = (" ".join(line.split()) for line in text.splitlines())
    lines = [found["text"] for line in plain if (found := _LINE.fullmatch(line))]
    return {CONDITIONS: [_EXPLAINED.sub("", line) for line in lines]} if lines else {}


def _lists_by_class(subjects: Sequence[str], text: str, refused: list[str]) -> dict[str, list[Any]]:
    names = {subject.casefold(): subject for subject in subjects}
    for value in _json_values(text):
        if not isinstance(value, dict) or not any(isinstance(v, list) for v in value.values()):
            continue
        found: dict[str, list[Any]] = {}
        for key, given in value.items():
            name = names.get(" ".join(key.split()).casefold())
            if name is None:
                refused.append(f"{_shown(key)} is none of the classes asked about")
            elif not isinstance(given, list):
                refused.append(f"{name}: {_shown(given)} is no list")
            else:
                found[name] = given
        return found
    return {}


def _json_values(text: str) -> list[Any]:
    """Return the outermost JSON lists and objects in a text, in order."""
    decoder, values, start = json.JSONDecoder(), [], 0
    for _ in range(_MOST_STARTS):
        found = re.compile(r"[\[{]").search(text, start)
        if found is None:
            break
        try:
            value, start = decoder.raw_decode(text, found.start())
        except (ValueError, RecursionError):
            start = found.start() + 1
        else:
            values.append(value)
    return values


def _plain(kind: Kind, value: object) -> str | None:
    """Return a word or phrase as it is compared and used; None for what is none."""
    if not isinstance(value, str):
        return None
    text = " ".join(unicodedata.normalize("NFKC", value).split()).strip(_EDGES)
    if kind == "conditions":
        text = text.casefold()
        if not _WORDS.fullmatch(text):
            return None
    if not text or not text.isprintable() or len(text) > _MOST_LETTERS[kind]:
        return None
    return text if len(text.split()) <= _MOST_WORDS[kind] else None


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:59]}…"
