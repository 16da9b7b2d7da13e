"""Per-example gradients against a loop, and one private step against autograd's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch

from fedmpt import learner
from fedmpt.clip.backbone import Backbone
from fedmpt.config import FedMPTConfig
from fedmpt.data.features import FeatureBank
from fedmpt.engine.probes import typical_norms
from fedmpt.errors import RunError
from fedmpt.learner import ClientData, LocalSettings, per_example_gradients, train_privately
from fedmpt.methods.fedmpt import FedMPT
from fedmpt.types import GlobalState, ParameterSpec, Update
from privacy import ClipMode, DPPlan, DPSpace, PoissonSampler
from privacy.dpsgd import PrivateGradient, StepHistory
from privacy.jacobian import TEXT_BLOCK, Tensors
from privacy.noise import InsecureZeroNoise
from privacy.sketch import Sketch, build_sketch, find_sliced

CLASSES = ("cat", "dog", "bus", "sheep")
SETTINGS = FedMPTConfig(adapter_rank=2, gate_rank=2)
CPU = torch.device("cpu")


def _data(backbone: Backbone, count: int = 10) -> ClientData:
    random = np.random.default_rng(0)
    patches = random.normal(size=(count, 6, backbone.width))
    patches /= np.linalg.norm(patches, axis=-1, keepdims=True)
    bank = FeatureBank(
        key="",
        stored_patches=patches.astype(np.float16),
        stored_globals=patches[:, 0].astype(np.float16),
    )
    labels = random.integers(0, 2, (count, len(CLASSES))).astype(np.int8)
    return ClientData(bank=bank, rows=np.arange(count), labels=labels)


def _moved(method: FedMPT) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(3)
    return {
        name: value + 0.1 * torch.randn(value.shape, generator=random)
        for name, value in method.initial_parameters(0).items()
    }


def test_per_example_gradients_equal_a_loop_over_examples(backbone: Backbone) -> None:
    method = FedMPT(backbone, CLASSES, SETTINGS)
    parameters, data = _moved(method), _data(backbone)
    text = method.encode_text(parameters)
    head = {n: v for n, v in parameters.items() if n not in method.prompt_blocks}
    patches, labels = data.take(np.arange(10), CPU)
    rows = per_example_gradients(method, head | {TEXT_BLOCK: text.detach()}, patches, labels)
    for index in range(10):
        leaves = {
            n: v.clone().requires_grad_() for n, v in (head | {TEXT_BLOCK: text.detach()}).items()
        }
        scores = method.score(leaves, leaves[TEXT_BLOCK], patches[index : index + 1])
        method.loss(scores, labels[index : index + 1]).sum().backward()
        for name, leaf in leaves.items():
            assert leaf.grad is not None
            assert torch.allclose(rows[name][index], leaf.grad, rtol=1e-4, atol=1e-6), name


def _sketch(method: FedMPT, parameters: Tensors, rank: int = 999) -> Sketch:
    prompts = {name: parameters[name] for name in method.prompt_blocks}
    return build_sketch(
        method.encode_text,
        prompts,
        ranks={name: rank for name in prompts},
        sliced=find_sliced(method.encode_text, prompts),
        public_seed=1,
    )


def _step(
    method: FedMPT, parameters: Tensors, data: ClientData, plan: DPPlan, sketch: Sketch | None
) -> Update:
    spec = ParameterSpec.of(parameters)
    return train_privately(
        method,
        spec,
        GlobalState(round=0, vector=spec.flatten(parameters)),
        data,
        settings=LocalSettings(
            optimizer="sgd", momentum=0.0, weight_decay=0.0, batch_size=10, epochs=1
        ),
        lr=0.1,
        weight=1,
        device=CPU,
        plan=plan,
        sampler=PoissonSampler(plan),
        noise=InsecureZeroNoise(),
        history=StepHistory(),
        sketch=sketch,
    )


def _plan(space: DPSpace, max_grad_norm: float) -> DPPlan:
    return DPPlan(
        n_pub=10,
        target_epsilon=8.0,
        delta=1e-5,
        sample_rate=1.0,
        noise_multiplier=1.0,
        max_grad_norm=max_grad_norm,
        steps_per_round=1,
        rounds=1,
        space=space,
        clip=ClipMode.FLAT,
    )


@pytest.mark.parametrize("space", list(DPSpace))
def test_a_private_step_without_noise_and_clipping_is_a_step_of_plain_training(
    backbone: Backbone, space: DPSpace
) -> None:
    settings = msgspec.structs.replace(SETTINGS, class_tokens=0)  # whose ranges a sketch only nears
    method = FedMPT(backbone, CLASSES, settings if space is DPSpace.SKETCH else SETTINGS)
    parameters, data = _moved(method), _data(backbone)
    spec = ParameterSpec.of(parameters)
    sketch = _sketch(method, parameters) if space is DPSpace.SKETCH else None
    update = _step(method, parameters, data, _plan(space, 1e5), sketch)
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    patches, labels = data.take(np.arange(10), CPU)
    method.loss(method.score(leaves, method.encode_text(leaves), patches), labels).sum().backward()
    expected = spec.flatten({n: -0.1 * v.grad for n, v in leaves.items() if v.grad is not None})
    assert update.delta == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert update.loss_sum is None
    assert update.examples is None


@pytest.mark.parametrize("space", list(DPSpace))
def test_removing_an_example_moves_a_steps_release_by_at_most_the_clip_norm(
    backbone: Backbone, space: DPSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = FedMPT(backbone, CLASSES, SETTINGS)
    parameters, data = _moved(method), _data(backbone)
    sketch = _sketch(method, parameters, rank=3) if space is DPSpace.SKETCH else None
    released: list[Tensors] = []

    class Recorder(PrivateGradient):
        def release(self, grad_samples: Mapping[str, torch.Tensor]) -> Tensors:
            released.append(super().release(grad_samples))
            return dict(released[-1])

    monkeypatch.setattr(learner, "PrivateGradient", Recorder)
    plan = _plan(space, 0.01)
    updates = []
    for count in range(11):  # the whole data, and without each example
        kept = np.delete(np.arange(10), count) if count < 10 else np.arange(10)
        some = ClientData(bank=data.bank, rows=data.rows[kept], labels=data.labels[kept])
        updates.append(_step(method, parameters, some, plan, sketch))
    queries = [
        plan.expected_batch_size
        * torch.cat([release[name].double().flatten() for name in sorted(release)])
        for release in released
    ]
    moves = [float((query - queries[-1]).norm()) for query in queries[:-1]]
    assert max(moves) <= plan.max_grad_norm * (1 + 1e-5)
    assert max(moves) >= 0.99 * plan.max_grad_norm  # the bound is met, so it was tested
    assert any((update.delta != updates[-1].delta).any() for update in updates[:-1])


@pytest.mark.parametrize(
    ("space", "passes"), [(DPSpace.TEXT, 3), (DPSpace.PROMPT, 3), (DPSpace.SKETCH, 0)]
)
def test_a_private_step_passes_through_the_text_tower_once_and_in_a_sketch_never(
    backbone: Backbone, space: DPSpace, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = FedMPT(backbone, CLASSES, SETTINGS)
    parameters = _moved(method)
    sketch = _sketch(method, parameters, rank=3) if space is DPSpace.SKETCH else None
    calls: list[int] = []
    encode = method.encode_text

    def counting(values: Tensors) -> torch.Tensor:
        calls.append(1)
        return encode(values)

    monkeypatch.setattr(method, "encode_text", counting)
    plan = replace(_plan(space, 1.0), steps_per_round=3)
    _step(method, parameters, _data(backbone), plan, sketch)
    assert len(calls) == passes


def test_the_sketch_space_needs_a_sketch(backbone: Backbone) -> None:
    method = FedMPT(backbone, CLASSES, SETTINGS)
    with pytest.raises(RunError, match="without one"):
        _step(method, _moved(method), _data(backbone), _plan(DPSpace.SKETCH, 1.0), None)


def test_an_empty_batch_gives_no_rows_in_every_block(backbone: Backbone) -> None:
    method = FedMPT(backbone, CLASSES, SETTINGS)
    parameters = _moved(method)
    head = {n: v for n, v in parameters.items() if n not in method.prompt_blocks}
    text = method.encode_text(parameters)
    patches, labels = _data(backbone).take(np.zeros(0, dtype=np.int64), CPU)
    rows = per_example_gradients(method, head | {TEXT_BLOCK: text}, patches, labels)
    assert all(
        value.shape == (0, *(head | {TEXT_BLOCK: text})[name].shape) for name, value in rows.items()
    )


@pytest.mark.parametrize("space", list(DPSpace))
def test_probes_are_public_they_repeat_and_cover_every_block(
    backbone: Backbone, space: DPSpace
) -> None:
    method = FedMPT(backbone, CLASSES, SETTINGS)
    parameters = method.initial_parameters(0)
    sketch = _sketch(method, parameters, rank=3) if space is DPSpace.SKETCH else None
    norms = typical_norms(method, parameters, space=space, sketch=sketch)
    assert norms == typical_norms(method, parameters, space=space, sketch=sketch)
    assert all(norm > 0 for norm in norms.values())
    prompts = set(method.prompt_blocks)
    assert set(norms) == (set(parameters) - prompts) | (
        {TEXT_BLOCK} if space is DPSpace.TEXT else prompts
    )
