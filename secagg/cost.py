"""Bytes of a round before it is run: exact, from the public parameters and four counts.

Every table on the wire has records of fixed width, so message sizes follow from numbers of clients
alone and not from who they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from secagg.aead import OVERHEAD_BYTES
from secagg.bitmap import bitmap_bytes
from secagg.ckks_client import DECRYPTORS, quorum
from secagg.ckks_presets import preset_of
from secagg.ckks_terms import KeyTerms
from secagg.digests import DIGEST_BYTES
from secagg.direct import opening
from secagg.keys import KEY_BYTES, SIGNATURE_BYTES
from secagg.messages import (
    BOX_BYTES,
    HEADER,
    ROW_FORMATS,
    SEALED_BYTES,
    AdvertRow,
    BoxRow,
    ConfirmRow,
    KeyOpen,
    ShareRow,
    SurvivorRow,
    encode,
)
from secagg.params import KeyedParams, Mode, RoundParams, Stage
from secagg.roster import COORDINATOR_ID
from secagg.threshold import threshold


@dataclass(frozen=True, kw_only=True, slots=True)
class StageBytes:
    """Bytes of one client in one stage."""

    down: int
    up: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundBytes:
    """Bytes of one client in one round, {stage: bytes}, in order of stages.

    Attributes:
        stages: of a client that every stage asks.
        asked: {stage: share of the survivors that it asks}, where that is not everybody: in CKKS
            two of them decrypt.
    """

    stages: dict[Stage, StageBytes]
    asked: dict[Stage, float] = field(default_factory=dict)

    def mean_up(self) -> float:
        """Bytes a surviving client sends, on average."""
        return sum(b.up * self.asked.get(stage, 1) for stage, b in self.stages.items())

    def mean_down(self) -> float:
        """Bytes sent to a surviving client, on average."""
        return sum(b.down * self.asked.get(stage, 1) for stage, b in self.stages.items())

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
    opening_bytes = len(
        encode(opening(params, bytes(SIGNATURE_BYTES)), params=params.digest, sender=COORDINATOR_ID)
    )
    upload = _message(params.upload_bytes, SIGNATURE_BYTES)
    if params.mode is Mode.PLAIN:
        return RoundBytes(stages={Stage.UPLOAD: StageBytes(down=opening_bytes, up=upload)})
    if isinstance(params, KeyedParams):
        return _ckks_bytes(params, alive, StageBytes(down=opening_bytes, up=upload))
    degree = params.graph_degree if 0 < params.graph_degree < n - 1 else n - 1
    readers = min(degree, dealt - 1) if peers is None else peers
    confirmations = threshold(n, params.colluders) * ROW_FORMATS[ConfirmRow].size
    return RoundBytes(
        stages={
            Stage.ADVERTISE: StageBytes(
                down=opening_bytes, up=_message(KEY_BYTES, KEY_BYTES, SIGNATURE_BYTES)
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


def _ckks_bytes(params: KeyedParams, alive: int, uploading: StageBytes) -> RoundBytes:
    survivors = alive * ROW_FORMATS[SurvivorRow].size
    stages = {Stage.UPLOAD: uploading}
    confirmations, vectors = 0, 1
    if params.verify_sum:
        stages[Stage.CONFIRM] = StageBytes(
            down=_message(survivors, SIGNATURE_BYTES), up=_message(SIGNATURE_BYTES)
        )
        confirmations, vectors = quorum(params) * ROW_FORMATS[ConfirmRow].size, alive
    stages[Stage.REVEAL] = StageBytes(
        down=_message(survivors, confirmations, vectors * params.upload_bytes, SIGNATURE_BYTES),
        up=_message(params.plan.body_bytes, SIGNATURE_BYTES),
    )
    return RoundBytes(stages=stages, asked={Stage.REVEAL: min(1.0, DECRYPTORS / alive)})


def predict_setup_bytes(
    terms: KeyTerms, *, members: int | None = None
) -> tuple[RoundBytes, RoundBytes]:
    """The bytes of a CKKS key set-up: for the leader, and for any other member.

    Args:
        terms: the terms of the key.
        members: clients that advertise a box key; all invited by default.
    """
    n = int.from_bytes(terms.invited, "little").bit_count() if members is None else members
    request = KeyOpen(terms, bytes(SIGNATURE_BYTES))
    opening_bytes = len(encode(request, params=terms.digest, sender=COORDINATOR_ID))
    adverts = n * ROW_FORMATS[BoxRow].size
    sealed = preset_of(terms.preset).key_bytes + OVERHEAD_BYTES
    bundle = (DIGEST_BYTES, KEY_BYTES, sealed, n * BOX_BYTES, SIGNATURE_BYTES)
    advertise = StageBytes(down=opening_bytes, up=_message(KEY_BYTES, SIGNATURE_BYTES))
    share = StageBytes(down=_message(adverts, SIGNATURE_BYTES), up=_message(*bundle))
    confirm = StageBytes(
        down=_message(adverts, *bundle, SIGNATURE_BYTES) + 1,  # the bundle is an array of its own
        up=_message(DIGEST_BYTES, SIGNATURE_BYTES),
    )
    member = {Stage.ADVERTISE: advertise, Stage.CONFIRM: confirm}
    leader = {Stage.ADVERTISE: advertise, Stage.SHARE: share, Stage.CONFIRM: confirm}
    return RoundBytes(stages=leader), RoundBytes(stages=member)


def _message(*fields: int) -> int:
    """Header, array marker, and each byte string with its MessagePack length prefix."""
    return HEADER.size + 1 + sum(_prefix(length) + length for length in fields)


def _prefix(length: int) -> int:
    if length < 2**8:
        return 2
    return 3 if length < 2**16 else 5
