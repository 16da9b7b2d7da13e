import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy import (
    AccountingError,
    ConfigurationError,
    Event,
    NeighbouringRelation,
    PLDAccountant,
    PRVAccountant,
    RDPAccountant,
    SampledGaussian,
    UnsupportedEvent,
    accountant_named,
    cross_checked,
    display_epsilon,
    replace_one_epsilon,
)

DELTA = 1e-5

# q, sigma, steps, PLD, PRV, RDP at delta 1e-5, add or remove one. Source: dp-accounting 0.6.0 at
# grid 1e-3 and Opacus 1.6.0: independent implementations of different methods.
PINNED = [
    (0.128, 2.317, 8, 0.7513, 0.7614, 0.8706),
    (0.128, 2.317, 100, 2.5209, 2.5310, 2.7714),
    (0.128, 2.317, 800, 7.9860, 7.9961, 8.6248),
    (0.128, 2.317, 8000, 34.625, 34.635, None),
    (0.128, 1.0, 800, 29.7109, 29.7220, 31.9911),
    (0.128, 2.0, 800, 9.7510, 9.7613, 10.5223),
    (0.128, 4.0, 800, 4.0249, 4.0348, 4.3615),
    (0.128, 1.5, 21, 2.2159, 2.2261, 2.5372),
    (0.128, 5.0, 100, 0.9928, 1.0027, 1.0904),
    (0.05, 1.0, 2000, 16.4889, 16.4993, 17.8212),
    (0.05, 2.0, 2000, 5.4725, 5.4820, 5.9242),
    (1.0, 2.0, 100, 33.104, 33.115, 35.082),
    (1.0, 4.0, 100, 13.2067, 13.2173, 14.1322),
    (1.0, 6.0, 100, 8.0037, 8.0141, 8.6033),
]
IDS = [f"q{row[0]}-sigma{row[1]}-steps{row[2]}" for row in PINNED]


def event(q: float, sigma: float, steps: int) -> SampledGaussian:
    return SampledGaussian(sample_rate=q, noise_multiplier=sigma, steps=steps)


REFERENCE = event(0.128, 2.317, 800)


@pytest.mark.parametrize("row", PINNED, ids=IDS)
def test_pld_reads_its_pinned_value(
    row: tuple[float, float, int, float, float, float], accountant: PLDAccountant
) -> None:
    assert accountant.epsilon([event(*row[:3])], DELTA) == pytest.approx(row[3], abs=0.002)


@pytest.mark.parametrize("row", PINNED, ids=IDS)
def test_prv_reads_its_pinned_value_and_agrees_with_pld(
    row: tuple[float, float, int, float, float, float], accountant: PLDAccountant
) -> None:
    figures = cross_checked([event(*row[:3])], DELTA, of_record=accountant)
    assert figures.prv == pytest.approx(row[4], abs=0.002)
    assert figures.cross_check == "agrees"


@pytest.mark.parametrize("row", [row for row in PINNED if row[5]], ids=lambda row: str(row[:3]))
def test_rdp_reads_its_pinned_value(
    row: tuple[float, float, int, float, float, float],
) -> None:
    assert RDPAccountant().epsilon([event(*row[:3])], DELTA) == pytest.approx(row[5], abs=0.002)


def test_pld_of_one_gaussian_meets_the_closed_form(accountant: PLDAccountant) -> None:
    # Balle and Wang, arXiv 1805.06530, theorem 8: an oracle that shares no code with accountants.
    def delta_of(epsilon: float, sigma: float) -> float:
        def phi(x: float) -> float:
            return 0.5 * math.erfc(-x / math.sqrt(2))

        a = 1 / (2 * sigma)
        return phi(a - epsilon * sigma) - math.exp(epsilon) * phi(-a - epsilon * sigma)

    for sigma in (0.7, 1.0, 2.0, 5.0):
        epsilon = accountant.epsilon([event(1.0, sigma, 1)], DELTA)
        assert delta_of(epsilon, sigma) <= DELTA
        assert delta_of(epsilon - 0.002, sigma) > DELTA


