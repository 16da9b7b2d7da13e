"""The one frozen plan from which sampler, noise, step and event are built.

A client accepts a plan before it touches data. Every number in it is public and comes from declared
public numbers: never from the true size of the dataset. Because there is one plan and it cannot
change, the noise that is added is the noise that is charged.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from privacy import _validate
from privacy.accountant import Accountant
from privacy.calibrate import CalibrationCache, calibrate_noise_multiplier
from privacy.errors import ConfigurationError, UnsupportedEvent
from privacy.events import JSONValue, NeighbouringRelation, PrivacyUnit, SampledGaussian
from privacy.grid import clip_steps_for, discretisation_delta

DEFAULT_BATCH_SIZE = 32
LARGEST_DEFAULT_DELTA = 1e-5
_DELTA_SHARE = (
    10  # delta * size must stay below 1/10: fewer than one example in ten may be exposed outright
)
_SMALLEST_CLIP, _LARGEST_CLIP = (
    1e-6,
    1e6,
)  # float32 squares of gradients over- or underflow far outside
_SIZE_GRANULARITY = 10


class DPSpace(StrEnum):
    """Where the prompt side's per-example vectors are clipped (see `privacy.jacobian`)."""

    TEXT = "text"
    PROMPT = "prompt"
    SKETCH = "sketch"


class ClipMode(StrEnum):
    """How a per-example vector v is bounded by C."""

    FLAT = "flat"  # v * min(1, C / |v|)
    NORMALISE = "normalise"  # v * C / (|v| + 0.01 C), arXiv 2206.07136


class NoiseMode(StrEnum):
    """Who adds how much noise."""

    LOCAL = "local"  # every client adds all of it: the guarantee holds against everyone
    SHARES = "shares"  # the clients' shares add up in a sum nobody sees less of (privacy.integer)


class Arithmetic(StrEnum):
    """Number type of query and noise."""

    FLOAT = "float"  # idealises real arithmetic; see privacy.noise
    INTEGER = "integer"  # no float in the proof; see privacy.integer


