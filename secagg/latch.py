"""One answer to each stage: what a client remembers of the requests it has answered.

The identical request gets the identical reply; any other for the same stage is refused, and if the
coordinator signed both, the pair of signatures proves that it equivocated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Annotated

import msgspec

from secagg.digests import DIGEST_BYTES
from secagg.errors import Equivocation, Latched
from secagg.params import Stage
from secagg.participant import SignedRequest

_Digest = Annotated[bytes, msgspec.Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]


class Answered(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One answered stage: which request it was, and the reply while it is the last one."""

    stage: Stage
    fingerprint: _Digest
    request: SignedRequest
    reply: bytes | None

    def __repr__(self) -> str:
        return f"Answered(stage={self.stage.name})"  # the last reply opens shares


class Latches:
    """The stages answered in one sequence.

    Args:
        keep_replies: whether the last reply is kept for a repeated request. Without it a repeated
            request is refused, and no upload stays in memory.
    """

    def __init__(self, *, keep_replies: bool) -> None:
        self._keep_replies = keep_replies
        self._answered: dict[Stage, Answered] = {}

    @classmethod
    def of(cls, answered: Iterable[Answered]) -> Latches:
        """Latches that keep replies, with these stages answered already."""
        latches = cls(keep_replies=True)
        latches._answered = {one.stage: one for one in answered}
        return latches

    @property
    def answered(self) -> list[Answered]:
        """The stages answered, in order: what a restarted client must not forget."""
        return list(self._answered.values())

    def forget_replies(self) -> None:
        """Drops the reply kept; a repeated request is refused from now on."""
        self._answered = {
            stage: msgspec.structs.replace(one, reply=None) for stage, one in self._answered.items()
        }

    def close(
        self, stage: Stage, request_bytes: bytes, request: SignedRequest, reply: bytes
    ) -> None:
        """Records the one reply to a stage; replies to earlier stages are forgotten."""
        self.forget_replies()
        self._answered[stage] = Answered(
            stage, _fingerprint(request_bytes), request, reply if self._keep_replies else None
        )

    def repeated(self, stage: Stage, request_bytes: bytes) -> bytes | None:
        """The reply kept for this very request; None if there is none."""
        answered = self._answered.get(stage)
        if answered is None or answered.fingerprint != _fingerprint(request_bytes):
            return None
        return answered.reply

    def check_open(self, stage: Stage, request: SignedRequest) -> None:
        """Returns if the stage has not been answered.

        Raises:
            Equivocation: it has, and this genuine request rests on another digest.
            Latched: it has, by a request that rests on the same digest.
        """
        answered = self._answered.get(stage)
        if answered is None:
            return
        if answered.request.digest != request.digest:
            raise Equivocation(
                f"stage {stage.name}: the coordinator signed two different requests",
                (
                    answered.request.digest + answered.request.signature,
                    request.digest + request.signature,
                ),
            )
        raise Latched(f"stage {stage.name}: answered; a second answer would break the protocol")


def _fingerprint(request: bytes) -> bytes:
    return hashlib.sha256(request).digest()
