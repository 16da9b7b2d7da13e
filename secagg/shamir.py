"""Threshold sharing of 32-byte secrets: any `t` shares give the secret, fewer say nothing.

The field is GF(2^256 - 189), the largest prime below 2^256, so that a share is exactly 32 bytes.
One polynomial carries one secret: two secrets that must never open together need two polynomials.

Source: Shamir, "How to share a secret", CACM 22(11), 1979.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from secagg.errors import Malformed
from secagg.secret import RandomSource

PRIME = 2**256 - 189
SHARE_BYTES = 32
MAX_POINT = 65_535
_STEPS_BETWEEN_REDUCTIONS = 16  # points are small, so a few unreduced steps cost less than dividing


def random_element(random: RandomSource) -> bytes:
    """32 uniform bytes that read as an element of the field; redrawn while they do not."""
    while True:
        candidate = random(SHARE_BYTES)
        if is_element(candidate):
            return candidate


def is_element(value: bytes) -> bool:
    """Whether `value` is the canonical encoding of a field element."""
    return len(value) == SHARE_BYTES and int.from_bytes(value, "little") < PRIME


def split(
    secret: bytes, threshold: int, points: Sequence[int], random: RandomSource
) -> list[bytes]:
    """One share of `secret` for each of `points`, on a fresh polynomial of degree `threshold - 1`.

    Guarantee: any `threshold - 1` shares are uniform and independent of the secret.

    Args:
        secret: 32 bytes below the prime, little-endian.
        threshold: shares needed to rebuild, at least 1.
        points: distinct evaluation points in 1..65535.
        random: source of the coefficients.

    Raises:
        Malformed: the secret is not a field element, or a point is out of range or repeated.
    """
    if threshold < 1:
        raise Malformed(f"threshold {threshold}: must be at least 1")
    _check_points(points)
    drawn = [random_element(random) for _ in range(threshold - 1)]
    coefficients = [_element(secret), *(int.from_bytes(one, "little") for one in drawn)]
    return [
        evaluate(coefficients, point, PRIME).to_bytes(SHARE_BYTES, "little") for point in points
    ]


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The value at zero of the polynomial through `shares`, {point: share}.

    The result is the secret if all shares are on its polynomial and there are at least `threshold`
    of them; it is not otherwise, and nothing here can tell: check it against a commitment.

    Raises:
        Malformed: no share, a share that is not a field element, or a bad point.
    """
    if not shares:
        raise Malformed("no shares to combine")
    points = tuple(sorted(shares))
    weights = _weights_at_zero(points)
    total = sum(w * _element(shares[x]) for w, x in zip(weights, points, strict=True))
    return (total % PRIME).to_bytes(SHARE_BYTES, "little")


def evaluate(coefficients: Sequence[int], point: int, prime: int) -> int:
    """The polynomial with these coefficients (constant first) at `point`, modulo `prime`."""
    value = 0
    for stop in range(len(coefficients), 0, -_STEPS_BETWEEN_REDUCTIONS):
        for coefficient in reversed(coefficients[max(0, stop - _STEPS_BETWEEN_REDUCTIONS) : stop]):
            value = value * point + coefficient
        value %= prime
    return value


def lagrange_at_zero(points: Sequence[int], prime: int) -> list[int]:
    """Weights w with f(0) = sum w_i f(x_i) for every polynomial of degree below `len(points)`."""
    weights = []
    for x in points:
        numerator, denominator = 1, 1
        for other in points:
            if other != x:
                numerator = numerator * other % prime
                denominator = denominator * (other - x) % prime
        weights.append(numerator * pow(denominator, -1, prime) % prime)
    return weights


@lru_cache(maxsize=256)
def _weights_at_zero(points: tuple[int, ...]) -> tuple[int, ...]:
    """Weights of one set of holders: points are public, and one set serves many secrets."""
    _check_points(points)
    return tuple(lagrange_at_zero(points, PRIME))


def _element(value: bytes) -> int:
    if not is_element(value):
        raise Malformed("a share must be 32 bytes that read as a number below 2^256 - 189")
    return int.from_bytes(value, "little")


def _check_points(points: Sequence[int]) -> None:
    if len(set(points)) != len(points):
        raise Malformed("evaluation points must be distinct")
    for point in points:
        if not 1 <= point <= MAX_POINT:
            raise Malformed(f"evaluation point {point}: must be in 1..{MAX_POINT}")
