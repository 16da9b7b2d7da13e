"""Exact discrete Gaussian noise: integers from secret bytes, with no floating point on the way.

Integers x have probability proportional to `exp(-x^2 / (2 variance))`. Every decision compares
uniform integers with integers, so nothing depends on rounding and there are no low bits to read.

Two samplers of the same law: `discrete_gaussian` in Python integers, for any rational variance,
plain enough to be read against the paper; and `discrete_gaussians`, which makes the same decisions
for many values at once in 64-bit integers and hands the few that would not fit to the first.

Source: Canonne, Kamath and Steinke, arXiv 2004.00010, algorithms 1-3.
"""

import math
from fractions import Fraction
from typing import Final

import numpy as np
from numpy.typing import NDArray

from privacy.randomness import ByteSource, FromBytes

LARGEST_FAST_VARIANCE: Final = 1 << 26  # so that 2 * variance * scale^2 has room in 64 bits
_LARGEST_FAST_QUOTIENT: Final = 32  # |x| < 33 scales: (|x| scale - variance)^2 fits in 64 bits
_LARGEST_TRIALS: Final = 256  # of von Neumann's series: reached with probability 1 / 256!

Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]


class DiscreteGaussianNoise(FromBytes):
    """Integer noise."""

    def integers(self, size: int, *, variance: int) -> Integers:
        """Independent values of the discrete Gaussian, int64 `[size]`.

        Args:
            size: How many values.
            variance: The parameter sigma squared, an integer >= 1.

        Raises:
            ValueError: `variance` is below 1.
        """
        if variance <= LARGEST_FAST_VARIANCE:
            return discrete_gaussians(size, variance=variance, source=self._source)
        values = discrete_gaussian(size, variance=Fraction(variance), source=self._source)
        return np.array(values, dtype=np.int64)


