"""Asking a language model several times over, and what follows from its answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from fedmpt.conditions.language_model import LanguageModel, Message, NoAnswer
from fedmpt.conditions.prompts import Kind, scripts
from fedmpt.conditions.record import (
    SCHEMA,
    Conversation,
    Exchange,
    Record,
    aggregate,
    digest,
    subjects_of,
)
from fedmpt.errors import UsageError

CALLS: Final = 5  # of the paper
HIDDEN: Final = "[key]"


def ask(
    model: LanguageModel,
    kind: Kind,
    classes: Sequence[str],
    *,
    count: int,
    calls: int = CALLS,
    group_size: int | None = None,
    secret: str | None = None,
    watch: Callable[[str, int, int], None] = lambda place, done, total: None,
) -> Record:
    """Hold the conversations of every call and return everything that was said, with what follows from it.

    Calls know nothing of each other. A conversation without an answer is counted and the next one is held.

    Args:
        model: who is asked.
        kind: what for.
        classes: distinct names; nothing else enters a prompt.
        count: how many conditions, or descriptors of a class.
        calls: how many independent calls.
        group_size: most classes in a prompt; None for all.
        secret: text that is struck out wherever an answer repeats it.
        watch: told (place, prompts done, prompts in all) before each prompt.

    Raises:
        UsageError: the model refuses for a reason that the user can mend, or a number cannot be used.
    """
    for name, value in (("--count", count), ("--calls", calls)):
        if value < 1:
            raise UsageError(f"{name} {value}: must be at least 1")
    held = scripts(kind, classes, count=count, group_size=group_size)
    per_call = sum(len(script.prompts) for script in held)
    conversations: list[Conversation] = []
    for call in range(1, calls + 1):
        said = 0  # prompts of this call
        for script in held:
            exchanges: list[Exchange] = []
            failure = None
            for number, prompt in enumerate(script.prompts, start=said + 1):
                place = f"call-{call}-prompt-{number}"
                watch(place, (call - 1) * per_call + number - 1, calls * per_call)
                exchange, failure = _exchange(model, exchanges, prompt, place=place, secret=secret)
                exchanges.append(exchange)
                if failure is not None:
                    break
            said += len(script.prompts)
            conversations.append(
                Conversation(
                    call=call,
                    subjects=script.subjects,
                    exchanges=tuple(exchanges),
                    failure=failure,
                )
            )
    return Record(
        schema=SCHEMA,
        kind=kind,
        classes=tuple(classes),
        count=count,
        calls=calls,
        group_size=group_size,
        source=model.source,
        model=model.name,
        conversations=tuple(conversations),
        result=aggregate(kind, subjects_of(kind, classes), conversations, count=count, calls=calls),
    )


def _exchange(
    model: LanguageModel,
    before: Sequence[Exchange],
    prompt: str,
    *,
    place: str,
    secret: str | None,
) -> tuple[Exchange, str | None]:
    """Say one prompt and return it with its answer, and why there is none."""
    conversation: list[Message] = []
    for one in before:
        conversation.append(Message(role="user", text=one.prompt))
        conversation.append(Message(role="assistant", text=one.answer or ""))
    conversation.append(Message(role="user", text=prompt))
    answer, failure = None, None
    try:
        reply = model.answer(conversation, place=place)
        answer, attempts = _without(reply.text, secret), reply.attempts
    except NoAnswer as error:
        failure, attempts = _without(str(error), secret), error.attempts
    exchange = Exchange(
        prompt=prompt,
        prompt_sha256=digest(prompt),
        answer=answer,
        answer_sha256=None if answer is None else digest(answer),
        attempts=attempts,
    )
    return exchange, failure


def _without(text: str, secret: str | None) -> str:
    """Strike a secret out, and what no UTF-8 file holds."""
    plain = text.encode("utf-8", errors="replace").decode()
    return plain.replace(secret, HIDDEN) if secret else plain
