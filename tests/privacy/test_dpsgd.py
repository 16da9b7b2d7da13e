import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from scipy import stats

from privacy import (
    ClipMode,
    ConfigurationError,
    DPPlan,
    GaussianNoise,
    GradientShapeError,
    NoiseSource,
    PrivateGradient,
    PRVAccountant,
    StepError,
    StepHistory,
)
from privacy.dpsgd import joint_norms
from privacy.noise import InsecureZeroNoise, insecure_seeded_noise

PlanWith = Callable[..., DPPlan]
Rows = dict[str, torch.Tensor]

SHAPES = {"text": (3, 5), "adapter": (7,), "gate": ()}
WEIGHTS = (("adapter", 0.25), ("gate", 3.0), ("text", 2.0))
LEVEL = 1e-9  # chance of a false alarm per check: noise cannot be seeded, and checks are many


def rows_of(examples: int, seed: int, scale: float = 1.0) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: scale * torch.randn((examples, *shape), generator=generator)
        for name, shape in SHAPES.items()
    }


def take(rows: Mapping[str, torch.Tensor], index: object) -> Rows:
    return {name: value[index] for name, value in rows.items()}  # type: ignore[index]


def step(plan: DPPlan, rows: Mapping[str, torch.Tensor], noise: NoiseSource | None = None) -> Rows:
    shapes = {name: tuple(value.shape[1:]) for name, value in rows.items()}
    noise = InsecureZeroNoise() if noise is None else noise
    return PrivateGradient(plan=plan, shapes=shapes, noise=noise).release(rows)