def test_nothing_done_costs_nothing(accountant: PLDAccountant) -> None:
    for each in (accountant, PRVAccountant(), RDPAccountant()):
        assert each.epsilon([], DELTA) == 0.0


@settings(max_examples=15, deadline=None)
@given(st.floats(0.02, 0.5), st.floats(0.8, 6.0), st.integers(1, 200), st.floats(1.05, 2.0))
def test_epsilon_falls_with_noise_and_grows_with_rate_and_steps(
    q: float, sigma: float, steps: int, factor: float
) -> None:
    accountant = PLDAccountant()

    def epsilon(q: float, sigma: float, steps: int) -> float:
        return accountant.epsilon([event(q, sigma, steps)], DELTA)

    base = epsilon(q, sigma, steps)
    assert epsilon(q, sigma * factor, steps) <= base
    assert epsilon(min(1.0, q * factor), sigma, steps) >= base
    assert epsilon(q, sigma, steps + 10) >= base


def test_rounds_composed_one_by_one_equal_one_composition_over_all_steps() -> None:
    step_by_step = PLDAccountant()
    rounds: list[Event] = []
    for _ in range(30):
        rounds.append(event(0.128, 2.317, 8))
        reached = step_by_step.epsilon(rounds, DELTA)
    at_once = PLDAccountant().epsilon([event(0.128, 2.317, 240)], DELTA)
    assert reached == pytest.approx(at_once, abs=1e-6)


def test_the_order_of_events_does_not_matter() -> None:
    events = [event(0.128, 2.0, 80), event(0.05, 1.5, 10), event(0.128, 2.0, 8)]
    forth, back = PLDAccountant(), PLDAccountant()
    for length in range(1, 4):
        forth.epsilon(events[:length], DELTA)
        back.epsilon(events[-length:], DELTA)
    assert forth.epsilon(events, DELTA) == pytest.approx(back.epsilon(events, DELTA), abs=1e-6)


def test_a_second_mechanism_is_composed_not_forgotten(accountant: PLDAccountant) -> None:
    first, second = event(0.128, 2.317, 80), event(0.05, 1.5, 80)
    both = accountant.epsilon([first, second], DELTA)
    assert both > max(accountant.epsilon([first], DELTA), accountant.epsilon([second], DELTA))
    assert cross_checked([first, second], DELTA, of_record=accountant).cross_check == "agrees"


def test_remembering_is_bounded() -> None:
    accountant = PLDAccountant()
    for steps in range(1, 80):
        accountant.epsilon([event(0.1, 5.0, steps)], DELTA)
    assert len(accountant._distributions) <= accountant._REMEMBERED


def test_the_privacy_profile_meets_epsilon(accountant: PLDAccountant) -> None:
    epsilon = accountant.epsilon([REFERENCE], DELTA)
    assert accountant.delta([REFERENCE], epsilon) == pytest.approx(DELTA, rel=1e-3)
    assert accountant.delta([], 0.0) == 0.0


@pytest.mark.parametrize(
    ("sigma", "at_one_percent", "at_one_permille"),
    [
        (13.588, 0.020, 0.0024),
        (7.304, 0.034, 0.0048),
        (4.022, 0.079, 0.015),
        (2.315, 0.24, 0.073),
    ],
)
def test_the_profile_bounds_an_attackers_success_as_documented(
    sigma: float, at_one_percent: float, at_one_permille: float, accountant: PLDAccountant
) -> None:
    done = [event(0.128, sigma, 800)]
    grid = [k / 20 for k in range(160)]
    profile = {x: accountant.delta(done, x) for x in grid}
    for false_positives, documented in ((0.01, at_one_percent), (0.001, at_one_permille)):
        bound = min(math.exp(x) * false_positives + profile[x] for x in grid)
        assert bound == pytest.approx(documented, rel=0.05)


def test_replace_one_is_a_separate_larger_figure(accountant: PLDAccountant) -> None:
    assert replace_one_epsilon([REFERENCE], DELTA, of_record=accountant) == pytest.approx(
        17.397, abs=0.002
    )
    assert accountant.epsilon([REFERENCE], DELTA) == pytest.approx(7.986, abs=0.002)


