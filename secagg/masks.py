"""Self masks and pair masks: what turns an upload into noise until the survivors are agreed.

`y_i = x_i + PRG(self_i) + sum over peers j of s(i, j) PRG(pair_ij)`, with `s = +1` if i > j and -1
otherwise, so that pair masks cancel in the sum over a set that holds both ends. The self mask keeps
an upload hidden when its pair masks become known, and the pair masks when its self mask does.

Source: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning",
CCS 2017, section 4 and figure 4.
"""

from __future__ import annotations

from secagg.digests import u8, u32
from secagg.keys import AgreementKey, derive_key
from secagg.prg import add_keystream
from secagg.ring import Lanes
from secagg.views import Cohort, Sharers


def self_mask_key(seed: bytes, view: bytes, client: int, lane: int) -> bytes:
    """The AES key of a client's self mask in one lane."""
    return derive_key(seed, "self-mask", view, u32(client), u8(lane))


def pair_mask_key(agreed: bytes, view: bytes, one: int, other: int, lane: int) -> bytes:
    """The AES key of the mask that two clients share in one lane, in either order of ids."""
    low, high = sorted((one, other))
    return derive_key(agreed, "pair-mask", view, u32(low), u32(high), u8(lane))


def mask_upload(
    lanes: Lanes,
    cohort: Cohort,
    sharers: Sharers,
    client: int,
    *,
    seed: bytes,
    mask_key: AgreementKey,
) -> None:
    """Adds all masks of `client` in place: its own, and one for every neighbour that dealt shares.

    A neighbour whose shares did not open here is masked for all the same: the others hold them.

    Raises:
        BadAdvert: a neighbour's mask key is of low order.
    """
    view = sharers.digest
    dealt = set(sharers.ids)
    add_self_mask(lanes, seed, view, client)
    for peer in cohort.neighbours(client):
        if peer in dealt:
            agreed = mask_key.agree(cohort.adverts[peer].mask_key, peer_id=peer)
            add_pair_mask(lanes, agreed, view, client, peer)


def add_self_mask(
    lanes: Lanes, seed: bytes, view: bytes, client: int, *, subtract: bool = False
) -> None:
    """Adds the self mask of `client` to all lanes in place, or takes it away."""
    for lane, words in lanes.items():
        add_keystream(words, self_mask_key(seed, view, client, lane), subtract=subtract)


def add_pair_mask(
    lanes: Lanes, agreed: bytes, view: bytes, owner: int, peer: int, *, subtract: bool = False
) -> None:
    """Adds the pair mask that `owner` puts on its own upload for `peer`, or takes it away."""
    negative = owner < peer
    for lane, words in lanes.items():
        key = pair_mask_key(agreed, view, owner, peer, lane)
        add_keystream(words, key, subtract=negative != subtract)
