import inspect
import math
from collections.abc import Callable

import pytest
import torch

from privacy import ConfigurationError, DPPlan, DPSpace, GradientShapeError, PrivateGradient
from privacy.jacobian import Encoder, PromptSpace, Space, Tensors, make_space
from privacy.noise import InsecureZeroNoise
from privacy.sketch import Sketch, SketchSpace, build_sketch, find_sliced

PlanWith = Callable[..., DPPlan]

# N conditions, L classes, D text width, M tokens of width W.
N, L, D, M, W = 3, 4, 6, 2, 5
FULL = {"own": M * W, "shared": M * W}


@pytest.fixture
def encoder() -> Encoder:
    """A small frozen encoder: own tokens of every condition, and tokens shared by all."""
    generator = torch.Generator().manual_seed(11)
    own = torch.randn(M * W, L * D, generator=generator).double() / 3
    shared = torch.randn(M * W, L * D, generator=generator).double() / 3

    def encode(prompts: Tensors) -> torch.Tensor:
        kind = prompts["own"].dtype
        hidden = prompts["own"].reshape(N, M * W) @ own.to(kind)  # [N, L*D]
        hidden = hidden + torch.sin(prompts["shared"].reshape(M * W) @ shared.to(kind))
        text = torch.tanh(hidden).reshape(N, L, D)
        return text / text.norm(dim=-1, keepdim=True)  # [N, L, D]

    return encode


@pytest.fixture
def prompts() -> Tensors:
    generator = torch.Generator().manual_seed(12)
    return {
        "own": torch.randn(N, M, W, generator=generator),
        "shared": torch.randn(M, W, generator=generator),
    }


def jacobian_of(encoder: Encoder, prompts: Tensors, name: str) -> torch.Tensor:
    """The oracle: the whole Jacobian in one prompt tensor, [N*L*D, k]."""

    def text_of(value: torch.Tensor) -> torch.Tensor:
        return encoder({**prompts, name: value}).flatten()

    return torch.func.jacrev(text_of)(prompts[name]).reshape(N * L * D, -1)


def dense(sketch: Sketch, name: str) -> torch.Tensor:
    """`U S V^T` as one matrix, [N*L*D, k]."""
    factor = sketch.factors[name]
    blocks = factor.left @ torch.diag_embed(factor.singular) @ factor.right.transpose(1, 2)
    return torch.block_diag(*blocks)


def build(encoder: Encoder, prompts: Tensors, **changes: object) -> Sketch:
    values = {"ranks": FULL, "sliced": ["own"], "public_seed": 5, **changes}
    return build_sketch(encoder, prompts, **values)  # type: ignore[arg-type]


def gradients_of(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, N, L, D, generator=torch.Generator().manual_seed(seed))


def step(plan: DPPlan, space: Space, prompts: Tensors, rows: Tensors) -> Tensors:
    private = PrivateGradient(
        plan=plan, shapes=space.block_shapes(prompts), noise=InsecureZeroNoise()
    )
    return private.release(rows)


def test_a_full_rank_sketch_is_the_jacobian(encoder: Encoder, prompts: Tensors) -> None:
    exact = {name: value.double() for name, value in prompts.items()}
    sketch = build(encoder, exact, relative_step=1e-6)
    for name in prompts:
        torch.testing.assert_close(
            dense(sketch, name), jacobian_of(encoder, exact, name), rtol=1e-5, atol=2e-6
        )


