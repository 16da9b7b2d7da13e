"""What spurious company does to scores and to maps, from arrays alone.

A class's *partners* are those that keep it company on some site; its *decoys* are as many other classes, which keep it
company nowhere. In test images company is by chance, so without bias partners and decoys differ in nothing.

Letters: ``n`` images, ``C`` classes, ``M`` patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmpt.data.partners import pairing

THRESHOLD: Final = 0.5
MATCHED_RATE: Final = 0.1  # of false alarms beside decoys

Table = NDArray[np.bool_]  # [C, C]


def company_tables(pairings: int, classes: int) -> tuple[Table, Table]:
    """Return who is whose partner and who is whose decoy, each bool ``[C, C]``, symmetric and disjoint.

    Raises:
        UsageError: there are too few pairings left to take decoys from.
    """
    partners, decoys = (np.zeros((classes, classes), dtype=np.bool_) for _ in range(2))
    for table, numbers in ((partners, range(pairings)), (decoys, range(pairings, 2 * pairings))):
        for number in numbers:
            table[np.arange(classes), pairing(number, classes)] = True
    return partners, decoys


@dataclass(frozen=True, kw_only=True, slots=True)
class FalseAlarms:
    """How often a class that is absent is reported, in percent, mean over classes.

    Attributes:
        beside_partner: in images with a partner of the class and none of its decoys, at a threshold of 0.5.
        beside_decoy: in images with a decoy and no partner.
        matched: beside a partner, at the threshold of each class at which 10% are reported beside a decoy; it asks how
            scores are ordered, whatever their scale.
        images: images with a partner and no decoy, summed over classes.
    """

    beside_partner: float
    beside_decoy: float
    matched: float
    images: int


def false_alarms(
    scores: NDArray[np.float32], labels: NDArray[np.int8], partners: Table, decoys: Table
) -> FalseAlarms:
    """Return the false alarms beside partners and beside decoys.

    Args:
        scores: float32 ``[n, C]`` in [0, 1].
        labels: int8 ``[n, C]``, 1 present, 0 absent.
        partners: bool ``[C, C]``.
        decoys: bool ``[C, C]``.

    Raises:
        ValueError: no class has images of both kinds.
    """
    present = labels == 1  # [n, C]
    with_partner = (present @ partners) > 0  # [n, C]: a partner of c is in the image
    with_decoy = (present @ decoys) > 0
    rates: list[tuple[float, float, float]] = []
    images = 0
    for column in range(labels.shape[1]):
        absent = labels[:, column] == 0
        beside_partner = scores[absent & with_partner[:, column] & ~with_decoy[:, column], column]
        beside_decoy = scores[absent & ~with_partner[:, column] & with_decoy[:, column], column]
        if not len(beside_partner) or not len(beside_decoy):
            continue
        threshold = np.quantile(beside_decoy, 1 - MATCHED_RATE, method="higher")
        rates.append(
            (
                float((beside_partner > THRESHOLD).mean()),
                float((beside_decoy > THRESHOLD).mean()),
                float((beside_partner > threshold).mean()),
            )
        )
        images += len(beside_partner)
    if not rates:
        raise ValueError("no class is absent both beside a partner and beside a decoy")
    partner, decoy, matched = (100 * np.mean(rates, axis=0)).tolist()
    return FalseAlarms(beside_partner=partner, beside_decoy=decoy, matched=matched, images=images)


def class_areas(
    owners: NDArray[np.uint8], labels: list[int], *, classes: int, grid: tuple[int, int]
) -> NDArray[np.float64]:
    """Return the share of each patch that shows each class, float64 ``[M, C]``.

    Args:
        owners: uint8 ``[side, side]``, 0 for background and i + 1 where object i shows.
        labels: class of each object, -1 for one of no class.
        classes: their number.
        grid: patches down and across, which divide the side.
    """
    down, across = grid
    shown = np.zeros((*owners.shape, classes), dtype=np.float64)
    for number, label in enumerate(labels, start=1):
        if label >= 0:
            shown[..., label] += owners == number
    height, width = owners.shape[0] // down, owners.shape[1] // across
    blocks = shown.reshape(down, height, across, width, classes)
    return blocks.mean(axis=(1, 3)).reshape(down * across, classes)


class MapLift:
    """How much brighter a class's map is on objects than chance would have it, over many images.

    For an image with a class and a partner (or decoy) of it: the share of the map's mass that lies on the own object,
    and on the other, each over the share of the image that the object covers. 1 means that the map does not see it.
    """

    def __init__(self, partners: Table, decoys: Table) -> None:
        self._tables = {"partner": partners, "decoy": decoys}
        self._mass = dict.fromkeys(("own", "partner", "decoy"), 0.0)
        self._area = dict.fromkeys(("own", "partner", "decoy"), 0.0)

    def add(self, column: int, values: NDArray[np.float32], areas: NDArray[np.float64]) -> None:
        """Add the map of one class in one image.

        Args:
            column: the class, present in the image.
            values: float ``[M]``, at least 0; a map without any mass is passed over.
            areas: float64 ``[M, C]`` of `class_areas`.
        """
        total = float(values.sum())
        shown = areas.mean(axis=0)  # [C], share of the image
        if total <= 0:
            return
        mass = values.astype(np.float64) @ areas / total  # [C]
        for name, table in self._tables.items():
            others = table[column] & (shown > 0)
            if others.any():
                self._mass[name] += float(mass[others].sum())
                self._area[name] += float(shown[others].sum())
                self._mass["own"] += float(mass[column])
                self._area["own"] += float(shown[column])

    def result(self) -> dict[str, float | None]:
        """Return the lift on own objects, on partners and on decoys; None where there was no such image."""
        return {
            name: self._mass[name] / self._area[name] if self._area[name] else None
            for name in self._mass
        }
