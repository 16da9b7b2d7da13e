"""The public parameters of one round: the same bytes for everybody, hence one digest P."""

from __future__ import annotations

import os
from collections.abc import Collection
from enum import IntEnum
from functools import cached_property
from typing import Annotated, Any

import msgspec

from secagg.bitmap import from_bitmap, to_bitmap
from secagg.ckks_presets import Preset, SharedKey, SlotPlan, preset_of
from secagg.digests import DIGEST_BYTES, enc, params_digest, u8, u16, u64
from secagg.errors import ConfigurationError
from secagg.graph import COMPLETE_GRAPH, DEFAULT_DROPOUT, MIN_WINDOW, default_degree, least_window
from secagg.layout import Layout
from secagg.ring import RingPlan
from secagg.roster import Roster
from secagg.threshold import default_colluders

PROTOCOL_VERSION = 1
SUITE = 0x0001  # Ed25519, X25519, HKDF-SHA256, AES-256-CTR, ChaCha20-Poly1305, GF(2^256 - 189)
RUN_ID_BYTES = 16
MAX_BODY_BYTES = 2**32 - 1  # the longest MessagePack string

_U8 = Annotated[int, msgspec.Meta(ge=0, lt=2**8)]
_U16 = Annotated[int, msgspec.Meta(ge=0, lt=2**16)]
_U63 = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class Mode(IntEnum):
    """How updates are protected on their way into the sum."""

    PLAIN = 0
    MASKING = 1
    CKKS = 3


class Stage(IntEnum):
    """The trips of one round, in order.

    Plain mode has `UPLOAD` only, CKKS `UPLOAD` and `REVEAL`, with verified sums also `CONFIRM`. The
    hand-over of a CKKS key has `ADVERTISE`, `SHARE` and `CONFIRM`.
    """

    ADVERTISE = 0
    SHARE = 1
    UPLOAD = 2
    CONFIRM = 3
    REVEAL = 4


