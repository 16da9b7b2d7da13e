"""What was done to the data, as frozen values: the only thing a ledger stores about privacy.

An event never changes its meaning. Epsilon is not stored: it is recomputed from events, by any
accountant, at any later time. Whatever is unknown here is refused, never approximated by something
that looks close.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from privacy import _validate
from privacy.errors import UnsupportedEvent

JSONValue = str | int | float | bool | None

# What the accountants answer for in reasonable time. An event may lie outside, a ledger may not:
# whoever verifies one composes whatever it says. What is calibrated stays far inside.
SAMPLE_RATES: Final = (1e-12, 1.0)  # far below, dp-accounting fails
NOISE_MULTIPLIERS: Final = (0.2, 1e4)  # all that calibration searches; at 0.005 PLD takes minutes
MOST_STEPS: Final = 10**7  # PLD takes about a minute there, its time grows with the steps
MOST_DIVERGENCE: Final = 1e5  # PLD takes 5 s there; targets up to epsilon 300 stay below


class NeighbouringRelation(StrEnum):
    """Which two datasets the guarantee compares."""

    ADD_OR_REMOVE_ONE = "add_or_remove_one"
    REPLACE_ONE = "replace_one"


class PrivacyUnit(StrEnum):
    """What is added to, removed from or replaced in a dataset."""

    EXAMPLE = "example"
    CLIENT = "client"  # everything one client contributes to a round


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledGaussian:
    """`steps` Gaussian releases, each over a fresh secret Poisson sample.

    Each release is a sum of per-example vectors of L2 norm at most `C`, plus Gaussian noise of
    standard deviation `noise_multiplier * C`; each example is in each sample independently with
    probability `sample_rate`.

    Attributes:
        sample_rate: Poisson rate q, in (0, 1].
        noise_multiplier: Standard deviation of the noise in units of the clip norm, > 0.
        steps: Number of releases, >= 1.
        relation: Neighbouring relation of the claim.
        unit: Unit of privacy of the claim.

    Raises:
        ConfigurationError: A number is out of its range.
        UnsupportedEvent: The relation or the unit is unknown.
    """

    sample_rate: float
    noise_multiplier: float
    steps: int
    relation: NeighbouringRelation = NeighbouringRelation.ADD_OR_REMOVE_ONE
    unit: PrivacyUnit = PrivacyUnit.EXAMPLE

    def __post_init__(self) -> None:
        _validate.rate(sample_rate=self.sample_rate)
        _validate.positive(noise_multiplier=self.noise_multiplier)
        _validate.count(steps=self.steps)
        if not isinstance(self.relation, NeighbouringRelation):
            raise UnsupportedEvent(f"relation={self.relation!r}: not a known relation")
        if not isinstance(self.unit, PrivacyUnit):
            raise UnsupportedEvent(f"unit={self.unit!r}: not a known unit of privacy")


Event = SampledGaussian


def divergence(event: Event) -> float:
    """Rényi divergence of order 2 under add-or-remove-one: what an accountant's work grows with.

    The noise multiplier must be in `NOISE_MULTIPLIERS`; far below, the result is no float.

    Source: arXiv 1908.10530, section 3.3, at order 2.
    """
    one = event.sample_rate**2 * math.expm1(event.noise_multiplier**-2)
    return event.steps * math.log1p(one)


_KIND = "sampled_gaussian"
_FIELDS = frozenset({"kind", "sample_rate", "noise_multiplier", "steps", "relation", "unit"})


def event_to_record(event: Event) -> dict[str, JSONValue]:
    """The event as a flat JSON object.

    Raises:
        UnsupportedEvent: The value is not an event of this package.
    """
    if not isinstance(event, SampledGaussian):
        raise UnsupportedEvent(f"{type(event).__name__}: not an event this package accounts for")
    return {
        "kind": _KIND,
        "sample_rate": float(event.sample_rate),
        "noise_multiplier": float(event.noise_multiplier),
        "steps": event.steps,
        "relation": event.relation.value,
        "unit": event.unit.value,
    }


def event_from_record(record: Mapping[str, object]) -> Event:
    """The event that `event_to_record` wrote.

    Raises:
        UnsupportedEvent: Unknown kind, field, relation or unit, or a missing or mistyped field.
        ConfigurationError: A number is out of its range.
    """
    kind = record.get("kind")
    if kind != _KIND:
        raise UnsupportedEvent(f"event kind {kind!r}: not known to this version")
    if set(record) != _FIELDS:
        raise UnsupportedEvent(f"event {_KIND}: its fields must be exactly {sorted(_FIELDS)}")
    rate, multiplier, steps = record["sample_rate"], record["noise_multiplier"], record["steps"]
    if not isinstance(rate, float) or not isinstance(multiplier, float):
        raise UnsupportedEvent(f"event {_KIND}: sample_rate and noise_multiplier must be floats")
    if not isinstance(steps, int):
        raise UnsupportedEvent(f"event {_KIND}: steps must be an integer")
    try:
        relation = NeighbouringRelation(str(record["relation"]))
        unit = PrivacyUnit(str(record["unit"]))
    except ValueError as error:
        raise UnsupportedEvent(f"event {_KIND}: {error}") from None
    return SampledGaussian(
        sample_rate=rate, noise_multiplier=multiplier, steps=steps, relation=relation, unit=unit
    )


def as_replace_one(events: tuple[Event, ...]) -> tuple[Event, ...]:
    """The same mechanisms under replace-one, for the figure that is printed beside the claim."""
    return tuple(replace(event, relation=NeighbouringRelation.REPLACE_ONE) for event in events)
