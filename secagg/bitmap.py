"""Sets of clients as bitmaps over an order that everybody knows."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from secagg.errors import Malformed, NonCanonical, UnknownIdentity


def bitmap_bytes(size: int) -> int:
    """Bytes of a bitmap over `size` places."""
    return (size + 7) // 8


def to_bitmap(order: Sequence[int], chosen: Collection[int]) -> bytes:
    """Bit `k` (least significant first) says whether `order[k]` is in `chosen`.

    Raises:
        UnknownIdentity: `chosen` holds an id that is not in `order`.
    """
    unknown = sorted(set(chosen) - set(order))
    if unknown:
        raise UnknownIdentity(f"client {unknown[0]} has no place in the bitmap")
    members = set(chosen)
    bits = sum(1 << place for place, client in enumerate(order) if client in members)
    return bits.to_bytes(bitmap_bytes(len(order)), "little")


def from_bitmap(order: Sequence[int], bitmap: bytes) -> tuple[int, ...]:
    """The chosen ids, in the order given.

    Raises:
        Malformed: of the wrong length.
        NonCanonical: a bit beyond the last place is set.
    """
    if len(bitmap) != bitmap_bytes(len(order)):
        raise Malformed(f"bitmap of {len(bitmap)} bytes: {bitmap_bytes(len(order))} expected")
    bits = int.from_bytes(bitmap, "little")
    if bits >> len(order):
        raise NonCanonical("bits beyond the end of a bitmap are set")
    return tuple(client for place, client in enumerate(order) if bits >> place & 1)
