"""Every check on the package's own step: it passes, it fails where protection is missing, and it admits blindness."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from privacy import DPPlan, GaussianNoise, PLDAccountant, PoissonSampler, SampledGaussian
from privacy.audit import (
    CheckResult,
    GradientStep,
    Verdict,
    check_canaries,
    check_inversion,
    check_mechanism,
    check_membership,
    check_one_run,
    check_replay,
    check_sampling,
    overall,
)
from privacy.audit.inversion import InversionTarget, ObservedUpdate
from privacy.audit.membership import largest_rate
from privacy.audit.one_run import epsilon_bound, p_value
from privacy.noise import InsecureZeroNoise, insecure_seeded_noise
from privacy.sampling import insecure_seeded_sampler

PlanWith = Callable[..., DPPlan]
SIZE = 64


@pytest.fixture(scope="module")
def step(plan_with: PlanWith) -> GradientStep:
    """Orthogonal gradients of length 3 C, a tiny one, and one that is not finite."""
    rows = torch.cat(
        [3 * torch.eye(SIZE), torch.full((1, SIZE), 1e-3), torch.full((1, SIZE), 1e38)]
    )
    rows[-1, 0] = torch.inf
    names = [f"canary {i}" for i in range(SIZE)] + ["a tiny one", "a non-finite one"]
    blocks = {"text": rows[:, :40].contiguous(), "gate": rows[:, 40:].reshape(-1, 4, 6)}
    return GradientStep(plan_with(), blocks, names)


@pytest.mark.usefixtures("rare_alarms")
def test_the_packages_own_step_passes_every_check(
    step: GradientStep, accountant: PLDAccountant
) -> None:
    results = [
        check_replay(step, base=range(10), removed=[10, SIZE, SIZE + 1]),
        check_mechanism(step, holdings=[[], range(10), range(9)]),
        check_sampling(step, members=range(10)),
        check_canaries(step, canaries=range(SIZE), steps=10),
    ]
    assert [r.verdict for r in results] == [Verdict.PASS] * 4
    assert results[0].control == pytest.approx(3.0, rel=1e-5)


def test_replay_is_inconclusive_where_no_example_exceeds_the_clip(step: GradientStep) -> None:
    result = check_replay(step, base=range(5), removed=[SIZE])
    assert result.verdict is Verdict.INCONCLUSIVE


@pytest.mark.usefixtures("rare_alarms")
def test_the_mechanism_test_catches_noise_that_is_two_per_cent_short_given_enough_values(
    plan_with: PlanWith,
) -> None:
    large = GradientStep(plan_with(), {"text": torch.zeros(1, 200_000)}, ["zero"])

    class Short(GaussianNoise):
        def gaussian(self, size: int, *, standard_deviation: float):  # type: ignore[no-untyped-def]
            return super().gaussian(size, standard_deviation=0.98 * standard_deviation)

    assert check_mechanism(large, holdings=[[], [0]]).verdict is Verdict.PASS
    assert check_mechanism(large, holdings=[[], [0]], noise=Short).verdict is Verdict.FAIL


def test_the_mechanism_test_catches_noise_that_is_used_twice(step: GradientStep) -> None:
    class Repeating(GaussianNoise):
        def gaussian(self, size: int, *, standard_deviation: float):  # type: ignore[no-untyped-def]
            values = np.random.default_rng(size).standard_normal(size)
            return (standard_deviation * values).astype(np.float32)

    result = check_mechanism(step, holdings=[[], range(3)], noise=Repeating)
    assert result.verdict is Verdict.FAIL
    assert "two steps" in result.words


class FixedSize(PoissonSampler):
    def draw(self, dataset_size: int):  # type: ignore[no-untyped-def]
        size = round(0.128 * dataset_size)
        return np.sort(np.random.default_rng().choice(dataset_size, size, replace=False))


class NeverEmpty(PoissonSampler):
    def draw(self, dataset_size: int):  # type: ignore[no-untyped-def]
        while len(batch := super().draw(dataset_size)) == 0:
            pass
        return batch


class WithoutTheLast(PoissonSampler):
    def draw(self, dataset_size: int):  # type: ignore[no-untyped-def]
        return super().draw(max(0, dataset_size - 1))


class Twice(PoissonSampler):
    def draw(self, dataset_size: int):  # type: ignore[no-untyped-def]
        self.again, batch = (
            (None, self.again)
            if getattr(self, "again", None) is not None and self.of == dataset_size
            else (super().draw(dataset_size),) * 2
        )
        self.of = dataset_size
        return batch


@pytest.mark.parametrize(
    ("sampler", "test"),
    [
        (FixedSize, "spread of batch sizes"),
        (NeverEmpty, "empty batches"),
        (WithoutTheLast, "one index"),
        (Twice, "consecutive draws"),
    ],
)
def test_each_way_to_draw_wrongly_is_caught_by_the_test_that_is_meant_to(
    step: GradientStep, sampler: type[PoissonSampler], test: str
) -> None:
    result = check_sampling(step, members=range(5), sampler=sampler)
    assert result.verdict is Verdict.FAIL
    assert test in result.words


def test_at_rate_one_a_batch_that_is_not_the_whole_holding_is_caught(
    plan_with: PlanWith,
) -> None:
    names = [f"canary {i}" for i in range(SIZE)]
    sure = GradientStep(
        plan_with(sample_rate=1.0, block_weights=(("text", 1.0),)), {"text": torch.eye(SIZE)}, names
    )
    assert check_sampling(sure, members=range(5)).verdict is Verdict.PASS
    result = check_sampling(sure, members=range(5), sampler=WithoutTheLast)
    assert result.verdict is Verdict.FAIL
    assert "whole batches" in result.words


def test_the_one_run_bound_has_the_closed_forms_of_the_theorem() -> None:
    assert p_value(10, 10, 10, epsilon=0.0, delta=0.0) == pytest.approx(2**-10)
    assert p_value(0, 10, 10, epsilon=0.0, delta=0.0) == pytest.approx(1.0)
    # Pure DP: 100 of 100 right refutes epsilon at level 0.05 up to logit(0.05 ** (1 / 100)).
    accuracy = 0.05**0.01
    exact = np.log(accuracy / (1 - accuracy))
    assert epsilon_bound(100, 100, 100, delta=0.0, alpha=0.05) == pytest.approx(exact, abs=2e-3)
    with_delta = epsilon_bound(100, 100, 1000, delta=1e-5, alpha=0.05)
    assert 0 < with_delta < exact
    assert epsilon_bound(50, 100, 100, delta=0.0, alpha=0.05) == 0.0


def test_the_one_run_audit_says_when_its_ceiling_is_below_the_claim(
    step: GradientStep,
    accountant: PLDAccountant,
    plan_with: PlanWith,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given coins and noise: with drawn ones the bound exceeds a true claim once in ten thousand runs.
    audited = "privacy.audit.one_run"
    monkeypatch.setattr(f"{audited}.GaussianNoise", lambda: insecure_seeded_noise(0))
    monkeypatch.setattr(f"{audited}.PoissonSampler", lambda plan: insecure_seeded_sampler(plan, 0))

    def audit(steps: int, plan: DPPlan) -> CheckResult:
        rows = {"text": 3 * torch.eye(200)}
        return check_one_run(
            GradientStep(plan, rows, [""] * 200),
            canaries=range(200),
            steps=steps,
            accountant=accountant,
            coins=np.random.default_rng(0),
        )

    high = audit(800, plan_with())
    assert high.verdict is Verdict.INCONCLUSIVE
    assert high.ceiling is not None
    assert high.statistic < high.ceiling < 7.98 < high.threshold + 0.01
    low = audit(100, plan_with(noise_multiplier=4.97))
    assert low.verdict is Verdict.PASS
    assert low.ceiling is not None
    assert low.ceiling > low.threshold
    lied = audit(100, plan_with(noise_multiplier=0.3))
    claimed = SampledGaussian(sample_rate=0.128, noise_multiplier=4.97, steps=100)
    assert lied.statistic > accountant.epsilon([claimed], 1e-5)


def membership(
    shift: float, accountant: PLDAccountant, *, control: float = 100.0, sigma: float = 2.317
) -> CheckResult:
    random = np.random.default_rng(0)
    return check_membership(
        "a view",
        protected=lambda member: shift * member + sigma * random.standard_normal(),
        unprotected=lambda member: control * member + random.standard_normal(),
        events=[SampledGaussian(sample_rate=1.0, noise_multiplier=2.317, steps=1)],
        delta=1e-5,
        accountant=accountant,
        trials=400,
    )


def test_membership_passes_what_is_claimed_fails_what_is_not_and_needs_its_control(
    accountant: PLDAccountant,
) -> None:
    assert membership(1.0, accountant).verdict is Verdict.PASS
    assert membership(8.0, accountant).verdict is Verdict.FAIL  # sensitivity 8 C
    assert membership(1.0, accountant, sigma=0.2).verdict is Verdict.FAIL  # little noise
    assert membership(1.0, accountant, control=0.0).verdict is Verdict.INCONCLUSIVE


def test_the_largest_rate_is_that_of_the_gaussian_mechanism(accountant: PLDAccountant) -> None:
    from statistics import NormalDist

    normal = NormalDist()
    event = SampledGaussian(sample_rate=1.0, noise_multiplier=2.0, steps=1)
    for wrong in (0.01, 0.1, 0.3):
        exact = normal.cdf(normal.inv_cdf(wrong) + 1 / 2.0)
        assert largest_rate(accountant, [event], wrong) == pytest.approx(exact, rel=0.02)


def inversion(noise: float, accountant: PLDAccountant, *, blind: bool = False) -> CheckResult:
    """Inputs whose gradient is a fixed invertible function of them."""
    random = torch.Generator().manual_seed(0)
    candidates = 0.1 * torch.randn(20, 6, generator=random)
    mixing = torch.randn(12, 6, generator=random)

    def gradient_of(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(mixing @ (x if not blind else x.detach() * 0 + x.sum() * 0 + 1.0))

    targets = []
    for truth in range(12):
        bare = gradient_of(candidates[truth])
        noised = bare / bare.norm() + noise * torch.randn(12, generator=random)
        targets.append(
            InversionTarget(
                protected=ObservedUpdate(update=noised, gradient_of=gradient_of),
                unprotected=ObservedUpdate(update=bare, gradient_of=gradient_of),
                start=candidates.mean(0),
                describe=lambda x: x,
                candidates=candidates,
                truth=truth,
            )
        )
    event = SampledGaussian(sample_rate=1.0, noise_multiplier=2.317, steps=1)
    return check_inversion(targets, events=[event], accountant=accountant)


def test_inversion_finds_unprotected_examples_and_not_protected_ones(
    accountant: PLDAccountant,
) -> None:
    assert inversion(2.317, accountant).verdict is Verdict.PASS
    assert inversion(0.0, accountant).verdict is Verdict.FAIL
    assert inversion(2.317, accountant, blind=True).verdict is Verdict.INCONCLUSIVE


def test_a_failed_check_outweighs_all_others(step: GradientStep) -> None:
    passed = check_replay(step, base=range(3), removed=[3])
    failed = replace(passed, verdict=Verdict.FAIL)
    unclear = replace(passed, verdict=Verdict.INCONCLUSIVE)
    assert overall([passed, unclear, failed]) is Verdict.FAIL
    assert overall([passed, passed]) is Verdict.PASS
    assert overall([passed, unclear]) is Verdict.INCONCLUSIVE
    assert overall([]) is Verdict.INCONCLUSIVE
    assert unclear.as_dict()["verdict"] == "inconclusive"


def test_attacks_that_do_not_succeed_prove_nothing_and_one_that_does_refutes(
    step: GradientStep,
) -> None:
    proof = check_replay(step, base=range(3), removed=[3])
    attack = replace(proof, proves=False)
    unclear = replace(attack, verdict=Verdict.INCONCLUSIVE)
    assert overall([attack]) is Verdict.INCONCLUSIVE
    assert overall([replace(proof, verdict=Verdict.INCONCLUSIVE), attack]) is Verdict.INCONCLUSIVE
    assert overall([proof, attack, unclear]) is Verdict.PASS
    assert overall([proof, replace(attack, verdict=Verdict.FAIL)]) is Verdict.FAIL


def test_noise_free_steps_are_the_sum_of_clipped_gradients(step: GradientStep) -> None:
    one = replace(step.plan, sample_rate=1.0)
    total = step.noised_sum([0, 1], sampler=PoissonSampler(one), noise=InsecureZeroNoise())
    expected = np.zeros(SIZE)
    expected[:2] = 1.0  # gradients of length 3 C, clipped to C
    assert total == pytest.approx(expected, abs=1e-6)
