"""What the Method protocol promises, for every method by name: counts, symmetries, gradients, whole runs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import fedmpt.learner
from fedmpt.clip.backbone import Backbone
from fedmpt.clip.blocks import project
from fedmpt.config import (
    METHOD_NAMES,
    FedMPTConfig,
    FedMVPConfig,
    HeadConfig,
    MaPLeConfig,
    MethodConfig,
    PosCoOpConfig,
    SCPNetConfig,
    SecAggConfig,
    load_config,
)
from fedmpt.data.features import FeatureBank
from fedmpt.engine.train import train
from fedmpt.errors import UsageError
from fedmpt.learner import (
    ClientData,
    LocalSettings,
    per_example_gradients,
    predict,
    train_privately,
)
from fedmpt.methods.base import Method, Parameters
from fedmpt.methods.prompts import raw_context_features
from fedmpt.methods.registry import METHODS, build_method, runs_image_tower
from fedmpt.protect import Envelope
from fedmpt.types import GlobalState, ParameterSpec, Update
from privacy import ClipMode, DPPlan, DPSpace, PoissonSampler
from privacy.dpsgd import PrivateGradient, StepHistory
from privacy.jacobian import TEXT_BLOCK
from privacy.noise import InsecureZeroNoise

CLASSES = ("cat", "dog", "dining table", "bus")
UNSEEN = ("dog", "horse", "cat")
VOC = tuple(f"class {number}" for number in range(20))
CPU = torch.device("cpu")
REDUCED = "fedmvp reduced"
VIEWS = "scpnet views"
KINDS = (*METHOD_NAMES, REDUCED, VIEWS)
ON_PIXELS = ("maple", "ram", "fedmvp", REDUCED, VIEWS)
ON_FEATURES = tuple(name for name in KINDS if name not in ON_PIXELS)
TUNED = tuple(name for name in KINDS if name != "zero-shot")

COUNTS = {  # at ViT-B/16 with VOC's 20 classes; design figures that reproduce the paper's Table 5 where it has one
    "dualcoop": 2 * 16 * 512,
    "poscoop": 16 * 512 + 20 * 512,
    "scpnet": 2_099_200,
    VIEWS: 2_099_200,
    "tcp": 331_904,
    "fedtpg": 4_206_080,
    "fedpgp": 10_304,
    "dpfpl": 16_384,
    "fedawa": 8_192,
    "maple": 3_555_072,
    "ram": 13_022_316,
    "fedmvp": 9_845_760,
    REDUCED: 1_135_424,
    "coop": 8_192,
    "promptfl": 8_192,
    "zero-shot": 0,
    "fedmpt": 157_824,
}


def _config(name: str) -> MethodConfig:
    own = FedMPTConfig(conditions=("shape", "action"), adapter_rank=3, gate_rank=2)
    name, _, variant = name.partition(" ")
    return MethodConfig(
        name=name,
        fedmpt=own,
        head=HeadConfig(offset="image-mean"),
        maple=MaPLeConfig(depth=2),
        fedmvp=FedMVPConfig(variant="reduced" if variant else "official"),
        scpnet=SCPNetConfig(self_supervision=bool(variant)),
    )


def _method(backbone: Backbone, name: str, classes: tuple[str, ...] = CLASSES) -> Method:
    return build_method(backbone, classes, _config(name))


def _moved(method: Method) -> Parameters:
    """Parameters as after some training: no zero blocks."""
    random = torch.Generator().manual_seed(6)
    return {
        name: value + 0.1 * torch.randn(value.shape, generator=random)
        for name, value in method.initial_parameters(0).items()
    }


@torch.no_grad()
def prepared(method: Method, pixels: torch.Tensor) -> torch.Tensor:
    return method.prepare_images(pixels)


def _patches(method: Method, backbone: Backbone, count: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(5)
    if method.pixel_shape is not None:
        return prepared(method, torch.randn(count, *method.pixel_shape, generator=random))
    patches = torch.randn(count, backbone.patches, backbone.width, generator=random)
    # Shorter than unit length: random features differ so much that 100 times their cosines saturates a sigmoid.
    return 0.05 * torch.nn.functional.normalize(patches, dim=-1)


def _labels(count: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(4)
    return torch.randint(0, 2, (count, len(CLASSES)), generator=random, dtype=torch.int8)


class _VitB16Text:
    """Stands for the text tower of ViT-B/16 where only shapes matter."""

    width = 512
    layers = 12

    def words(self, text: str) -> torch.Tensor:
        return torch.zeros(len(text.split()), 512)

    def suffixes(self, classes: tuple[str, ...]) -> None:
        del classes


def vit_b16() -> Backbone:
    """A stand-in with ViT-B/16's shapes and no weights."""
    stub = SimpleNamespace(
        text=_VitB16Text(),
        image_tower=SimpleNamespace(width=768, grid=(14, 14), patch_values=768, blocks=12 * [None]),
        width=512,
        patches=196,
        logit_scale=100.0,
        device=CPU,
        encode_sentences=lambda sentences: torch.ones(len(sentences), 512) / math.sqrt(512),
        encode_images=lambda images: (torch.ones(len(images), 196, 512) / math.sqrt(512), None),
    )
    return cast(Backbone, stub)


