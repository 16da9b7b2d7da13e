"""Bytes of a round before it is run: exact, from the public parameters and four counts.

Every table on the wire has records of fixed width, so message sizes follow from numbers of clients
alone and not from who they are.
"""

from __future__ import annotations

from dataclasses import dataclass

from secagg.bitmap import bitmap_bytes
from secagg.digests import DIGEST_BYTES
from secagg.keys import KEY_BYTES, SIGNATURE_BYTES
from secagg.messages import (
    HEADER,
    ROW_FORMATS,
    SEALED_BYTES,
    AdvertRow,
    ConfirmRow,
    Open,
    ShareRow,
    SurvivorRow,
    encode,
)
from secagg.params import Mode, RoundParams, Stage
from secagg.roster import COORDINATOR_ID
from secagg.threshold import threshold


@dataclass(frozen=True, kw_only=True, slots=True)
class StageBytes:
    """Bytes of one client in one stage."""

    down: int
    up: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundBytes:
    """Bytes of one client in one round, {stage: bytes}, in order of stages."""

    stages: dict[Stage, StageBytes]

    def up(self, *, lost: Stage | None = None) -> int:
        """Bytes a client sends in all, if it gives no reply from stage `lost` on."""
        return sum(b.up for stage, b in self.stages.items() if lost is None or stage < lost)

    def down(self, *, lost: Stage | None = None) -> int:
        """Bytes sent to a client in all; the request of stage `lost` is sent, none after it."""
        return sum(b.down for stage, b in self.stages.items() if lost is None or stage <= lost)


def predict_bytes(
    params: RoundParams,
    *,
    cohort: int | None = None,
    sharers: int | None = None,
    survivors: int | None = None,
    peers: int | None = None,
) -> RoundBytes:
    """The bytes of every stage for one client.

    Args:
        params: the round's parameters.
        cohort: clients that advertise keys; all invited by default.
        sharers: clients that deal shares; all of the cohort by default.
        survivors: clients whose uploads arrive; all sharers by default.
        peers: neighbours of this client that deal shares; by default as many as there can be, which
            is exact on the complete graph, and on a ring unless one of its neighbours was lost.
    """
    n = params.invited_count if cohort is None else cohort
    dealt = n if sharers is None else sharers
    alive = dealt if survivors is None else survivors
    opening = len(
        encode(Open(params, bytes(SIGNATURE_BYTES)), params=params.digest, sender=COORDINATOR_ID)
    )
    upload = _message(params.plan.body_bytes, SIGNATURE_BYTES)
    if params.mode is Mode.PLAIN:
        return RoundBytes(stages={Stage.UPLOAD: StageBytes(down=opening, up=upload)})
    degree = params.graph_degree if 0 < params.graph_degree < n - 1 else n - 1
    readers = min(degree, dealt - 1) if peers is None else peers
    confirmations = threshold(n, params.colluders) * ROW_FORMATS[ConfirmRow].size
    return RoundBytes(
        stages={
            Stage.ADVERTISE: StageBytes(
                down=opening, up=_message(KEY_BYTES, KEY_BYTES, SIGNATURE_BYTES)
            ),
            Stage.SHARE: StageBytes(
                down=_message(n * ROW_FORMATS[AdvertRow].size, SIGNATURE_BYTES),
                up=_message(degree * SEALED_BYTES, DIGEST_BYTES, SIGNATURE_BYTES),
            ),
            Stage.UPLOAD: StageBytes(
                down=_message(bitmap_bytes(n), readers * SEALED_BYTES, SIGNATURE_BYTES),
                up=upload,
            ),
            Stage.CONFIRM: StageBytes(
                down=_message(alive * ROW_FORMATS[SurvivorRow].size, SIGNATURE_BYTES),
                up=_message(SIGNATURE_BYTES),
            ),
            Stage.REVEAL: StageBytes(
                down=_message(confirmations, SIGNATURE_BYTES),
                up=_message(KEY_BYTES, readers * ROW_FORMATS[ShareRow].size, SIGNATURE_BYTES),
            ),
        }
    )


def _message(*fields: int) -> int:
    """Header, array marker, and each byte string with its MessagePack length prefix."""
    return HEADER.size + 1 + sum(_prefix(length) + length for length in fields)


def _prefix(length: int) -> int:
    if length < 2**8:
        return 2
    return 3 if length < 2**16 else 5
