import pytest
from hypothesis import given
from hypothesis import strategies as st

from secagg.errors import CorruptState, PolicyViolation, StaleState
from secagg.marks import Mark, Marks

RUN, OTHER = b"a" * 16, b"b" * 16


@given(st.lists(st.tuples(st.sampled_from([RUN, OTHER]), st.integers(0, 50)), max_size=30))
def test_no_sequence_of_a_run_is_ever_begun_twice(attempts):
    marks, begun = Marks(), []
    for run, sequence in attempts:
        try:
            marks = marks.raised(run, sequence, max_rounds=100)
        except StaleState:
            continue
        begun.append((run, sequence))
    assert len(set(begun)) == len(begun)
    for run in (RUN, OTHER):
        sequences = [s for r, s in begun if r == run]
        assert sequences == sorted(sequences)
    assert Marks.from_bytes(marks.to_bytes()) == marks


def test_a_run_ends_after_its_most_rounds():
    marks = Marks().raised(RUN, 1, max_rounds=2).raised(RUN, 5, max_rounds=2)
    with pytest.raises(PolicyViolation):
        marks.raised(RUN, 6, max_rounds=2)
    assert marks.runs[RUN] == Mark(5, 2)


@pytest.mark.parametrize(
    "stored",
    [
        b"\x00",
        b"",
        Marks().to_bytes()[:-1],
        Marks().to_bytes() + b"\x00",
        Marks(version=2).to_bytes(),
        Marks(version=0).to_bytes(),
        Marks(runs={b"short": Mark(1, 1)}).to_bytes(),
        Marks(runs={RUN: Mark(-1, 1)}).to_bytes(),
    ],
)
def test_stored_bytes_that_are_not_marks_are_refused(stored):
    with pytest.raises(CorruptState):
        Marks.from_bytes(stored)


def test_the_stored_form_of_version_1_is_read_for_ever():
    stored = bytes.fromhex("9281c4106161616161616161616161616161616192070301")
    assert Marks.from_bytes(stored) == Marks(runs={RUN: Mark(7, 3)})
