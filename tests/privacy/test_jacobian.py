import math
from collections.abc import Callable

import pytest
import torch

from privacy import (
    ConfigurationError,
    DPPlan,
    DPSpace,
    GaussianNoise,
    GradientShapeError,
    PrivateGradient,
    PromptSpace,
    Space,
    StepError,
    TextSpace,
    make_space,
)
from privacy.jacobian import Encoder, Tensors
from privacy.noise import InsecureZeroNoise

PlanWith = Callable[..., DPPlan]

# N conditions, L classes, D text width, M tokens of width W.
N, L, D, M, W = 3, 4, 6, 2, 5


@pytest.fixture
def encoder() -> Encoder:
    """A small frozen encoder: own tokens of every condition, and tokens shared by all."""
    generator = torch.Generator().manual_seed(11)
    own = torch.randn(M * W, L * D, generator=generator) / 3
    shared = torch.randn(M * W, L * D, generator=generator) / 3

    def encode(prompts: Tensors) -> torch.Tensor:
        hidden = prompts["own"].reshape(N, M * W) @ own  # [N, L*D]
        hidden = hidden + torch.sin(prompts["shared"].reshape(M * W) @ shared)  # [N, L*D]
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


def head(text: torch.Tensor, feature: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """One example's loss: softmax over classes of the score averaged over conditions."""
    scores = (text @ feature).mean(0)  # [L]
    return torch.nn.functional.cross_entropy(10 * scores[None], label[None])


def examples(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(count, D, generator=generator),
        torch.randint(L, (count,), generator=generator),
    )


def text_gradients(text: torch.Tensor, count: int, seed: int = 0) -> torch.Tensor:
    """dL_i/dT of every example, [b, N, L, D]."""
    features, labels = examples(count, seed)
    return torch.func.vmap(torch.func.grad(head), in_dims=(None, 0, 0))(text, features, labels)


def autograd_gradients(encoder: Encoder, prompts: Tensors, count: int, seed: int = 0) -> Tensors:
    """The oracle: forward and backward through everything once for every example, [b, *shape]."""
    features, labels = examples(count, seed)
    found: dict[str, list[torch.Tensor]] = {name: [] for name in prompts}
    for feature, label in zip(features, labels, strict=True):
        leaves = {name: value.clone().requires_grad_() for name, value in prompts.items()}
        head(encoder(leaves), feature, label).backward()
        for name, leaf in leaves.items():
            assert leaf.grad is not None
            found[name].append(leaf.grad)
    return {name: torch.stack(values) for name, values in found.items()}


def private(plan: DPPlan, space: Space, prompts: Tensors) -> PrivateGradient:
    return PrivateGradient(plan=plan, shapes=space.block_shapes(prompts), noise=InsecureZeroNoise())


@pytest.mark.parametrize("space_type", [TextSpace, PromptSpace])
@pytest.mark.parametrize("count", [0, 1, 12, 32])
def test_without_noise_and_clipping_a_step_is_autograds_minibatch_gradient(
    encoder: Encoder,
    prompts: Tensors,
    plan_with: PlanWith,
    space_type: type[TextSpace] | type[PromptSpace],
    count: int,
) -> None:
    # 12 examples are as many as there are sentences, N * L.
    space = space_type(encoder)
    text = space.encode(prompts)
    rows = space.rows(text_gradients(text, count) if count else text.new_zeros(0, *text.shape))
    released = private(plan_with(max_grad_norm=1e6), space, prompts).release(rows)
    gradient = space.to_prompt_gradient(released)
    expected = autograd_gradients(encoder, prompts, count) if count else None
    for name, value in prompts.items():
        mean = expected[name].sum(0) / 32.0 if expected else torch.zeros_like(value)
        torch.testing.assert_close(gradient[name], mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 8, 64])
