import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from scipy import stats

from privacy import ClipMode, ConfigurationError, DPPlan, GradientShapeError, StepError, StepHistory
from privacy.discrete import DiscreteGaussianNoise
from privacy.events import PrivacyUnit
from privacy.grid import clip_steps_for, share_variance
from privacy.integer import GridRelease, IntegerGradient
from privacy.noise import InsecureZeroNoise
from privacy.plan import Arithmetic, NoiseMode, make_plan

PlanWith = Callable[..., DPPlan]
Rows = dict[str, torch.Tensor]

SHAPES = {"text": (3, 5), "adapter": (7,), "gate": ()}
DIMENSION = sum(math.prod(shape) for shape in SHAPES.values())
WEIGHTS = (("adapter", 0.25), ("gate", 3.0), ("text", 2.0))
LARGEST = 1 << 22
LEVEL = 1e-9  # chance of a false alarm per check: noise cannot be seeded, and checks are many


@pytest.fixture
def shares(plan_with: PlanWith) -> PlanWith:
    """A plan of shares among five, with some fields replaced."""

    def make(**changes: object) -> DPPlan:
        known: dict[str, object] = {
            "noise": NoiseMode.SHARES,
            "arithmetic": Arithmetic.INTEGER,
            "steps_per_round": 1,
            "honest": 5,
            "clip_steps": clip_steps_for(2.317, 5),
            "released_values": DIMENSION,
            "block_weights": WEIGHTS,
        }
        return plan_with(**{**known, **changes})

    return make


def rows_of(examples: int, seed: int, scale: float = 1.0) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: scale * torch.randn((examples, *shape), generator=generator)
        for name, shape in SHAPES.items()
    }


def take(rows: Mapping[str, torch.Tensor], index: slice) -> Rows:
    return {name: value[index] for name, value in rows.items()}


def gradient(plan: DPPlan, history: StepHistory | None = None) -> IntegerGradient:
    return IntegerGradient(
        plan=plan,
        shapes=SHAPES,
        noise=DiscreteGaussianNoise(),
        largest=LARGEST,
        history=history,
    )


def release(plan: DPPlan, rows: Rows) -> GridRelease:
    return gradient(plan).release(rows, honest=plan.honest)


@pytest.mark.parametrize("clip", ClipMode)
@pytest.mark.parametrize("seed", range(12))
def test_removing_any_example_moves_the_query_by_at_most_the_clip_norm_exactly(
    shares: PlanWith, clip: ClipMode, seed: int
) -> None:
    plan = shares(clip=clip)
    rows = rows_of(9, seed, scale=10.0 ** (seed % 5 - 2))
    if seed % 3 == 0:
        rows["gate"][-1] *= 1e6
    difference = release(plan, rows).query - release(plan, take(rows, slice(0, -1))).query
    assert int((difference * difference).sum()) <= plan.clip_steps**2


def test_without_the_bound_an_example_would_move_the_query_further(shares: PlanWith) -> None:
    """Control: the same rows, unclipped."""
    plan = shares(max_grad_norm=100.0, clip_steps=100 * clip_steps_for(2.317, 5))
    rows = rows_of(9, 0)
    moved = release(plan, rows).query - release(plan, take(rows, slice(0, -1))).query
    unit = plan.clip_steps / plan.max_grad_norm
    assert math.sqrt(float((moved * moved).sum())) / unit > 1.0  # more than C = 1 would allow


def test_the_query_is_the_weighted_clipped_sum_to_within_rounding(shares: PlanWith) -> None:
    plan = shares()
    rows = rows_of(20, 3)
    expected = np.zeros(DIMENSION)
    for i in range(20):
        vector = np.concatenate(
            [
                plan.weight(name) * rows[name][i].double().numpy().reshape(-1)
                for name in sorted(SHAPES)
            ]
        )
        expected += vector * min(1.0, plan.max_grad_norm / np.linalg.norm(vector))
    found = release(plan, rows).query * plan.max_grad_norm / plan.clip_steps
    shrink = math.sqrt(len(expected)) / 2 / plan.clip_steps
    np.testing.assert_allclose(found, expected, atol=20 * (0.5 / plan.clip_steps + shrink))


