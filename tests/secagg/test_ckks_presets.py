import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import CountSegment, FixedSegment, Layout
from secagg.ckks_presets import PRESETS, SharedKey, SlotPlan, preset_for, preset_named, preset_of
from secagg.errors import ConfigurationError, Malformed, NonCanonical, SumOutOfRange

LAYOUT = Layout(
    (
        FixedSegment(name="coarse", length=5, clip=1.0, bits=20),
        FixedSegment(name="fine", length=4, clip=1.0, bits=24, noise_bound=10**6),
        CountSegment(name="count", bound=2**40, length=2),
        CountSegment(name="huge", bound=2**57),
    )
)


@pytest.mark.parametrize(("name", "most"), [("compact", 31), ("wide", 8191), ("wide44", 511)])
def test_capacity_is_the_largest_sum_strictly_below_half_the_first_prime(name, most):
    preset = PRESETS[name]
    assert preset.largest_cohort == most
    half = 2 ** (preset.moduli[0] - 1)
    assert most * 2**preset.scale_bits < half <= (most + 1) * 2**preset.scale_bits


def test_the_smallest_preset_that_fits_is_chosen():
    assert [preset_for(n).name for n in (3, 31, 32, 8191)] == ["compact"] * 2 + ["wide"] * 2
    with pytest.raises(ConfigurationError, match="8191"):
        preset_for(8192)


def test_unknown_presets_and_malformed_keys_are_refused():
    with pytest.raises(ConfigurationError, match="compact"):
        preset_named("huge")
    with pytest.raises(ConfigurationError):
        preset_of(99)
    with pytest.raises(ConfigurationError):
        SharedKey(1, b"short")


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(list(PRESETS)), st.integers(1, 4), st.data())
def test_sums_of_slots_are_the_sums_of_the_integers_whatever_the_bounds(name, clients, data):
    """Counts of 57 bits travel as digits; no slot of one client exceeds the grid."""
    preset = PRESETS[name]
    plan = SlotPlan.of(LAYOUT, preset)
    total = np.zeros((plan.blobs, preset.slots), np.int64)
    expected = {}
    for _ in range(clients):
        values = {}
        for segment in LAYOUT.wire_segments:
            low = -segment.bound if isinstance(segment, FixedSegment) else 0
            extremes = st.sampled_from([low, segment.bound, 0, 1])
            drawn = data.draw(
                st.lists(
                    extremes | st.integers(low, segment.bound),
                    min_size=segment.length,
                    max_size=segment.length,
                )
            )
            values[segment.name] = np.array(drawn, np.int64)
            expected[segment.name] = expected.get(segment.name, 0) + values[segment.name]
        slots = plan.to_slots(values)
        assert np.abs(slots).max() <= preset.grid
        total += slots
    decoded = plan.from_slots(total, clients)
    assert decoded.keys() == expected.keys()
    for segment, sums in expected.items():
        assert decoded[segment].dtype == np.int64
        assert np.array_equal(decoded[segment], sums)


def test_values_of_twenty_bits_take_one_slot_each():
    layout = Layout((FixedSegment(name="x", length=800_000, clip=1.0, count_clips=False),))
    plan = SlotPlan.of(layout, PRESETS["compact"])
    assert plan.blobs == 196
    assert plan.body_bytes <= 18_500_000


@pytest.mark.parametrize("place", ["slot", "segment", "tail"])
def test_sums_that_honest_clients_cannot_reach_are_refused(place):
    plan = SlotPlan.of(LAYOUT, PRESETS["compact"])
    sums = np.zeros((plan.blobs, plan.preset.slots), np.int64)
    if place == "slot":
        sums[0, 0] = 3 * plan.preset.grid + 1
    elif place == "segment":  # within the slot's reach, beyond the segment's bound
        sums[0, 0] = 3 * plan.preset.grid
    else:
        sums[-1, -1] = 1
    with pytest.raises(SumOutOfRange):
        plan.from_slots(sums, 3)


class TestFrame:
    plan = SlotPlan.of(Layout((FixedSegment(name="x", length=9000, clip=1.0),)), PRESETS["compact"])

    def blobs(self, *changes):
        return [bytes([7]) * (self.plan.preset.blob_bytes + change) for change in changes]

    def test_blobs_of_any_honest_size_make_frames_of_one_size(self):
        for changes in ((0, 0, 0), (-300, 40, 5), (300, 300, 300)):
            blobs = self.blobs(*changes)
            body = self.plan.frame(blobs)
            assert len(body) == self.plan.body_bytes
            assert self.plan.unframe(body) == blobs

    def test_blobs_that_do_not_fit_make_no_frame(self):
        assert self.plan.frame(self.blobs(400, 400, 400)) is None

    @pytest.mark.parametrize(
        ("edit", "error"),
        [
            (lambda body: body[:-1], Malformed),
            (lambda body: body + b"\0", Malformed),
            (lambda body: body[:-1] + b"\1", NonCanonical),
            (lambda body: b"\0\0\0\0" + body[4:], Malformed),
            (lambda body: b"\xff\xff\xff\xff" + body[4:], Malformed),
            (lambda body: (94_374 + 1024).to_bytes(4, "little") * 3 + body[12:], Malformed),
        ],
    )
    def test_other_frames_are_refused(self, edit, error):
        body = self.plan.frame(self.blobs(0, 0, 0))
        with pytest.raises(error):
            self.plan.unframe(edit(body))