def test_a_full_rank_sketch_is_the_prompt_space_at_the_first_step(
    encoder: Encoder, prompts: Tensors, plan_with: PlanWith
) -> None:
    exact = {name: value.double() for name, value in prompts.items()}
    found = build(encoder, exact, relative_step=1e-6)
    sketch, oracle = SketchSpace(found), PromptSpace(encoder)
    text = oracle.encode(exact)
    torch.testing.assert_close(sketch.encode(exact), text)
    gradients = gradients_of(7).double()
    rows, expected = sketch.rows(gradients), oracle.rows(gradients)

    norms = [
        torch.cat([value.flatten(1) for value in some.values()], 1).norm(dim=1)
        for some in (rows, expected)
    ]
    torch.testing.assert_close(*norms, rtol=1e-5, atol=0)  # hence the same clip factors

    plan = plan_with(max_grad_norm=float(norms[0].median()))
    released = [
        step(plan, space, prompts, {name: value.float() for name, value in some.items()})
        for space, some in ((sketch, rows), (oracle, expected))
    ]
    doubled = {name: value.double() for name, value in released[0].items()}
    gradient = sketch.to_prompt_gradient(doubled)
    for name in prompts:
        torch.testing.assert_close(gradient[name].float(), released[1][name], rtol=1e-4, atol=1e-6)

    for factor in found.factors.values():  # hence the same law of noise: V is orthogonal
        identity = torch.eye(M * W).double().expand(factor.right.shape[0], -1, -1)
        torch.testing.assert_close(factor.right @ factor.right.transpose(1, 2), identity)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_sketch_captures_nearly_what_its_rank_can(
    encoder: Encoder, prompts: Tensors, rank: int
) -> None:
    sketch = build(encoder, prompts, ranks={"own": rank, "shared": rank}, power_iterations=2)
    jacobian = jacobian_of(encoder, prompts, "shared")
    best = torch.linalg.svdvals(jacobian)[:rank].square().sum() / jacobian.square().sum()
    missed = (jacobian - dense(sketch, "shared")).square().sum() / jacobian.square().sum()
    assert 1 - float(missed) >= 0.95 * float(best)
    own = jacobian_of(encoder, prompts, "own")
    assert float((own - dense(sketch, "own")).norm()) < float(own.norm())


def test_factors_are_orthonormal_and_ordered(encoder: Encoder, prompts: Tensors) -> None:
    sketch = build(encoder, prompts, ranks={"own": 3, "shared": 4})
    assert sketch.factors["own"].singular.shape == (N, 3)
    assert sketch.factors["shared"].singular.shape == (1, 4)
    for factor in sketch.factors.values():
        for basis in (factor.left, factor.right):
            gram = basis.transpose(1, 2) @ basis
            identity = torch.eye(gram.shape[-1]).expand_as(gram)
            torch.testing.assert_close(gram, identity, rtol=0, atol=1e-5)
        assert (factor.singular.diff(dim=1) <= 0).all()
        assert (factor.singular >= 0).all()


def test_the_sketch_depends_on_released_prompts_and_the_public_seed_only(
    encoder: Encoder, prompts: Tensors
) -> None:
    arguments = {"encoder", "prompts", "ranks", "sliced", "public_seed"}
    arguments |= {"power_iterations", "relative_step"}
    assert set(inspect.signature(build_sketch).parameters) == arguments  # no data among them
    ranks = {"own": 3, "shared": 3}
    torch.manual_seed(1)
    first = build(encoder, prompts, ranks=ranks)
    torch.manual_seed(2)  # nothing global plays a part
    again = build(encoder, prompts, ranks=ranks)
    assert first.digest == again.digest
    assert build(encoder, prompts, ranks=ranks, public_seed=6).digest != first.digest
    moved = {**prompts, "shared": prompts["shared"] + 1e-3}
    assert build(encoder, moved, ranks=ranks).digest != first.digest


def test_a_sketch_does_not_follow_the_prompts_it_was_built_at(
    encoder: Encoder, prompts: Tensors
) -> None:
    mine = {name: value.clone() for name, value in prompts.items()}
    sketch = build(encoder, mine)
    digest = sketch.digest
    mine["shared"] += 1.0
    assert sketch.digest == digest


@pytest.mark.parametrize("seed", range(8))
def test_removing_any_example_moves_the_query_by_at_most_the_clip_norm(
    encoder: Encoder, prompts: Tensors, plan_with: PlanWith, seed: int
) -> None:
    space = SketchSpace(build(encoder, prompts, ranks={"own": 2, "shared": 3}))
    plan = plan_with(max_grad_norm=0.2)
    gradients = gradients_of(5, seed)
    gradients[-1] *= (1.0, 1e3, 0.0, 1e-9)[seed % 4]
    rows = space.rows(gradients)
    with_, without = (
        torch.cat([32.0 * v.double().flatten() for v in step(plan, space, prompts, some).values()])
        for some in (rows, {name: value[:-1] for name, value in rows.items()})
    )
    assert float((with_ - without).norm()) <= 0.2 * (1 + 1e-5)


