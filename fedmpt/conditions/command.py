"""A language model that is a program: it reads the conversation on standard input and writes the answer."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedmpt.conditions.language_model import Message, NoAnswer, Reply
from fedmpt.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """A program that is started once an answer, without a shell.

    Attributes:
        words: program and arguments.
        timeout_s: longest wait for one answer.
    """

    words: tuple[str, ...]
    timeout_s: float = 600.0
    source: str = field(default="command", init=False)

    @classmethod
    def of(cls, line: str, *, timeout_s: float) -> Command:
        """Return the command of a command line.

        Raises:
            UsageError: the line has no words, or quotes that do not end.
        """
        try:
            words = shlex.split(line)
        except ValueError as error:
            raise UsageError(f"--command {line!r}: {error}; close the quotes") from error
        if not words:
            raise UsageError("--command: is empty; give a program and its arguments")
        return cls(words=tuple(words), timeout_s=timeout_s)

    @property
    def name(self) -> str:
        """The program; its arguments may be private and are left out."""
        return self.words[0]

    def answer(self, conversation: Sequence[Message], *, place: str) -> Reply:
        """Start the program and return what it writes.

        Raises:
            NoAnswer: it fails, or takes too long.
            UsageError: it cannot be started.
        """
        del place
        try:
            done = subprocess.run(  # noqa: S603 -- the user's own program
                self.words,
                input=as_text(conversation).encode(),
                capture_output=True,
                timeout=self.timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise NoAnswer(f"the command took longer than {self.timeout_s:g} s") from error
        except OSError as error:
            raise UsageError(
                f"--command {self.name}: cannot be started ({error.strerror}); give a program that can"
            ) from error
        if done.returncode:
            raise NoAnswer(f"the command ended with exit code {done.returncode}")
        return Reply(text=done.stdout.decode("utf-8", errors="replace").strip())


def as_text(conversation: Sequence[Message]) -> str:
    """Return a conversation as plain text: one message as it is, several under the names of who said them."""
    if len(conversation) == 1:
        return conversation[0].text + "\n"
    said = [f"{message.role.capitalize()}:\n{message.text}" for message in conversation]
    return "\n\n".join([*said, "Assistant:\n"])