def test_relations_are_never_mixed(accountant: PLDAccountant) -> None:
    other = SampledGaussian(
        sample_rate=0.128,
        noise_multiplier=2.317,
        steps=8,
        relation=NeighbouringRelation.REPLACE_ONE,
    )
    with pytest.raises(UnsupportedEvent):
        accountant.epsilon([REFERENCE, other], DELTA)
    for add_or_remove_only in (PRVAccountant(), RDPAccountant()):
        with pytest.raises(UnsupportedEvent):
            add_or_remove_only.epsilon([other], DELTA)
    with pytest.raises(UnsupportedEvent):
        cross_checked([other], DELTA, of_record=accountant)


def test_an_unknown_event_is_refused(accountant: PLDAccountant) -> None:
    with pytest.raises(UnsupportedEvent):
        accountant.epsilon([object()], DELTA)  # type: ignore[list-item]


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, float("nan")])
def test_a_delta_that_is_no_probability_is_refused(delta: float, accountant: PLDAccountant) -> None:
    for each in (accountant, PRVAccountant(), RDPAccountant()):
        with pytest.raises(ConfigurationError):
            each.epsilon([REFERENCE], delta)


def test_the_gaussian_dp_limit_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="not an upper bound"):
        accountant_named("gdp")
    with pytest.raises(ConfigurationError, match="must be one of"):
        accountant_named("moments")
    assert "PLD" in accountant_named("pld").name


class Fixed:
    """An accountant with one answer."""

    name = "fixed"

    def __init__(self, answer: float | Exception) -> None:
        self.answer = answer

    def epsilon(self, events: Sequence[Event], delta: float) -> float:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize("difference", [-0.06, 0.06, 3.0])
def test_accountants_that_disagree_stop_the_run(difference: float) -> None:
    with pytest.raises(AccountingError, match="further apart"):
        cross_checked([REFERENCE], DELTA, of_record=Fixed(8.0), check=Fixed(8.0 + difference))


def test_a_cross_check_that_is_no_number_stops_the_run() -> None:
    with pytest.raises(AccountingError):
        cross_checked([REFERENCE], DELTA, of_record=Fixed(8.0), check=Fixed(math.inf))
    with pytest.raises(AccountingError):
        cross_checked([REFERENCE], DELTA, of_record=Fixed(8.0), check=Fixed(math.nan))


@pytest.mark.parametrize("failure", [RuntimeError("overflow"), AccountingError("negative")])
def test_a_failing_prv_falls_back_to_pld_and_rdp_never_to_zero(
    failure: Exception, accountant: PLDAccountant
) -> None:
    figures = cross_checked([REFERENCE], DELTA, of_record=accountant, check=Fixed(failure))
    assert figures.epsilon == pytest.approx(7.986, abs=0.002)
    assert figures.rdp == pytest.approx(8.625, abs=0.002)
    assert figures.prv is None
    assert figures.cross_check == f"unavailable: {type(failure).__name__}"


def test_a_fallback_below_the_figure_of_record_stops_the_run() -> None:
    with pytest.raises(AccountingError, match="below"):
        cross_checked(
            [REFERENCE],
            DELTA,
            of_record=Fixed(8.0),
            check=Fixed(RuntimeError()),
            fallback=Fixed(7.5),
        )


@pytest.mark.parametrize("answer", [-0.1, math.nan, math.inf])
def test_a_prv_value_that_cannot_be_an_epsilon_counts_as_a_failure(
    answer: float, monkeypatch: pytest.MonkeyPatch, accountant: PLDAccountant
) -> None:
    monkeypatch.setattr("privacy.accountant._opacus_prv", lambda composition, delta: answer)
    figures = cross_checked([REFERENCE], DELTA, of_record=accountant)
    assert figures.cross_check == "unavailable: AccountingError"
    assert figures.epsilon > 7.9


@pytest.mark.parametrize(
    ("epsilon", "shown"), [(7.9801, "7.99"), (8.0, "8.00"), (0.0, "0.00"), (1e-9, "0.01")]
)
def test_a_displayed_epsilon_is_rounded_up(epsilon: float, shown: str) -> None:
    assert display_epsilon(epsilon) == shown