def test_the_names_in_the_help_are_the_methods_there_are() -> None:
    assert tuple(METHODS) == METHOD_NAMES
    assert set(COUNTS) == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_the_counted_parameters_at_vit_b16_shape(name: str) -> None:
    conditions = ("background", "position", "shape", "action")
    own = FedMPTConfig(adapter_rank=32, gate_rank=32, conditions=conditions)
    config = msgspec.structs.replace(_config(name), fedmpt=own, maple=MaPLeConfig())
    method = build_method(vit_b16(), VOC, config)
    assert ParameterSpec.of(method.initial_parameters(0)).size == COUNTS[name]


@pytest.mark.parametrize("name", KINDS)
def test_whether_a_method_runs_the_image_tower_in_training_is_known_before_it_is_built(
    backbone: Backbone, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = _method(backbone, name)
    patches, parameters = _patches(method, backbone, 1), method.initial_parameters(0)
    text = method.encode_text(parameters)
    runs: list[object] = []

    def noticed(block: object, tokens: torch.Tensor) -> Any:
        runs.append(block)
        return project(block, tokens)

    monkeypatch.setattr("fedmpt.clip.vision.project", noticed)
    method.example_losses(parameters, text, patches, _labels(1))
    assert runs_image_tower(_config(name)) == bool(runs)


@pytest.mark.parametrize("name", ON_PIXELS)
def test_what_is_prepared_of_an_image_depends_on_it_and_the_backbone_alone(
    backbone: Backbone, name: str
) -> None:
    """So a bank of it serves other classes, other seeds and every state of a training."""
    method = _method(backbone, name)
    assert method.pixel_shape is not None
    pixels = torch.randn(3, *method.pixel_shape, generator=torch.Generator().manual_seed(5))
    rows = prepared(method, pixels)
    assert rows.ndim == 3
    assert torch.equal(prepared(method.for_classes(UNSEEN), pixels), rows)
    alone = torch.cat([prepared(method, image[None]) for image in pixels])
    assert torch.allclose(alone, rows, atol=1e-4)
    assert method.prepared_as != Method.prepared_as or torch.equal(rows, pixels)


@pytest.mark.parametrize("name", ON_PIXELS)
def test_scores_are_differentiable_in_the_pixels_behind_what_is_prepared(
    backbone: Backbone, name: str
) -> None:
    method = _method(backbone, name)
    assert method.pixel_shape is not None
    pixels = torch.randn(1, *method.pixel_shape, generator=torch.Generator().manual_seed(5))
    parameters, leaves = _moved(method), pixels.requires_grad_()
    text = method.encode_text(parameters).detach()
    method.score(parameters, text, method.prepare_images(leaves))[0, 0].backward()
    assert leaves.grad is not None
    assert (leaves.grad.abs().amax(dim=-1) > 0).all()


@pytest.mark.parametrize("name", KINDS)
def test_scores_are_probabilities_of_each_example_alone(backbone: Backbone, name: str) -> None:
    method = _method(backbone, name)
    parameters, patches = _moved(method), _patches(method, backbone, 5)
    text = method.encode_text(parameters)
    scores = method.score(parameters, text, patches)
    assert scores.shape == (5, len(CLASSES))
    assert ((scores >= 0) & (scores <= 1)).all()
    assert scores.std() > 1e-3
    alone = torch.cat([method.score(parameters, text, row[None]) for row in patches])
    assert torch.allclose(scores, alone, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_the_loss_of_an_example_is_its_own(backbone: Backbone, name: str) -> None:
    method = _method(backbone, name)
    parameters, patches, labels = _moved(method), _patches(method, backbone, 4), _labels(4)
    text = method.encode_text(parameters)
    losses = method.example_losses(parameters, text, patches, labels)
    alone = [
        method.example_losses(parameters, text, patches[i : i + 1], labels[i : i + 1])
        for i in range(4)
    ]
    assert losses.shape == (4,)
    assert torch.allclose(losses, torch.cat(alone), rtol=1e-4, atol=1e-5)
    assert losses.min() > 0


@pytest.mark.parametrize("name", ON_FEATURES)
def test_permuting_patches_changes_nothing(backbone: Backbone, name: str) -> None:
    method = _method(backbone, name)
    assert method.pixel_shape is None
    parameters, patches = _moved(method), _patches(method, backbone, 3)
    text = method.encode_text(parameters)
    shuffled = patches[:, torch.randperm(backbone.patches)]
    scores = method.score(parameters, text, patches)
    assert torch.allclose(method.score(parameters, text, shuffled), scores, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_the_order_of_classes_is_the_order_of_scores(backbone: Backbone, name: str) -> None:
    method = _method(backbone, name)
    parameters, patches = _moved(method), _patches(method, backbone, 3)
    order = [2, 0, 3, 1]
    other = method.for_classes(tuple(CLASSES[index] for index in order))
    scores = method.score(parameters, method.encode_text(parameters), patches)
    permuted = other.score(parameters, other.encode_text(parameters), patches)
    assert torch.allclose(permuted, scores[:, order], atol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_tuned_parameters_serve_other_classes(backbone: Backbone, name: str) -> None:
    method = _method(backbone, name)
    other = method.for_classes(UNSEEN)
    assert other.classes == UNSEEN
    assert other.name == method.name
    parameters = _moved(method)
    scores = other.score(parameters, other.encode_text(parameters), _patches(method, backbone, 2))
    assert scores.shape == (2, len(UNSEEN))


@pytest.mark.parametrize("name", KINDS)
def test_the_start_depends_on_the_seed_alone(backbone: Backbone, name: str) -> None:
    method = _method(backbone, name)
    first, again, other = (method.initial_parameters(seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[block], again[block]) for block in first)
    assert set(method.prompt_blocks) <= set(first)
    if name in TUNED:
        assert any(not torch.equal(first[block], other[block]) for block in first)


@pytest.mark.parametrize("name", TUNED)
def test_every_block_has_a_gradient_once_training_has_begun(backbone: Backbone, name: str) -> None:
    method = _method(backbone, name)
    parameters = {block: value.requires_grad_() for block, value in _moved(method).items()}
    text = method.encode_text(parameters)
    patches, labels = _patches(method, backbone, 4), _labels(4)
    method.example_losses(parameters, text, patches, labels).sum().backward()
    for block, value in parameters.items():
        assert value.grad is not None, block
        assert torch.isfinite(value.grad).all(), block
        if not block.endswith(
            "key_bias"
        ):  # a softmax does not see what is added to all its entries
            assert value.grad.abs().max() > 0, block


def _client(method: Method, backbone: Backbone, count: int = 6) -> ClientData:
    patches = _patches(method, backbone, count).numpy().astype(np.float16)
    bank = FeatureBank(key="", stored_patches=patches, stored_globals=patches[:, 0])
    return ClientData(bank=bank, rows=np.arange(count), labels=_labels(count).numpy())


@pytest.mark.parametrize("name", TUNED)
def test_per_example_gradients_equal_a_loop_over_examples(backbone: Backbone, name: str) -> None:
    method = _method(backbone, name)
    parameters = _moved(method)
    head = {n: v for n, v in parameters.items() if n not in method.prompt_blocks}
    head[TEXT_BLOCK] = method.encode_text(parameters).detach()
    patches, labels = _client(method, backbone).take(np.arange(3), CPU)
    rows = per_example_gradients(method, head, patches, labels)
    for index in range(3):
        leaves = {block: value.clone().requires_grad_() for block, value in head.items()}
        one = slice(index, index + 1)
        method.example_losses(
            {n: v for n, v in leaves.items() if n != TEXT_BLOCK},
            leaves[TEXT_BLOCK],
            patches[one],
            labels[one],
        ).sum().backward()
        scale = max(
            float(leaf.grad.abs().max()) for leaf in leaves.values() if leaf.grad is not None
        )
        assert scale > 0
        for block, leaf in leaves.items():
            assert leaf.grad is not None
            assert torch.allclose(rows[block][index], leaf.grad, rtol=1e-3, atol=1e-5 * scale), (
                block
            )


def _plan(space: DPSpace, n_pub: int, *, rate: float, clip: float, steps: int) -> DPPlan:
    return DPPlan(
        n_pub=n_pub,
        target_epsilon=8.0,
        delta=1e-5,
        sample_rate=rate,
        noise_multiplier=1.0,
        max_grad_norm=clip,
        steps_per_round=steps,
        rounds=1,
        space=space,
        clip=ClipMode.FLAT,
    )


def _noiseless(
    method: Method,
    spec: ParameterSpec,
    parameters: Parameters,
    data: ClientData,
    plan: DPPlan,
    settings: LocalSettings,
    *,
    lr: float,
    local: Parameters | None = None,
) -> Update:
    """A round of private training from these parameters, its noise left out."""
    return train_privately(
        method,
        spec,
        GlobalState(round=0, vector=spec.flatten(parameters)),
        data,
        settings=settings,
        lr=lr,
        weight=1,
        device=CPU,
        plan=plan,
        sampler=PoissonSampler(plan),
        noise=InsecureZeroNoise(),
        history=StepHistory(),
        local=local,
    )


@pytest.mark.parametrize("space", [DPSpace.TEXT, DPSpace.PROMPT])
@pytest.mark.parametrize("name", TUNED)
def test_a_private_step_without_noise_and_clipping_is_a_step_of_plain_training(
    backbone: Backbone, name: str, space: DPSpace
) -> None:
    method = _method(backbone, name)
    parameters, data = _moved(method), _client(method, backbone)
    spec, plan = ParameterSpec.of(parameters), _plan(space, 6, rate=1.0, clip=1e5, steps=1)
    settings = LocalSettings(
        optimizer="sgd", momentum=0.0, weight_decay=0.0, batch_size=6, epochs=1
    )
    update = _noiseless(method, spec, parameters, data, plan, settings, lr=0.1)
    leaves = {block: value.clone().requires_grad_() for block, value in parameters.items()}
    patches, labels = data.take(np.arange(6), CPU)
    text = method.encode_text(leaves)
    loss = method.example_losses(leaves, text, patches, labels).sum()
    (loss + method.penalty(leaves, text)).backward()
    expected = spec.flatten({n: -0.1 * v.grad for n, v in leaves.items() if v.grad is not None})
    error = np.abs(update.delta - expected).max()
    assert error <= 1e-3 * np.abs(expected).max() + 1e-6


class _Releases:
    """Stands for `PrivateGradient.release`: hands out the same tensors step by step, whatever the examples."""

    def __init__(self) -> None:
        self._step = 0

    def __call__(self, gradient: PrivateGradient, rows: Parameters) -> Parameters:
        self._step += 1
        gradient._steps += 1
        random = torch.Generator().manual_seed(self._step)
        return {
            block: 0.01 * torch.randn(value.shape[1:], generator=random)
            for block, value in sorted(rows.items())
        }


def _what_leaves(
    backbone: Backbone, name: str, space: DPSpace, examples: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[bytes, list[bytes], list[str]]:
    """The sealed update, the blocks kept for the next round, and all that is logged or warned, of three steps."""
    method = _method(backbone, name)
    parameters, data = _moved(method), _client(method, backbone, examples)
    local = {block: parameters.pop(block) for block in method.local_blocks}
    spec, plan = ParameterSpec.of(parameters), _plan(space, 10, rate=0.5, clip=1.0, steps=3)
    settings = LocalSettings(
        optimizer="adamw", momentum=0.9, weight_decay=0.01, batch_size=5, epochs=1
    )
    with monkeypatch.context() as patched, warnings.catch_warnings(record=True) as said:
        releases = _Releases()
        patched.setattr(PrivateGradient, "release", lambda g, rows: releases(g, rows))
        update = _noiseless(method, spec, parameters, data, plan, settings, lr=0.01, local=local)
    envelope = Envelope.of(
        size=spec.size, config=SecAggConfig(), private=True, largest_weight=1, largest_examples=99
    )
    sealed = envelope.seal(update)
    assert update.examples is None
    assert not sealed.noise
    leaves = b"".join(sealed.values[key].tobytes() for key in sorted(sealed.values))
    kept = [local[block].numpy().tobytes() for block in sorted(local)]
    return leaves, kept, [str(one.message) for one in said]


@pytest.mark.parametrize("space", [DPSpace.TEXT, DPSpace.PROMPT])
@pytest.mark.parametrize("name", TUNED)
def test_with_the_releases_held_fast_nothing_that_leaves_depends_on_what_a_client_holds(
    backbone: Backbone, name: str, space: DPSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All else is post-processing: optimiser, Jacobian, penalties, sealing, blocks that stay, words."""
    found = [_what_leaves(backbone, name, space, count, monkeypatch) for count in (9, 10, 2)]
    assert found[1:] == found[:-1]


def test_a_learner_that_lets_the_true_size_in_is_noticed_by_the_test_above(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: a learning rate divided by the examples that a client really holds."""
    real = fedmpt.learner.make_optimizer

    def leaking(parameters: Parameters, settings: LocalSettings, lr: float) -> Any:
        return real(parameters, settings, lr / holding)

    monkeypatch.setattr(fedmpt.learner, "make_optimizer", leaking)
    holding = 9
    first = _what_leaves(backbone, "coop", DPSpace.TEXT, holding, monkeypatch)
    holding = 10
    assert _what_leaves(backbone, "coop", DPSpace.TEXT, holding, monkeypatch)[0] != first[0]


def test_poscoops_offset_is_added_before_features_are_cut_to_unit_length(
    backbone: Backbone,
) -> None:
    """As in the released code, where it does not drown what the text tower says."""
    settings = PosCoOpConfig(positive_offset=True)
    method = build_method(
        backbone, CLASSES, msgspec.structs.replace(_config("poscoop"), poscoop=settings)
    )
    parameters = method.initial_parameters(0)
    suffixes = backbone.text.suffixes(CLASSES)
    raw = raw_context_features(backbone, suffixes, parameters["context"])
    expected = raw + parameters["positive_offset"]
    positive = method.encode_text(parameters)[: len(CLASSES)]
    assert torch.allclose(positive, expected / expected.norm(dim=-1, keepdim=True), atol=1e-6)
    assert not torch.allclose(raw.norm(dim=-1), torch.ones(len(CLASSES)), atol=0.5)


def test_the_public_offset_is_no_function_of_the_scored_image_or_class_set(
    backbone: Backbone,
) -> None:
    config = msgspec.structs.replace(_config("coop"), head=HeadConfig(offset="public"))
    method = build_method(backbone, CLASSES, config)
    parameters, patches = _moved(method), _patches(method, backbone, 3)
    few = method.for_classes(CLASSES[:2])
    scores = method.score(parameters, method.encode_text(parameters), patches)
    assert torch.allclose(
        few.score(parameters, few.encode_text(parameters), patches), scores[:, :2], atol=1e-6
    )
    again = build_method(backbone, CLASSES, config)
    assert torch.equal(again.score(parameters, again.encode_text(parameters), patches), scores)


def test_free_negative_vectors_of_unseen_classes_are_the_mean_of_the_tuned_ones(
    backbone: Backbone,
) -> None:
    method = _method(backbone, "poscoop")
    parameters = _moved(method)
    other = method.for_classes(UNSEEN)
    negatives = other.encode_text(parameters)[len(UNSEEN) :]
    rows = torch.nn.functional.normalize(parameters["negative"], dim=-1)
    mean = torch.nn.functional.normalize(parameters["negative"].mean(0), dim=-1)
    assert torch.allclose(negatives[0], rows[1], atol=1e-6)
    assert torch.allclose(negatives[1], mean, atol=1e-6)


def test_a_start_without_gradient_is_refused_under_privacy(
    run: Callable[..., dict[str, Any]],
) -> None:
    with pytest.raises(UsageError, match="coop has no gradient at its start"):
        run("coop", method__head__scale=1e6)


class _Silent:
    """A listener that does not listen."""

    def progress(self, *_: Any) -> None: ...
    def preview(self, _: Any) -> None: ...
    def round_done(self, _: Any) -> None: ...
    def warning(self, _: str) -> None: ...


@pytest.fixture
def run(
    tmp_path: Path, deep_checkpoint: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[str, Any]]:
    monkeypatch.setenv("FEDMPT_CACHE", str(shared_cache))

    def _run(name: str, **options: Any) -> dict[str, Any]:
        config = load_config(
            options={
                "backbone.name": f"local-dir:{deep_checkpoint}",
                "method.name": name.partition(" ")[0],
                "method.fedmvp.variant": "reduced" if name == REDUCED else "official",
                "method.scpnet.self_supervision": name == VIEWS,
                # Towers with random weights saturate scores at the usual starts.
                "method.poscoop.negative_start": "text",
                "method.head.offset": "image-mean",
                "data.scenes.train_size": 120,
                "data.scenes.test_size": 30,
                "data.scenes.resolution": 32,
                "clients.count": 3,
                "train.rounds": 2,
                "device": "cpu",
            }
            | {key.replace("__", "."): value for key, value in options.items()}
        )
        return train(config, folder=tmp_path / "run", listener=_Silent())

    return _run


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("name", TUNED)
def test_a_small_federation_tunes_the_method(
    run: Callable[..., dict[str, Any]], name: str, private: bool
) -> None:
    summary = run(name, privacy__enabled=private)
    assert summary["method"] == name.partition(" ")[0]
    assert summary["rounds"] == 2
    assert 0 < summary["final"]["mAP"] <= 100
    if private:
        epsilons = [account["epsilon"] for account in summary["privacy"]["clients"]]
        assert 0 < max(epsilons) <= 8


@pytest.mark.parametrize("name", ["fedpgp", "dpfpl", "fedawa"])
def test_shared_noise_is_refused_where_a_client_uses_its_update_more_than_once(
    run: Callable[..., dict[str, Any]], name: str
) -> None:
    with pytest.raises(UsageError, match="share of the noise only"):
        run(name, privacy__noise="shares", clients__count=4, data__scenes__train_size=160)


@pytest.mark.parametrize("name", ["fedpgp", "fedawa"])
def test_encrypted_sums_give_the_model_of_plain_sums_bit_for_bit(
    run: Callable[..., dict[str, Any]], tmp_path: Path, name: str
) -> None:
    """Also where clients keep blocks of their own, and where a round takes four sums."""
    models = {}
    for mode in ("none", "ckks"):
        run(name, secagg__mode=mode, privacy__enabled=False, train__rounds=1, clients__count=4)
        models[mode] = (tmp_path / "run" / "model.safetensors").read_bytes()
        (tmp_path / "run").rename(tmp_path / mode)
    assert models["ckks"] == models["none"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["coop", "tcp", "maple"])
def test_methods_work_with_shared_noise(run: Callable[..., dict[str, Any]], name: str) -> None:
    summary = run(name, privacy__noise="shares", clients__count=5, data__scenes__train_size=200)
    assert summary["rounds"] == 2
    assert 0 < summary["final"]["mAP"] <= 100


def test_zero_shot_trains_nothing_spends_nothing_and_reports_the_frozen_model(
    run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    summary = run("zero-shot")
    assert summary["rounds"] == 0
    assert summary["parameters"] == 0
    assert summary["final"] == summary["zero_shot"]
    assert summary["privacy"]["clients"] == []
    assert load_file(tmp_path / "run" / "model.safetensors") == {}


def test_predictions_do_not_depend_on_how_a_bank_is_cut(backbone: Backbone) -> None:
    method = _method(backbone, "coop")
    parameters, data = _moved(method), _client(method, backbone)
    whole = predict(method, parameters, data.bank)
    method.examples_per_chunk = 2
    assert np.allclose(predict(method, parameters, data.bank), whole, atol=1e-6)


def test_contexts_of_each_class_are_counted_and_refused_for_other_classes(
    backbone: Backbone,
) -> None:
    config = MethodConfig(name="dualcoop")
    config = msgspec.structs.replace(
        config, dualcoop=msgspec.structs.replace(config.dualcoop, class_specific=True)
    )
    shapes = build_method(vit_b16(), VOC, config).initial_parameters(0)
    assert ParameterSpec.of(shapes).size == 327_680
    method = build_method(backbone, CLASSES, config)
    parameters = method.initial_parameters(0)
    assert method.encode_text(parameters).shape == (2 * len(CLASSES), backbone.width)
    with pytest.raises(UsageError, match="class_specific"):
        method.for_classes(UNSEEN)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["dualcoop", "poscoop", "scpnet", "fedtpg", "fedawa", "coop", "maple", "ram", "fedmvp"]
)
def test_methods_work_in_a_sketch(run: Callable[..., dict[str, Any]], name: str) -> None:
    summary = run(name, privacy__space="sketch", train__optimizer="sgd")
    assert summary["rounds"] == 2
    assert 0 < summary["final"]["mAP"] <= 100


def test_scores_of_fedawa_that_could_pass_the_largest_weight_are_refused_before_training(
    small_run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    options = {"method__name": "fedawa", "method__fedawa__server_lr": 0.2}
    with pytest.raises(UsageError, match=r"server_lr=0\.2 over 2 rounds.*use at most 0\.12"):
        small_run(tmp_path / "run", privacy__enabled=False, **options)
    assert not (tmp_path / "run").exists()
