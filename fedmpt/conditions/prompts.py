"""What a language model is asked: class names in the paper's sentences, and the form of the answer.

Conditions take two stages in one conversation: descriptions of what the classes look like together, then what these
descriptions have in common. Descriptors take one prompt a group of classes.

Source: FedMPT, arXiv 2605.28347, section 4.1 and appendix D (its sentences are kept, misprints included); the form of
the answer is this implementation's.
"""

from __future__ import annotations

import itertools
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from fedmpt.errors import UsageError

Kind: TypeAlias = Literal["conditions", "descriptors"]

CONDITIONS: Final = "conditions"  # the one subject of a conversation about conditions
LONGEST_NAME: Final = 64  # letters of a class name
_DESCRIBE: Final = (
    "Please give a detailed description for each possible combination of the following categories in one sentence. "
    "Categories: {names}."
)
_SUMMARISE: Final = (
    "Given these descriptions, Please summarize {count} distinct and general conditions under which true class "
    "correlations can be reliably represented. Answer with a JSON list of {count} strings and nothing else; each "
    "string is one condition of one to three words."
)
_DESCRIPTORS: Final = (
    "What does each of the following categories look like in a photo? For each, give {count} short visual features by "
    'which it can be told from the others, each one fit to end the sentence "a photo of a CATEGORY, which has ...". '
    "Categories: {names}. Answer with a JSON object and nothing else; its keys are the categories as written here, and "
    "each value is a list of {count} strings."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Script:
    """One conversation to be held.

    Attributes:
        subjects: what its last answer is about: `CONDITIONS`, or class names.
        prompts: what is said, in order; each is said once the one before has been answered.
    """

    subjects: tuple[str, ...]
    prompts: tuple[str, ...]


def scripts(
    kind: Kind, classes: Sequence[str], *, count: int, group_size: int | None
) -> tuple[Script, ...]:
    """Return the conversations of one call.

    Args:
        kind: what is asked for.
        classes: class names; nothing else enters a prompt.
        count: how many conditions, or descriptors of a class.
        group_size: most classes in a prompt; None puts all into one. Conditions are about combinations, so there every
            two classes share a prompt.

    Raises:
        UsageError: a class name is too long to be one, or holds control characters; or a size is too small.
    """
    for name in classes:
        _require_plain(name)
    if not classes:
        raise UsageError("no class: give the names of at least one")
    if group_size is not None and group_size < 2:
        raise UsageError(f"--group-size {group_size}: must be at least 2")
    if kind == "descriptors":
        size = group_size or len(classes)
        groups = [tuple(classes[i : i + size]) for i in range(0, len(classes), size)]
        return tuple(
            Script(
                subjects=group,
                prompts=(_DESCRIPTORS.format(names=_listed(group), count=count),),
            )
            for group in groups
        )
    described = [_DESCRIBE.format(names=", ".join(g)) for g in _pair_groups(classes, group_size)]
    return (Script(subjects=(CONDITIONS,), prompts=(*described, _SUMMARISE.format(count=count))),)


def _pair_groups(classes: Sequence[str], size: int | None) -> list[tuple[str, ...]]:
    """Return groups of at most ``size`` classes such that any two classes share one."""
    if size is None or size >= len(classes):
        return [tuple(classes)]
    half = size // 2
    blocks = [tuple(classes[i : i + half]) for i in range(0, len(classes), half)]
    return [first + second for first, second in itertools.combinations(blocks, 2)]


def _listed(names: Sequence[str]) -> str:
    """Return names in quotes: an answer repeats them letter by letter."""
    return ", ".join(json.dumps(name, ensure_ascii=False) for name in names)


def _require_plain(name: str) -> None:
    if not name.strip() or len(name) > LONGEST_NAME:
        raise UsageError(
            f"class name {name[:LONGEST_NAME]!r}: must have 1 to {LONGEST_NAME} letters; nothing but names of classes "
            "may enter a prompt"
        )
    if any(unicodedata.category(letter).startswith("C") for letter in name):
        raise UsageError(
            f"class name {name!r}: holds a control character; give it in plain letters"
        )
