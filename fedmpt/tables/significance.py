"""Whether one method is better than another over paired seeds: exact Wilcoxon signed-rank test and Cliff's delta."""

from __future__ import annotations

from collections.abc import Sequence


def wilcoxon_p(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Return the two-sided exact p-value of paired figures.

    Pairs without a difference say nothing and are left out (Wilcoxon's own treatment). Equal differences share their
    mean rank.

    Args:
        ours: one figure a seed.
        theirs: of the same seeds, in the same order.

    Returns:
        The p-value, at least 2 ** (1 - n); None if no pair differs.

    Raises:
        ValueError: the lengths differ.
    """
    import numpy as np
    from scipy import stats

    differences = np.asarray([a - b for a, b in zip(ours, theirs, strict=True) if a != b])
    if not len(differences):
        return None
    ranks = stats.rankdata(np.abs(differences))
    if len(np.unique(ranks)) == len(ranks):
        return float(stats.wilcoxon(differences, method="exact").pvalue)
    patterns = np.ones(
        1
    )  # number of sign patterns by twice the sum of positive ranks: exact where scipy's table is not
    for doubled in (2 * ranks).astype(int):
        patterns = np.convolve(patterns, [1, *[0] * (doubled - 1), 1])
    positive = int(2 * ranks[differences > 0].sum())
    tail = min(patterns[: positive + 1].sum(), patterns[positive:].sum()) / patterns.sum()
    return float(min(1.0, 2 * tail))


def cliffs_delta(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return how much more often one of ours is above one of theirs than below, from -1 to 1.

    Source: Cliff, 1993, "Dominance statistics", Psychological Bulletin 114.

    Args:
        ours: one figure or more.
        theirs: likewise; the pairing plays no part.
    """
    above = sum((a > b) - (a < b) for a in ours for b in theirs)
    return above / (len(ours) * len(theirs))
