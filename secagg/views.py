"""The three lists that all honest clients of a round must hold alike: cohort, sharers, survivors.

Client and server build the same values from the same public records, and everything that follows
from a list (evaluation points, which secret of whom may be opened) is derived here and nowhere
else. In particular the server never *says* which share it wants: a share of the self-mask seed is
opened for a survivor and a share of the mask key for a sharer that did not survive, so a request
for both cannot even be expressed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

from secagg.bitmap import from_bitmap, to_bitmap
from secagg.digests import cohort_digest, sharers_digest, survivors_digest
from secagg.errors import TooFewClients, WrongStage
from secagg.graph import COMPLETE_GRAPH, Ring
from secagg.messages import AdvertRow
from secagg.params import RoundParams
from secagg.threshold import threshold


class ShareKind(IntEnum):
    """Which of the two secrets of a client a share belongs to."""

    SEED = 0
    MASK_KEY = 1


@dataclass(frozen=True, slots=True)
class Cohort:
    """The clients whose keys were advertised, and the numbers and neighbours that follow from them.

    Attributes:
        digest: M.
        threshold: t, clients that must confirm and reveal.
        adverts: {id: advert}, ascending.
        points: {id: evaluation point}, the rank in the cohort plus one.
        ring: the sparse graph; None where everybody is everybody's neighbour.
    """

    digest: bytes
    threshold: int
    adverts: dict[int, AdvertRow]
    points: dict[int, int]
    ring: Ring | None = None

    @classmethod
    def of(cls, params: RoundParams, adverts: Iterable[AdvertRow]) -> Cohort:
        """The cohort of these adverts, which are in ascending order of id."""
        rows = {row.client: row for row in adverts}
        keys = [(row.client, row.mask_key, row.share_key) for row in rows.values()]
        digest = cohort_digest(params.digest, keys)
        return cls(
            digest=digest,
            threshold=threshold(max(1, len(rows)), params.colluders),
            adverts=rows,
            points={client: rank for rank, client in enumerate(rows, start=1)},
            ring=_ring(params, digest, tuple(rows)),
        )

    @property
    def ids(self) -> tuple[int, ...]:
        """Member ids, ascending."""
        return tuple(self.adverts)

    @property
    def share_threshold(self) -> int:
        """Shares that open a secret: t, or on a ring the number that its window allows."""
        return self.threshold if self.ring is None else self.ring.share_threshold

    def neighbours(self, client: int) -> tuple[int, ...]:
        """With whom `client` shares and masks, ascending: everybody else, or as the ring says."""
        if self.ring is not None:
            return self.ring.neighbours(client)
        return tuple(other for other in self.adverts if other != client)

    def check_size(self, n_min: int) -> None:
        """Returns if the cohort is large enough for its thresholds.

        Raises:
            TooFewClients: fewer than `n_min` or t, or too few for the ring's degree.
        """
        least = max(n_min, self.threshold)
        if len(self.adverts) < least:
            raise TooFewClients(f"SHARE: cohort of {len(self.adverts)} clients, {least} required")
        if self.ring is not None:
            self.ring.check_size()

    def check_windows(self, listed: Collection[int], what: str) -> None:
        """Returns if, on a ring, every window holds enough of the `listed` clients.

        Raises:
            ThinRing: a window does not; `what` begins the message.
        """
        if self.ring is not None:
            self.ring.check_windows(listed, what)


def _ring(params: RoundParams, cohort: bytes, ids: Sequence[int]) -> Ring | None:
    """The ring of a cohort; None if none was asked for, or if it would join everybody anyway."""
    degree = params.graph_degree
    if degree == COMPLETE_GRAPH or degree >= len(ids) - 1:
        return None
    window, colluders = params.graph_window, min(params.colluders, len(ids))
    return Ring.of(cohort, ids, degree=degree, window=window, colluders=colluders)


@dataclass(frozen=True, slots=True)
class Sharers:
    """U1: the members of the cohort whose shares arrived, ascending; `digest` is V."""

    digest: bytes
    ids: tuple[int, ...]
    bitmap: bytes

    @classmethod
    def of(cls, cohort: Cohort, ids: Collection[int]) -> Sharers:
        """The sharers with these ids."""
        return cls.from_bitmap(cohort, to_bitmap(cohort.ids, ids))

    @classmethod
    def from_bitmap(cls, cohort: Cohort, bitmap: bytes) -> Sharers:
        """The sharers that a bitmap over the cohort names.

        Raises:
            Malformed, NonCanonical: the bitmap does not fit the cohort.
        """
        ids = from_bitmap(cohort.ids, bitmap)
        return cls(digest=sharers_digest(cohort.digest, bitmap), ids=ids, bitmap=bitmap)


@dataclass(frozen=True, slots=True)
class Survivors:
    """U: the sharers whose uploads are in the sum, ascending; `digest` is R."""

    digest: bytes
    ids: tuple[int, ...]

    @classmethod
    def of(cls, view: bytes, uploads: Iterable[tuple[int, bytes]]) -> Survivors:
        """The survivors with these upload digests, under a view V."""
        pairs = tuple(uploads)
        return cls(digest=survivors_digest(view, pairs), ids=tuple(client for client, _ in pairs))


V = TypeVar("V", Cohort, Sharers, Survivors)


def known(view: V | None) -> V:
    """The view, once it is fixed.

    Raises:
        WrongStage: it is not fixed yet.
    """
    if view is None:
        raise WrongStage("out of order: an earlier stage is not finished")
    return view


def share_kinds(
    cohort: Cohort, sharers: Sharers, survivors: Survivors, holder: int
) -> dict[int, ShareKind]:
    """Which share `holder` opens of each neighbour that dealt: exactly one, by (U1, U) alone."""
    alive = set(survivors.ids)
    dealt = set(sharers.ids)
    return {
        owner: ShareKind.SEED if owner in alive else ShareKind.MASK_KEY
        for owner in cohort.neighbours(holder)
        if owner in dealt
    }
