"""The durable marks that make a round one-shot across restarts.

Before a client advertises keys it records (run, sequence); a sequence at or below its mark is
refused for ever. A process that crashes therefore loses the running sequence and nothing else:
there is no state from which a second upload under the same masks could be made.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from secagg.errors import CorruptState, PolicyViolation, StaleState
from secagg.params import RUN_ID_BYTES

_STATE_VERSION = 1
_RunId = Annotated[bytes, msgspec.Meta(min_length=RUN_ID_BYTES, max_length=RUN_ID_BYTES)]
_Count = Annotated[int, msgspec.Meta(ge=0)]


class Mark(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The highest sequence of one run, and how many sequences were begun in it."""

    sequence: _Count
    rounds: _Count


class Marks(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The marks of all runs this client took part in; a value that is replaced, never changed."""

    runs: dict[_RunId, Mark] = {}
    version: int = _STATE_VERSION

    def raised(self, run_id: bytes, sequence: int, *, max_rounds: int) -> Marks:
        """The marks after beginning `sequence` of a run.

        Raises:
            StaleState: the sequence is not above the mark.
            PolicyViolation: the run has had `max_rounds` sequences.
        """
        mark = self.runs.get(run_id)
        if mark is not None and sequence <= mark.sequence:
            raise StaleState(
                f"sequence {sequence} is not above {mark.sequence}, the last one begun here"
            )
        rounds = 1 if mark is None else mark.rounds + 1
        if rounds > max_rounds:
            raise PolicyViolation(f"this run has had {max_rounds} rounds, the most allowed here")
        return Marks(runs={**self.runs, run_id: Mark(sequence, rounds)})

    def joined(self, other: Marks) -> Marks:
        """The higher mark of each run: what two stores together know."""
        highest = {
            run: max(
                (marks.runs[run] for marks in (self, other) if run in marks.runs),
                key=lambda mark: mark.sequence,
            )
            for run in self.runs | other.runs
        }
        return Marks(runs=highest)

    def to_bytes(self) -> bytes:
        """For storage; public data, no secret."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def from_bytes(cls, stored: bytes) -> Marks:
        """Reads what `to_bytes` wrote.

        Raises:
            CorruptState: not such bytes, or of another version.
        """
        try:
            marks = msgspec.msgpack.decode(stored, type=cls)
        except (msgspec.DecodeError, RecursionError) as error:
            raise CorruptState(f"stored marks do not decode: {error}") from error
        if marks.version != _STATE_VERSION:
            raise CorruptState(f"stored marks have version {marks.version}: {_STATE_VERSION} known")
        return marks