@dataclass(frozen=True, slots=True, kw_only=True)
class DPPlan:
    """Everything public about one client's private training.

    Attributes:
        n_pub: Declared public size of the data holding. A wrong value costs utility, never privacy.
        target_epsilon: Limit of the run, > 0.
        delta: Failure probability; at most `1 / (10 * n_pub)`.
        sample_rate: Poisson rate q, in (0, 1].
        noise_multiplier: Standard deviation of the noise in units of the clip norm, > 0.
        max_grad_norm: Joint clip norm C over all blocks, in [1e-6, 1e6].
        steps_per_round: Noised steps of a round, >= 1; public, not the number of non-empty batches.
        rounds: Planned rounds, >= 1.
        block_weights: Public weight of each block in [1e-6, 1e6], as pairs; empty for 1 everywhere.
        space: Where the prompt side is clipped.
        clip: How vectors are bounded.
        noise: Who adds noise.
        arithmetic: Number type of query and noise.
        clip_steps: Grid steps of the clip norm, K = C / gamma, with integer arithmetic.
        released_values: Most values that a step releases, d, with integer arithmetic: each adds a little to
            delta (`privacy.grid.discretisation_delta`).
        honest: Contributors to a sum whose noise is counted on: with shares the number of clients
            outside the adversary's control that are in any sum, at least 2; else 1.
        relation: Neighbouring relation of the claim.
        unit: Unit of privacy of the claim.

    Raises:
        ConfigurationError: A value is out of its range, delta is too large for `n_pub`, or values
            contradict each other: shares of noise need integers and one step a round, because a
            second step would start from an under-noised state; a client as the unit needs shares
            and, since all of it takes part, rate 1.
        UnsupportedEvent: A relation other than add-or-remove-one: Poisson sampling is accounted
            under it.
    """

    n_pub: int
    target_epsilon: float
    delta: float
    sample_rate: float
    noise_multiplier: float
    max_grad_norm: float
    steps_per_round: int
    rounds: int
    block_weights: tuple[tuple[str, float], ...] = ()
    space: DPSpace = DPSpace.TEXT
    clip: ClipMode = ClipMode.FLAT
    noise: NoiseMode = NoiseMode.LOCAL
    arithmetic: Arithmetic = Arithmetic.FLOAT
    clip_steps: int | None = None
    released_values: int | None = None
    honest: int = 1
    relation: NeighbouringRelation = NeighbouringRelation.ADD_OR_REMOVE_ONE
    unit: PrivacyUnit = PrivacyUnit.EXAMPLE

    def __post_init__(self) -> None:
        _validate.count(n_pub=self.n_pub, steps_per_round=self.steps_per_round, rounds=self.rounds)
        _validate.positive(
            target_epsilon=self.target_epsilon,
            noise_multiplier=self.noise_multiplier,
            max_grad_norm=self.max_grad_norm,
        )
        _validate.rate(sample_rate=self.sample_rate)
        check_delta(self.delta, self.n_pub)
        if not _SMALLEST_CLIP <= self.max_grad_norm <= _LARGEST_CLIP:
            raise ConfigurationError(
                f"max_grad_norm={self.max_grad_norm!r}: "
                f"must lie in [{_SMALLEST_CLIP}, {_LARGEST_CLIP}]"
            )
        names = [name for name, _ in self.block_weights]
        if len(set(names)) != len(names):
            raise ConfigurationError("block_weights: a block is named twice")
        for name, weight in self.block_weights:
            if not _SMALLEST_CLIP <= weight <= _LARGEST_CLIP:
                raise ConfigurationError(
                    f"block weight of {name}: {weight!r} must lie in "
                    f"[{_SMALLEST_CLIP}, {_LARGEST_CLIP}]"
                )
        for value, kind in (
            (self.space, DPSpace),
            (self.clip, ClipMode),
            (self.noise, NoiseMode),
            (self.arithmetic, Arithmetic),
            (self.unit, PrivacyUnit),
        ):
            if not isinstance(value, kind):
                raise ConfigurationError(f"{value!r} is not one of {[str(k) for k in kind]}")
        self._check_modes()
        if self.relation is not NeighbouringRelation.ADD_OR_REMOVE_ONE:
            raise UnsupportedEvent(
                f"relation={self.relation!r}: plans claim add_or_remove_one; "
                "replace-one is a separate figure"
            )

    def _check_modes(self) -> None:
        _validate.count(honest=self.honest)
        shares = self.noise is NoiseMode.SHARES
        for name in ("clip_steps", "released_values"):
            value = getattr(self, name)
            if (self.arithmetic is Arithmetic.INTEGER) != (value is not None):
                raise ConfigurationError(f"{name}: given exactly when the arithmetic is integer")
            if value is not None:
                _validate.count(**{name: value})
        if shares != (self.honest > 1):
            raise ConfigurationError(
                f"honest={self.honest}: shares of noise count on at least 2 contributors, "
                "and local noise on one"
            )
        if shares and (self.arithmetic is not Arithmetic.INTEGER or self.steps_per_round != 1):
            raise ConfigurationError("noise shares need integer arithmetic and one step a round")
        if self.unit is PrivacyUnit.CLIENT and not (shares and self.sample_rate == 1):
            raise ConfigurationError("unit client needs noise shares and sample_rate=1")

    @property
    def expected_batch_size(self) -> float:
        """The public denominator `q * n_pub`."""
        return self.sample_rate * self.n_pub

    @property
    def noise_standard_deviation(self) -> float:
        """Of each coordinate of the noised sum, in weighted units."""
        return self.noise_multiplier * self.max_grad_norm

    @property
    def grid_steps(self) -> int:
        """Grid steps of the clip norm.

        Raises:
            ConfigurationError: The arithmetic is not integer.
        """
        if self.clip_steps is None:
            raise ConfigurationError("the plan's arithmetic is not integer")
        return self.clip_steps

    def discretisation(self, steps: int, *, epsilon: float) -> float:
        """What integer noise of `steps` steps adds to delta at an epsilon; 0 for noise of real numbers."""
        if self.clip_steps is None or self.released_values is None:
            return 0.0
        return discretisation_delta(
            noise_multiplier=self.noise_multiplier,
            clip_steps=self.clip_steps,
            target_epsilon=epsilon,
            values=self.released_values * steps,
        )

    def weight(self, block: str) -> float:
        """The public weight of a block.

        Raises:
            ConfigurationError: Weights are given, but none for this block.
        """
        if not self.block_weights:
            return 1.0
        for name, weight in self.block_weights:
            if name == block:
                return weight
        raise ConfigurationError(f"block {block!r}: the plan has weights, but none for it")

    def round_event(self) -> SampledGaussian:
        """What one round does to the data."""
        return self.event(self.steps_per_round)

    def event(self, steps: int) -> SampledGaussian:
        """What `steps` steps of this plan do to the data."""
        return SampledGaussian(
            sample_rate=self.sample_rate,
            noise_multiplier=self.noise_multiplier,
            steps=steps,
            relation=self.relation,
            unit=self.unit,
        )

    def to_record(self) -> dict[str, JSONValue | dict[str, float]]:
        """The plan as a JSON object of public values."""
        return {
            "n_pub": self.n_pub,
            "target_epsilon": float(self.target_epsilon),
            "delta": float(self.delta),
            "sample_rate": float(self.sample_rate),
            "noise_multiplier": float(self.noise_multiplier),
            "max_grad_norm": float(self.max_grad_norm),
            "expected_batch_size": float(self.expected_batch_size),
            "steps_per_round": self.steps_per_round,
            "rounds": self.rounds,
            "block_weights": {name: float(weight) for name, weight in self.block_weights},
            "space": self.space.value,
            "clip": self.clip.value,
            "noise": self.noise.value,
            "arithmetic": self.arithmetic.value,
            "clip_steps": self.clip_steps,
            "released_values": self.released_values,
            "honest": self.honest,
            "relation": self.relation.value,
            "unit": self.unit.value,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "DPPlan":
        """The plan of a record that has the form of `to_record`'s; its expected batch is derived.

        Raises:
            ConfigurationError: Its values contradict each other, or one is out of its range.
        """
        return cls(
            n_pub=record["n_pub"],
            target_epsilon=record["target_epsilon"],
            delta=record["delta"],
            sample_rate=record["sample_rate"],
            noise_multiplier=record["noise_multiplier"],
            max_grad_norm=record["max_grad_norm"],
            steps_per_round=record["steps_per_round"],
            rounds=record["rounds"],
            block_weights=tuple(sorted(record["block_weights"].items())),
            space=DPSpace(record["space"]),
            clip=ClipMode(record["clip"]),
            noise=NoiseMode(record["noise"]),
            arithmetic=Arithmetic(record["arithmetic"]),
            clip_steps=record["clip_steps"],
            released_values=record["released_values"],
            honest=record["honest"],
            relation=NeighbouringRelation(record["relation"]),
            unit=PrivacyUnit(record["unit"]),
        )

    @property
    def plan_hash(self) -> str:
        """SHA-256 of the canonical JSON of the plan, hexadecimal."""
        text = json.dumps(self.to_record(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def make_plan(
    *,
    n_pub: int,
    target_epsilon: float,
    rounds: int,
    max_grad_norm: float,
    batch_size: int = DEFAULT_BATCH_SIZE,
    steps_per_round: int | None = None,
    delta: float | None = None,
    block_weights: Mapping[str, float] | None = None,
    space: DPSpace = DPSpace.TEXT,
    clip: ClipMode = ClipMode.FLAT,
    noise: NoiseMode = NoiseMode.LOCAL,
    arithmetic: Arithmetic = Arithmetic.FLOAT,
    released_values: int | None = None,
    honest: int = 1,
    unit: PrivacyUnit = PrivacyUnit.EXAMPLE,
    accountant: Accountant | None = None,
    cache: CalibrationCache | None = None,
) -> DPPlan:
    """A plan whose noise multiplier is the smallest that keeps all rounds within the target.

    Args:
        n_pub: Declared public size.
        target_epsilon: Limit over all rounds, > 0.
        rounds: Planned rounds.
        max_grad_norm: Joint clip norm C.
        batch_size: Expected batch; the rate is `min(1, batch_size / n_pub)`.
        steps_per_round: `ceil(n_pub / batch_size)`, one pass, by default.
        delta: `default_delta(n_pub)` by default.
        block_weights: Public weights by block; 1 everywhere by default.
        space: Where the prompt side is clipped.
        clip: How vectors are bounded.
        noise: Who adds noise.
        arithmetic: Number type; with integers the grid follows from noise and `honest`.
        released_values: With integers, most values that a step releases.
        honest: Contributors whose noise is counted on; see `DPPlan`.
        unit: Unit of privacy; for a client all rates are 1.
        accountant: The accountant of record; PLD by default.
        cache: Where solved noise multipliers are kept.

    Raises:
        ConfigurationError: A number is out of its range.
        CalibrationError: No noise multiplier meets the target.
    """
    _validate.count(n_pub=n_pub, rounds=rounds, batch_size=batch_size)
    _validate.positive(target_epsilon=target_epsilon)
    delta = default_delta(n_pub) if delta is None else delta
    check_delta(delta, n_pub)
    steps = math.ceil(n_pub / batch_size) if steps_per_round is None else steps_per_round
    _validate.count(steps_per_round=steps)
    sample_rate = 1.0 if unit is PrivacyUnit.CLIENT else min(1.0, batch_size / n_pub)
    noise_multiplier = calibrate_noise_multiplier(
        target_epsilon=target_epsilon,
        delta=delta,
        sample_rate=sample_rate,
        steps=steps * rounds,
        accountant=accountant,
        cache=cache,
    )
    integers = arithmetic is Arithmetic.INTEGER
    return DPPlan(
        n_pub=n_pub,
        target_epsilon=target_epsilon,
        delta=delta,
        sample_rate=sample_rate,
        noise_multiplier=noise_multiplier,
        max_grad_norm=max_grad_norm,
        steps_per_round=steps,
        rounds=rounds,
        block_weights=tuple(sorted((block_weights or {}).items())),
        space=space,
        clip=clip,
        noise=noise,
        arithmetic=arithmetic,
        clip_steps=clip_steps_for(noise_multiplier, honest) if integers else None,
        released_values=released_values,
        honest=honest,
        unit=unit,
    )


def default_delta(n_pub: int) -> float:
    """`min(1e-5, 1 / (10 n_pub))`. A federation uses one value: that of its largest holding."""
    _validate.count(n_pub=n_pub)
    return min(LARGEST_DEFAULT_DELTA, 1 / (_DELTA_SHARE * n_pub))


def check_delta(delta: float, n_pub: int) -> None:
    """Raises `ConfigurationError` unless `0 < delta <= 1 / (10 n_pub)`."""
    largest = 1 / (_DELTA_SHARE * n_pub)
    if not 0 < delta <= largest:
        raise ConfigurationError(
            f"delta={delta!r}: must be > 0 and at most 1/(10 n_pub) = {largest:.3g} "
            f"for n_pub={n_pub}"
        )


def public_size(n: int) -> int:
    """A size rounded down to tens, to be declared once and then kept whatever happens to the data.

    Under add-or-remove-one the true size is itself private. Declaring a rounded size is a decision
    of the data's owner, outside the guarantee: 250 declared says that there were 250 to 259
    examples on that day.

    Raises:
        ConfigurationError: Fewer than ten examples: too few to declare.
    """
    if n < _SIZE_GRANULARITY:
        raise ConfigurationError("a data holding needs at least ten examples to declare a size")
    return n // _SIZE_GRANULARITY * _SIZE_GRANULARITY


def equal_share_weights(
    typical_norms: Mapping[str, float], *, max_grad_norm: float
) -> dict[str, float]:
    """Block weights that give every block the same share of the clip budget.

    Args:
        typical_norms: Typical per-example gradient norm of each block, > 0, from public probes,
            never from private gradients.
        max_grad_norm: Joint clip norm C.
    """
    return _weights({name: 1.0 for name in typical_norms}, typical_norms, max_grad_norm)


def least_noise_weights(
    typical_norms: Mapping[str, float], sizes: Mapping[str, int], *, max_grad_norm: float
) -> dict[str, float]:
    """Block weights that minimise the total relative noise `sum_b d_b / y_b`.

    The minimum has shares y_b of the clip budget in proportion to `sqrt(d_b)`.

    Args:
        typical_norms: As for `equal_share_weights`.
        sizes: Number of coordinates of each block.
        max_grad_norm: Joint clip norm C.
    """
    return _weights(
        {name: math.sqrt(sizes[name]) for name in typical_norms}, typical_norms, max_grad_norm
    )


def _weights(
    shares: Mapping[str, float], typical_norms: Mapping[str, float], max_grad_norm: float
) -> dict[str, float]:
    _validate.positive(**{f"typical norm of {k}": v for k, v in typical_norms.items()})
    total = sum(shares.values())
    return {
        name: max_grad_norm * math.sqrt(shares[name] / total) / norm
        for name, norm in typical_norms.items()
    }