def test_coordinates_and_prompts_are_inverse_on_the_reachable_set(
    encoder: Encoder, prompts: Tensors
) -> None:
    space = SketchSpace(build(encoder, prompts, ranks={"own": 2, "shared": 3}))
    z = {"own": torch.randn(N, 2), "shared": torch.randn(1, 3)}
    reached = space.prompts_at(z)
    for name, value in space.coordinates(reached).items():
        torch.testing.assert_close(value, z[name], rtol=1e-4, atol=1e-5)
    gradient = space.to_prompt_gradient(z)
    for name, start in prompts.items():
        torch.testing.assert_close(reached[name], start + gradient[name])


def test_rows_are_the_gradient_of_the_linearised_loss(encoder: Encoder, prompts: Tensors) -> None:
    space = SketchSpace(build(encoder, prompts, ranks={"own": 2, "shared": 3}))
    z = {"own": torch.randn(N, 2), "shared": torch.randn(1, 3)}
    cotangent = gradients_of(1)

    def loss(z: Tensors) -> torch.Tensor:
        start = space._sketch
        text = start.text
        for name, factor in start.factors.items():
            moved = torch.einsum("gtr,gr->gt", factor.left, factor.singular * z[name])
            text = text + moved.reshape(text.shape)
        return (text * cotangent[0]).sum()

    expected = torch.func.grad(loss)(z)
    for name, rows in space.rows(cotangent).items():
        torch.testing.assert_close(rows[0], expected[name], rtol=1e-4, atol=1e-6)


def test_the_linearisation_is_tangent_and_its_drift_is_measured(
    encoder: Encoder, prompts: Tensors
) -> None:
    space = SketchSpace(build(encoder, prompts))
    torch.testing.assert_close(space.encode(prompts), encoder(prompts))
    assert space.drift(encoder, prompts) == 0.0
    generator = torch.Generator().manual_seed(4)
    way = {name: torch.randn(value.shape, generator=generator) for name, value in prompts.items()}
    drifts = [
        space.drift(encoder, {name: prompts[name] + size * way[name] for name in prompts})
        for size in (0.01, 0.1, 1.0)
    ]
    assert drifts[0] < 0.05
    assert drifts == sorted(drifts)


@pytest.mark.parametrize(
    "changes",
    [
        {"ranks": {"own": 2}},
        {"ranks": {"own": 2, "shared": 0}},
        {"ranks": {"own": 2, "shared": 2, "more": 2}},
        {"sliced": ["more"]},
        {"sliced": ["shared"]},
        {"power_iterations": -1},
        {"relative_step": 0.0},
    ],
)
def test_a_sketch_that_makes_no_sense_is_refused(
    encoder: Encoder, prompts: Tensors, changes: dict[str, object]
) -> None:
    with pytest.raises(ConfigurationError):
        build(encoder, prompts, **changes)


def test_sliced_prompts_are_found(encoder: Encoder, prompts: Tensors) -> None:
    assert find_sliced(encoder, prompts) == ("own",)
    flat = lambda values: encoder(values).flatten(0, 1)  # noqa: E731 -- several rows of T a slice
    assert find_sliced(flat, prompts) == ("own",)

    def mixed(values: Tensors) -> torch.Tensor:
        return encoder({**values, "own": values["own"] + 1e-3 * values["own"].flip(0)})

    assert find_sliced(mixed, prompts) == ()


def test_a_slice_may_be_several_rows_of_the_text_features(
    encoder: Encoder, prompts: Tensors
) -> None:
    def flat(values: Tensors) -> torch.Tensor:
        return encoder(values).flatten(0, 1)  # [N*L, D]

    ranks = {"own": 3, "shared": 3}
    whole, rows = build(encoder, prompts, ranks=ranks), build(flat, prompts, ranks=ranks)
    assert torch.equal(dense(whole, "own"), dense(rows, "own"))


