"""Integers modulo 2^m: where each segment sits in its lane, packing to bytes, and sums.

Segments of up to 32 bits share lane 32 (uint32 words), wider ones lane 64. A lane is one contiguous
array, so that one keystream masks all its segments. In the packed body each segment starts on a
byte, bit `j` of value `v` lies at bit `v*m + j` (least significant first), and padding is zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from secagg.errors import Malformed, NonCanonical, SumOutOfRange
from secagg.layout import FixedSegment, Layout, Segment, width_of
from secagg.prg import LANE_TYPES, Words

Integers: TypeAlias = NDArray[np.int64]
Lanes: TypeAlias = dict[int, Words]

_WORD = 64
_U64 = np.dtype("<u8")


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """The place of one segment: its ring width, its lane, and its offsets."""

    segment: Segment
    width: int
    lane: int
    start: int
    byte_start: int

    @property
    def stop(self) -> int:
        """Where the next segment of the lane starts."""
        return self.start + self.segment.length

    @property
    def byte_stop(self) -> int:
        """Where the next segment of the body starts."""
        return self.byte_start + packed_bytes(self.segment.length, self.width)


class RingPlan(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A layout laid out for a number of invited clients: widths, lanes, bytes."""

    slots: tuple[Slot, ...]

    @classmethod
    def of(cls, layout: Layout, invited: int) -> RingPlan:
        """The plan of `layout` for sums over up to `invited` clients.

        Raises:
            RingTooSmall: a sum cannot be proven to fit.
        """
        slots: list[Slot] = []
        used = dict.fromkeys(LANE_TYPES, 0)
        byte_start = 0
        for segment in layout.wire_segments:
            width = width_of(segment, invited)
            lane = 32 if width <= 32 else 64
            slot = Slot(
                segment=segment, width=width, lane=lane, start=used[lane], byte_start=byte_start
            )
            slots.append(slot)
            used[lane], byte_start = slot.stop, slot.byte_stop
        return cls(slots=tuple(slots))

    @property
    def body_bytes(self) -> int:
        """Length of one packed upload body."""
        return self.slots[-1].byte_stop

    @cached_property
    def lane_lengths(self) -> dict[int, int]:
        """{lane: number of words} of the lanes that are used."""
        lengths: dict[int, int] = {}
        for slot in self.slots:
            lengths[slot.lane] = slot.stop
        return lengths

    def zeros(self) -> Lanes:
        """Empty accumulators."""
        return {lane: np.zeros(size, LANE_TYPES[lane]) for lane, size in self.lane_lengths.items()}

    def to_lanes(self, values: Mapping[str, Integers]) -> Lanes:
        """Signed integers of each wire segment as words modulo 2^32 or 2^64."""
        lanes = self.zeros()
        for slot in self.slots:
            lanes[slot.lane][slot.start : slot.stop] = values[slot.segment.name].astype(
                LANE_TYPES[slot.lane]
            )
        return lanes

    def pack(self, lanes: Lanes) -> bytes:
        """The packed body: the low `width` bits of every word."""
        return b"".join(
            pack(lanes[slot.lane][slot.start : slot.stop], slot.width) for slot in self.slots
        )

    def check_body(self, body: bytes) -> None:
        """Returns if `body` is the one packing of some words.

        Raises:
            Malformed: of the wrong length.
            NonCanonical: a padding bit is set.
        """
        if len(body) != self.body_bytes:
            raise Malformed(f"upload body of {len(body)} bytes: {self.body_bytes} expected")
        for slot in self.slots:
            spare = -slot.segment.length * slot.width % 8
            if spare and body[slot.byte_stop - 1] >> (8 - spare):
                raise NonCanonical(f"padding bits of segment {slot.segment.name!r} are set")

    def add_body(self, lanes: Lanes, body: bytes) -> None:
        """Adds a checked body to the accumulators in place."""
        view = memoryview(body)
        for slot in self.slots:
            part = lanes[slot.lane][slot.start : slot.stop]
            words = unpack(view[slot.byte_start : slot.byte_stop], slot.width, slot.segment.length)
            np.add(part, words, out=part, casting="unsafe")

    def decode(self, lanes: Lanes, contributors: int) -> dict[str, Integers]:
        """The signed sums of all wire segments.

        Raises:
            SumOutOfRange: a sum is larger than `contributors` honest clients can make it.
        """
        return {
            slot.segment.name: _decode(lanes[slot.lane][slot.start : slot.stop], slot, contributors)
            for slot in self.slots
        }


