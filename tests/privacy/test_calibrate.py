import errno
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from privacy import (
    CalibrationCache,
    CalibrationError,
    ConfigurationError,
    Event,
    PLDAccountant,
    SampledGaussian,
    affordable_epsilon,
    calibrate_noise_multiplier,
    make_plan,
)

# Reference plan, delta 1e-5: target epsilon -> smallest noise multiplier for 800 and for 100 steps.
BY_TARGET = [
    (1.0, 13.588, 4.969),
    (2.0, 7.304, 2.779),
    (4.0, 4.022, 1.655),
    (8.0, 2.315, 1.074),
]
# Public size -> noise multiplier for epsilon 8 over 100 rounds of ceil(n / 32) steps.
BY_SIZE = [
    (120, 3.313),
    (160, 2.810),
    (200, 2.668),
    (220, 2.446),
    (250, 2.315),
    (280, 2.204),
    (320, 2.051),
    (400, 1.891),
    (500, 1.710),
    (640, 1.529),
    (800, 1.400),
    (1000, 1.297),
]


def epsilon(accountant: PLDAccountant, q: float, sigma: float, steps: int, delta: float) -> float:
    event = SampledGaussian(sample_rate=q, noise_multiplier=sigma, steps=steps)
    return accountant.epsilon([event], delta)


@pytest.mark.parametrize(("target", "long", "short"), BY_TARGET)
def test_the_reference_plan_is_calibrated_as_tabled(
    target: float, long: float, short: float, accountant: PLDAccountant
) -> None:
    for steps, tabled in ((800, long), (100, short)):
        found = calibrate_noise_multiplier(
            target_epsilon=target,
            delta=1e-5,
            sample_rate=0.128,
            steps=steps,
            accountant=accountant,
        )
        assert found == pytest.approx(tabled, abs=0.0015)
        spent = epsilon(accountant, 0.128, found, steps, 1e-5)
        assert target - 0.02 <= spent <= target


def test_a_lax_delta_buys_the_tabled_noise(accountant: PLDAccountant) -> None:
    found = calibrate_noise_multiplier(
        target_epsilon=8.0, delta=2.3e-3, sample_rate=0.128, steps=800, accountant=accountant
    )
    assert found == pytest.approx(1.788, abs=0.0015)


class Counting(PLDAccountant):
    """Counts how often it is asked."""

    asked = 0

    def epsilon(self, events: Sequence[Event], delta: float) -> float:
        self.asked += 1
        return super().epsilon(events, delta)


def test_twelve_different_clients_are_calibrated_with_few_questions_to_the_accountant() -> None:
    """Each question takes about 0.03 s; `experiments.bench calibration` has the seconds."""
    accountant = Counting()
    for n_pub, tabled in BY_SIZE:
        plan = make_plan(
            n_pub=n_pub, target_epsilon=8.0, rounds=100, max_grad_norm=1.0, accountant=accountant
        )
        assert plan.noise_multiplier == pytest.approx(tabled, abs=0.0015)
        spent = accountant.epsilon([plan.event(100 * plan.steps_per_round)], plan.delta)
        assert 7.98 <= spent <= 8.0
    assert accountant.asked <= 12 * 15


def test_no_smaller_multiplier_on_the_grid_meets_the_target(accountant: PLDAccountant) -> None:
    for steps, target in ((8, 8.0), (100, 1.0), (3, 20.0)):
        found = calibrate_noise_multiplier(
            target_epsilon=target,
            delta=1e-5,
            sample_rate=0.128,
            steps=steps,
            accountant=accountant,
        )
        assert target - 0.02 <= epsilon(accountant, 0.128, found, steps, 1e-5) <= target
        decimals = len(str(found).split(".")[1])
        assert epsilon(accountant, 0.128, found - 10**-decimals, steps, 1e-5) > target - 1e-6


class ByFormula:
    """An accountant whose epsilon is a formula of the noise multiplier, and who counts what he is asked."""

    name = "formula"

    def __init__(self, formula: Callable[[float], float]) -> None:
        self._formula = formula
        self.asked: set[float] = set()

    def epsilon(self, events: Sequence[Event], delta: float) -> float:
        del delta
        (event,) = events
        assert isinstance(event, SampledGaussian)
        self.asked.add(event.noise_multiplier)
        return self._formula(event.noise_multiplier)


FORMULAS: list[tuple[Callable[[float], float], int]] = [  # and the most noise multipliers looked at
    (lambda sigma: (20 / sigma) ** 1.2, 8),  # a power, as epsilon almost is
    (lambda sigma: 9 / sigma + 12 / sigma**2, 9),
    (lambda sigma: 8 * 2.718 ** (3 / sigma - 1), 10),
    (lambda sigma: 9.0 if sigma < 3.3305 else 7.99, 30),  # a step, where no secant helps
]


@pytest.mark.parametrize(("formula", "most"), FORMULAS)
def test_the_smallest_multiplier_is_found_by_looking_at_few(
    formula: Callable[[float], float], most: int
) -> None:
    accountant = ByFormula(formula)
    found = calibrate_noise_multiplier(
        target_epsilon=8.0, delta=1e-5, sample_rate=0.1, steps=1, accountant=accountant
    )
    assert formula(found) <= 8.0 - 1e-6 < formula(found - 0.001)
    assert len(accountant.asked) <= most