class RoundParams(msgspec.Struct, frozen=True, kw_only=True, array_like=True, dict=True):
    """Everything that is fixed before a round and that all clients must see alike.

    There is no threshold among them: each client computes it from the cohort it verified.

    Attributes:
        mode: how updates are protected.
        run_id: 16 random bytes of the run.
        roster_digest: the roster in force.
        sequence: strictly increasing over rounds and attempts of a run.
        context: the caller's 32-byte digest of model, plan and everything else the update rests on.
        invited: bitmap over the roster, in order of id.
        n_min: smallest cohort.
        survivors_min: smallest number of uploads in a sum.
        colluders: c, colluding clients tolerated.
        layout: what is summed.
        graph_degree: k, neighbours of a client on a ring; 0 means everybody.
        graph_window: w, least survivors in k/2 neighbouring ring positions; 0 without a ring.
        version: of this structure and of the wire.
        suite: set of primitives.

    Raises:
        ConfigurationError: a field is out of range or contradicts another.
        RingTooSmall: the layout's sums cannot be proven to fit.
    """

    mode: Mode
    run_id: bytes
    roster_digest: bytes
    sequence: _U63
    context: bytes
    invited: bytes
    n_min: _U16
    survivors_min: _U16
    colluders: _U16
    layout: Layout
    graph_degree: _U16 = COMPLETE_GRAPH
    graph_window: _U16 = 0
    version: _U8 = PROTOCOL_VERSION
    suite: _U16 = SUITE

    def __post_init__(self) -> None:
        for name, value, size in (
            ("run_id", self.run_id, RUN_ID_BYTES),
            ("roster_digest", self.roster_digest, DIGEST_BYTES),
            ("context", self.context, DIGEST_BYTES),
        ):
            if len(value) != size:
                raise ConfigurationError(f"{name} has {len(value)} bytes: {size} expected")
        if not 0 <= self.sequence < 2**63:
            raise ConfigurationError(f"sequence={self.sequence}: must fit in 63 bits")
        if (self.mode is Mode.CKKS) != isinstance(self, KeyedParams):
            raise ConfigurationError(
                "mode CKKS, and no other, needs a shared key: run a key set-up"
            )
        invited = self.invited_count
        if not 1 <= max(self.n_min, self.survivors_min) <= invited:
            raise ConfigurationError(
                f"n_min={self.n_min}, survivors_min={self.survivors_min}: must be between 1 and "
                f"the {invited} invited clients"
            )
        if not 0 <= self.colluders < invited:
            raise ConfigurationError(f"colluders={self.colluders}: must be in 0..{invited - 1}")
        self._check_graph(invited)
        if self.upload_bytes > MAX_BODY_BYTES:
            raise ConfigurationError(
                f"an upload of {self.upload_bytes} bytes: at most {MAX_BODY_BYTES}"
            )

    def _check_graph(self, invited: int) -> None:
        degree, window = self.graph_degree, self.graph_window
        if degree == COMPLETE_GRAPH:
            if window != 0:
                raise ConfigurationError(f"graph_window={window} without a ring: must be 0")
            return
        if self.mode is not Mode.MASKING:
            raise ConfigurationError(f"graph_degree={degree}: only masking has a graph; use 0")
        if degree % 2 or not 2 * MIN_WINDOW <= degree < invited - 1:
            raise ConfigurationError(
                f"graph_degree={degree}: must be even and in {2 * MIN_WINDOW}..{invited - 2} for "
                f"{invited} invited clients, or 0 for everybody"
            )
        if not MIN_WINDOW <= window <= degree // 2:
            raise ConfigurationError(
                f"graph_window={window}: must be in {MIN_WINDOW}..{degree // 2}, half the "
                "degree; a larger degree, or 0 for everybody, allows for more colluders"
            )

    @classmethod
    def for_round(
        cls,
        *,
        mode: Mode,
        roster: Roster,
        layout: Layout,
        context: bytes,
        sequence: int,
        run_id: bytes,
        invited: Collection[int] | None = None,
        n_min: int = 3,
        survivors_min: int = 3,
        colluders: int | None = None,
        graph_degree: int | None = None,
        expected_dropout: float = DEFAULT_DROPOUT,
        shared_key: SharedKey | None = None,
        verify_sum: bool = False,
    ) -> RoundParams:
        """Parameters with the defaults a client's default policy accepts.

        Args:
            mode: how updates are protected.
            roster: who may be invited.
            layout: what is summed.
            context: 32-byte digest of model and plan.
            sequence: above every earlier one of this run.
            run_id: from `new_run_id`, the same for all rounds of a run.
            invited: ids; everybody in the roster by default.
            n_min: smallest cohort.
            survivors_min: smallest number of uploads.
            colluders: c; by default just under a third of those invited; in CKKS none is tolerated.
            graph_degree: neighbours of a client, 0 for everybody; by default 0 up to 512 invited
                clients and what `expected_dropout` asks for above. The window follows from it.
            expected_dropout: share of clients that a round loses, in [0, 1).
            shared_key: for mode CKKS, the key that a set-up left with those invited.
            verify_sum: for mode CKKS, whether decryptors add up all uploads themselves.
        """
        chosen = roster.ids if invited is None else tuple(invited)
        tolerated = colluders
        if tolerated is None:
            tolerated = 0 if mode is Mode.CKKS else default_colluders(len(chosen))
        degree = graph_degree
        if degree is None:
            masked = mode is Mode.MASKING
            degree = default_degree(len(chosen), tolerated, expected_dropout) if masked else 0
        fields: dict[str, Any] = {
            "mode": mode,
            "run_id": run_id,
            "roster_digest": roster.digest,
            "sequence": sequence,
            "context": context,
            "invited": to_bitmap(roster.ids, chosen),
            "n_min": n_min,
            "survivors_min": survivors_min,
            "colluders": tolerated,
            "layout": layout,
            "graph_degree": degree,
            "graph_window": least_window(len(chosen), tolerated, degree) if degree > 0 else 0,
        }
        if shared_key is None:
            return cls(**fields)
        return KeyedParams(**fields, shared_key=shared_key, verify_sum=verify_sum)

    @cached_property
    def digest(self) -> bytes:
        """P: the digest that every later signature and key is bound to."""
        return params_digest(self.canonical())

    @property
    def invited_count(self) -> int:
        """Number of clients that may take part."""
        return int.from_bytes(self.invited, "little").bit_count()

    def invited_ids(self, roster: Roster) -> tuple[int, ...]:
        """Ids of those invited, ascending.

        Raises:
            Malformed: the bitmap does not fit this roster.
        """
        return from_bitmap(roster.ids, self.invited)

    @cached_property
    def plan(self) -> RingPlan:
        """Ring widths and places of all segments."""
        return RingPlan.of(self.layout, self.invited_count)

    @property
    def upload_bytes(self) -> int:
        """Length of one upload's body."""
        return self.plan.body_bytes

    def canonical(self) -> bytes:
        """The bytes that are hashed to P; independent of the wire encoding."""
        return enc(
            "round",
            u8(self.version),
            u16(self.suite),
            u8(self.mode),
            self.run_id,
            self.roster_digest,
            u64(self.sequence),
            self.context,
            self.invited,
            u16(self.n_min),
            u16(self.survivors_min),
            u16(self.colluders),
            u16(self.graph_degree),
            u16(self.graph_window),
            self.layout.canonical(),
        )


class KeyedParams(RoundParams, frozen=True, kw_only=True, array_like=True, dict=True):
    """The parameters of a round in mode CKKS: those of any round, the key, and how it is used.

    Attributes:
        shared_key: what updates are encrypted with.
        verify_sum: whether decryptors add up all uploads themselves.

    Raises:
        ConfigurationError: the preset cannot add up so many clients without wrapping.
    """

    shared_key: SharedKey
    verify_sum: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        most = self.preset.largest_cohort
        if self.invited_count > most:
            raise ConfigurationError(
                f"{self.invited_count} clients: CKKS preset {self.preset.name!r} adds up at most "
                f"{most} without wrapping; use preset 'wide'"
            )
        if self.verify_sum and self.invited_count * self.upload_bytes > MAX_BODY_BYTES:
            raise ConfigurationError(
                f"{self.invited_count} uploads of {self.upload_bytes} bytes are too many to verify"
            )

    @property
    def preset(self) -> Preset:
        """The CKKS parameters."""
        return preset_of(self.shared_key.preset)

    @cached_property
    def slots(self) -> SlotPlan:
        """Where each segment sits in ciphertexts."""
        return SlotPlan.of(self.layout, self.preset)

    @property
    def upload_bytes(self) -> int:
        """Length of one upload's body: constant, although ciphertexts compress differently."""
        return self.slots.body_bytes

    def canonical(self) -> bytes:
        """The bytes that are hashed to P."""
        return enc(
            "round/keyed",
            super().canonical(),
            u8(self.shared_key.preset),
            self.shared_key.fingerprint,
            u8(self.verify_sum),
        )


def new_run_id() -> bytes:
    """16 random bytes that name a run."""
    return os.urandom(RUN_ID_BYTES)
