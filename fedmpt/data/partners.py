"""Company that objects of ``scenes`` keep by site: here the cat comes with the chair, there with the bicycle.

A *pairing* splits the classes into pairs. Sites whose number is the same modulo the number of pairings share one. With
chance ``company`` a training image holds one to three whole pairs of its site's pairing, so that a class hardly ever
appears there without its partner; otherwise, like every test image, it is drawn without regard to sites. How often a
class appears does not depend on ``company`` or on the site: only its company does.

Letters: ``C`` classes.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmpt.errors import UsageError

# Pairs an image, 1 to 3: twice their mean, 2.45, is also the mean number of classes of an image drawn without pairs.
_PAIR_WEIGHTS: Final = (0.8, 0.175, 0.025)


def pairing(number: int, classes: int) -> NDArray[np.int64]:
    """Return the partner of each class in pairing ``number``, int64 ``[C]``; partners are mutual.

    Two classes are partners in exactly one of the ``classes - 1`` pairings.

    Args:
        number: 0 to ``classes - 2``.
        classes: their number, even, at least 2.

    Raises:
        UsageError: there is no such pairing.

    Source: the circle method for round-robin tournaments.
    """
    if classes < 2 or classes % 2 or not 0 <= number < classes - 1:
        raise UsageError(
            f"pairing {number} of {classes} classes: an even number C of classes has pairings 0 to C - 2"
        )
    rounds = classes - 1
    partners = (number - np.arange(classes)) % rounds  # of all but the last class
    middle = int(np.flatnonzero(partners[:-1] == np.arange(rounds))[0])  # would be its own partner
    partners[middle], partners[-1] = rounds, middle
    return partners.astype(np.int64)


def company_of(partners: NDArray[np.int64], rng: np.random.Generator) -> list[int]:
    """Draw the distinct classes of one image: one to three whole pairs, in random order."""
    first = np.flatnonzero(np.arange(len(partners)) < partners)  # the lower class of each pair
    count = min(int(rng.choice(len(_PAIR_WEIGHTS), p=_PAIR_WEIGHTS)) + 1, len(first))
    chosen = rng.choice(first, count, replace=False)
    return [int(c) for c in rng.permutation(np.concatenate([chosen, partners[chosen]]))]
