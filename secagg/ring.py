"""Integers modulo 2^m: where each segment sits in its lane, packing to bytes, and sums.

Segments of up to 32 bits share lane 32 (uint32 words), wider ones lane 64. A lane is one contiguous
array, so that one keystream masks all its segments. In the packed body each segment starts on a
byte, bit `j` of value `v` lies at bit `v*m + j` (least significant first), and padding is zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, TypeAlias

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
_U8 = np.dtype(np.uint8)
_SLACK = 9  # bytes from the start of a value to the end of the longest window and its spill
_BLOCK = 1 << 17  # values packed at a time, so that temporaries stay in cache
_DECODED = 1 << 15  # sums decoded at a time, for the same reason


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
            _packed(lanes[slot.lane][slot.start : slot.stop], slot.width).data
            for slot in self.slots
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
            add_packed(part, view[slot.byte_start : slot.byte_stop], slot.width)

    def decode(self, lanes: Lanes, contributors: int) -> dict[str, Integers]:
        """The signed sums of all wire segments.

        Raises:
            SumOutOfRange: a sum is larger than `contributors` honest clients can make it.
        """
        return {
            slot.segment.name: _decode(lanes[slot.lane][slot.start : slot.stop], slot, contributors)
            for slot in self.slots
        }


def check_range(least: int, most: int, segment: Segment, contributors: int) -> None:
    """Returns if `contributors` honest clients can produce sums from `least` to `most`.

    Raises:
        SumOutOfRange: they cannot.
    """
    high = contributors * segment.bound
    low = -high if isinstance(segment, FixedSegment) else 0
    if least < low or most > high:
        raise SumOutOfRange(
            f"segment {segment.name!r}: the sum over {contributors} clients leaves its "
            "public bound, so at least one client did not follow the protocol"
        )


def packed_bytes(length: int, width: int) -> int:
    """Bytes of `length` values of `width` bits."""
    return (length * width + 7) // 8


def pack(words: Words, width: int) -> bytes:
    """The low `width` bits of each word, least significant bit first, zero-padded to a byte.

    Args:
        words: uint32 or uint64 `[n]`; bits above `width` are dropped.
        width: bits a value, 1..32 for uint32 and 1..64 for uint64.
    """
    return _packed(words, width).tobytes()


def _packed(words: Words, width: int) -> NDArray[np.uint8]:
    """The bytes of `pack`, not copied."""
    window = _window(width)
    least = 8 // math.gcd(width, 8)
    group = least * -(-window.itemsize * 8 // (least * width))  # windows of one column are disjoint
    row = group * width // 8
    packed = np.zeros(-(-words.size // group) * row + _SLACK, np.uint8)
    low = window.type((1 << width) - 1)
    step = _BLOCK // group * group
    for start in range(0, words.size, step):
        block = words[start : start + step]
        for column in range(min(group, block.size)):
            offset, shift = divmod(column * width, 8)
            values = (block[column::group] & low).astype(window, copy=False)
            place = start // group * row + offset
            _at(packed, place, row, values.size, window)[:] |= values << window.type(shift)
            if shift + width > _WORD:
                spill = (values >> window.type(_WORD - shift)).astype(np.uint8)
                _at(packed, place + 8, row, values.size, _U8)[:] |= spill
    return packed[: packed_bytes(words.size, width)]


def unpack(body: bytes | memoryview, width: int, length: int) -> NDArray[np.uint64]:
    """The `length` values of `width` bits in `body`; uint64 `[length]`."""
    words = np.zeros(length, _U64)
    add_packed(words, body, width)
    words &= _U64.type((1 << width) - 1)
    return words


def add_packed(words: Words, body: bytes | memoryview, width: int) -> None:
    """Adds the values in `body` to `words` in place, modulo 2^width.

    Bits of `words` from `width` on become arbitrary, which spares a pass over memory: no carry runs
    downwards, and whoever reads a sum reads `width` bits of it.

    Args:
        words: uint32 or uint64 `[n]`.
        body: `packed_bytes(n, width)` bytes.
        width: bits a value, at most those of a word.
    """
    group = 8 // math.gcd(width, 8)
    row = group * width // 8
    whole = max(0, len(body) - _SLACK) // row  # rows whose windows end inside the body
    _add_rows(words[: whole * group], body, width, group)
    _add_rows(
        words[whole * group :], bytes(body[whole * row :]) + bytes(row + _SLACK), width, group
    )


def _add_rows(words: Words, body: bytes | memoryview, width: int, group: int) -> None:
    """Adds column by column: value `column` of each group starts at the same bit of its row."""
    window, row = _window(width), group * width // 8
    for column in range(min(group, words.size)):
        offset, shift = divmod(column * width, 8)
        part = words[column::group]
        found = _at(body, offset, row, part.size, window)
        np.add(part, found >> window.type(shift) if shift else found, out=part, casting="unsafe")
        if shift + width > _WORD:
            spill = _at(body, offset + 8, row, part.size, _U8).astype(_U64)
            np.add(part, spill << _U64.type(_WORD - shift), out=part, casting="unsafe")


def _window(width: int) -> np.dtype[Any]:
    """The word that holds `width` bits from any bit of its first byte on, if there is one."""
    return np.dtype("<u4") if width <= 32 - 7 else _U64


def _at(
    buffer: bytes | memoryview | NDArray[np.uint8],
    offset: int,
    stride: int,
    count: int,
    dtype: np.dtype[Any],
) -> NDArray[Any]:
    """`count` words of `dtype`, one every `stride` bytes from `offset` on, aligned or not."""
    return np.ndarray(count, dtype, buffer=buffer, offset=offset, strides=(stride,))


def _decode(words: Words, slot: Slot, contributors: int) -> Integers:
    """Reads the low `width` bits as a signed (fixed) or unsigned (count) number."""
    lane_type = LANE_TYPES[slot.lane]
    spare = slot.lane - slot.width
    is_signed = isinstance(slot.segment, FixedSegment)
    read_type = np.dtype(f"<i{slot.lane // 8}") if is_signed else lane_type
    sums = np.empty(words.size, np.int64)
    least = most = 0
    for start in range(0, words.size, _DECODED):
        raised = words[start : start + _DECODED] << lane_type.type(spare)
        values = raised.view(read_type)  # the sign bit of the ring is now that of the word
        values >>= read_type.type(spare)
        sums[start : start + _DECODED] = values
        least, most = min(least, int(values.min())), max(most, int(values.max()))
    check_range(least, most, slot.segment, contributors)
    return sums
