from collections.abc import Callable
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy import (
    ClipMode,
    ConfigurationError,
    DPPlan,
    NeighbouringRelation,
    PLDAccountant,
    UnsupportedEvent,
    default_delta,
    equal_share_weights,
    least_noise_weights,
    make_plan,
    public_size,
)

PlanWith = Callable[..., DPPlan]


@pytest.mark.parametrize("delta", [1 / 2500 * 1.001, 1 / 250, 0.0, -1e-5, float("nan")])
def test_a_delta_above_one_in_ten_sizes_is_an_error(plan_with: PlanWith, delta: float) -> None:
    with pytest.raises(ConfigurationError, match="delta"):
        plan_with(delta=delta)
    with pytest.raises(ConfigurationError, match="delta"):
        make_plan(n_pub=250, target_epsilon=8, rounds=1, max_grad_norm=1.0, delta=delta)


def test_the_largest_allowed_delta_is_allowed(plan_with: PlanWith) -> None:
    assert plan_with(delta=1 / 2500).delta == 1 / 2500


@given(st.integers(1, 10**9))
def test_the_default_delta_is_always_allowed(n_pub: int) -> None:
    assert 0 < default_delta(n_pub) <= min(1e-5, 1 / (10 * n_pub))


@given(st.integers(10, 10**6))
def test_a_public_size_is_the_size_rounded_down_to_tens(n: int) -> None:
    assert public_size(n) % 10 == 0
    assert 0 <= n - public_size(n) < 10


def test_fewer_than_ten_examples_have_no_public_size() -> None:
    with pytest.raises(ConfigurationError):
        public_size(9)


def test_everything_derives_from_the_declared_size(accountant: PLDAccountant) -> None:
    plans = [
        make_plan(
            n_pub=public_size(true_size),
            target_epsilon=8.0,
            rounds=5,
            max_grad_norm=1.0,
            accountant=accountant,
        )
        for true_size in (250, 251, 255, 256, 259)
    ]
    assert len({plan.plan_hash for plan in plans}) == 1
    (plan,) = set(plans)
    assert plan.sample_rate == pytest.approx(0.128)
    assert plan.expected_batch_size == pytest.approx(32.0)
    assert plan.steps_per_round == 8


@pytest.mark.parametrize(
    "changes",
    [
        {"n_pub": 0},
        {"n_pub": 250.0},
        {"target_epsilon": 0.0},
        {"target_epsilon": float("inf")},
        {"sample_rate": 0.0},
        {"sample_rate": 1.5},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": float("nan")},
        {"max_grad_norm": 0.0},
        {"max_grad_norm": 1e-7},
        {"max_grad_norm": 1e7},
        {"steps_per_round": 0},
        {"rounds": 0},
        {"block_weights": (("text", 0.0),)},
        {"block_weights": (("text", 1.0), ("text", 2.0))},
        {"space": "text?"},
        {"clip": "median"},
        {"arithmetic": "integer"},
        {"noise": "shares"},
        {"unit": "client"},
        {"relation": NeighbouringRelation.REPLACE_ONE},
    ],
)
def test_a_plan_that_would_void_the_guarantee_is_refused(
    plan_with: PlanWith, changes: dict[str, object]
) -> None:
    with pytest.raises(ConfigurationError):
        plan_with(**changes)


def test_a_relation_that_is_not_accounted_is_named_as_such(plan_with: PlanWith) -> None:
    with pytest.raises(UnsupportedEvent):
        plan_with(relation=NeighbouringRelation.REPLACE_ONE)


def test_a_plan_cannot_be_changed(plan_with: PlanWith) -> None:
    plan = plan_with()
    for name in ("sample_rate", "noise_multiplier", "max_grad_norm", "n_pub"):
        with pytest.raises(FrozenInstanceError):
            setattr(plan, name, 1.0)
    with pytest.raises((AttributeError, TypeError)):
        plan.expected_batch_size = 31.0  # type: ignore[misc]


def test_the_event_of_a_round_has_the_plans_own_numbers(plan_with: PlanWith) -> None:
    plan = plan_with(noise_multiplier=3.25, sample_rate=0.25, steps_per_round=5)
    event = plan.round_event()
    assert (event.sample_rate, event.noise_multiplier, event.steps) == (0.25, 3.25, 5)
    assert (event.relation, event.unit) == (plan.relation, plan.unit)


def test_the_hash_changes_with_every_public_number(plan_with: PlanWith) -> None:
    changed = [
        plan_with(),
        plan_with(noise_multiplier=2.318),
        plan_with(sample_rate=0.129),
        plan_with(max_grad_norm=1.1),
        plan_with(rounds=99),
        plan_with(clip=ClipMode.NORMALISE),
        plan_with(block_weights=(("text", 2.0),)),
    ]
    assert len({plan.plan_hash for plan in changed}) == len(changed)


def test_a_block_without_weight_is_refused_when_others_have_one(plan_with: PlanWith) -> None:
    plan = plan_with(block_weights=(("text", 2.0),))
    assert plan.weight("text") == 2.0
    with pytest.raises(ConfigurationError, match="adapter"):
        plan.weight("adapter")
    assert plan_with().weight("anything") == 1.0


def test_weights_share_the_clip_budget_as_promised() -> None:
    norms, sizes = {"prompt": 0.5, "adapter": 4.0}, {"prompt": 100, "adapter": 400}
    equal = equal_share_weights(norms, max_grad_norm=2.0)
    shares = {name: (equal[name] * norms[name] / 2.0) ** 2 for name in norms}
    assert shares == pytest.approx({"prompt": 0.5, "adapter": 0.5})
    least = least_noise_weights(norms, sizes, max_grad_norm=2.0)
    shares = {name: (least[name] * norms[name] / 2.0) ** 2 for name in norms}
    assert shares == pytest.approx({"prompt": 1 / 3, "adapter": 2 / 3})
