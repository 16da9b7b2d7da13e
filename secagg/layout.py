"""What one vector consists of: named segments with public bounds.

Everything a client contributes travels inside the sum (values, weights, sample counts, loss sums,
clip counters), so every quantity needs a segment with a bound that is public before the round.
From the bounds and the number of invited clients follows, by proof and not by luck, that no sum
can wrap around (`bits_for_fixed`, `bits_for_count`).
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Literal, TypeAlias

import msgspec

from secagg.digests import enc, f64, u8, u64
from secagg.errors import ConfigurationError, RingTooSmall, WrongLayout

Sensitivity = Literal["public", "dp", "sensitive"]
"""What the released sum of a segment is: public anyway, covered by differential privacy, or not."""

MAX_LENGTH = 2**31
MIN_BITS, MAX_BITS = 2, 32
MAX_WIDTH = 64
_MAX_INT64 = 2**63 - 1
_SENSITIVITY_CODES: dict[str, int] = {"public": 0, "dp": 1, "sensitive": 2}
CLIP_SUFFIX = "/clips"


class FixedSegment(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=1):
    """Signed real values, clipped to [-clip, clip] and rounded to a grid of `bits` bits.

    Attributes:
        name: unique in the layout; no "/".
        length: number of values.
        clip: C, in the caller's units, > 0.
        bits: B; values lie in [-Q, Q] with Q = 2^(B-1) - 1 after rounding.
        noise_bound: N, the largest integer noise the caller may add, in grid steps.
        sensitivity: what the released sum is.
        count_clips: whether two counters (values below, values above) join the sum. With integer
            noise they would be computed from raw data, so they are then best left off.
    """

    name: str
    length: int
    clip: float
    bits: int = 20
    noise_bound: int = 0
    sensitivity: Sensitivity = "dp"
    count_clips: bool = True

    def __post_init__(self) -> None:
        _check_common(self.name, self.length, self.sensitivity)
        if not (math.isfinite(self.clip) and self.clip > 0):
            raise ConfigurationError(f"{self.name}: clip={self.clip} must be finite and > 0")
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise ConfigurationError(
                f"{self.name}: bits={self.bits} must be in {MIN_BITS}..{MAX_BITS}"
            )
        if not 0 <= self.noise_bound <= _MAX_INT64:
            raise ConfigurationError(f"{self.name}: noise_bound must be >= 0 and fit in 63 bits")

    @property
    def grid_max(self) -> int:
        """Q: the largest grid value of one client before noise."""
        return (1 << (self.bits - 1)) - 1

    @property
    def bound(self) -> int:
        """Q + N: the largest absolute value one honest client puts in the sum."""
        return self.grid_max + self.noise_bound


class CountSegment(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=2):
    """Unsigned integers in 0..bound each: weights, sample counts, scaled losses.

    Attributes:
        name: unique in the layout; no "/".
        bound: the largest value one honest client puts in the sum.
        length: number of values.
        sensitivity: what the released sum is.
    """

    name: str
    bound: int
    length: int = 1
    sensitivity: Sensitivity = "public"

    def __post_init__(self) -> None:
        _check_common(self.name, self.length, self.sensitivity)
        if not 1 <= self.bound <= _MAX_INT64:
            raise ConfigurationError(f"{self.name}: bound must be in 1..2^63 - 1")


Segment: TypeAlias = FixedSegment | CountSegment


class Layout(msgspec.Struct, frozen=True, array_like=True, dict=True):
    """An ordered list of segments; two clients agree on it bit for bit or the round is refused."""

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        names = [segment.name for segment in self.segments]
        if not names:
            raise ConfigurationError("a layout needs at least one segment")
        if len(set(names)) != len(names) or any("/" in name for name in names):
            raise ConfigurationError("segment names must be unique and must not contain '/'")

    @cached_property
    def wire_segments(self) -> tuple[Segment, ...]:
        """The declared segments followed by the clip counters, as they are summed."""
        counters = tuple(
            CountSegment(
                name=segment.name + CLIP_SUFFIX,
                bound=segment.length,
                length=2,
                sensitivity="sensitive" if segment.noise_bound else segment.sensitivity,
            )
            for segment in self.segments
            if isinstance(segment, FixedSegment) and segment.count_clips
        )
        return self.segments + counters

    @cached_property
    def _by_name(self) -> dict[str, Segment]:
        return {segment.name: segment for segment in self.segments}

    def __getitem__(self, name: str) -> Segment:
        """The declared segment of that name.

        Raises:
            WrongLayout: there is none.
        """
        try:
            return self._by_name[name]
        except KeyError as error:
            raise WrongLayout(f"the layout has no segment {name!r}") from error

    def fixed(self, name: str) -> FixedSegment:
        """The fixed-point segment of that name.

        Raises:
            WrongLayout: there is none of that name, or it is a count segment.
        """
        segment = self[name]
        if not isinstance(segment, FixedSegment):
            raise WrongLayout(f"segment {name!r} is not a fixed-point segment")
        return segment

    @property
    def size(self) -> int:
        """Number of values of all segments, clip counters included."""
        return sum(segment.length for segment in self.wire_segments)

    def canonical(self) -> bytes:
        """The bytes that enter the parameter digest."""
        return enc("layout", *(_canonical_segment(segment) for segment in self.segments))


def width_of(segment: Segment, invited: int) -> int:
    """Ring bits m of a segment such that the sum over up to `invited` clients cannot wrap.

    Fixed: sums lie in [-n(Q+N), n(Q+N)], so 2n(Q+N) + 1 <= 2^m values. Count: 0..n*bound.

    Raises:
        RingTooSmall: more than 64 bits would be needed, or a sum would not fit in int64.
    """
    largest = invited * segment.bound
    width = (2 * largest if isinstance(segment, FixedSegment) else largest).bit_length()
    if width > MAX_WIDTH or largest > _MAX_INT64:
        raise RingTooSmall(
            f"segment {segment.name!r} needs {width} bits for {invited} clients: lower its bits, "
            "its noise bound or its count bound"
        )
    return width


def _check_common(name: str, length: int, sensitivity: str) -> None:
    plain = name.removesuffix(CLIP_SUFFIX)
    if not plain or "/" in plain or len(name) > 255:
        raise ConfigurationError(f"segment name {name!r}: 1 to 255 characters without '/'")
    if not 1 <= length <= MAX_LENGTH:
        raise ConfigurationError(f"{name}: length={length} must be in 1..{MAX_LENGTH}")
    if sensitivity not in _SENSITIVITY_CODES:
        raise ConfigurationError(f"{name}: sensitivity must be public, dp or sensitive")


def _canonical_segment(segment: Segment) -> bytes:
    name = segment.name.encode()
    tail = u8(_SENSITIVITY_CODES[segment.sensitivity])
    if isinstance(segment, FixedSegment):
        return enc(
            "segment/fixed",
            name,
            u64(segment.length),
            f64(segment.clip),
            u8(segment.bits),
            u64(segment.noise_bound),
            tail,
            u8(segment.count_clips),
        )
    return enc("segment/count", name, u64(segment.length), u64(segment.bound), tail)
