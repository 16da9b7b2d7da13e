"""What a language model is to the pipeline: something that answers the last message of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """An answer.

    Attributes:
        text: as it came.
        attempts: how often it was asked for, at least 1.
    """

    text: str
    attempts: int = 1


class NoAnswer(Exception):  # noqa: N818 -- an outcome that is counted, not an error that ends a command
    """There is no answer to this message; others may be answered.

    Attributes:
        attempts: how often it was asked for.
    """

    def __init__(self, reason: str, *, attempts: int = 1) -> None:
        super().__init__(reason)
        self.attempts = attempts


class LanguageModel(Protocol):
    """A language model, wherever it runs."""

    @property
    def source(self) -> str:
        """``endpoint``, ``command`` or ``answers``."""
        ...

    @property
    def name(self) -> str:
        """Name of the model, for the record; holds no secret."""
        ...

    def answer(self, conversation: Sequence[Message], *, place: str) -> Reply:
        """Answer the last message.

        Args:
            conversation: messages in turn, the first and the last from the user.
            place: which prompt of which call it is: ``call-1-prompt-2``.

        Raises:
            NoAnswer: this message has no answer.
            UsageError: none will have one, for a reason that the user can mend.
        """
        ...
