"""Gaussian noise from secret bytes.

Float mode: Box-Muller in float64 on 53-bit uniforms, rounded to float32. It idealises real
arithmetic. Its values lie within 8.6 standard deviations (mass beyond: 8e-18 a value) and on a
floating-point grid, so it does not defend against attacks that read the low bits of a released
float.

Integer mode's building block is `discrete_gaussian`, exact in Python integers.

Source: Box and Muller, 1958; Canonne, Kamath and Steinke, arXiv 2004.00010, algorithms 1-3; on
floating-point attacks Mironov, CCS 2012, and arXiv 2107.10138.
"""

import math
from fractions import Fraction
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from privacy.randomness import ByteSource, InsecureSeededBytes, SystemBytes

_MANTISSA_SHIFT = np.uint64(11)  # 64 random bits -> 53, all that a float64 holds
_TWO_TO_MINUS_53 = 2.0**-53


class NoiseSource(Protocol):
    """Where the noise of a release comes from."""

    @property
    def is_secret(self) -> bool:
        """Whether the noise protects anybody. A report must say so where it does not."""
        ...

    def gaussian(self, size: int, *, standard_deviation: float) -> NDArray[np.float32]:
        """Independent centred Gaussian values, float32 `[size]`."""
        ...


class GaussianNoise:
    """Gaussian noise in float mode.

    Args:
        source: Where the bytes come from; the operating system by default.
    """

    def __init__(self, source: ByteSource | None = None) -> None:
        self._source = SystemBytes() if source is None else source

    @property
    def is_secret(self) -> bool:
        """Whether the bytes are secret."""
        return self._source.is_secret

    def gaussian(self, size: int, *, standard_deviation: float) -> NDArray[np.float32]:
        """Independent values of `N(0, standard_deviation^2)`, float32 `[size]`."""
        return (standard_deviation * standard_normal(size, self._source)).astype(np.float32)

    def __repr__(self) -> str:
        return type(self).__name__


class InsecureZeroNoise:
    """No noise at all, for tests that look at the query before noise. NOT private."""

    @property
    def is_secret(self) -> bool:
        """False."""
        return False

    def gaussian(self, size: int, *, standard_deviation: float) -> NDArray[np.float32]:
        """Zeros, float32 `[size]`, whatever the standard deviation."""
        return np.zeros(size, dtype=np.float32)


def insecure_seeded_noise(insecure_seed: int) -> GaussianNoise:
    """Repeatable noise for tests and audits. NOT private."""
    return GaussianNoise(InsecureSeededBytes(insecure_seed=insecure_seed, purpose="noise"))


def standard_normal(size: int, source: ByteSource) -> NDArray[np.float64]:
    """Independent standard normal values by Box-Muller, float64 `[size]`."""
    pairs = (size + 1) // 2
    bits = np.frombuffer(source.read(16 * pairs), dtype="<u8") >> _MANTISSA_SHIFT  # [2 * pairs]
    uniform = (bits + 0.5) * _TWO_TO_MINUS_53  # [2 * pairs], never 0, so the logarithm is finite
    radius = np.sqrt(-2.0 * np.log(uniform[:pairs]))  # [pairs]
    angle = (2.0 * math.pi) * uniform[pairs:]  # [pairs]
    values = np.empty(2 * pairs)
    np.multiply(radius, np.cos(angle), out=values[:pairs])
    np.multiply(radius, np.sin(angle), out=values[pairs:])
    return values[:size]


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
