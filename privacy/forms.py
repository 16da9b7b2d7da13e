"""What a record of a ledger may hold: every field of every kind, its type and its range.

Anybody can build a valid hash chain over records of their own making, so nothing may be read from a
record that is not in this table. Whoever adds a field or a kind changes the format, and its name.
"""

import math
import re
import reprlib
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from privacy.errors import LedgerConflict
from privacy.events import (
    MOST_STEPS,
    NOISE_MULTIPLIERS,
    SAMPLE_RATES,
    NeighbouringRelation,
    PrivacyUnit,
)
from privacy.plan import Arithmetic, ClipMode, DPSpace, NoiseMode

FORMAT = "privacy-ledger/1"
_LEAST_DELTA = 1e-12  # dp-accounting cuts tails of 1e-15 off, once a mechanism
_MOST_COUNT = 1 << 53  # a float holds it exactly


@dataclass(frozen=True, slots=True)
class _Field:
    """One field of a record: what it must be, in words and as a test."""

    expected: str
    holds: Callable[[Any], bool]


_Form: TypeAlias = "Mapping[str, _Field | _Form]"  # fields by name; all must be there, and no other


def _number(expected: str, holds: Callable[[float], bool]) -> _Field:
    """A float that passes a test; an integer would have another canonical form."""
    return _Field(expected, lambda v: isinstance(v, float) and math.isfinite(v) and holds(v))


def _integer(least: int, most: int = _MOST_COUNT) -> _Field:
    def holds(value: object) -> bool:
        return (
            isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        )  # JSON's true is an int of Python's

    return _Field(f"an integer from {least} to {most}", holds)


def _one_of(*values: str) -> _Field:
    return _Field(
        " or ".join(repr(str(v)) for v in values), lambda v: isinstance(v, str) and v in values
    )


def _or_null(inner: _Field) -> _Field:
    return _Field(f"{inner.expected}, or null", lambda v: v is None or inner.holds(v))


def is_name(value: object) -> bool:
    """Whether a value is text that can be printed: it is shown to people, on terminals."""
    return (
        isinstance(value, str)
        and value != ""
        and not any(unicodedata.category(character) in ("Cc", "Cs") for character in value)
    )


NAME = _Field("a name: text, not empty, without control characters", is_name)
_NAMES = _Field(
    "a list of names, not empty",
    lambda v: isinstance(v, list) and v != [] and all(map(is_name, v)),
)
_DIGEST = _Field(
    "64 hexadecimal digits in lower case",
    lambda v: isinstance(v, str) and re.fullmatch("[0-9a-f]{64}", v) is not None,
)
_POSITIVE = _number("a finite float > 0", lambda v: v > 0)
_NOT_NEGATIVE = _number("a finite float >= 0", lambda v: v >= 0)
_DELTA = _number(f"a float from {_LEAST_DELTA:g} to 0.1", lambda v: _LEAST_DELTA <= v <= 0.1)
_SAMPLE_RATE = _number(
    f"a float from {SAMPLE_RATES[0]:g} to 1, where accountants answer",
    lambda v: SAMPLE_RATES[0] <= v <= SAMPLE_RATES[1],
)
_NOISE_MULTIPLIER = _number(
    f"a float from {NOISE_MULTIPLIERS[0]:g} to {NOISE_MULTIPLIERS[1]:g}, which calibration searches; "
    "for less noise accountants take minutes to hours, and their answer is no privacy",
    lambda v: NOISE_MULTIPLIERS[0] <= v <= NOISE_MULTIPLIERS[1],
)
_COUNT = _integer(1)
_STEPS = _integer(1, MOST_STEPS)
_RELATION = _one_of(*NeighbouringRelation)
_UNIT = _one_of(*PrivacyUnit)
_SOFTWARE = _Field(  # which packages are named depends on what is installed
    "an object of names and versions, both text",
    lambda v: isinstance(v, dict) and all(map(is_name, (*v, *v.values()))),
)
_WEIGHTS = _Field(
    "an object of names and finite floats > 0",
    lambda v: (
        isinstance(v, dict) and all(map(is_name, v)) and all(map(_POSITIVE.holds, v.values()))
    ),
)

