"""CKKS parameters made for exact sums, and where the integers of a vector sit in ciphertexts.

A ciphertext holds N/2 slots. Every slot carries an integer `s` of at most `2^g` in magnitude as the
real number `s / 2^g` in [-1, 1], so one grid serves all segments. A segment whose bound is larger
is written as signed digits of base `2^(g+1)`, one slot each; the sum of the digits of all clients is
put together again after decryption. Nothing here needs TenSEAL.

Sums need one level: no rescaling, no relinearisation, no rotation. The sum of `n` full-scale slots
must stay below half the first prime, `n * 2^scale < 2^(q0 - 1)`; one more client and it wraps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import msgspec
import numpy as np

from secagg.digests import DIGEST_BYTES, u32
from secagg.errors import ConfigurationError, Malformed, NonCanonical, SumOutOfRange
from secagg.layout import Layout, Segment
from secagg.ring import Integers, check_range

_U8 = Annotated[int, msgspec.Meta(ge=0, lt=2**8)]
_LENGTH_BYTES = 4
_SLACK_BYTES = 1024  # more than thirty standard deviations of the size of one ciphertext


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """One set of parameters.

    Attributes:
        name: what the command line calls it.
        code: what the wire calls it.
        degree: N, the ring degree; a ciphertext has N/2 slots.
        moduli: bits of the first prime and of the special prime.
        scale_bits: real numbers are multiplied by `2^scale_bits`.
        grid_bits: g; a slot carries integers of at most `2^g` in magnitude.
        blob_bytes: room for one serialised ciphertext. Serialisation compresses, so sizes vary by
            some tens of bytes; the room is fixed, which makes every upload of a round equally long.
        key_bytes: room for the serialised secret key, likewise.
    """

    name: str
    code: int
    degree: int
    moduli: tuple[int, int]
    scale_bits: int
    grid_bits: int
    blob_bytes: int
    key_bytes: int

    @property
    def slots(self) -> int:
        """Integers in one ciphertext."""
        return self.degree // 2

    @property
    def grid(self) -> int:
        """2^g: the largest magnitude in a slot of one client."""
        return 1 << self.grid_bits

    @property
    def largest_cohort(self) -> int:
        """The most clients whose sum is proven not to wrap."""
        return (1 << (self.moduli[0] - 1 - self.scale_bits)) - 1

    @property
    def blob_limits(self) -> tuple[int, int]:
        """The shortest and the longest serialised ciphertext that is parsed at all."""
        return self.blob_bytes - _SLACK_BYTES, self.blob_bytes + _SLACK_BYTES

    def body_bytes(self, blobs: int) -> int:
        """Length of `blobs` serialised ciphertexts in their frame."""
        return blobs * (_LENGTH_BYTES + self.blob_bytes) + _SLACK_BYTES


_PRESETS = (
    Preset(
        name="compact",
        code=1,
        degree=8192,
        moduli=(40, 40),
        scale_bits=34,
        grid_bits=19,
        blob_bytes=94_374,
        key_bytes=96_256,
    ),
    Preset(
        name="wide",
        code=2,
        degree=4096,
        moduli=(54, 55),
        scale_bits=40,
        grid_bits=19,
        blob_bytes=61_760,
        key_bytes=63_488,
    ),
    Preset(
        name="wide44",
        code=3,
        degree=4096,
        moduli=(54, 55),
        scale_bits=44,
        grid_bits=23,
        blob_bytes=61_760,
        key_bytes=63_488,
    ),
)
PRESETS: dict[str, Preset] = {preset.name: preset for preset in _PRESETS}
_BY_CODE: dict[int, Preset] = {preset.code: preset for preset in _PRESETS}


def preset_of(code: int) -> Preset:
    """The preset that the wire calls `code`.

    Raises:
        ConfigurationError: there is none.
    """
    try:
        return _BY_CODE[code]
    except KeyError as error:
        raise ConfigurationError(f"CKKS preset {code}: {sorted(_BY_CODE)} known") from error


def preset_named(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ConfigurationError: there is none.
    """
    try:
        return PRESETS[name]
    except KeyError as error:
        raise ConfigurationError(f"CKKS preset {name!r}: one of {', '.join(PRESETS)}") from error


def preset_for(clients: int) -> Preset:
    """The smallest preset in which a sum over `clients` is exact.

    Raises:
        ConfigurationError: more clients than any preset can add up.
    """
    for name in ("compact", "wide"):
        if clients <= PRESETS[name].largest_cohort:
            return PRESETS[name]
    raise ConfigurationError(
        f"{clients} clients: CKKS adds up at most {PRESETS['wide'].largest_cohort}; use masking"
    )