@pytest.mark.parametrize("target", [1e6, 200.0])
def test_a_target_that_needs_no_noise_is_refused(target: float) -> None:
    with pytest.raises(CalibrationError):
        calibrate_noise_multiplier(target_epsilon=target, delta=1e-5, sample_rate=0.01, steps=1)


def test_a_target_of_zero_is_refused_with_its_name() -> None:
    with pytest.raises(ConfigurationError, match="target_epsilon=0"):
        calibrate_noise_multiplier(target_epsilon=0, delta=1e-5, sample_rate=0.1, steps=1)


def calibrate(accountant: PLDAccountant, cache: CalibrationCache) -> float:
    return calibrate_noise_multiplier(
        target_epsilon=8.0,
        delta=1e-5,
        sample_rate=0.128,
        steps=80,
        accountant=accountant,
        cache=cache,
    )


def test_a_cached_value_is_used_again_in_memory_and_confirmed_once_from_a_file(
    tmp_path: Path, accountant: PLDAccountant
) -> None:
    path = tmp_path / "deep" / "noise.json"
    cache = CalibrationCache(path)
    found = calibrate(accountant, cache)
    again = Counting()
    assert calibrate(again, cache) == found
    assert again.asked == 0
    fresh = Counting()
    assert calibrate(fresh, CalibrationCache(path)) == found
    assert 1 <= fresh.asked <= 2


def test_a_poisoned_cache_file_cannot_lower_the_noise(
    tmp_path: Path, accountant: PLDAccountant
) -> None:
    path = tmp_path / "noise.json"
    found = calibrate(accountant, CalibrationCache(path))
    stored = json.loads(path.read_text())
    for poison in (found / 2, -1.0, float("nan"), 1e9):
        path.write_text(json.dumps({key: poison for key in stored}))
        assert calibrate(accountant, CalibrationCache(path)) == found


@pytest.mark.parametrize("content", ["", "not json", "[1, 2]", '{"a": "b"}'])
def test_an_unreadable_cache_file_is_an_empty_cache(
    tmp_path: Path, accountant: PLDAccountant, content: str
) -> None:
    path = tmp_path / "noise.json"
    path.write_text(content)
    assert calibrate(accountant, CalibrationCache(path)) > 0
    assert CalibrationCache(path).suggested("nothing") is None


def test_a_cache_that_cannot_be_written_costs_time_and_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    cache = CalibrationCache(tmp_path / "file" / "noise.json")
    cache.store("key", 1.5)
    assert cache.confirmed("key") == 1.5

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("privacy.calibrate.os.replace", full)
    cache = CalibrationCache(tmp_path / "noise.json")
    cache.store("key", 1.5)
    assert cache.confirmed("key") == 1.5
    assert [path.name for path in tmp_path.iterdir()] == ["file"]  # nothing half written is left


def test_a_cache_file_keeps_what_others_added(tmp_path: Path) -> None:
    path = tmp_path / "noise.json"
    ours, theirs = CalibrationCache(path), CalibrationCache(path)
    ours.store("ours", 1.5)
    theirs.store("theirs", 2.5)
    assert json.loads(path.read_text()) == {"ours": 1.5, "theirs": 2.5}


def test_the_affordable_target_fits_and_a_larger_one_does_not(accountant: PLDAccountant) -> None:
    charged = [SampledGaussian(sample_rate=0.128, noise_multiplier=2.317, steps=400)]
    planned = SampledGaussian(sample_rate=0.128, noise_multiplier=1.0, steps=100)

    def total(target: float) -> float:
        noise_multiplier = calibrate_noise_multiplier(
            target_epsilon=target,
            delta=1e-5,
            sample_rate=0.128,
            steps=100,
            accountant=accountant,
        )
        return accountant.epsilon(
            [*charged, replace(planned, noise_multiplier=noise_multiplier)], 1e-5
        )

    found = affordable_epsilon(
        charged, planned=planned, delta=1e-5, limit_epsilon=6.5, accountant=accountant
    )
    assert total(found) <= 6.5 < total(found + 0.1)
    spent = accountant.epsilon(charged, 1e-5)
    nothing = affordable_epsilon(
        charged, planned=planned, delta=1e-5, limit_epsilon=spent, accountant=accountant
    )
    assert nothing == 0.0
    whole = affordable_epsilon(
        [], planned=planned, delta=1e-5, limit_epsilon=6.5, accountant=accountant
    )
    assert whole == 6.5  # nothing was charged, so all of it is left


@pytest.mark.parametrize(
    ("target", "remedy"), [(1e-5, "raise the target"), (1e5, "lower the target")]
)
def test_a_target_that_no_noise_meets_is_told_with_its_own_remedy(
    accountant: PLDAccountant, target: float, remedy: str
) -> None:
    with pytest.raises(CalibrationError, match=remedy) as refusal:
        calibrate_noise_multiplier(
            target_epsilon=target, delta=1e-5, sample_rate=0.1, steps=4, accountant=accountant
        )
    assert ("lower" in str(refusal.value)) != ("raise" in str(refusal.value))
