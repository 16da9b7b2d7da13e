"""Real vectors to grid integers and sums of grid integers back.

Rounding is stochastic with an AES stream, secret unless the caller gives its key, so the rounded
value is unbiased (to 2^-32). All modes share this one quantiser: `none` and
`masking` return the same integers bit for bit when they are given the same rounding stream.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from secagg.errors import NoiseOutOfRange, NonFiniteInput, WrongLayout
from secagg.keys import KEY_BYTES
from secagg.layout import CLIP_SUFFIX, CountSegment, FixedSegment, Layout
from secagg.prg import keystream
from secagg.secret import RandomSource

Integers: TypeAlias = NDArray[np.int64]
Reals: TypeAlias = NDArray[np.floating[Any]]

_BLOCK = 1 << 15  # values quantised at a time, so that temporaries stay in cache


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """What one client contributes to one sum.

    Attributes:
        values: one array for each declared segment. Fixed segments take real numbers `[length]`
            (clipped and rounded here) or int64 already on the grid, |q| <= Q. Count segments take
            integers in 0..bound.
        noise: optional int64 `[length]` for fixed segments, |noise| <= noise_bound, added on the
            grid after rounding.
        rounding_key: 32 bytes that fix the stream of the stochastic rounding, so that a simulation
            can be repeated bit for bit; None draws them from the operating system. Rounding hides
            nothing, masks and noise do: whoever knows the key knows which way values were rounded,
            and the sum to less than a grid step more.
    """

    values: Mapping[str, NDArray[Any]]
    noise: Mapping[str, Integers] = field(default_factory=dict)
    rounding_key: bytes | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantised:
    """Grid integers of one segment, and how many values lay outside the clip."""

    grid: Integers
    below: int
    above: int


def quantise(values: Reals, uniform: NDArray[np.uint32], segment: FixedSegment) -> Quantised:
    """Clips `values` to [-C, C] and rounds them to the grid -Q..Q at random, without bias.

    Guarantee: |grid - clipped * Q / C| < 1 and the expectation of the difference is below 2^-32.

    | Input | Result |
    |---|---|
    | |x| = C exactly | +-Q, not counted as clipped |
    | |x| > C | +-Q, counted |
    | NaN, infinity | NonFiniteInput |

    Args:
        values: float32 or float64 `[length]`, in the units of `segment.clip`.
        uniform: uint32 `[length]`, independent of the values.
        segment: gives C and Q.

    Raises:
        NonFiniteInput: a value is NaN or infinite.
    """
    limit = float(segment.grid_max)
    grid = np.empty(values.size, np.int64)
    below = above = 0
    for start in range(0, values.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        x = values[block].astype(np.float64)
        least, most = float(x.min()), float(x.max())  # NaN if one of them is
        if not (math.isfinite(least) and math.isfinite(most)):
            raise NonFiniteInput(
                f"segment {segment.name!r} holds NaN or infinity: zero such examples before the sum"
            )
        if least < -segment.clip:
            below += int(np.count_nonzero(x < -segment.clip))
        if most > segment.clip:
            above += int(np.count_nonzero(x > segment.clip))
        x *= limit
        x /= segment.clip
        np.clip(x, -limit, limit, out=x)  # also what multiplying took above the limit
        floor = np.floor(x)
        x -= floor  # 0 at both limits, so that nothing is rounded up beyond them
        x *= 2.0**32
        np.floor(x, out=x)
        floor += uniform[block] < x
        grid[block] = floor
    return Quantised(grid=grid, below=below, above=above)


def dequantise(sums: Integers, segment: FixedSegment) -> NDArray[np.float64]:
    """Grid integers in the caller's units: `sums * C / Q`."""
    return sums.astype(np.float64) * (segment.clip / segment.grid_max)


def encode_update(update: Update, layout: Layout, random: RandomSource) -> dict[str, Integers]:
    """The integers of every wire segment, clip counters included.

    Args:
        update: the caller's arrays.
        layout: the round's layout.
        random: gives the 32 bytes of the rounding stream, if the update has none.

    Raises:
        WrongLayout: a segment is missing, unknown, misshapen, or an integer is out of its bound.
        NonFiniteInput: NaN or infinity in a fixed segment.
        NoiseOutOfRange: |noise| above the public bound.
    """
    declared = {segment.name for segment in layout.segments}
    if set(update.values) != declared:
        odd = sorted(set(update.values) ^ declared)
        raise WrongLayout(f"missing or unknown segments: {', '.join(odd)}")
    for name in update.noise:
        layout.fixed(name)
    fixed = [segment for segment in layout.segments if isinstance(segment, FixedSegment)]
    rounding_key = update.rounding_key
    if rounding_key is None:
        rounding_key = random(KEY_BYTES)
    stream = keystream(rounding_key, 32, sum(segment.length for segment in fixed))
    encoded: dict[str, Integers] = {}
    start = 0
    for segment in layout.segments:
        values = np.asarray(update.values[segment.name])
        if values.shape != (segment.length,):
            raise WrongLayout(
                f"segment {segment.name!r} has shape {values.shape}: ({segment.length},) expected"
            )
        if isinstance(segment, CountSegment):
            encoded[segment.name] = _integers(values, segment.name, 0, segment.bound)
            continue
        uniform = stream[start : start + segment.length].astype(np.uint32, copy=False)
        start += segment.length
        result = _on_grid(values, uniform, segment)
        noise = update.noise.get(segment.name)
        encoded[segment.name] = result.grid if noise is None else _noisy(result, noise, segment)
        if segment.count_clips:
            encoded[segment.name + CLIP_SUFFIX] = np.array([result.below, result.above], np.int64)
    return encoded


def _on_grid(values: NDArray[Any], uniform: NDArray[np.uint32], segment: FixedSegment) -> Quantised:
    if np.issubdtype(values.dtype, np.floating):
        return quantise(values, uniform, segment)
    grid = _integers(values, segment.name, -segment.grid_max, segment.grid_max)
    return Quantised(grid=grid, below=0, above=0)


def _noisy(result: Quantised, noise: Integers, segment: FixedSegment) -> Integers:
    if noise.shape != (segment.length,) or noise.dtype != np.int64:
        raise WrongLayout(f"noise of {segment.name!r} must be int64 ({segment.length},)")
    if int(noise.min()) < -segment.noise_bound or int(noise.max()) > segment.noise_bound:
        raise NoiseOutOfRange(
            f"segment {segment.name!r}: noise above its public bound {segment.noise_bound}; "
            "truncate it and account for the truncation"
        )
    return result.grid + noise


def _integers(values: NDArray[Any], name: str, low: int, high: int) -> Integers:
    if not np.issubdtype(values.dtype, np.integer):
        raise WrongLayout(f"segment {name!r} has dtype {values.dtype}: integers expected")
    if int(values.min()) < low or int(values.max()) > high:
        raise WrongLayout(f"segment {name!r} holds a value outside {low}..{high}")
    return values.astype(np.int64)
