"""Who shares and masks with whom: everybody with everybody, or neighbours on a ring.

With every pair joined, the work of a round grows with the square of the cohort. On a ring a client
is joined to the `k/2` positions on either side, in an order that a public coin decides. A server
sees that order before it says who dropped out, so it could cut a small group off by "losing" the
clients around it; the *window rule* forbids this. Every `k/2` consecutive positions must hold at
least `w` clients of the list. Where no such window holds `w` colluders, each holds an honest
survivor, so honest survivors that follow each other on the ring are neighbours, and no sum over
fewer than all of them can be separated.

Source: Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", CCS 2020,
for the sparse graph against a server that follows the protocol; the window rule is this project's.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from secagg.digests import digest, u32
from secagg.errors import ConfigurationError, PolicyViolation, ThinRing, TooFewClients

COMPLETE_GRAPH = 0
COMPLETE_UP_TO = 512  # clients; above, a ring costs less by default
MIN_WINDOW = 2  # so that a share is never the secret itself, whoever is assumed not to collude
STATISTICAL_BITS = 40
GRINDING_BITS = 64  # orders a server may try by leaving adverts out or redrawing colluders' keys
DEFAULT_DROPOUT = 0.1
BREAKS_PER_ROUND = Fraction(1, 10**6)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ring:
    """A cohort in ring order.

    Attributes:
        order: ids of the cohort by position.
        places: {id: position}.
        reach: positions on either side to which a client is joined, k/2; and a window's length.
        window: w, least number of listed clients in `reach` consecutive positions.
    """

    order: tuple[int, ...]
    places: dict[int, int]
    reach: int
    window: int

    @classmethod
    def of(
        cls, cohort: bytes, ids: Sequence[int], *, degree: int, window: int, colluders: int
    ) -> Ring:
        """The ring of the cohort with digest `cohort` (M).

        Args:
            cohort: M; the coin that decides the order is a digest of it.
            ids: the members, more than `degree + 1`.
            degree: k, even.
            window: least window asked for; the one in force is never below `least_window`.
            colluders: c.
        """
        coin = digest("coin", cohort)
        order = tuple(sorted(ids, key=lambda client: digest("ring", coin, u32(client))))
        return cls(
            order=order,
            places={client: place for place, client in enumerate(order)},
            reach=degree // 2,
            window=max(window, least_window(len(order), colluders, degree)),
        )

    @property
    def share_threshold(self) -> int:
        """Shares that open a secret."""
        return share_threshold(self.window)

    def neighbours(self, client: int) -> tuple[int, ...]:
        """The clients joined to `client`, ascending by id."""
        place, size = self.places[client], len(self.order)
        steps = [*range(-self.reach, 0), *range(1, self.reach + 1)]
        return tuple(sorted(self.order[(place + step) % size] for step in steps))

    def thinnest(self, listed: Collection[int]) -> int:
        """The least number of `listed` clients in any window."""
        chosen = set(listed)
        marks = [client in chosen for client in self.order]
        count = least = sum(marks[: self.reach])
        for place, leaving in enumerate(marks):
            count += marks[(place + self.reach) % len(marks)] - leaving
            least = min(least, count)
        return least

    def check_size(self) -> None:
        """Returns if the cohort is large enough for some window to be safe.

        Raises:
            TooFewClients: with this degree and so many colluders, no window is.
        """
        if self.window > self.reach:
            raise TooFewClients(
                f"SHARE: a cohort of {len(self.order)} clients is too small for rings of degree "
                f"{2 * self.reach}: a window of {self.reach} positions needs {self.window} clients"
            )

    def check_windows(self, listed: Collection[int], what: str) -> None:
        """Returns if every window holds enough of the `listed` clients.

        Raises:
            ThinRing: a window does not; `what` begins the message.
        """
        found = self.thinnest(listed)
        if found < self.window:
            raise ThinRing(
                f"{what}: only {found} in some {self.reach} neighbouring ring positions, "
                f"{self.window} required"
            )


@lru_cache(maxsize=1024)
def least_window(clients: int, colluders: int, degree: int) -> int:
    """The least w such that no window of a random ring holds w or more colluders, almost surely.

    `n * P[Hypergeometric(n, c, k/2) >= w] <= 2^-(40 + 64)`: 40 bits of statistical safety after the
    2^64 orders that a server might try. Exact, in integers; `c + 1` where that is what it takes,
    and then the statement is certain. A result above `degree / 2` means that no window is safe.

    Args:
        clients: n.
        colluders: c, at most n.
        degree: k, even, below n.
    """
    reach = degree // 2
    bound = math.comb(clients, reach)
    window = min(colluders, reach) + 1
    for count, ways in _tails(clients, colluders, reach):
        if clients * ways << STATISTICAL_BITS + GRINDING_BITS > bound:
            break
        window = count
    return max(window, MIN_WINDOW)


def share_threshold(window: int) -> int:
    """Shares that open a secret on a ring: one more than colluders on both sides can hold."""
    return 2 * window - 1


@lru_cache(maxsize=64)
def recommended(clients: int, colluders: int, dropout: float = DEFAULT_DROPOUT) -> int:
    """The least degree whose window rule random losses break in at most one round in a million.

    Args:
        clients: n.
        colluders: c.
        dropout: share of clients lost in a round, at whatever stage, in [0, 1).

    Returns:
        An even degree; `COMPLETE_GRAPH` where no sparse ring will do.

    Raises:
        ConfigurationError: `dropout` is out of range.
    """
    if not 0 <= dropout < 1:
        raise ConfigurationError(f"dropout={dropout}: must be at least 0 and below 1")
    lost = math.ceil(Fraction(dropout).limit_denominator(10**6) * clients)
    if colluders + lost >= clients:  # even on average a window has no room for both
        return COMPLETE_GRAPH
    for degree in range(2 * MIN_WINDOW, clients - 1, 2):
        spare = degree // 2 - least_window(clients, colluders, degree)
        if spare >= 0 and _is_rare(clients, lost, degree // 2, spare + 1):
            return degree
    return COMPLETE_GRAPH


def default_degree(clients: int, colluders: int, dropout: float = DEFAULT_DROPOUT) -> int:
    """The degree chosen when none is given: everybody up to 512 clients, above `recommended`."""
    if clients <= COMPLETE_UP_TO:
        return COMPLETE_GRAPH
    return recommended(clients, colluders, dropout)


def check_strength(clients: int, colluders: int, *, degree: int, window: int) -> None:
    """Returns if a ring with these parameters is as safe as clients demand.

    Raises:
        PolicyViolation: no window of this degree is safe, or `window` is below the least that is.
    """
    least = least_window(clients, colluders, degree)
    if least > degree // 2:
        raise PolicyViolation(
            f"graph_degree={degree}: {colluders} colluders among {clients} clients can fill "
            f"{degree // 2} neighbouring ring positions; use a larger degree, or 0 for everybody"
        )
    if window < least:
        raise PolicyViolation(f"graph_window={window}: this client requires at least {least}")


def _is_rare(clients: int, marked: int, reach: int, least: int) -> bool:
    """Whether some window holds `least` or more of `marked` clients in few enough rounds."""
    total = 0
    for count, ways in _tails(clients, marked, reach):
        if count < least:
            break
        total = ways
    return Fraction(clients * total, math.comb(clients, reach)) <= BREAKS_PER_ROUND


def _tails(clients: int, marked: int, drawn: int) -> Iterator[tuple[int, int]]:
    """(x, ways to draw x or more marked clients), from the largest possible x down to 0."""
    count = min(marked, drawn)
    ways = math.comb(marked, count) * math.comb(clients - marked, drawn - count)
    total = 0
    while count >= 0:
        total += ways
        yield count, total
        others = drawn - count
        ways = ways * count * (clients - marked - others) // ((marked - count + 1) * (others + 1))
        count -= 1