def packed_bytes(length: int, width: int) -> int:
    """Bytes of `length` values of `width` bits."""
    return (length * width + 7) // 8


def pack(words: Words, width: int) -> bytes:
    """The low `width` bits of each word, least significant bit first, zero-padded to a byte.

    Args:
        words: uint32 or uint64 `[n]`; bits above `width` are dropped.
        width: bits a value, 1..32 for uint32 and 1..64 for uint64.
    """
    if width % 8 == 0:
        octets = words.view(np.uint8).reshape(words.size, words.itemsize)
        return octets[:, : width // 8].tobytes()
    group = _WORD // math.gcd(width, _WORD)  # values that fill whole 64-bit words
    rows = -(-words.size // group)
    columns = np.zeros((rows, group), _U64)
    columns.reshape(-1)[: words.size] = words
    columns &= _U64.type((1 << width) - 1)
    packed = np.zeros((rows, group * width // _WORD), _U64)
    for j in range(group):
        word, shift = divmod(j * width, _WORD)
        packed[:, word] |= columns[:, j] << _U64.type(shift)
        if shift + width > _WORD:
            packed[:, word + 1] |= columns[:, j] >> _U64.type(_WORD - shift)
    return packed.view(np.uint8).reshape(-1)[: packed_bytes(words.size, width)].tobytes()


def unpack(body: bytes | memoryview, width: int, length: int) -> NDArray[np.uint64]:
    """The `length` values of `width` bits in `body`; uint64 `[length]`."""
    octets = np.frombuffer(body, np.uint8)
    if width % 8 == 0:
        wide = np.zeros((length, 8), np.uint8)
        wide[:, : width // 8] = octets.reshape(length, width // 8)
        return wide.reshape(-1).view(_U64)
    group = _WORD // math.gcd(width, _WORD)
    rows = -(-length // group)
    per_row = group * width // _WORD
    padded = np.zeros(rows * per_row * 8, np.uint8)
    padded[: octets.size] = octets
    packed = padded.view(_U64).reshape(rows, per_row)
    columns = np.empty((rows, group), _U64)
    for j in range(group):
        word, shift = divmod(j * width, _WORD)
        np.right_shift(packed[:, word], _U64.type(shift), out=columns[:, j])
        if shift + width > _WORD:
            columns[:, j] |= packed[:, word + 1] << _U64.type(_WORD - shift)
    columns &= _U64.type((1 << width) - 1)
    return columns.reshape(-1)[:length]


def _decode(words: Words, slot: Slot, contributors: int) -> Integers:
    """Reads the low `width` bits as a signed (fixed) or unsigned (count) number."""
    lane_type = LANE_TYPES[slot.lane]
    spare = lane_type.type(slot.lane - slot.width)
    raised = words << spare  # the sign bit of the ring becomes the sign bit of the word
    if isinstance(slot.segment, FixedSegment):
        signed = raised.view(np.dtype(f"<i{slot.lane // 8}")) >> np.int64(spare)
        sums = signed.astype(np.int64)
        low = -contributors * slot.segment.bound
    else:
        sums = (raised >> spare).astype(np.int64)
        low = 0
    high = contributors * slot.segment.bound
    if int(sums.min()) < low or int(sums.max()) > high:
        raise SumOutOfRange(
            f"segment {slot.segment.name!r}: the sum over {contributors} clients leaves its "
            "public bound, so at least one client did not follow the protocol"
        )
    return sums
