import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from secagg import CountSegment, FixedSegment, Layout, Update
from secagg.errors import NoiseOutOfRange, NonFiniteInput, WrongLayout
from secagg.fixedpoint import dequantise, encode_update, quantise

CASE = json.loads((Path(__file__).parent / "vectors/known_answers.json").read_text())["quantise"]
LAYOUT = Layout(
    (
        FixedSegment(name="x", length=3, clip=2.0, bits=10, noise_bound=4),
        CountSegment(name="n", bound=7),
    )
)


def encode(values, *, noise=None, layout=LAYOUT, key=None):
    update = Update(values=values, noise=noise or {}, rounding_key=key)
    return encode_update(update, layout, os.urandom)


def good(**changes):
    return {"x": np.zeros(3, np.float32), "n": np.array([1]), **changes}


def test_quantising_equals_the_known_answers():
    segment = FixedSegment(name="x", length=5, clip=CASE["clip"], bits=CASE["bits"])
    uniform = np.array([int(word, 16) for word in CASE["uniform"]], np.uint32)
    result = quantise(np.array(CASE["values"], np.float64), uniform, segment)
    assert result.grid.tolist() == CASE["grid"]
    assert (result.below, result.above) == (CASE["below"], CASE["above"])


@given(
    hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e6, 1e6)),
    st.integers(2, 32),
    st.floats(1e-6, 1e6),
    st.integers(0, 2**32 - 1),
)
def test_a_grid_value_is_less_than_one_step_from_the_clipped_value(values, bits, clip, word):
    segment = FixedSegment(name="x", length=values.size, clip=clip, bits=bits)
    result = quantise(values, np.full(values.size, word, np.uint32), segment)
    exact = np.clip(values, -clip, clip) * segment.grid_max / clip
    assert np.all(np.abs(result.grid - exact) < 1 + 1e-6)
    assert np.abs(result.grid).max() <= segment.grid_max
    assert result.below == np.count_nonzero(values < -clip)
    assert result.above == np.count_nonzero(values > clip)


@pytest.mark.parametrize("value", [0.0, 0.1, -0.1, 0.5, -0.73, 1.0, -1.0, 1e-9, -1e-9])
def test_rounding_is_unbiased_over_all_equally_spaced_random_words(value):
    """The mean over a regular grid of words is the probability itself, to within its spacing."""
    segment = FixedSegment(name="x", length=1 << 12, clip=1.0, bits=8)
    words = (np.arange(1 << 12, dtype=np.uint64) << np.uint64(20)).astype(np.uint32)
    result = quantise(np.full(words.size, value), words, segment)
    assert abs(result.grid.mean() - value * segment.grid_max) <= 2**-12


def test_rounding_is_unbiased_with_the_real_stream():
    layout = Layout((FixedSegment(name="x", length=100_000, clip=1.0, bits=8),))
    grid = encode({"x": np.full(100_000, 0.3)}, layout=layout, key=b"k" * 32)["x"]
    deviation = 0.5 / np.sqrt(100_000)
    assert abs(grid.mean() - 0.3 * 127) < 5 * deviation


def test_a_value_at_the_clip_is_exact_and_not_counted():
    segment = FixedSegment(name="x", length=2, clip=0.1, bits=20)
    result = quantise(np.array([0.1, -0.1]), np.array([0, 2**32 - 1], np.uint32), segment)
    assert result.grid.tolist() == [segment.grid_max, -segment.grid_max]
    assert (result.below, result.above) == (0, 0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_without_repeating_it(value):
    with pytest.raises(NonFiniteInput, match="'x'"):
        encode(good(x=np.array([0.0, value, 0.0])))


def test_grid_integers_pass_unchanged_and_one_outside_the_grid_is_refused():
    assert encode(good(x=np.array([511, -511, 0])))["x"].tolist() == [511, -511, 0]
    with pytest.raises(WrongLayout, match="'x'"):
        encode(good(x=np.array([512, 0, 0])))


def test_integer_noise_is_added_on_the_grid():
    noise = np.array([4, -4, 0])
    encoded = encode(good(x=np.array([511, -511, 3])), noise={"x": noise})
    assert encoded["x"].tolist() == [515, -515, 3]


@pytest.mark.parametrize("noise", [np.array([5, 0, 0]), np.array([0, -5, 0])])
def test_noise_above_its_public_bound_is_refused(noise):
    with pytest.raises(NoiseOutOfRange, match="'x'"):
        encode(good(), noise={"x": noise})


def test_clip_counters_travel_inside_the_sum():
    assert encode(good(x=np.array([-3.0, 2.5, 9.0])))["x/clips"].tolist() == [1, 2]


@pytest.mark.parametrize(
    "values",
    [
        {"x": np.zeros(3)},
        good(y=np.zeros(3)),
        good(x=np.zeros(4)),
        good(x=np.zeros((3, 1))),
        good(n=np.array([8])),
        good(n=np.array([-1])),
        good(n=np.array([0.5])),
        good(x=np.array(["a", "b", "c"])),
    ],
)
def test_an_update_of_another_layout_is_refused(values):
    with pytest.raises(WrongLayout):
        encode(values)


@pytest.mark.parametrize(
    "noise", [{"n": np.array([1])}, {"x": np.zeros(2, np.int64)}, {"x": np.zeros(3)}]
)
def test_noise_of_another_layout_is_refused(noise):
    with pytest.raises(WrongLayout):
        encode(good(), noise=noise)


def test_rounding_differs_between_two_encodings_unless_a_test_fixes_it():
    layout = Layout((FixedSegment(name="x", length=200, clip=1.0, bits=8),))
    values = {"x": np.full(200, 0.3)}
    assert (
        encode(values, layout=layout)["x"].tolist() != encode(values, layout=layout)["x"].tolist()
    )
    fixed = [encode(values, layout=layout, key=b"k" * 32)["x"].tolist() for _ in range(2)]
    assert fixed[0] == fixed[1]


def test_decoding_returns_the_units_of_the_clip():
    segment = FixedSegment(name="x", length=2, clip=2.0, bits=10)
    assert dequantise(np.array([511, -1022]), segment).tolist() == [2.0, -4.0]
