"""Rebuilding a lost client's secret from shares, some of which may be wrong.

A rebuilt value counts only if it matches what its owner committed to before, so a wrong share can
cost tries but never a wrong sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from random import SystemRandom

from secagg.errors import ReconstructionFailed
from secagg.shamir import combine

MAX_TRIES = 64


def recover(
    shares: Mapping[int, bytes],
    threshold: int,
    matches: Callable[[bytes], bool],
    *,
    owner: int,
) -> bytes:
    """The secret of `owner` that `matches` accepts, from some `threshold` of `shares`.

    Args:
        shares: {evaluation point: share}.
        threshold: shares needed.
        matches: whether a candidate is what the owner committed to.
        owner: the dealer, named if nothing matches.

    Raises:
        ReconstructionFailed: too few shares, or no subset of those tried gives a match.
    """
    points = sorted(shares)
    if len(points) < threshold:
        raise ReconstructionFailed(
            f"client {owner}: {len(points)} shares of its secret opened, {threshold} required",
            owner,
        )
    for subset in islice(_subsets(points, threshold), MAX_TRIES):
        candidate = combine({point: shares[point] for point in subset})
        if matches(candidate):
            return candidate
    raise ReconstructionFailed(
        f"client {owner}: no set of {threshold} shares gives the secret it committed to", owner
    )


def _subsets(points: Sequence[int], size: int) -> Iterator[tuple[int, ...]]:
    """The first subset, then those without one holder each, then random ones."""
    yield tuple(points[:size])
    spare = len(points) - size
    if not spare:
        return
    for left_out in points[:size]:
        yield tuple([point for point in points if point != left_out][:size])
    random = SystemRandom()
    while True:
        yield tuple(sorted(random.sample(points, size)))
