"""From what several calls said to one list: the most frequent words, in an order that depends on nothing else.

A word counts once a call. More calls come first; of equal ones the word that calls named earlier, on the mean; of equal
ones the first in the alphabet.

Source: FedMPT, arXiv 2605.28347, appendix D ("five independent API calls ... the most frequent conditions"); the order
of ties is this implementation's.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import msgspec


class Vote(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often a word was named.

    Attributes:
        text: the word or phrase.
        calls: in how many calls.
        place: its mean place in the lists of those calls, from 1, rounded to thousandths for reading.
    """

    text: str
    calls: int
    place: float


def count_votes(lists: Sequence[Sequence[str]]) -> list[Vote]:
    """Return every word of the lists of several calls, the most frequent first; no list names a word twice."""
    places: dict[str, list[int]] = {}
    for words in lists:
        for place, word in enumerate(words, start=1):
            places.setdefault(word, []).append(place)

    def order(word: str) -> tuple[int, Fraction, str]:
        found = places[word]
        return -len(found), Fraction(sum(found), len(found)), word

    return [
        Vote(
            text=word,
            calls=len(places[word]),
            place=round(sum(places[word]) / len(places[word]), 3),
        )
        for word in sorted(places, key=order)
    ]