def test_chunks_give_the_same_query_as_one_batch(shares: PlanWith) -> None:
    plan = shares()
    rows = rows_of(11, 5)
    whole = release(plan, rows).query
    chunked = gradient(plan)
    chunked.accumulate(take(rows, slice(0, 4)))
    chunked.accumulate(take(rows, slice(4, 4)))
    parts = chunked.release(take(rows, slice(4, 11)), honest=plan.honest)
    assert np.array_equal(parts.query, whole)


def test_an_example_that_is_not_finite_counts_as_absent(shares: PlanWith) -> None:
    plan = shares()
    rows = rows_of(6, 7)
    rows["text"][2, 1, 1] = float("nan")
    rows["adapter"][4, 0] = float("inf")
    kept = {name: value[[0, 1, 3, 5]] for name, value in rows.items()}
    assert np.array_equal(release(plan, rows).query, release(plan, kept).query)


def test_no_rows_still_make_a_noised_step_that_is_counted(shares: PlanWith) -> None:
    plan, history = shares(), StepHistory()
    made = gradient(plan, history)
    empty = {name: torch.zeros((0, *shape)) for name, shape in SHAPES.items()}
    result = made.release(empty, honest=5)
    made.finish()
    assert not result.query.any()
    assert result.noise.any()
    assert history.steps == 1
    history.require([plan.round_event()])


def test_honest_shares_add_up_to_the_noise_of_the_plan(shares: PlanWith) -> None:
    plan = shares()
    rows = rows_of(0, 0)
    total = np.concatenate(
        [
            sum(release(plan, rows).noise for _ in range(plan.honest))  # type: ignore[misc]
            for _ in range(300)
        ]
    )
    claimed = plan.noise_multiplier * plan.clip_steps
    statistic = float((total.astype(np.float64) ** 2).sum()) / claimed**2
    low, high = stats.chi2.ppf([LEVEL / 2, 1 - LEVEL / 2], df=total.size)
    assert low <= statistic <= high
    one_missing = statistic * (plan.honest - 1) / plan.honest
    assert one_missing < low  # the test would notice one share too few


def test_fewer_honest_contributors_make_each_add_more(shares: PlanWith) -> None:
    plan = shares()
    few = share_variance(plan.noise_multiplier, plan.clip_steps, 2)
    many = share_variance(plan.noise_multiplier, plan.clip_steps, 5)
    assert few * 2 >= (plan.noise_multiplier * plan.clip_steps) ** 2
    assert few > many


def test_a_second_step_in_the_round_is_refused(shares: PlanWith) -> None:
    plan = shares()
    made = gradient(plan)
    made.release(rows_of(2, 0), honest=5)
    with pytest.raises(StepError):
        made.release(rows_of(2, 0), honest=5)


def test_an_unmade_step_is_noticed(shares: PlanWith) -> None:
    with pytest.raises(StepError):
        gradient(shares()).finish()


def test_rows_of_another_shape_are_refused(shares: PlanWith) -> None:
    rows = rows_of(2, 0)
    del rows["gate"]
    with pytest.raises(GradientShapeError):
        release(shares(), rows)


def test_sums_are_clipped_to_their_public_bound(shares: PlanWith) -> None:
    plan = shares()
    same = {name: torch.ones((400, *shape)) for name, shape in SHAPES.items()}
    made = IntegerGradient(
        plan=plan, shapes=SHAPES, noise=DiscreteGaussianNoise(), largest=1000, history=None
    )
    assert np.abs(made.release(same, honest=5).query).max() == 1000