_EVENT: _Form = {
    "kind": _one_of("sampled_gaussian"),
    "sample_rate": _SAMPLE_RATE,
    "noise_multiplier": _NOISE_MULTIPLIER,
    "steps": _STEPS,
    "relation": _RELATION,
    "unit": _UNIT,
}
_PLAN: _Form = {
    "n_pub": _COUNT,
    "target_epsilon": _POSITIVE,
    "delta": _DELTA,
    "sample_rate": _SAMPLE_RATE,
    "noise_multiplier": _NOISE_MULTIPLIER,
    "max_grad_norm": _POSITIVE,
    "expected_batch_size": _POSITIVE,
    "steps_per_round": _STEPS,
    "rounds": _STEPS,
    "block_weights": _WEIGHTS,
    "space": _one_of(*DPSpace),
    "clip": _one_of(*ClipMode),
    "noise": _one_of(*NoiseMode),
    "arithmetic": _one_of(*Arithmetic),
    "clip_steps": _or_null(_COUNT),
    "released_values": _or_null(_COUNT),
    "honest": _COUNT,
    "relation": _RELATION,
    "unit": _UNIT,
}
_ROUND: _Form = {"run": NAME, "round": _integer(0), "attempt": _integer(0)}
_FORMS: Final[Mapping[str, _Form]] = {
    "open": {
        "format": _one_of(FORMAT),
        "holding": NAME,
        "n_pub": _COUNT,
        "delta": _DELTA,
        "lifetime_epsilon": _POSITIVE,
        "relation": _RELATION,
        "unit": _UNIT,
        "software": _SOFTWARE,
    },
    "plan": {
        "run": NAME,
        "plan": _PLAN,
        "plan_hash": _DIGEST,
        "event": _EVENT,
        "software": _SOFTWARE,
    },
    "charge": {**_ROUND, "event": _EVENT, "plan_hash": _DIGEST},
    "release": {**_ROUND, "sha256": _DIGEST},
    "refuse": {
        "run": NAME,
        "limit": _one_of("target", "lifetime"),
        "limit_epsilon": _POSITIVE,
        "spent_epsilon": _or_null(_NOT_NEGATIVE),
        "epsilon_after": _or_null(_NOT_NEGATIVE),
    },
    "recover": {"cut_at_byte": _COUNT, "cut_bytes": _COUNT},
    "close": {
        "run": NAME,
        "epsilon": _NOT_NEGATIVE,
        "delta": _DELTA,
        "prv": _or_null(_NOT_NEGATIVE),
        "rdp": _or_null(_NOT_NEGATIVE),
        "cross_check": NAME,
        "accountants": _NAMES,
    },
}
_SHORT: Final = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxlong, _SHORT.maxother = 2, 70, 40, 40


def check_form(record: Mapping[str, Any]) -> None:
    """Raises `LedgerConflict` unless a record is of a known kind and has exactly its fields."""
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in _FORMS:
        raise LedgerConflict(f"kind {_SHORT.repr(kind)} is not known to {FORMAT}")
    _check_fields({k: v for k, v in record.items() if k != "kind"}, _FORMS[kind], of=kind)


def _check_fields(values: Mapping[str, Any], form: _Form, *, of: str) -> None:
    """Raises `LedgerConflict` unless the values are exactly the fields of a form.

    Args:
        values: A record without its kind, or an object in it.
        form: What it must be.
        of: The record's kind, and the place in it.
    """
    for name, wanted in form.items():
        expected = wanted.expected if isinstance(wanted, _Field) else "an object"
        if name not in values:
            raise LedgerConflict(f"{of}.{name} is missing: must be {expected}")
        value = values[name]
        good = wanted.holds(value) if isinstance(wanted, _Field) else isinstance(value, dict)
        if not good:
            raise LedgerConflict(f"{of}.{name}={_SHORT.repr(value)}: must be {expected}")
        if not isinstance(wanted, _Field):
            _check_fields(value, wanted, of=f"{of}.{name}")
    unknown = sorted(values.keys() - form.keys())
    if unknown:
        name = unknown[0]
        raise LedgerConflict(
            f"{of}.{_SHORT.repr(name)}={_SHORT.repr(values[name])}: no field of {FORMAT}, "
            f"which has {', '.join(sorted(form))} here"
        )
