"""Epsilon from events: three accountants, one of record.

The figure of record is the privacy loss distribution (PLD) of dp-accounting, an upper bound.
Opacus' PRV accountant, another method in another code base, must agree with it; RDP is a looser
bound for when PRV fails. The Gaussian-DP limit is not a bound (it can read below the truth) and is
refused by name.

dp-accounting and Opacus are imported on first use, so that what merely reads a ledger imports
neither.

Source: PLD arXiv 2207.04380 (connect the dots); PRV arXiv 2106.02848; RDP arXiv 1702.07476,
1908.10530.
"""

import functools
import importlib
import importlib.metadata
import math
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from privacy import _validate
from privacy.errors import AccountingError, ConfigurationError, UnsupportedEvent
from privacy.events import Event, NeighbouringRelation, SampledGaussian, as_replace_one

PLD_GRID = 1e-3  # discretisation of the privacy loss for the figure of record
PRV_EPSILON_ERROR = 0.01  # error allowance inside the PRV bound
AGREEMENT = 0.05  # largest difference between PLD and PRV that is not an alarm
_RDP_SLACK = 0.01  # PLD's own discretisation; RDP may not lie further below it than this

# Opacus' default orders end at 63; small epsilons need larger ones.
_RDP_ORDERS = (
    [1 + x / 10 for x in range(1, 100)] + list(range(12, 64)) + [2**k for k in range(6, 13)]
)

_Mechanism = tuple[float, float]  # (sample rate, noise multiplier)
_Composition = tuple[tuple[_Mechanism, int], ...]  # sorted by mechanism, with its total steps


class Accountant(Protocol):
    """Turns events into an upper bound on epsilon at a given delta."""

    @property
    def name(self) -> str:
        """Method, package and version: part of every figure that is recorded."""
        ...

    def epsilon(self, events: Sequence[Event], delta: float) -> float:
        """Epsilon of the composition of `events` at `delta`; 0.0 for no events.

        Raises:
            UnsupportedEvent: An event, or a mixture of relations or units, that the method cannot
                treat.
            AccountingError: The result cannot be an epsilon.
        """
        ...


class PLDAccountant:
    """The accountant of record: privacy loss distributions of dp-accounting on a fixed grid.

    Compositions are remembered, so a run that asks round after round, or several clients with equal
    plans, pay for one convolution a round. Figures reached step by step and at once differ by less
    than 1e-6.

    Args:
        grid: Discretisation interval of the privacy loss.
    """

    _REMEMBERED = 48  # distributions of about 0.5 MB each

    def __init__(self, grid: float = PLD_GRID) -> None:
        _validate.positive(grid=grid)
        self._grid = grid
        self._distributions: OrderedDict[tuple[NeighbouringRelation, _Composition], Any] = (
            OrderedDict()
        )
        self._epsilons: dict[tuple[NeighbouringRelation, _Composition, float], float] = {}

    @property
    def name(self) -> str:
        """Method, package, version and grid."""
        return (
            f"PLD dp-accounting {importlib.metadata.version('dp-accounting')} grid {self._grid:g}"
        )

    def epsilon(self, events: Sequence[Event], delta: float) -> float:
        """Upper bound on epsilon at `delta` under the events' own relation."""
        _check_delta_is_probability(delta)
        relation, composition = _compose(events)
        if not composition:
            return 0.0
        key = (relation, composition, delta)
        if key not in self._epsilons:
            value = float(self._distribution(relation, composition).get_epsilon_for_delta(delta))
            self._epsilons[key] = _checked(value, self.name)
        return self._epsilons[key]

    def delta(self, events: Sequence[Event], epsilon: float) -> float:
        """Upper bound on delta at `epsilon`: one point of the privacy profile."""
        relation, composition = _compose(events)
        if not composition:
            return 0.0
        return float(self._distribution(relation, composition).get_delta_for_epsilon(epsilon))

    def _distribution(self, relation: NeighbouringRelation, composition: _Composition) -> Any:
        key = (relation, composition)
        if key in self._distributions:
            self._distributions.move_to_end(key)
            return self._distributions[key]
        known, rest = self._largest_known_part(relation, composition)
        for mechanism, steps in rest:
            if known is None:
                known = self._single(relation, mechanism, steps)
            else:
                known = known.compose(self._single(relation, mechanism, steps))
        self._remember(key, known)
        return known

    def _single(self, relation: NeighbouringRelation, mechanism: _Mechanism, steps: int) -> Any:
        key = (relation, ((mechanism, steps),))
        if key not in self._distributions:
            dp_accounting = importlib.import_module("dp_accounting")
            pld = importlib.import_module("dp_accounting.pld.privacy_loss_distribution")
            sample_rate, noise_multiplier = mechanism
            one = pld.from_gaussian_mechanism(
                standard_deviation=noise_multiplier,
                sampling_prob=sample_rate,
                value_discretization_interval=self._grid,
                use_connect_dots=True,
                neighboring_relation=dp_accounting.NeighboringRelation[relation.name],
            )
            self._remember(key, one if steps == 1 else one.self_compose(steps))
        self._distributions.move_to_end(key)
        return self._distributions[key]

    def _largest_known_part(
        self, relation: NeighbouringRelation, composition: _Composition
    ) -> tuple[Any, list[tuple[_Mechanism, int]]]:
        """The remembered distribution with most steps inside `composition`, and what it lacks."""
        wanted = dict(composition)
        best: Any = None
        best_steps = 0
        missing = list(composition)
        for (other_relation, other), distribution in self._distributions.items():
            steps = sum(count for _, count in other)
            inside = other_relation is relation and all(
                count <= wanted.get(mechanism, 0) for mechanism, count in other
            )
            if inside and steps > best_steps:
                have = dict(other)
                best, best_steps = distribution, steps
                missing = [
                    (mechanism, count - have.get(mechanism, 0))
                    for mechanism, count in composition
                    if count > have.get(mechanism, 0)
                ]
        return best, missing

    def _remember(self, key: tuple[NeighbouringRelation, _Composition], distribution: Any) -> None:
        self._distributions[key] = distribution
        self._distributions.move_to_end(key)
        while len(self._distributions) > self._REMEMBERED:
            self._distributions.popitem(last=False)