class SharedKey(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The CKKS key that all clients of a round hold and the server does not.

    Attributes:
        preset: code of its parameters.
        fingerprint: 32 bytes over its terms, members, maker and content.
    """

    preset: _U8
    fingerprint: bytes

    def __post_init__(self) -> None:
        preset_of(self.preset)
        if len(self.fingerprint) != DIGEST_BYTES:
            raise ConfigurationError("a key fingerprint has 32 bytes")


class _Place(msgspec.Struct, frozen=True):
    """Where a segment's digits are: `digits` runs of `segment.length` slots from `start` on."""

    segment: Segment
    digits: int
    start: int

    @property
    def stop(self) -> int:
        return self.start + self.digits * self.segment.length


class SlotPlan(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A layout laid out in slots: segment after segment, and within one, lowest digits first."""

    preset_code: int
    places: tuple[_Place, ...]

    @classmethod
    def of(cls, layout: Layout, preset: Preset) -> SlotPlan:
        """The plan of `layout`; every bound fits, with as many digits as it takes."""
        places: list[_Place] = []
        start = 0
        for segment in layout.wire_segments:
            place = _Place(segment, _digits(segment.bound, preset.grid_bits), start)
            places.append(place)
            start = place.stop
        return cls(preset_code=preset.code, places=tuple(places))

    @cached_property
    def preset(self) -> Preset:
        """The parameters the plan is for."""
        return preset_of(self.preset_code)

    @property
    def blobs(self) -> int:
        """Ciphertexts of one vector."""
        return -(-self.places[-1].stop // self.preset.slots)

    @property
    def body_bytes(self) -> int:
        """Length of one encrypted vector on the wire."""
        return self.preset.body_bytes(self.blobs)

    def to_slots(self, values: Mapping[str, Integers]) -> Integers:
        """The integers of every slot: int64 `[blobs, N/2]`, zeros after the last segment."""
        slots = np.zeros(self.blobs * self.preset.slots, np.int64)
        shift, half = self.preset.grid_bits + 1, self.preset.grid
        for place in self.places:
            rows = slots[place.start : place.stop].reshape(place.digits, place.segment.length)
            rest = values[place.segment.name].copy()
            for row in rows[:-1]:
                row[:] = ((rest + half) & (2 * half - 1)) - half
                rest -= row
                rest >>= shift
            rows[-1] = rest
        return slots.reshape(self.blobs, self.preset.slots)

    def from_slots(self, sums: Integers, contributors: int) -> dict[str, Integers]:
        """The sums of every wire segment, once each lies where honest clients can put it.

        Args:
            sums: int64 `[blobs, N/2]`.
            contributors: size of the survivor set.

        Raises:
            SumOutOfRange: a slot or a segment exceeds what `contributors` honest clients can reach.
        """
        if int(np.abs(sums).max()) > contributors * self.preset.grid:
            raise SumOutOfRange(f"a slot exceeds what {contributors} honest clients can put in it")
        flat = sums.reshape(-1)
        if flat[self.places[-1].stop :].any():
            raise SumOutOfRange("a slot after the last segment is not zero")
        decoded: dict[str, Integers] = {}
        shift = self.preset.grid_bits + 1
        for place in self.places:
            rows = flat[place.start : place.stop].reshape(place.digits, place.segment.length)
            total = np.zeros(place.segment.length, np.int64)
            for row in rows[::-1]:
                total = (total << shift) + row
            check_range(int(total.min()), int(total.max()), place.segment, contributors)
            decoded[place.segment.name] = total
        return decoded

    # The frame of serialised ciphertexts --------------------------------------------------------

    def frame(self, blobs: list[bytes]) -> bytes | None:
        """The blobs' lengths, the blobs, and zeros up to `body_bytes`; None if they do not fit."""
        body = b"".join((*(u32(len(blob)) for blob in blobs), *blobs))
        if len(body) > self.body_bytes:
            return None
        return body.ljust(self.body_bytes, b"\0")

    def unframe(self, body: bytes | memoryview) -> list[bytes]:
        """The blobs of a frame, of which nothing was parsed yet.

        Raises:
            Malformed: of the wrong length, or a blob longer or shorter than any honest one.
            NonCanonical: bytes after the last blob are not zero.
        """
        if len(body) != self.body_bytes:
            raise Malformed(f"encrypted vector of {len(body)} bytes: {self.body_bytes} expected")
        lengths = np.frombuffer(body, "<u4", self.blobs).tolist()
        least, most = self.preset.blob_limits
        if not all(least <= length <= most for length in lengths):
            raise Malformed(f"a ciphertext is not of {least} to {most} bytes")
        start = _LENGTH_BYTES * self.blobs
        if start + sum(lengths) > len(body):
            raise Malformed("the ciphertexts are longer than their frame")
        blobs: list[bytes] = []
        for length in lengths:
            blobs.append(bytes(body[start : start + length]))
            start += length
        if any(body[start:]):
            raise NonCanonical("bytes after the last ciphertext are set")
        return blobs


def _digits(bound: int, grid_bits: int) -> int:
    """Signed digits of base 2^(g+1) in -2^g .. 2^g - 1 that hold every integer up to `bound`."""
    digits, reach = 1, (1 << grid_bits) - 1
    while reach < bound:
        digits += 1
        reach = (reach << (grid_bits + 1)) + (1 << grid_bits) - 1
    return digits
