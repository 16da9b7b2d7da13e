import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secagg import CountSegment, FixedSegment, Layout, errors
from secagg.errors import SumOutOfRange
from secagg.ring import RingPlan, pack, packed_bytes, unpack

VECTORS = Path(__file__).parent / "vectors"
KNOWN = json.loads((VECTORS / "known_answers.json").read_text())
BAD = json.loads((VECTORS / "bad_inputs.json").read_text())

LAYOUT = Layout(
    (
        FixedSegment(name="small", length=7, clip=1.0, bits=8),
        CountSegment(name="large", bound=2**50, length=3),
        FixedSegment(name="wide", length=2, clip=1.0, noise_bound=2**55, count_clips=False),
        CountSegment(name="bit", bound=1),
    )
)


def pack_bit_by_bit(values: list[int], width: int) -> bytes:
    """An oracle that follows the definition: bit j of value v at bit v * width + j."""
    bits = sum(value << (place * width) for place, value in enumerate(values))
    return bits.to_bytes(packed_bytes(len(values), width), "little")


@pytest.mark.parametrize("case", KNOWN["pack"])
def test_packing_equals_the_known_answers(case):
    words = np.array(case["values"], np.uint32)
    assert pack(words, case["bits"]).hex() == case["packed"]
    packed = bytes.fromhex(case["packed"])
    assert unpack(packed, case["bits"], words.size).tolist() == case["values"]


@given(st.data(), st.integers(1, 64), st.integers(1, 200))
def test_packing_follows_the_definition_and_unpacking_reverses_it(data, width, length):
    values = data.draw(st.lists(st.integers(0, 2**width - 1), min_size=length, max_size=length))
    words = np.array(values, np.uint32 if width <= 32 else np.uint64)
    packed = pack(words, width)
    assert packed == pack_bit_by_bit(values, width)
    assert unpack(packed, width, length).tolist() == values


@given(st.integers(1, 31), st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40))
def test_packing_keeps_the_low_bits_only(width, values):
    packed = pack(np.array(values, np.uint32), width)
    assert unpack(packed, width, len(values)).tolist() == [v % 2**width for v in values]


@pytest.mark.parametrize("width", [3, 8, 24, 25, 26, 29, 32, 57, 61, 64])
def test_packing_of_long_vectors_follows_the_definition(width):
    """Longer than what is packed at a time; the oracle spreads every bit to a byte."""
    length = 2**17 + 77
    words = np.random.default_rng(width).integers(0, 2**64, length, np.uint64, endpoint=False)
    words = words.astype(np.uint32) if width <= 32 else words
    bits = (words[:, None] >> np.arange(width, dtype=words.dtype)) & words.dtype.type(1)
    packed = pack(words, width)
    assert packed == np.packbits(bits.astype(np.uint8), bitorder="little").tobytes()
    assert np.array_equal(unpack(packed, width, length), words & np.uint64(2**width - 1))


def extremes(plan: RingPlan, signs: list[int]) -> list[dict[str, np.ndarray]]:
    """For each client the largest values it may honestly contribute, of the given sign."""
    return [
        {
            slot.segment.name: np.full(
                slot.segment.length,
                slot.segment.bound * (sign if isinstance(slot.segment, FixedSegment) else 1),
                np.int64,
            )
            for slot in plan.slots
        }
        for sign in signs
    ]


@given(st.lists(st.sampled_from([-1, 1]), min_size=1, max_size=9))
def test_the_ring_sum_of_extreme_inputs_is_the_integer_sum(signs):
    plan = RingPlan.of(LAYOUT, 9)
    inputs, lanes = extremes(plan, signs), plan.zeros()
    for values in inputs:
        body = plan.pack(plan.to_lanes(values))
        plan.check_body(body)
        plan.add_body(lanes, body)
    for name, sums in plan.decode(lanes, len(signs)).items():
        assert sums.tolist() == np.sum([values[name] for values in inputs], axis=0).tolist()


def test_lanes_and_offsets_leave_no_gap_and_no_overlap():
    plan = RingPlan.of(LAYOUT, 9)
    assert {slot.segment.name: slot.lane for slot in plan.slots} == {
        "small": 32,
        "large": 64,
        "wide": 64,
        "bit": 32,
        "small/clips": 32,
    }
    assert plan.lane_lengths == {32: 7 + 1 + 2, 64: 3 + 2}
    starts = [slot.byte_start for slot in plan.slots] + [plan.body_bytes]
    assert starts == [0] + [slot.byte_stop for slot in plan.slots]


@pytest.mark.parametrize("case", BAD["bad_packed"], ids=lambda case: case["why"])
def test_bad_bodies_are_refused(case):
    bound = 2 ** case["bits"] - 1
    layout = Layout((CountSegment(name="x", bound=bound, length=case["length"]),))
    with pytest.raises(getattr(errors, case["error"])):
        RingPlan.of(layout, 1).check_body(bytes.fromhex(case["packed"]))


@pytest.mark.parametrize(("name", "value"), [("small", 3 * 127 + 1), ("small", -3 * 127 - 1)])
def test_a_sum_that_honest_clients_cannot_produce_is_refused(name, value):
    plan = RingPlan.of(LAYOUT, 9)
    values = extremes(plan, [1])[0]
    values[name] = np.full(7, value, np.int64)
    lanes = plan.to_lanes(values)
    with pytest.raises(SumOutOfRange, match=name):
        plan.decode(lanes, 3)
    plan.decode(lanes, 4)


def test_a_count_above_its_bound_is_refused():
    plan = RingPlan.of(Layout((CountSegment(name="n", bound=5),)), 9)
    lanes = plan.to_lanes({"n": np.array([16], np.int64)})
    with pytest.raises(SumOutOfRange):
        plan.decode(lanes, 3)
