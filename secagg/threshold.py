"""How many clients must agree: the numbers that every guarantee of masking rests on."""

from __future__ import annotations

from secagg.errors import ConfigurationError


def default_colluders(invited: int) -> int:
    """The colluders tolerated by default, ceil(n/3) - 1: just under a third of those invited."""
    return max(0, -(-invited // 3) - 1)


def threshold(cohort: int, colluders: int) -> int:
    """Shares needed to open a secret, and clients needed to confirm and to reveal.

    `t = max(floor((n + c)/2) + 1, c + 2)` is the smallest number with three properties: two sets of
    `t` clients share an honest one (`2t > n + c`), colluders alone open nothing (`t > c`), and any
    sum holds at least two honest inputs (`t - c >= 2`). The caller refuses a result above `cohort`.

    Args:
        cohort: n, clients whose keys were advertised.
        colluders: c, clients of the cohort that may work with the server.

    Raises:
        ConfigurationError: `cohort` below 1 or `colluders` below 0.
    """
    if cohort < 1 or colluders < 0:
        raise ConfigurationError(f"cohort={cohort}, colluders={colluders}: must be >= 1 and >= 0")
    return max((cohort + colluders) // 2 + 1, colluders + 2)


def guaranteed_honest(cohort: int, colluders: int, survivors_min: int) -> int:
    """Honest clients that any completed sum is sure to hold; noise shares are scaled to it."""
    return max(threshold(cohort, colluders), survivors_min) - colluders
