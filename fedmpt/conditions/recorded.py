"""Answers that were written down: one text file a prompt, for models that can only be talked to by hand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedmpt.conditions.language_model import Message, NoAnswer, Reply
from fedmpt.errors import UsageError

_ANSWER = re.compile(r"call-\d+-prompt-\d+\.txt")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """A folder of answers, ``call-1-prompt-2.txt`` and so on.

    Attributes:
        folder: where they are.
        name: of the model that gave them.
    """

    folder: Path
    name: str
    source: str = field(default="answers", init=False)

    def __post_init__(self) -> None:
        if not self.folder.is_dir() or not self.files():
            raise UsageError(
                f"--answers {self.folder}: no folder with files such as call-1-prompt-1.txt; --show-prompts lists "
                "which answer goes into which file"
            )

    def files(self) -> list[str]:
        """Return the names of all answers, sorted."""
        return sorted(one.name for one in self.folder.iterdir() if _ANSWER.fullmatch(one.name))

    def answer(self, conversation: Sequence[Message], *, place: str) -> Reply:
        """Return what was written down for a prompt.

        Raises:
            NoAnswer: nothing was, or it cannot be read.
        """
        del conversation
        try:
            return Reply(text=(self.folder / f"{place}.txt").read_text(encoding="utf-8").strip())
        except FileNotFoundError as error:
            raise NoAnswer(f"no file {place}.txt") from error
        except (OSError, UnicodeDecodeError) as error:
            raise NoAnswer(f"{place}.txt cannot be read as text") from error
