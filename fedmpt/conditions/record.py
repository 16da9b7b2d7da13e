"""The file of a result: what was asked and answered, with digests, and what follows from it.

The result is a function of the answers: reading a file computes it again and refuses a file in which it differs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from fedmpt.conditions.answers import read_answer
from fedmpt.conditions.prompts import CONDITIONS, Kind
from fedmpt.conditions.votes import Vote, count_votes
from fedmpt.errors import UsageError

SCHEMA: Final = "fedmpt.conditions/1"


class Exchange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A prompt and its answer, each with its SHA-256 as UTF-8; None where there is no answer."""

    prompt: str
    prompt_sha256: str
    answer: str | None
    answer_sha256: str | None
    attempts: int


class Conversation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One conversation of one call.

    Attributes:
        call: from 1.
        subjects: what its last answer is about.
        exchanges: in order; ends early where there was no answer.
        failure: why there was none; None if every prompt was answered.
    """

    call: int
    subjects: tuple[str, ...]
    exchanges: tuple[Exchange, ...]
    failure: str | None


class Outcome(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one conversation gave.

    Attributes:
        call: from 1.
        status: ``used``; ``partly`` where a part of the answer could not be used; ``malformed`` where nothing could;
            ``failed`` where there was no answer.
        items: subject -> words.
        refused: what could not be used, and why.
    """

    call: int
    status: str
    items: dict[str, tuple[str, ...]]
    refused: tuple[str, ...]


class Result(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What follows from all answers.

    Attributes:
        chosen: subject -> the most frequent words; a subject is absent where most calls said nothing usable, or all
            together too little.
        votes: subject -> every word that was named, the most frequent first.
        outcomes: of every conversation, in order.
        counts: status -> number of conversations.
    """

    chosen: dict[str, tuple[str, ...]]
    votes: dict[str, tuple[Vote, ...]]
    outcomes: tuple[Outcome, ...]
    counts: dict[str, int]


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file's contents but for its own digest.

    Attributes:
        kind: what was asked for.
        classes: names, in order.
        count: how many conditions, or descriptors of a class, were asked for.
        calls: independent calls.
        group_size: most classes in a prompt; None for all.
        source: ``endpoint``, ``command`` or ``answers``.
        model: its name.
        conversations: in order of calls.
        result: what follows from them.
    """

    schema: str
    kind: Kind
    classes: tuple[str, ...]
    count: int
    calls: int
    group_size: int | None
    source: str
    model: str
    conversations: tuple[Conversation, ...]
    result: Result


def digest(text: str) -> str:
    """Return the SHA-256 of a text as UTF-8, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def aggregate(
    kind: Kind,
    subjects: Sequence[str],
    conversations: Sequence[Conversation],
    *,
    count: int,
    calls: int,
) -> Result:
    """Return what follows from conversations; the same for the same answers, whenever and wherever.

    Args:
        kind: what was asked for.
        subjects: `CONDITIONS`, or every class.
        conversations: of all calls.
        count: how many words a subject gets: all of them or none.
        calls: how many calls there were; a subject needs usable words from more than half of them.
    """
    outcomes = tuple(_outcome(kind, one) for one in conversations)
    chosen: dict[str, tuple[str, ...]] = {}
    votes: dict[str, tuple[Vote, ...]] = {}
    for subject in subjects:
        lists = [one.items[subject] for one in outcomes if subject in one.items]
        votes[subject] = tuple(count_votes(lists))
        if 2 * len(lists) > calls and len(votes[subject]) >= count:
            chosen[subject] = tuple(vote.text for vote in votes[subject][:count])
    statuses = [one.status for one in outcomes]
    counts = {name: statuses.count(name) for name in ("used", "partly", "malformed", "failed")}
    return Result(chosen=chosen, votes=votes, outcomes=outcomes, counts=counts)


def subjects_of(kind: Kind, classes: Sequence[str]) -> tuple[str, ...]:
    """Return what lists are about."""
    return (CONDITIONS,) if kind == "conditions" else tuple(classes)


def to_json(record: Record) -> bytes:
    """Return a record as the bytes of its file."""
    tree = msgspec.to_builtins(record)
    return (
        json.dumps(tree | {"sha256": _tree_digest(tree)}, indent=2, ensure_ascii=False).encode()
        + b"\n"
    )


def read_record(file: Path) -> Record:
    """Read a file, check its digests, and compute its result anew.

    Raises:
        UsageError: it cannot be read, is no such file, or was changed.
    """
    tree = read_tree(file)
    if not isinstance(tree, dict) or tree.get("schema") != SCHEMA:
        raise UsageError(f"{file}: not a result of `fedmpt conditions` ({SCHEMA}); give one")
    stated = tree.pop("sha256", None)
    try:
        record = msgspec.convert(tree, Record, strict=True)
    except msgspec.ValidationError as error:
        raise UsageError(f"{file}: not a whole result ({error}); make it again") from error
    exchanges = [one for talk in record.conversations for one in talk.exchanges]
    sound = stated == _tree_digest(tree) and all(
        digest(one.prompt) == one.prompt_sha256
        and (None if one.answer is None else digest(one.answer)) == one.answer_sha256
        for one in exchanges
    )
    again = aggregate(
        record.kind,
        subjects_of(record.kind, record.classes),
        record.conversations,
        count=record.count,
        calls=record.calls,
    )
    if not sound or again != record.result:
        what = "the result does not follow from its answers" if sound else "a digest does not fit"
        raise UsageError(f"{file}: {what}, so it was changed; take the file as it was written")
    return record


def read_tree(file: Path) -> Any:
    """Return the contents of a JSON file.

    Raises:
        UsageError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}; give a readable JSON file") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file}: not JSON ({type(error).__name__}: {error})") from error


def _outcome(kind: Kind, talk: Conversation) -> Outcome:
    answer = talk.exchanges[-1].answer if talk.exchanges else None
    if talk.failure is not None or answer is None:
        reason = talk.failure or "no answer"
        return Outcome(call=talk.call, status="failed", items={}, refused=(reason,))
    reading = read_answer(kind, talk.subjects, answer)
    status = "malformed" if not reading.items else "partly" if reading.refused else "used"
    return Outcome(call=talk.call, status=status, items=reading.items, refused=reading.refused)


def _tree_digest(tree: Any) -> str:
    return digest(json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False))