class PRVAccountant:
    """The cross-check: Opacus' PRV accountant, its error allowance included.

    It treats add-or-remove-one only.
    """

    @property
    def name(self) -> str:
        """Method, package and version."""
        return f"PRV opacus {importlib.metadata.version('opacus')}"

    def epsilon(self, events: Sequence[Event], delta: float) -> float:
        """Upper bound on epsilon at `delta`."""
        _check_delta_is_probability(delta)
        composition = _add_or_remove(events, self.name)
        value = _opacus_prv(composition, delta) if composition else 0.0
        if math.isinf(value):
            raise AccountingError(f"{self.name} returned an infinite epsilon")
        return _checked(value, self.name)


@functools.lru_cache(maxsize=4096)  # clients with equal plans ask the same
def _opacus_prv(composition: _Composition, delta: float) -> float:
    accountant = importlib.import_module("opacus.accountants").PRVAccountant()
    accountant.history = _opacus_history(composition)
    with warnings.catch_warnings():
        # Overflows in its tails are harmless or end in a figure that the comparison rejects; it
        # sizes its domain with RDP orders that need not be the best.
        warnings.filterwarnings("ignore", category=RuntimeWarning)
        warnings.filterwarnings("ignore", message="Optimal order", category=UserWarning)
        return float(accountant.get_epsilon(delta, eps_error=PRV_EPSILON_ERROR))


class RDPAccountant:
    """The loose bound for when PRV fails: Opacus' Rényi accountant, add-or-remove-one only."""

    @property
    def name(self) -> str:
        """Method, package and version."""
        return f"RDP opacus {importlib.metadata.version('opacus')}"

    def epsilon(self, events: Sequence[Event], delta: float) -> float:
        """Upper bound on epsilon at `delta`."""
        _check_delta_is_probability(delta)
        composition = _add_or_remove(events, self.name)
        if not composition:
            return 0.0
        accountant = importlib.import_module("opacus.accountants").RDPAccountant()
        accountant.history = _opacus_history(composition)
        with warnings.catch_warnings():
            # "Optimal order is the largest alpha": the bound is valid, only not the tightest.
            warnings.filterwarnings("ignore", message="Optimal order", category=UserWarning)
            value = float(accountant.get_epsilon(delta, alphas=_RDP_ORDERS))
        return _checked(value, self.name)


def accountant_named(name: str) -> Accountant:
    """The accountant called `pld`, `prv` or `rdp`.

    Raises:
        ConfigurationError: Any other name; `gdp` with the reason.
    """
    if name == "gdp":
        raise ConfigurationError(
            "accountant='gdp': the Gaussian-DP limit is not an upper bound; use 'pld'"
        )
    makers: dict[str, Callable[[], Accountant]] = {
        "pld": PLDAccountant,
        "prv": PRVAccountant,
        "rdp": RDPAccountant,
    }
    if name not in makers:
        raise ConfigurationError(f"accountant={name!r}: must be one of {sorted(makers)}")
    return makers[name]()