def test_prompt_rows_are_each_examples_own_gradient(
    encoder: Encoder, prompts: Tensors, chunk: int
) -> None:
    space = PromptSpace(encoder, chunk=chunk)
    rows = space.rows(text_gradients(space.encode(prompts), 12))
    expected = autograd_gradients(encoder, prompts, 12)
    for name in prompts:
        torch.testing.assert_close(rows[name], expected[name], rtol=1e-4, atol=1e-6)
    norms = torch.cat([rows[name].flatten(1) for name in prompts], 1).norm(dim=1)
    oracle = torch.cat([expected[name].flatten(1) for name in prompts], 1).norm(dim=1)
    torch.testing.assert_close(norms, oracle, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("space_type", [TextSpace, PromptSpace])
def test_removing_any_example_moves_the_query_by_at_most_the_clip_norm(
    encoder: Encoder,
    prompts: Tensors,
    plan_with: PlanWith,
    space_type: type[TextSpace] | type[PromptSpace],
) -> None:
    largest = 0.0
    for seed in range(40):
        clip_norm = (0.01, 0.3)[seed % 2]
        space = space_type(encoder)
        gradients = text_gradients(space.encode(prompts), 5, seed)
        gradients[-1] *= (1.0, 1e3, 0.0, 1e-9)[seed % 4]  # 0: all labels masked
        if seed % 5 == 0:
            gradients[-1] = gradients[0]
        rows = space.rows(gradients)
        plan = plan_with(max_grad_norm=clip_norm)
        queries = [
            torch.cat(
                [
                    32.0 * value.double().flatten()
                    for value in private(plan, space, prompts).release(some).values()
                ]
            )
            for some in (rows, {name: value[:-1] for name, value in rows.items()})
        ]
        largest = max(largest, float((queries[0] - queries[1]).norm()) / clip_norm)
    assert 0.99 < largest <= 1 + 1e-5


@pytest.mark.parametrize("space_type", [TextSpace, PromptSpace])
def test_a_frozen_release_gives_the_same_gradient_whatever_the_examples(
    encoder: Encoder, prompts: Tensors, space_type: type[TextSpace] | type[PromptSpace]
) -> None:
    results = []
    for count, scale in ((7, 1.0), (6, 1e3), (0, 1.0)):
        space = space_type(encoder)
        text = space.encode(prompts)
        space.rows(scale * text_gradients(text, 7)[:count])
        generator = torch.Generator().manual_seed(3)
        released = {
            name: torch.randn(shape, generator=generator)
            for name, shape in space.block_shapes(prompts).items()
        }
        results.append(space.to_prompt_gradient(released))
    for other in results[1:]:
        assert all(torch.equal(other[name], results[0][name]) for name in prompts)


def test_a_step_leaves_the_prompts_and_their_graph_alone(
    encoder: Encoder, prompts: Tensors, plan_with: PlanWith
) -> None:
    trained = {name: value.clone().requires_grad_() for name, value in prompts.items()}
    space = TextSpace(encoder)
    with torch.no_grad():  # a caller's mode must not reach the encoder's graph
        text = space.encode(trained)
    assert not text.requires_grad
    released = private(plan_with(), space, prompts).release(space.rows(text_gradients(text, 3)))
    space.to_prompt_gradient(released)
    for name in prompts:
        assert trained[name].grad is None
        assert torch.equal(trained[name].detach(), prompts[name])


@pytest.mark.parametrize("chunk", [1, 4])
def test_a_chunked_step_is_the_whole_step(
    encoder: Encoder, prompts: Tensors, plan_with: PlanWith, chunk: int
) -> None:
    for space in (TextSpace(encoder), PromptSpace(encoder, chunk=chunk)):
        plan = plan_with(max_grad_norm=0.05)
        whole = private(plan, space, prompts)
        gradients = text_gradients(space.encode(prompts), 9)
        expected = whole.release(space.rows(gradients))
        in_chunks = private(plan, space, prompts)
        for some in (gradients[:4], gradients[4:4], gradients[4:7]):
            in_chunks.accumulate(space.rows(some))
        released = in_chunks.release(space.rows(gradients[7:]))
        for name, value in expected.items():
            torch.testing.assert_close(released[name], value, rtol=1e-5, atol=1e-7)


def test_a_prompt_the_encoder_ignores_has_gradient_zero(encoder: Encoder, prompts: Tensors) -> None:
    more = {**prompts, "unused": torch.ones(3)}
    for space in (TextSpace(encoder), PromptSpace(encoder), PromptSpace(encoder, chunk=4)):
        rows = space.rows(text_gradients(space.encode(more), 3))
        released = {name: value.sum(0) for name, value in rows.items()}
        assert not space.to_prompt_gradient(released)["unused"].any()


def test_other_blocks_of_the_release_pass_by(encoder: Encoder, prompts: Tensors) -> None:
    for space in (TextSpace(encoder), PromptSpace(encoder)):
        rows = space.rows(text_gradients(space.encode(prompts), 3))
        released = {name: value.sum(0) for name, value in rows.items()}
        gradient = space.to_prompt_gradient({**released, "adapter": torch.ones(2)})
        assert set(gradient) == set(prompts)


def test_a_step_must_begin_with_encode_and_ends_once(encoder: Encoder, prompts: Tensors) -> None:
    for space in (TextSpace(encoder), PromptSpace(encoder)):
        with pytest.raises(StepError):
            space.rows(torch.zeros(2, N, L, D))
        rows = space.rows(text_gradients(space.encode(prompts), 2))
        released = {name: value.sum(0) for name, value in rows.items()}
        space.to_prompt_gradient(released)
        with pytest.raises(StepError):
            space.to_prompt_gradient(released)


@pytest.mark.parametrize("shape", [(2, N, L), (N, L, D), (), (2, L, N, D)])
def test_gradients_of_another_shape_are_refused(
    encoder: Encoder, prompts: Tensors, shape: tuple[int, ...]
) -> None:
    for space in (TextSpace(encoder), PromptSpace(encoder)):
        space.encode(prompts)
        with pytest.raises(GradientShapeError):
            space.rows(torch.zeros(shape))


def test_an_encoder_that_ignores_all_prompts_is_refused(prompts: Tensors) -> None:
    with pytest.raises(ConfigurationError, match="does not depend"):
        TextSpace(lambda prompts: torch.ones(N, L, D)).encode(prompts)


def test_spaces_are_made_by_the_name_in_the_plan(encoder: Encoder) -> None:
    assert make_space(DPSpace.TEXT, encoder).name is DPSpace.TEXT
    assert make_space(DPSpace.PROMPT, encoder).name is DPSpace.PROMPT
    with pytest.raises(ConfigurationError):
        PromptSpace(encoder, chunk=0)


def test_training_in_each_space_lowers_the_loss_and_stays_finite_under_noise(
    encoder: Encoder, prompts: Tensors, plan_with: PlanWith
) -> None:
    features, _ = examples(32)
    labels = torch.zeros(32, dtype=torch.long)

    def loss(text: torch.Tensor) -> float:
        losses = torch.func.vmap(head, in_dims=(None, 0, 0))(text, features, labels)
        return float(losses.mean())

    for space in (TextSpace(encoder), PromptSpace(encoder)):
        plan = plan_with(noise_multiplier=0.3, max_grad_norm=0.5, steps_per_round=40)
        private = PrivateGradient(
            plan=plan, shapes=space.block_shapes(prompts), noise=GaussianNoise()
        )
        now = {name: value.clone() for name, value in prompts.items()}
        start = loss(encoder(now))
        for _ in range(40):
            text = space.encode(now)
            gradients = torch.func.vmap(torch.func.grad(head), in_dims=(None, 0, 0))(
                text, features, labels
            )
            gradient = space.to_prompt_gradient(private.release(space.rows(gradients)))
            now = {name: value - 0.5 * gradient[name] for name, value in now.items()}
        private.finish()
        assert math.isfinite(loss(encoder(now)))
        assert loss(encoder(now)) < start
