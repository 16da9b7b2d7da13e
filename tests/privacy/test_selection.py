"""Figures of selection against published code, pinned values and the limits that they must have."""

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.rdp import RdpAccountant

from privacy import (
    ConfigurationError,
    NeighbouringRelation,
    RDPAccountant,
    SampledGaussian,
    UnsupportedEvent,
)
from privacy.selection import ORDERS, CandidateLaw, curve_epsilon, renyi_curve, selection_curve

REFERENCE = SampledGaussian(sample_rate=0.128, noise_multiplier=2.317, steps=800)
DELTA = 1e-5


@pytest.fixture(scope="module")
def single() -> np.ndarray:
    return renyi_curve([REFERENCE])


def test_one_candidate_costs_the_pinned_figure(single: np.ndarray) -> None:
    assert curve_epsilon(single, DELTA) == pytest.approx(8.63, abs=0.005)


@pytest.mark.parametrize(
    ("law", "mean", "pinned"),
    [
        (CandidateLaw.GEOMETRIC, 5, 12.65),
        (CandidateLaw.GEOMETRIC, 10, 14.16),
        (CandidateLaw.GEOMETRIC, 20, 15.39),
        (CandidateLaw.POISSON, 10, 18.59),
    ],
)
def test_selection_costs_the_pinned_figures(
    single: np.ndarray, law: CandidateLaw, mean: float, pinned: float
) -> None:
    figure = curve_epsilon(selection_curve([single], mean=mean, law=law), DELTA)
    assert figure == pytest.approx(pinned, abs=0.01)


@pytest.mark.parametrize(
    ("law", "shape"),
    [
        (CandidateLaw.GEOMETRIC, 1.0),
        (CandidateLaw.LOGARITHMIC, 0.0),
        (CandidateLaw.POISSON, np.inf),
    ],
)
@pytest.mark.parametrize("mean", [1.5, 7.0])
def test_selection_agrees_with_dp_accounting(
    single: np.ndarray, law: CandidateLaw, shape: float, mean: float
) -> None:
    accountant = RdpAccountant(orders=list(ORDERS))
    gaussian = dp_event.GaussianDpEvent(REFERENCE.noise_multiplier)
    step = dp_event.PoissonSampledDpEvent(REFERENCE.sample_rate, gaussian)
    run = dp_event.SelfComposedDpEvent(step, REFERENCE.steps)
    accountant.compose(dp_event.RepeatAndSelectDpEvent(run, mean, shape))
    ours = curve_epsilon(selection_curve([single], mean=mean, law=law), DELTA)
    assert ours == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-4)


@pytest.mark.parametrize("law", list(CandidateLaw))
def test_selection_never_costs_less_than_one_candidate_and_grows_with_the_mean(
    single: np.ndarray, law: CandidateLaw
) -> None:
    figures = [
        curve_epsilon(selection_curve([single], mean=mean, law=law), DELTA) for mean in (1, 2, 8)
    ]
    assert curve_epsilon(single, DELTA) <= figures[0] < figures[1] < figures[2]


def test_a_list_costs_at_least_as_much_as_its_worst_entry(single: np.ndarray) -> None:
    other = renyi_curve([SampledGaussian(sample_rate=1.0, noise_multiplier=9.0, steps=60)])
    figures = [
        curve_epsilon(selection_curve(some, mean=4, law=CandidateLaw.GEOMETRIC), DELTA)
        for some in ([single], [other], [single, other])
    ]
    assert figures[2] >= max(figures[:2])


def test_what_the_theorems_do_not_cover_is_refused(single: np.ndarray) -> None:
    law = CandidateLaw.GEOMETRIC
    with pytest.raises(ConfigurationError, match="at least one"):
        selection_curve([], mean=3, law=law)
    with pytest.raises(ConfigurationError, match=r"mean=0\.5"):
        selection_curve([single], mean=0.5, law=law)
    with pytest.raises(ConfigurationError, match="delta=0"):
        curve_epsilon(single, 0)
    replaced = SampledGaussian(
        sample_rate=0.1,
        noise_multiplier=2.0,
        steps=1,
        relation=NeighbouringRelation.REPLACE_ONE,
    )
    with pytest.raises(UnsupportedEvent, match="add_or_remove_one only"):
        renyi_curve([replaced])


def test_orders_that_cannot_be_computed_are_left_out_in_silence(
    capfd: pytest.CaptureFixture[str],
) -> None:
    event = SampledGaussian(sample_rate=0.32, noise_multiplier=1.8, steps=10)
    curve = renyi_curve([event])
    assert np.isinf(curve).any()
    assert curve_epsilon(curve, DELTA) == pytest.approx(
        RDPAccountant().epsilon([event], DELTA), rel=0.05
    )
    assert "converge" not in capfd.readouterr().err
