"""Gaussian noise from secret bytes.

Float mode: Box-Muller in float64 on 53-bit uniforms, rounded to float32. It idealises real
arithmetic. Its values lie within 8.6 standard deviations (mass beyond: 8e-18 a value) and on a
floating-point grid, so it does not defend against attacks that read the low bits of a released
float.

Integer noise, which has no such low bits, is in `privacy.discrete`.

Source: Box and Muller, 1958; on floating-point attacks Mironov, CCS 2012, and arXiv 2107.10138.
"""

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from privacy.randomness import ByteSource, FromBytes, InsecureSeededBytes

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


class IntegerNoise(Protocol):
    """Where the noise of a release in integers comes from."""

    @property
    def is_secret(self) -> bool:
        """Whether the noise protects anybody."""
        ...

    def integers(self, size: int, *, variance: int) -> NDArray[np.int64]:
        """Independent values of the discrete Gaussian, int64 `[size]`."""
        ...


class GaussianNoise(FromBytes):
    """Gaussian noise in float mode; see `NoiseSource`."""

    def gaussian(self, size: int, *, standard_deviation: float) -> NDArray[np.float32]:
        """Independent values of `N(0, standard_deviation^2)`, float32 `[size]`."""
        return (standard_deviation * standard_normal(size, self._source)).astype(np.float32)


class InsecureZeroNoise:
    """No noise at all, for tests that look at the query before noise. NOT private."""

    @property
    def is_secret(self) -> bool:
        """False."""
        return False

    def gaussian(self, size: int, *, standard_deviation: float) -> NDArray[np.float32]:
        """Zeros, float32 `[size]`, whatever the standard deviation."""
        return np.zeros(size, dtype=np.float32)

    def integers(self, size: int, *, variance: int) -> NDArray[np.int64]:
        """Zeros, int64 `[size]`, whatever the variance."""
        return np.zeros(size, dtype=np.int64)


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