def discrete_gaussians(size: int, *, variance: int, source: ByteSource) -> Integers:
    """Exact samples of the discrete Gaussian with an integer variance, many at a time.

    Args:
        size: How many values.
        variance: The parameter sigma squared, in 1..2^26.
        source: Where the bytes come from.

    Returns:
        int64 `[size]`.

    Raises:
        ValueError: `variance` is out of its range.
    """
    if not 1 <= variance <= LARGEST_FAST_VARIANCE:
        raise ValueError(f"variance={variance}: must lie in 1..{LARGEST_FAST_VARIANCE}")
    scale = math.isqrt(variance) + 1
    words = _Words(source)
    found: list[Integers] = [np.zeros(0, dtype=np.int64)]
    missing = size
    while missing > 0:
        candidates = _discrete_laplaces(missing + missing // 3 + 16, scale, words)
        kept = candidates[_accepted(candidates, variance, scale, words, source)][:missing]
        found.append(kept)
        missing -= len(kept)
    return np.concatenate(found)


def _accepted(
    candidates: Integers, variance: int, scale: int, words: "_Words", source: ByteSource
) -> Booleans:
    """Keeps x with probability `exp(-(|x| - variance/scale)^2 / (2 variance))`."""
    magnitudes = np.abs(candidates)
    fits = magnitudes < (_LARGEST_FAST_QUOTIENT + 1) * scale
    numerators = np.where(fits, magnitudes * scale - variance, 0) ** 2
    kept = _bernoulli_exps(numerators, 2 * variance * scale * scale, words)
    coins = _Coins(source)
    for place in np.flatnonzero(~fits):  # about one candidate in 1e14
        excess = Fraction(int(magnitudes[place])) - Fraction(variance, scale)
        kept[place] = _bernoulli_exp(excess * excess / (2 * variance), coins)
    return kept


def _discrete_laplaces(size: int, scale: int, words: "_Words") -> Integers:
    """About `size` integers with probability proportional to `exp(-|x| / scale)`."""
    # e-1 over e of the remainders survive, and almost all of the rest
    drawn = math.ceil(1.7 * size) + 16
    remainders = words.below(scale, drawn)
    remainders = remainders[_bernoulli_exps(remainders, scale, words)]
    quotients = np.zeros(len(remainders), dtype=np.int64)
    growing = np.arange(len(remainders))
    while len(growing):
        growing = growing[_bernoulli_exps(np.ones(len(growing), dtype=np.int64), 1, words)]
        quotients[growing] += 1
    magnitudes = remainders + scale * quotients
    negative = words.below(2, len(magnitudes)) == 1
    once = ~(negative & (magnitudes == 0))  # zero would otherwise be counted twice
    signed: Integers = np.where(negative, -magnitudes, magnitudes)[once]
    return signed


def _bernoulli_exps(numerators: Integers, denominator: int, words: "_Words") -> Booleans:
    """True with probability exactly `exp(-numerator / denominator)`, each on its own; bool `[n]`."""
    wholes, rests = np.divmod(numerators, denominator)
    kept = _bernoulli_exps_unit(rests, denominator, words)
    waiting = np.flatnonzero(kept & (wholes > 0))
    while len(waiting):  # exp(-w) is w successes of exp(-1)
        ones = np.ones(len(waiting), dtype=np.int64)
        survived = _bernoulli_exps_unit(ones, 1, words)
        kept[waiting[~survived]] = False
        wholes[waiting] -= 1
        waiting = waiting[survived & (wholes[waiting] > 0)]
    return kept


def _bernoulli_exps_unit(numerators: Integers, denominator: int, words: "_Words") -> Booleans:
    """As `_bernoulli_exps` for fractions in 0..1, by von Neumann's series."""
    trials = np.ones(len(numerators), dtype=np.int64)
    running = np.arange(len(numerators))
    for trial in range(1, _LARGEST_TRIALS):
        running = running[words.below(denominator * trial, len(running)) < numerators[running]]
        if not len(running):
            odd: Booleans = trials % 2 == 1
            return odd
        trials[running] += 1
    raise AssertionError("von Neumann's series did not end")  # probability below 1 / 255!


class _Words:
    """Uniform 64-bit integers below a bound, by rejection."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source

    def below(self, bound: int, size: int) -> Integers:
        """Uniform in 0..bound-1, int64 `[size]`; the bound is at most 2^63."""
        if bound > 1 << 63:
            raise ValueError(f"bound={bound}: at most 2^63")
        mask = np.uint64((1 << (bound - 1).bit_length()) - 1)
        values = self._draw(size) & mask
        outside = np.flatnonzero(values >= bound)
        while len(outside):
            values[outside] = self._draw(len(outside)) & mask
            outside = outside[values[outside] >= bound]
        return values.astype(np.int64)

    def _draw(self, size: int) -> NDArray[np.uint64]:
        return np.frombuffer(self._source.read(8 * size), dtype="<u8").astype(np.uint64)


def discrete_gaussian(size: int, *, variance: Fraction, source: ByteSource) -> list[int]:
    """Exact samples of the discrete Gaussian.

    Integers x have probability proportional to `exp(-x^2 / (2 variance))`. No floating-point number
    is used, so nothing depends on rounding.

    Args:
        size: How many values.
        variance: The parameter sigma squared, > 0.
        source: Where the bytes come from.

    Raises:
        ValueError: `variance` is not positive.

    Source: arXiv 2004.00010, algorithm 3.
    """
    if variance <= 0:
        raise ValueError(f"variance={variance}: must be > 0")
    coins = _Coins(source)
    scale = math.isqrt(math.floor(variance)) + 1
    return [_one_discrete_gaussian(variance, scale, coins) for _ in range(size)]


def _one_discrete_gaussian(variance: Fraction, scale: int, coins: "_Coins") -> int:
    while True:
        candidate = _discrete_laplace(scale, coins)
        excess = abs(candidate) - variance / scale
        if _bernoulli_exp(excess * excess / (2 * variance), coins):
            return candidate


def _discrete_laplace(scale: int, coins: "_Coins") -> int:
    """An integer with probability proportional to `exp(-|x| / scale)`."""
    while True:
        remainder = coins.below(scale)
        if not _bernoulli_exp(Fraction(remainder, scale), coins):
            continue
        quotient = 0
        while _bernoulli_exp(Fraction(1), coins):
            quotient += 1
        magnitude = remainder + scale * quotient
        negative = coins.below(2) == 1
        if negative and magnitude == 0:
            continue  # zero would otherwise be counted twice
        return -magnitude if negative else magnitude


def _bernoulli_exp(gamma: Fraction, coins: "_Coins") -> bool:
    """True with probability exactly `exp(-gamma)`, gamma >= 0."""
    whole, rest = divmod(gamma, 1)
    for _ in range(int(whole)):
        if not _bernoulli_exp_unit(Fraction(1), coins):
            return False
    return _bernoulli_exp_unit(rest, coins)


def _bernoulli_exp_unit(gamma: Fraction, coins: "_Coins") -> bool:
    """True with probability exactly `exp(-gamma)`, 0 <= gamma <= 1, by von Neumann's series."""
    trials = 1
    while coins.below(gamma.denominator * trials) < gamma.numerator:
        trials += 1
    return trials % 2 == 1


class _Coins:
    """Uniform integers below a bound, by rejection, from buffered bytes."""

    _BUFFER_BYTES = 4096

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._buffer = b""
        self._position = 0

    def below(self, bound: int) -> int:
        bits = (bound - 1).bit_length()
        size = (bits + 7) // 8
        mask = (1 << bits) - 1
        while True:
            value = int.from_bytes(self._take(size), "little") & mask
            if value < bound:
                return value

    def _take(self, size: int) -> bytes:
        if self._position + size > len(self._buffer):
            self._buffer = self._source.read(max(size, self._BUFFER_BYTES))
            self._position = 0
        start = self._position
        self._position += size
        return self._buffer[start : self._position]