def query(plan: DPPlan, rows: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The weighted, clipped sum before noise, float64 [d]: what the noise must hide."""
    released = step(plan, rows)
    return torch.cat(
        [
            released[name].double().flatten() * plan.weight(name) * plan.expected_batch_size
            for name in sorted(released)
        ]
    )


def removed_examples(rows: Rows, seed: int) -> Rows:
    """Rows whose last one is ordinary, huge, a duplicate, tiny, zero, or in one block only."""
    kind = seed % 6
    last = take(rows, slice(-1, None))
    changed = {
        0: lambda name, value: value,
        1: lambda name, value: value * 1e3,
        2: lambda name, value: rows[name][:1],
        3: lambda name, value: value * 1e-12,
        4: lambda name, value: value * 0,
        5: lambda name, value: value * (1e6 if name == "gate" else 0),
    }[kind]
    return {
        name: torch.cat([value[:-1], changed(name, last[name])]) for name, value in rows.items()
    }


@pytest.mark.parametrize("clip", ClipMode)
@pytest.mark.parametrize("weights", [(), WEIGHTS])
def test_removing_any_example_moves_the_query_by_at_most_the_clip_norm(
    plan_with: PlanWith, clip: ClipMode, weights: tuple[tuple[str, float], ...]
) -> None:
    largest = 0.0
    for seed in range(120):
        clip_norm = (0.01, 1.0, 50.0)[seed % 3]
        plan = plan_with(max_grad_norm=clip_norm, block_weights=weights, clip=clip)
        rows = removed_examples(rows_of(2 + seed % 6, seed), seed)
        moved = query(plan, rows) - query(plan, take(rows, slice(0, -1)))
        largest = max(largest, float(moved.norm()) / clip_norm)
    assert largest <= 1 + 1e-5
    assert largest > 0.98  # the bound is reached, so the test looks at the right number


def test_without_clipping_the_example_would_show(plan_with: PlanWith) -> None:
    plan = plan_with(max_grad_norm=1e6)  # nothing is clipped at this norm
    rows = removed_examples(rows_of(4, 1), 1)
    moved = query(plan, rows) - query(plan, take(rows, slice(0, -1)))
    assert float(moved.norm()) > 1e3


@pytest.mark.parametrize("clip", ClipMode)
def test_small_entries_beside_a_large_one_are_not_lost_from_the_norm(
    plan_with: PlanWith, clip: ClipMode
) -> None:
    # A float32 sum of squares loses them: opacus' own norm of these rows is short by 5.6e-4.
    size = 158_000
    for small in (2.4e-4, 1.5e-4, 1e-4):
        row = torch.full((1, size), small)
        row[0, 0] = 1.0
        plan = plan_with(max_grad_norm=0.5, clip=clip)
        assert float(query(plan, {"text": row}).norm()) <= 0.5 * (1 + 1e-5)
        true = float(row.double().norm())
        assert float(joint_norms([row], [1.0])[0]) == pytest.approx(true, rel=2e-6)
    naive = float(torch.linalg.vector_norm(torch.cat([row * 2.4, row]), dim=1)[0])
    assert naive / float((row * 2.4).double().norm()) < 1 - 5e-5  # the control


def test_clipping_the_batch_instead_of_the_example_would_break_the_bound() -> None:
    # Positive control: the sensitivity of a clipped sum is not the clip norm but up to twice that.
    rows = torch.eye(2, 8)
    rows[1] = -rows[0] * 10
    clipped = [v * min(1.0, 1.0 / float(v.norm())) for v in (rows.sum(0), rows[:1].sum(0))]
    assert float((clipped[0] - clipped[1]).norm()) > 1.9


@pytest.mark.parametrize("weights", [(), WEIGHTS])
def test_flat_clipping_is_the_formula_over_all_blocks(
    plan_with: PlanWith, weights: tuple[tuple[str, float], ...]
) -> None:
    plan = plan_with(max_grad_norm=4.0, block_weights=weights)
    rows = rows_of(9, 3)
    released = step(plan, rows)
    weighted = {name: plan.weight(name) * value.double() for name, value in rows.items()}
    norms = torch.stack([v.reshape(9, -1).norm(dim=1) for v in weighted.values()]).norm(dim=0)
    assert ((norms > 4.0).any() and (norms < 4.0).any()) or weights
    factors = (4.0 / norms).clamp(max=1.0)
    for name, value in weighted.items():
        expected = torch.einsum("b,b...->...", factors, value)
        expected = expected / (plan.weight(name) * plan.expected_batch_size)
        torch.testing.assert_close(released[name].double(), expected, rtol=1e-5, atol=1e-7)


def test_normalised_clipping_is_the_formula(plan_with: PlanWith) -> None:
    plan = plan_with(max_grad_norm=0.5, clip=ClipMode.NORMALISE)
    rows = rows_of(6, 4)
    norms = joint_norms(list(rows.values()), [1.0] * 3)
    factors = 0.5 / (norms + 0.005)
    for name, value in step(plan, rows).items():
        expected = torch.einsum("b,b...->...", factors, rows[name].double()) / 32.0
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7)


def test_without_noise_and_clipping_the_result_is_the_weighted_mean(plan_with: PlanWith) -> None:
    rows = rows_of(5, 5)
    released = step(plan_with(max_grad_norm=1e6, block_weights=WEIGHTS), rows)
    for name, value in released.items():
        torch.testing.assert_close(value, rows[name].sum(0) / 32.0, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("clip", ClipMode)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_a_non_finite_example_counts_as_zero_in_all_blocks(
    plan_with: PlanWith, clip: ClipMode, value: float
) -> None:
    plan = plan_with(clip=clip)
    rows = rows_of(6, 6)
    bad = {name: tensor.clone() for name, tensor in rows.items()}
    bad["adapter"][2, 4] = value
    kept = take(rows, [0, 1, 3, 4, 5])
    released, expected = step(plan, bad), step(plan, kept)
    for name in SHAPES:
        assert torch.isfinite(released[name]).all()
        torch.testing.assert_close(released[name], expected[name], rtol=1e-6, atol=1e-8)


def test_a_batch_of_only_non_finite_examples_is_an_empty_batch(plan_with: PlanWith) -> None:
    rows = {name: torch.full((3, *shape), math.nan) for name, shape in SHAPES.items()}
    assert all((value == 0).all() for value in step(plan_with(), rows).values())


def test_what_one_example_adds_does_not_depend_on_the_others(plan_with: PlanWith) -> None:
    plan = plan_with(max_grad_norm=2.0)
    rows = rows_of(8, 7)
    alone = sum(query(plan, take(rows, [i])) for i in range(8))
    together = query(plan, rows)
    shuffled = query(plan, take(rows, torch.randperm(8, generator=torch.Generator())))
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(together, shuffled, rtol=1e-5, atol=1e-6)


def test_as_many_examples_as_entries_of_a_block_confuses_nothing(plan_with: PlanWith) -> None:
    plan = plan_with(max_grad_norm=0.1)
    rows = {"text": torch.randn(32, 4, 8, generator=torch.Generator().manual_seed(1))}
    expected = (rows["text"] * (0.1 / rows["text"].flatten(1).norm(dim=1))[:, None, None]).sum(0)
    torch.testing.assert_close(step(plan, rows)["text"], expected / 32.0, rtol=1e-4, atol=1e-7)


def test_an_empty_batch_is_a_noised_step_of_the_same_size(plan_with: PlanWith) -> None:
    plan, history = plan_with(), StepHistory()
    private = PrivateGradient(
        plan=plan, shapes={"text": (200, 200)}, noise=GaussianNoise(), history=history
    )
    empty = private.release({"text": torch.zeros(0, 200, 200)})["text"]
    full = private.release({"text": torch.zeros(40, 200, 200)})["text"]
    assert empty.shape == full.shape
    for released in (empty, full):
        statistic = float((released.double() ** 2).sum()) / (2.317 / 32.0) ** 2
        low, high = stats.chi2.ppf([LEVEL / 2, 1 - LEVEL / 2], df=released.numel())
        assert low <= statistic <= high
    history.require([plan.event(2)])


def test_steps_are_counted_as_opacus_counts_them(plan_with: PlanWith) -> None:
    plan, history = plan_with(noise_multiplier=1.5, steps_per_round=7), StepHistory()
    for round_index in range(3):
        private = PrivateGradient(plan=plan, shapes=SHAPES, noise=GaussianNoise(), history=history)
        for index in range(7):
            empty = round_index == 1 and index == 3
            private.release(rows_of(0 if empty else 5, index))
        private.finish()
    assert history._accountant.history == [(1.5, 0.128, 21)]
    assert history.steps == 21
    history.require([plan.round_event()] * 3)
    epsilon = history._accountant.get_epsilon(1e-5)
    assert epsilon == pytest.approx(2.226, abs=0.002)
    assert PRVAccountant().epsilon([plan.event(21)], 1e-5) == pytest.approx(epsilon, abs=1e-6)


def test_a_skipped_empty_batch_is_caught(plan_with: PlanWith) -> None:
    plan = plan_with(steps_per_round=3)
    private = PrivateGradient(plan=plan, shapes=SHAPES, noise=GaussianNoise())
    for size in (4, 0, 2):
        if size:  # the bug: no release for an empty batch
            private.release(rows_of(size, size))
    with pytest.raises(StepError, match="an empty batch is a step too"):
        private.finish()
    with pytest.raises(StepError, match="not the steps charged"):
        private.history.require([plan.round_event()])


def test_a_step_more_than_charged_is_refused_before_noise_is_drawn(plan_with: PlanWith) -> None:
    class Counting(InsecureZeroNoise):
        drawn = 0

        def gaussian(self, size: int, *, standard_deviation: float) -> np.ndarray:
            self.drawn += 1
            return super().gaussian(size, standard_deviation=standard_deviation)

    noise = Counting()
    private = PrivateGradient(plan=plan_with(steps_per_round=1), shapes={"gate": ()}, noise=noise)
    private.release({"gate": torch.zeros(2)})
    private.finish()
    for act in (private.release, private.accumulate):
        with pytest.raises(StepError):
            act({"gate": torch.zeros(2)})
    assert noise.drawn == 1
    assert private.steps_left == 0


def test_changing_the_noise_in_one_place_only_is_caught(plan_with: PlanWith) -> None:
    plan = plan_with(steps_per_round=1)
    private = PrivateGradient(plan=plan, shapes={"gate": ()}, noise=GaussianNoise())
    private._optimizer.noise_multiplier = 0.1
    private.release({"gate": torch.zeros(2)})
    with pytest.raises(StepError):
        private.history.require([plan.round_event()])


@pytest.mark.parametrize("clip", ClipMode)
@pytest.mark.parametrize("cuts", [[12], [0, 12], [12, 0], [5, 7], [1, 4, 7], [1] * 12])
def test_any_chunking_gives_the_same_result_with_noise_once(
    plan_with: PlanWith, clip: ClipMode, cuts: list[int]
) -> None:
    plan = plan_with(clip=clip, block_weights=WEIGHTS, max_grad_norm=3.0)
    rows = rows_of(12, 8)
    whole = step(plan, rows, insecure_seeded_noise(9))
    history = StepHistory()
    private = PrivateGradient(
        plan=plan, shapes=SHAPES, noise=insecure_seeded_noise(9), history=history
    )
    start = 0
    for size in cuts[:-1]:
        private.accumulate(take(rows, slice(start, start + size)))
        start += size
    released = private.release(take(rows, slice(start, None)))
    for name in SHAPES:
        torch.testing.assert_close(released[name], whole[name], rtol=1e-5, atol=1e-6)
    history.require([plan.event(1)])


def test_a_step_starts_from_nothing(plan_with: PlanWith) -> None:
    plan = plan_with()
    private = PrivateGradient(plan=plan, shapes=SHAPES, noise=InsecureZeroNoise())
    private.accumulate(rows_of(3, 1))
    private.release(rows_of(4, 2))
    second = private.release(rows_of(5, 3))
    alone = step(plan, rows_of(5, 3))
    for name in SHAPES:
        assert torch.equal(second[name], alone[name])


def test_a_release_is_not_changed_by_later_steps(plan_with: PlanWith) -> None:
    private = PrivateGradient(plan=plan_with(), shapes=SHAPES, noise=GaussianNoise())
    first = private.release(rows_of(3, 1))
    kept = {name: value.clone() for name, value in first.items()}
    private.release(rows_of(3, 2))
    assert all(torch.equal(first[name], kept[name]) for name in SHAPES)
    assert not any(value.requires_grad for value in first.values())


def test_the_callers_gradients_are_left_alone(plan_with: PlanWith) -> None:
    rows = rows_of(3, 1)
    kept = {name: value.clone() for name, value in rows.items()}
    private = PrivateGradient(plan=plan_with(), shapes=SHAPES, noise=GaussianNoise())
    private.release(rows)
    private.release(rows)  # Opacus would refuse a tensor it has marked as used
    assert all(torch.equal(rows[name], kept[name]) for name in SHAPES)


def test_after_a_step_that_failed_half_way_nothing_more_is_released(plan_with: PlanWith) -> None:
    class Failing(InsecureZeroNoise):
        def gaussian(self, size: int, *, standard_deviation: float) -> np.ndarray:
            raise OSError("no randomness")

    private = PrivateGradient(plan=plan_with(), shapes=SHAPES, noise=Failing())
    with pytest.raises(OSError, match="no randomness"):
        private.release(rows_of(3, 1))
    # A repetition would add the same examples to a sum that holds them already.
    with pytest.raises(StepError, match="failed half-way"):
        private.release(rows_of(3, 1))
    with pytest.raises(StepError):
        private.finish()


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: {**rows, "extra": torch.zeros(4, 1)},
        lambda rows: {"text": rows["text"]},
        lambda rows: {**rows, "text": rows["text"][:, :2]},
        lambda rows: {**rows, "text": rows["text"][:3]},
        lambda rows: {**rows, "gate": rows["gate"].sum()},
        lambda rows: {**rows, "adapter": rows["adapter"].double()},
        lambda rows: {**rows, "adapter": rows["adapter"].half()},
    ],
)
def test_wrong_gradients_are_refused_and_the_step_can_be_repeated(
    plan_with: PlanWith, change: Callable[[Rows], Rows]
) -> None:
    private = PrivateGradient(plan=plan_with(), shapes=SHAPES, noise=InsecureZeroNoise())
    rows = rows_of(97, 1)
    with pytest.raises(GradientShapeError) as caught:
        private.release(change(rows))
    assert "97" not in str(caught.value)  # the batch size is private
    assert private.history.steps == 0
    expected = step(plan_with(), rows)
    assert torch.equal(private.release(rows)["text"], expected["text"])


def test_blocks_must_be_announced_and_weighted(plan_with: PlanWith) -> None:
    with pytest.raises(GradientShapeError):
        PrivateGradient(plan=plan_with(), shapes={}, noise=GaussianNoise())
    with pytest.raises(ConfigurationError, match="gate"):
        PrivateGradient(
            plan=plan_with(block_weights=(("text", 1.0),)),
            shapes={"text": (2,), "gate": ()},
            noise=GaussianNoise(),
        )


@pytest.mark.parametrize("weights", [(), (("a", 0.5), ("b", 4.0))])
def test_the_noise_of_a_block_has_the_planned_standard_deviation(
    plan_with: PlanWith, weights: tuple[tuple[str, float], ...]
) -> None:
    plan = plan_with(max_grad_norm=0.3, block_weights=weights)
    zeros = {"a": torch.zeros(5, 100, 500), "b": torch.zeros(5, 50_000)}
    released = step(plan, zeros, GaussianNoise())
    for name, value in released.items():
        claimed = 2.317 * 0.3 / (plan.weight(name) * 32.0)
        statistic = float((value.double() ** 2).sum()) / claimed**2
        low, high = stats.chi2.ppf([LEVEL / 2, 1 - LEVEL / 2], df=value.numel())
        assert low <= statistic <= high
    correlation = np.corrcoef(released["a"].flatten().numpy(), released["b"].numpy())[0, 1]
    assert abs(correlation) < 5.5 / math.sqrt(50_000)


def test_the_noise_does_not_tell_the_size_of_the_dataset_for_any_size(
    plan_with: PlanWith,
) -> None:
    plan = plan_with(steps_per_round=1000)
    size = 8000
    private = PrivateGradient(plan=plan, shapes={"text": (size,)}, noise=GaussianNoise())
    low, high = stats.chi2.ppf([LEVEL / 1000, 1 - LEVEL / 1000], df=size)
    for n in range(32, 301):
        for holding in (n, n - 1):
            batch = torch.zeros(round(0.128 * holding), size)
            released = private.release({"text": batch})["text"]
            statistic = float((released.double() ** 2).sum()) / (2.317 / 32.0) ** 2
            assert low <= statistic <= high


def test_a_denominator_from_the_private_size_would_tell_255_from_256() -> None:
    # Positive control: int(n * q), as PrivacyEngine.make_private computes it, at batch 32 of 256.
    size = 49_000
    ratios = []
    for n in (255, 256):
        noise = GaussianNoise().gaussian(size, standard_deviation=2.317 / int(n * 0.125))
        ratios.append(float((noise.astype(np.float64) ** 2).sum()) / (2.317 / 32) ** 2)
    low, high = stats.chi2.ppf([LEVEL / 2, 1 - LEVEL / 2], df=size)
    assert ratios[0] > high
    assert low <= ratios[1] <= high