def test_a_truncated_sketch_gives_the_prompt_gradient_projected_on_its_directions(
    encoder: Encoder, prompts: Tensors
) -> None:
    exact = {name: value.double() for name, value in prompts.items()}
    found = build(
        encoder,
        exact,
        ranks={"own": 3, "shared": 4},
        power_iterations=30,  # so that U and V are singular vectors of J
        relative_step=1e-6,
    )
    sketch, oracle = SketchSpace(found), PromptSpace(encoder)
    oracle.encode(exact)
    gradients = gradients_of(1).double()
    mean = {name: rows[0] for name, rows in sketch.rows(gradients).items()}
    gradient = sketch.to_prompt_gradient(mean)
    for name, rows in oracle.rows(gradients).items():
        right = found.factors[name].right  # [G, k, R]
        flat = rows.reshape(right.shape[0], -1, 1)  # [G, k, 1]
        projected = right @ (right.transpose(1, 2) @ flat)
        torch.testing.assert_close(
            gradient[name].reshape(projected.shape), projected, rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("seed", range(2))
def test_a_frozen_release_gives_the_same_gradient_whatever_the_examples(
    encoder: Encoder, prompts: Tensors, seed: int
) -> None:
    space = SketchSpace(build(encoder, prompts, ranks={"own": 2, "shared": 3}))
    generator = torch.Generator().manual_seed(seed)
    released = {
        name: torch.randn(shape, generator=generator)
        for name, shape in space.block_shapes(prompts).items()
    }
    results = []
    for gradients in (gradients_of(7), 1e3 * gradients_of(6), gradients_of(0)):
        space.rows(gradients)
        results.append(space.to_prompt_gradient(released))
    for other in results[1:]:
        assert all(torch.equal(other[name], results[0][name]) for name in prompts)


def test_an_excessive_rank_is_cut(encoder: Encoder, prompts: Tensors) -> None:
    sketch = build(encoder, prompts, ranks={"own": 999, "shared": 999})
    assert sketch.factors["own"].singular.shape == (N, M * W)
    assert sketch.factors["shared"].singular.shape == (1, M * W)


def test_prompts_at_the_origin_can_be_sketched(encoder: Encoder, prompts: Tensors) -> None:
    start = {**prompts, "own": torch.zeros(N, M, W)}
    assert all(
        torch.isfinite(factor.left).all() for factor in build(encoder, start).factors.values()
    )


def test_other_prompts_or_gradients_are_refused(encoder: Encoder, prompts: Tensors) -> None:
    space = SketchSpace(build(encoder, prompts))
    with pytest.raises(GradientShapeError):
        space.encode({"own": prompts["own"]})
    with pytest.raises(GradientShapeError):
        space.rows(torch.zeros(2, N, L))
    with pytest.raises(ConfigurationError, match="build_sketch"):
        make_space(DPSpace.SKETCH, encoder)
    assert space.name is DPSpace.SKETCH
    assert space.rows(torch.zeros(0, N, L, D))["own"].shape == (0, N, M * W)


def test_training_in_a_sketch_lowers_the_true_loss(
    encoder: Encoder, prompts: Tensors, plan_with: PlanWith
) -> None:
    target = torch.randn(N, L, D, generator=torch.Generator().manual_seed(2))

    def loss(text: torch.Tensor) -> torch.Tensor:
        return -(text * target).mean()

    space = SketchSpace(build(encoder, prompts, ranks={"own": 4, "shared": 4}))
    plan = plan_with(max_grad_norm=1.0)
    now = {name: value.clone() for name, value in prompts.items()}
    for _ in range(8):
        gradient = torch.func.grad(loss)(space.encode(now)).expand(32, N, L, D)
        moved = space.to_prompt_gradient(step(plan, space, now, space.rows(gradient)))
        now = {name: value - 0.5 * moved[name] for name, value in now.items()}
    assert float(loss(encoder(now))) < float(loss(encoder(prompts)))
    assert math.isfinite(space.drift(encoder, now))
