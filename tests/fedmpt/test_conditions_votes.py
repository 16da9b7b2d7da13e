"""The most frequent words win, whatever the order in which calls came."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpt.conditions.votes import count_votes

WORDS = st.sampled_from(["action", "background", "color", "position", "shape"])
CALLS = st.lists(st.lists(WORDS, unique=True, min_size=1), min_size=1, max_size=6)


def test_frequency_decides_then_the_mean_place_then_the_alphabet() -> None:
    votes = count_votes(
        [["shape", "color", "pose"], ["color", "shape"], ["light", "shape"], ["angle", "color"]]
    )
    assert [(vote.text, vote.calls, vote.place) for vote in votes] == [
        ("color", 3, 1.667),  # as often as shape and on the mean as early, 5/3: the alphabet
        ("shape", 3, 1.667),
        ("angle", 1, 1.0),
        ("light", 1, 1.0),
        ("pose", 1, 3.0),
    ]


@settings(deadline=None, max_examples=40)
@given(CALLS, st.randoms())
def test_the_order_of_calls_does_not_matter(calls: list[list[str]], random: object) -> None:
    shuffled = list(calls)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert count_votes(calls) == count_votes(shuffled)


@settings(deadline=None, max_examples=40)
@given(CALLS)
def test_every_word_is_counted_once_a_call_and_none_is_lost(calls: list[list[str]]) -> None:
    votes = count_votes(calls)
    assert {vote.text: vote.calls for vote in votes} == Counter(w for call in calls for w in call)
    assert [vote.calls for vote in votes] == sorted((v.calls for v in votes), reverse=True)
