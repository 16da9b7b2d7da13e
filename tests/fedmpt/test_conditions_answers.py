"""Answers are read in every form that models give them, and nothing in them is passed over in silence."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpt.conditions.answers import read_answer
from fedmpt.conditions.prompts import CONDITIONS

ONE = (CONDITIONS,)


@pytest.mark.parametrize(
    "text",
    [
        '["background", "Shape", "object pose"]',
        'Here you are:\n```json\n["background", "shape", "object pose"]\n```\nGood luck!',
        '{"conditions": ["background", "shape", "object pose"]}',
        "1. **Background**: where it is\n2. Shape\n3) Object pose - how it stands",
        "The conditions are\n- background\n* shape.\n\u2022 \u201cobject  pose\u201d",
        'I thought of [many] things: ["background", "shape", "object pose"]',
    ],
)
def test_one_list_is_found_in_every_usual_form(text: str) -> None:
    reading = read_answer("conditions", ONE, text)
    assert reading.items == {CONDITIONS: ("background", "shape", "object pose")}


@pytest.mark.parametrize(
    "text", ["", "I am sorry, I cannot do that.", "[]", "{}", "[[[[", "[" * 100_000, '"shape"']
)
def test_an_answer_without_a_list_is_malformed_and_said_to_be(text: str) -> None:
    reading = read_answer("conditions", ONE, text)
    assert not reading.items
    assert reading.refused == ("conditions: no list in the answer",)


def test_what_cannot_be_used_is_named_with_its_reason() -> None:
    text = json.dumps(
        ["shape", 7, "Shape", "a very long winded condition", "", "x" * 41, "a\u0000b"]
    )
    reading = read_answer("conditions", ONE, text)
    assert reading.items == {CONDITIONS: ("shape",)}
    assert len(reading.refused) == 6
    assert "7 is no condition" in reading.refused[0]
    assert "given twice" in reading.refused[1]


def test_descriptors_are_taken_by_class_whatever_the_case_of_its_name() -> None:
    text = 'Sure! {"Cat": ["pointed ears", "whiskers"], "dog": "a tail", "bus": ["wheels"]}'
    reading = read_answer("descriptors", ("cat", "dog", "cow"), text)
    assert reading.items == {"cat": ("pointed ears", "whiskers")}
    assert set(reading.refused) == {
        'dog: "a tail" is no list',
        '"bus" is none of the classes asked about',
        "dog: no list in the answer",
        "cow: no list in the answer",
    }


def test_descriptors_keep_their_capitals_and_conditions_do_not() -> None:
    assert read_answer("descriptors", ("bus",), '{"bus": ["a TV screen"]}').items == {
        "bus": ("a TV screen",)
    }
    assert read_answer("conditions", ONE, '["TV"]').items == {CONDITIONS: ("tv",)}


@settings(deadline=None, max_examples=40)
@given(
    st.text(max_size=200)
    | st.lists(st.text(max_size=60) | st.integers(), max_size=9).map(json.dumps)
)
def test_any_text_is_read_to_words_that_can_stand_in_a_prompt(text: str) -> None:
    reading = read_answer("conditions", ONE, text)
    words = reading.items.get(CONDITIONS, ())
    assert len(set(words)) == len(words)
    assert words or reading.refused
    for word in words:
        assert word == word.casefold()
        assert word.isprintable()
        assert 1 <= len(word.split()) <= 4
        again = read_answer("conditions", ONE, json.dumps([word]))
        assert again.items == {CONDITIONS: (word,)}


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text(max_size=40) | st.none(), min_size=1, max_size=9))
def test_every_item_of_a_list_is_used_or_refused(items: list[str | None]) -> None:
    reading = read_answer("conditions", ONE, json.dumps(items))
    assert len(reading.items.get(CONDITIONS, ())) + len(reading.refused) == len(items)
