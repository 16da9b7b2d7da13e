"""What it costs to release the best of several private candidates and nothing of the others.

A sweep over a fixed grid is no such release: every candidate's updates leave the clients, and the number of candidates
is no secret coin. Its price is the composition of all its events, as on a ledger. The bounds here hold for another
procedure: draw a number of candidates from a public law with secret coins, draw each candidate at random from a public
list, train it, and let nobody see anything but the best one and its score. A score read from private data is part of
a candidate's own release.

Unit and neighbouring relation are those of the candidates' events: add or remove one.

Source: Papernot and Steinke, arXiv 2110.03620, Theorem 2 (truncated negative binomial) and Theorem 6 (Poisson).
"""

import importlib
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from privacy import _validate
from privacy.errors import AccountingError, ConfigurationError, UnsupportedEvent
from privacy.events import Event, NeighbouringRelation

ORDERS: NDArray[np.float64] = np.array(
    [1 + x / 10 for x in range(1, 100)] + [*range(11, 64), 128, 256, 512, 1024], float
)  # of the Rényi divergence, as dp-accounting has them

Curve = NDArray[np.float64]  # Rényi epsilon at each of ORDERS


class CandidateLaw(StrEnum):
    """Law of the number of candidates; all but Poisson draw at least one."""

    GEOMETRIC = "geometric"  # truncated negative binomial of shape 1
    LOGARITHMIC = "logarithmic"  # truncated negative binomial of shape 0
    POISSON = "poisson"


def renyi_curve(events: Sequence[Event]) -> Curve:
    """The composition of `events` as Rényi epsilons; infinite at orders that dp-accounting gives up.

    Raises:
        UnsupportedEvent: An event is not of the add-or-remove-one relation.
        AccountingError: The accountant returned what cannot be a curve.
    """
    dp_event = importlib.import_module("dp_accounting.dp_event")
    accountants = importlib.import_module("dp_accounting.rdp.rdp_privacy_accountant")
    accountant = accountants.RdpAccountant(orders=ORDERS.tolist())
    for event in events:
        if event.relation is not NeighbouringRelation.ADD_OR_REMOVE_ONE:
            raise UnsupportedEvent(
                f"Rényi curve: add_or_remove_one only, not {event.relation.value}"
            )
        step = dp_event.PoissonSampledDpEvent(
            event.sample_rate, dp_event.GaussianDpEvent(event.noise_multiplier)
        )
        with _quiet():
            accountant.compose(dp_event.SelfComposedDpEvent(step, event.steps))
    curve = np.asarray(accountant.rdp, dtype=np.float64)
    if np.isnan(curve).any() or (curve < 0).any():
        raise AccountingError("dp-accounting returned what cannot be a Rényi curve")
    return curve


def curve_epsilon(curve: Curve, delta: float) -> float:
    """Upper bound on epsilon at `delta` of a mechanism with this Rényi curve.

    Raises:
        ConfigurationError: `delta` is not in (0, 1).
    """
    if not 0 < delta < 1:
        raise ConfigurationError(f"delta={delta!r}: must lie in (0, 1)")
    conversion = importlib.import_module("dp_accounting.rdp.rdp_privacy_accountant")
    epsilon, _ = conversion.compute_epsilon(ORDERS, curve, delta)
    return float(epsilon)


def selection_curve(candidates: Sequence[Curve], *, mean: float, law: CandidateLaw) -> Curve:
    """Rényi curve of releasing only the best of a random number of candidates.

    Args:
        candidates: Curve of each entry of the public list that candidates are drawn from; a draw
            from the list costs at most the largest of them at each order.
        mean: Mean of the number of candidates that are trained, at least 1.
        law: Its law.

    Returns:
        An upper bound at each of `ORDERS`, never below a single candidate's.

    Raises:
        ConfigurationError: No candidates, or a mean below 1.
    """
    if not candidates:
        raise ConfigurationError("candidates: name at least one")
    _validate.positive(mean=mean)
    if mean < 1:
        raise ConfigurationError(f"mean={mean!r}: must be at least 1")
    single = np.maximum.reduce(list(candidates))
    drawn = math.log(mean) / (ORDERS - 1)
    if law is CandidateLaw.POISSON:
        return np.asarray(single + drawn + mean * _deltas(single), dtype=np.float64)
    shape = 1 if law is CandidateLaw.GEOMETRIC else 0
    gamma = _gamma(mean, shape)
    repeated = (1 + shape) * np.min((1 - 1 / ORDERS) * single - math.log(gamma) / ORDERS)
    bound = single + drawn + repeated
    # A Rényi divergence grows with its order, so a bound at a larger one holds as well.
    return np.asarray(np.minimum.accumulate(bound[::-1])[::-1], dtype=np.float64)


@contextmanager
def _quiet() -> Iterator[None]:
    """Drops the line that dp-accounting logs for every order it gives up: the bound stays one without it."""
    logger = logging.getLogger("absl")

    def without(record: logging.LogRecord) -> bool:
        return "failed to converge" not in str(record.msg)

    logger.addFilter(without)
    try:
        yield
    finally:
        logger.removeFilter(without)


def _deltas(curve: Curve) -> Curve:
    """Delta of one candidate at the epsilon log(1 + 1 / (order - 1)) that Theorem 6 asks for."""
    conversion = importlib.import_module("dp_accounting.rdp.rdp_privacy_accountant")
    return np.array(
        [conversion.compute_delta(ORDERS, curve, math.log1p(1 / (o - 1)))[0] for o in ORDERS]
    )


def _gamma(mean: float, shape: int) -> float:
    """The parameter gamma of the truncated negative binomial law with this mean."""
    if mean == 1:
        return 1.0
    if shape == 1:
        return 1 / mean

    def excess(gamma: float) -> float:
        return (1 / gamma - 1) / math.log(1 / gamma) - mean

    optimize = importlib.import_module("scipy.optimize")
    return float(optimize.brentq(excess, 1e-12, 1 - 1e-9))
