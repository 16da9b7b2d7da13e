import pytest

from secagg import CountSegment, FixedSegment, Layout
from secagg.errors import ConfigurationError, RingTooSmall, WrongLayout
from secagg.layout import width_of

PUBLISHED_WIDTHS = {5: 23, 8: 23, 9: 24, 16: 24, 17: 25, 32: 25, 100: 27, 500: 29}


@pytest.mark.parametrize(("invited", "width"), PUBLISHED_WIDTHS.items())
def test_twenty_bit_values_need_the_published_ring_widths(invited, width):
    assert width_of(FixedSegment(name="x", length=1, clip=1.0, bits=20), invited) == width


def test_every_possible_sum_has_its_own_residue():
    for invited in range(1, 70):
        for bits in range(2, 12):
            for noise in (0, 1, 5, 100):
                segment = FixedSegment(name="x", length=1, clip=1.0, bits=bits, noise_bound=noise)
                largest, half = invited * segment.bound, 1 << (width_of(segment, invited) - 1)
                assert -half <= -largest
                assert largest < half
        for bound in (1, 2, 3, 7, 8, 1000):
            segment = CountSegment(name="x", bound=bound)
            assert invited * bound < 1 << width_of(segment, invited)


@pytest.mark.parametrize(
    ("segment", "invited"),
    [
        (CountSegment(name="x", bound=2**62), 3),
        (FixedSegment(name="x", length=1, clip=1.0, noise_bound=2**62), 2),
    ],
)
def test_a_sum_that_cannot_fit_is_refused_before_it_is_made(segment, invited):
    with pytest.raises(RingTooSmall, match="'x'"):
        width_of(segment, invited)


def test_clip_counters_follow_the_declared_segments_with_a_public_bound():
    layout = Layout(
        (
            FixedSegment(name="a", length=9, clip=1.0),
            FixedSegment(name="b", length=4, clip=1.0, noise_bound=3, count_clips=False),
            CountSegment(name="n", bound=5),
        )
    )
    names = [segment.name for segment in layout.wire_segments]
    assert names == ["a", "b", "n", "a/clips"]
    assert (layout.wire_segments[-1].bound, layout.wire_segments[-1].length) == (9, 2)
    assert layout.size == 9 + 4 + 1 + 2


def test_counters_beside_integer_noise_are_marked_sensitive():
    layout = Layout((FixedSegment(name="a", length=9, clip=1.0, noise_bound=3),))
    assert layout.wire_segments[-1].sensitivity == "sensitive"


@pytest.mark.parametrize(
    "change",
    [
        {"name": "b"},
        {"length": 4},
        {"clip": 1.5},
        {"bits": 21},
        {"noise_bound": 1},
        {"sensitivity": "public"},
        {"count_clips": False},
    ],
)
def test_every_field_of_a_segment_changes_the_canonical_bytes(change):
    base = {"name": "a", "length": 3, "clip": 1.0}
    one = Layout((FixedSegment(**base),))
    other = Layout((FixedSegment(**{**base, **change}),))
    assert one.canonical() != other.canonical()
    assert one != other


@pytest.mark.parametrize(
    "make",
    [
        lambda: FixedSegment(name="", length=1, clip=1.0),
        lambda: FixedSegment(name="x", length=0, clip=1.0),
        lambda: FixedSegment(name="x", length=1, clip=0.0),
        lambda: FixedSegment(name="x", length=1, clip=float("nan")),
        lambda: FixedSegment(name="x", length=1, clip=float("inf")),
        lambda: FixedSegment(name="x", length=1, clip=1.0, bits=1),
        lambda: FixedSegment(name="x", length=1, clip=1.0, bits=33),
        lambda: FixedSegment(name="x", length=1, clip=1.0, noise_bound=-1),
        lambda: FixedSegment(name="x", length=1, clip=1.0, sensitivity="secret"),
        lambda: CountSegment(name="x", bound=0),
        lambda: CountSegment(name="x", bound=2**63),
        lambda: Layout(()),
        lambda: Layout((CountSegment(name="x", bound=1), CountSegment(name="x", bound=2))),
        lambda: Layout((CountSegment(name="x/clips", bound=1),)),
    ],
)
def test_impossible_segments_are_refused(make):
    with pytest.raises(ConfigurationError):
        make()


def test_an_unknown_segment_or_one_of_the_other_kind_is_named():
    layout = Layout((CountSegment(name="n", bound=5),))
    with pytest.raises(WrongLayout, match="'m'"):
        layout["m"]
    with pytest.raises(WrongLayout, match="'n'"):
        layout.fixed("n")