def test_more_coordinates_than_the_grid_can_carry_are_refused(shares: PlanWith) -> None:
    with pytest.raises(ConfigurationError, match="half of the clip norm"):
        IntegerGradient(
            plan=shares(block_weights=()),
            shapes={"wide": (100_000_000,)},
            noise=DiscreteGaussianNoise(),
            largest=LARGEST,
        )


def test_the_gradient_of_a_sum_undoes_grid_weights_and_denominator(shares: PlanWith) -> None:
    plan = shares(max_grad_norm=100.0)  # nothing is clipped
    rows = rows_of(16, 9, scale=0.5)
    made = gradient(plan)
    total = made.release(rows, honest=5).query
    for name, value in made.gradient(total, examples=16.0).items():
        torch.testing.assert_close(value, rows[name].mean(0), atol=2e-2, rtol=2e-2)


def test_float_and_integer_steps_agree_without_noise(shares: PlanWith, plan_with: PlanWith) -> None:
    from privacy import PrivateGradient

    rows = rows_of(32, 11)
    plan = shares()
    integers = gradient(plan)
    query = integers.release(rows, honest=5).query
    floats = PrivateGradient(
        plan=plan_with(block_weights=WEIGHTS), shapes=SHAPES, noise=InsecureZeroNoise()
    ).release(rows)
    for name, value in integers.gradient(query, examples=plan.expected_batch_size).items():
        torch.testing.assert_close(value, floats[name], atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps_per_round": 2},
        {"arithmetic": Arithmetic.FLOAT, "clip_steps": None, "released_values": None},
        {"honest": 1},
        {"clip_steps": None},
        {"noise": NoiseMode.LOCAL},
        {"unit": PrivacyUnit.CLIENT},
    ],
)
def test_plans_whose_proof_does_not_hold_are_refused(
    shares: PlanWith, changes: dict[str, object]
) -> None:
    with pytest.raises(ConfigurationError):
        shares(**changes)


def test_a_plan_for_clients_takes_all_of_them(accountant: object) -> None:
    plan = make_plan(
        n_pub=12,
        target_epsilon=8.0,
        rounds=20,
        steps_per_round=1,
        max_grad_norm=1.0,
        delta=1e-5,
        noise=NoiseMode.SHARES,
        arithmetic=Arithmetic.INTEGER,
        released_values=DIMENSION,
        honest=5,
        unit=PrivacyUnit.CLIENT,
        accountant=accountant,  # type: ignore[arg-type]
    )
    assert plan.sample_rate == 1.0
    assert plan.noise_multiplier == pytest.approx(2.68, abs=0.02)  # of 20 unamplified releases
    assert plan.round_event().unit is PrivacyUnit.CLIENT


def test_a_plan_of_local_integer_noise_needs_no_others(plan_with: PlanWith) -> None:
    plan = plan_with(
        arithmetic=Arithmetic.INTEGER,
        clip_steps=clip_steps_for(2.317, 1),
        released_values=DIMENSION,
    )
    made = IntegerGradient(plan=plan, shapes=SHAPES, noise=DiscreteGaussianNoise(), largest=LARGEST)
    noise = np.concatenate([made.release(rows_of(0, 0), honest=1).noise for _ in range(8)])
    made.finish()
    claimed = plan.noise_multiplier * plan.clip_steps
    assert 0.5 * claimed < noise.std() < 1.5 * claimed


def test_a_step_of_more_values_than_its_plan_accounts_for_is_refused(shares: PlanWith) -> None:
    gradient(shares())
    with pytest.raises(ConfigurationError, match=f"{DIMENSION} values a step"):
        gradient(shares(released_values=DIMENSION - 1))


def test_integers_say_how_many_values_they_release_and_nothing_else_does(
    plan_with: PlanWith, shares: PlanWith
) -> None:
    for plan in (lambda: plan_with(released_values=5), lambda: shares(released_values=None)):
        with pytest.raises(ConfigurationError, match="released_values: given exactly"):
            plan()
    assert plan_with().discretisation(1000, epsilon=20.0) == 0
