from dataclasses import FrozenInstanceError, dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy import ConfigurationError, NeighbouringRelation, SampledGaussian, UnsupportedEvent
from privacy.events import as_replace_one, event_from_record, event_to_record

EVENTS = st.builds(
    SampledGaussian,
    sample_rate=st.floats(1e-9, 1.0),
    noise_multiplier=st.floats(1e-3, 1e3),
    steps=st.integers(1, 10**6),
    relation=st.sampled_from(NeighbouringRelation),
)


@given(EVENTS)
def test_an_event_survives_its_record(event: SampledGaussian) -> None:
    assert event_from_record(event_to_record(event)) == event


@pytest.mark.parametrize(
    "changes",
    [
        {"sample_rate": 0.0},
        {"sample_rate": 1.01},
        {"sample_rate": float("nan")},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": float("inf")},
        {"steps": 0},
        {"steps": True},
    ],
)
def test_a_number_out_of_range_is_refused(changes: dict[str, float]) -> None:
    values = {"sample_rate": 0.1, "noise_multiplier": 1.0, "steps": 1, **changes}
    with pytest.raises(ConfigurationError):
        SampledGaussian(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "shuffled_gaussian"},
        {"kind": None},
        {"relation": "zero_out_one"},
        {"unit": "household"},
        {"steps": "8"},
        {"sample_rate": 1},
        {"extra": 1},
    ],
)
def test_an_unknown_event_is_refused_not_approximated(changes: dict[str, object]) -> None:
    event = SampledGaussian(sample_rate=0.1, noise_multiplier=1.0, steps=1)
    with pytest.raises(UnsupportedEvent):
        event_from_record({**event_to_record(event), **changes})


def test_a_value_that_is_no_event_has_no_record() -> None:
    @dataclass
    class Shuffled:
        sample_rate: float = 0.1

    with pytest.raises(UnsupportedEvent):
        event_to_record(Shuffled())  # type: ignore[arg-type]


def test_an_event_cannot_be_changed() -> None:
    event = SampledGaussian(sample_rate=0.1, noise_multiplier=1.0, steps=1)
    with pytest.raises(FrozenInstanceError):
        event.noise_multiplier = 9.0  # type: ignore[misc]


def test_replace_one_keeps_the_mechanism_and_changes_the_relation() -> None:
    event = SampledGaussian(sample_rate=0.1, noise_multiplier=1.0, steps=1)
    (other,) = as_replace_one((event,))
    assert other.relation is NeighbouringRelation.REPLACE_ONE
    assert (other.sample_rate, other.noise_multiplier, other.steps) == (0.1, 1.0, 1)