@dataclass(frozen=True, slots=True, kw_only=True)
class EpsilonFigures:
    """One privacy figure with its witnesses.

    Attributes:
        epsilon: The figure of record (PLD).
        delta: At this delta.
        prv: The cross-check, or None where it could not be computed.
        rdp: The loose bound, or None where it was not needed.
        cross_check: `"agrees"`, or `"unavailable: <exception type>"`.
        accountants: Names and versions of the accountants used.
    """

    epsilon: float
    delta: float
    prv: float | None
    rdp: float | None
    cross_check: str
    accountants: tuple[str, ...]


def cross_checked(
    events: Sequence[Event],
    delta: float,
    *,
    of_record: Accountant,
    check: Accountant | None = None,
    fallback: Accountant | None = None,
) -> EpsilonFigures:
    """The figure of record, confirmed by a second method or refused.

    | PRV | result |
    |---|---|
    | within 0.05 of PLD | figures, `cross_check="agrees"` |
    | further away | `AccountingError` |
    | raises, or returns no epsilon, and RDP lies above PLD | figures, `"unavailable: ..."` |
    | raises, or returns no epsilon, and RDP lies below PLD | `AccountingError` |

    Args:
        events: What was done; add-or-remove-one.
        delta: At this delta.
        of_record: The accountant whose figure counts.
        check: The second method; PRV by default.
        fallback: The bound printed where the check fails; RDP by default.

    Raises:
        AccountingError: As in the table: fail closed.
        UnsupportedEvent: The events cannot be accounted for.
    """
    check = PRVAccountant() if check is None else check
    fallback = RDPAccountant() if fallback is None else fallback
    epsilon = of_record.epsilon(events, delta)
    try:
        second = check.epsilon(events, delta)
    except ConfigurationError:
        raise
    except Exception as error:  # Opacus' PRV fails in many ways (its issues 585, 591, 601, 637)
        loose = fallback.epsilon(events, delta)
        if not loose >= epsilon - _RDP_SLACK:
            raise AccountingError(
                f"{fallback.name} reads {loose:.4f}, below {of_record.name} at {epsilon:.4f}; "
                "no figure can be trusted"
            ) from error
        return EpsilonFigures(
            epsilon=epsilon,
            delta=delta,
            prv=None,
            rdp=loose,
            cross_check=f"unavailable: {type(error).__name__}",
            accountants=(of_record.name, fallback.name),
        )
    if not abs(second - epsilon) <= AGREEMENT:  # so that a NaN is refused as well
        raise AccountingError(
            f"{check.name} reads {second:.4f}, {of_record.name} {epsilon:.4f}: "
            f"further apart than {AGREEMENT}; no figure can be trusted"
        )
    return EpsilonFigures(
        epsilon=epsilon,
        delta=delta,
        prv=second,
        rdp=None,
        cross_check="agrees",
        accountants=(of_record.name, check.name),
    )


def replace_one_epsilon(events: Sequence[Event], delta: float, *, of_record: Accountant) -> float:
    """Epsilon of the same mechanisms under replace-one: a separate, larger figure."""
    return of_record.epsilon(as_replace_one(tuple(events)), delta)


def _compose(events: Sequence[Event]) -> tuple[NeighbouringRelation, _Composition]:
    """Total steps of each mechanism, and the one relation that all events share."""
    totals: Counter[_Mechanism] = Counter()
    kinds = set()
    for event in events:
        if not isinstance(event, SampledGaussian):
            raise UnsupportedEvent(f"{type(event).__name__}: not an event this package knows")
        totals[(event.sample_rate, event.noise_multiplier)] += event.steps
        kinds.add((event.relation, event.unit))
    if len(kinds) > 1:
        raise UnsupportedEvent("events of different relations or units have no common epsilon")
    relation = next(iter(kinds))[0] if kinds else NeighbouringRelation.ADD_OR_REMOVE_ONE
    return relation, tuple(sorted(totals.items()))


def _add_or_remove(events: Sequence[Event], name: str) -> _Composition:
    relation, composition = _compose(events)
    if relation is not NeighbouringRelation.ADD_OR_REMOVE_ONE:
        raise UnsupportedEvent(f"{name} treats add_or_remove_one only, not {relation.value}")
    return composition


def _opacus_history(composition: _Composition) -> list[tuple[float, float, int]]:
    return [
        (noise_multiplier, sample_rate, steps)
        for (sample_rate, noise_multiplier), steps in composition
    ]


def _checked(value: float, name: str) -> float:
    if math.isnan(value) or value < 0:
        raise AccountingError(f"{name} returned {value!r}, which cannot be an epsilon")
    return value


def _check_delta_is_probability(delta: float) -> None:
    if not 0 < delta < 1:
        raise ConfigurationError(f"delta={delta!r}: must lie in (0, 1)")
