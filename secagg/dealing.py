"""How a client's two secrets travel to its neighbours: split, paired, sealed to one reader each.

The seed of the self mask and the private mask key are shared by two independent polynomials: with
one polynomial over both, whoever may open either would hold the pair. Each sealed text names
cohort, dealer, reader and evaluation point: one of another round, view or direction does not open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from secagg.aead import seal, unseal
from secagg.digests import enc, u16, u32
from secagg.errors import BadSeal
from secagg.keys import AgreementKey, derive_key
from secagg.messages import SEALED_BYTES
from secagg.secret import RandomSource, Secret
from secagg.shamir import SHARE_BYTES, is_element, split
from secagg.views import Cohort, ShareKind


@dataclass(frozen=True, slots=True)
class HeldShares:
    """What one neighbour entrusted to this client: a share of each of its two secrets."""

    seed: Secret
    mask_key: Secret

    def of(self, kind: ShareKind) -> bytes:
        """The share of one secret."""
        return (self.seed if kind is ShareKind.SEED else self.mask_key).reveal()

    def erase(self) -> None:
        """Overwrites both shares."""
        self.seed.erase()
        self.mask_key.erase()


def seal_all(
    cohort: Cohort,
    dealer: int,
    *,
    share_key: AgreementKey,
    seed: bytes,
    mask_key: bytes,
    random: RandomSource,
) -> tuple[bytes, dict[int, Secret]]:
    """Splits the two secrets of `dealer` and seals a share of each to every neighbour.

    Returns:
        The sealed texts, ascending by reader, 92 bytes each; and {neighbour: the key that opens
        what it seals to `dealer`}, after which `share_key` is not needed any more.

    Raises:
        BadAdvert: a neighbour's share key is of low order.
    """
    readers = cohort.neighbours(dealer)
    points = [cohort.points[reader] for reader in readers]
    seeds = split(seed, cohort.share_threshold, points, random)
    keys = split(mask_key, cohort.share_threshold, points, random)
    sealed: list[bytes] = []
    read_keys: dict[int, Secret] = {}
    for reader, seed_share, key_share in zip(readers, seeds, keys, strict=True):
        agreed = share_key.agree(cohort.adverts[reader].share_key, peer_id=reader)
        key = seal_key(agreed, cohort, dealer, reader)
        sealed.append(seal(key, seed_share + key_share, _bound(cohort, dealer, reader), random))
        read_keys[reader] = Secret(seal_key(agreed, cohort, reader, dealer))
    return b"".join(sealed), read_keys


def open_all(
    cohort: Cohort,
    reader: int,
    dealers: Sequence[int],
    *,
    sealed: bytes,
    read_keys: Mapping[int, Secret],
) -> dict[int, HeldShares]:
    """What opens of the texts sealed to `reader`, ascending by dealer.

    A text that does not open is left out: its dealer may still be honest, and enough other readers
    may hold its shares.
    """
    held: dict[int, HeldShares] = {}
    for place, dealer in enumerate(dealers):
        text = sealed[place * SEALED_BYTES : (place + 1) * SEALED_BYTES]
        try:
            held[dealer] = _open(text, read_keys[dealer].reveal(), cohort, dealer, reader)
        except BadSeal:
            continue
    return held


def seal_key(agreed: bytes, cohort: Cohort, dealer: int, reader: int) -> bytes:
    """The key for the one text that `dealer` seals to `reader`."""
    return derive_key(agreed, "share-key", cohort.digest, u32(dealer), u32(reader))


def _open(text: bytes, key: bytes, cohort: Cohort, dealer: int, reader: int) -> HeldShares:
    shares = unseal(key, text, _bound(cohort, dealer, reader))
    one, other = shares[:SHARE_BYTES], shares[SHARE_BYTES:]
    if not (is_element(one) and is_element(other)):
        raise BadSeal(f"client {dealer} sealed something other than two shares")
    return HeldShares(Secret(one), Secret(other))


def _bound(cohort: Cohort, dealer: int, reader: int) -> bytes:
    """The associated data: cohort, direction, and the point the shares belong to."""
    point = cohort.points[reader]
    return enc("share-aad", cohort.digest, u32(dealer), u32(reader), u16(point))
