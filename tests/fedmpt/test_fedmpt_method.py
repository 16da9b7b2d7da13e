"""FedMPT: parameter counts, ranges, symmetries and ablations."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import torch

from fedmpt.clip.backbone import Backbone
from fedmpt.config import FedMPTConfig
from fedmpt.errors import UsageError
from fedmpt.methods.fedmpt import FedMPT
from fedmpt.types import ParameterSpec

CLASSES = ("cat", "dog", "dining table", "bus", "sheep")
SETTINGS = FedMPTConfig(adapter_rank=3, gate_rank=2)


def _method(backbone: Backbone, **changes: Any) -> FedMPT:
    return FedMPT(backbone, CLASSES, msgspec.structs.replace(SETTINGS, **changes))


def _patches(count: int, backbone: Backbone) -> torch.Tensor:
    random = torch.Generator().manual_seed(5)
    return torch.nn.functional.normalize(
        torch.randn(count, 16, backbone.width, generator=random), dim=-1
    )


def _perturbed(method: FedMPT) -> dict[str, torch.Tensor]:
    """Parameters as after some training: no zero blocks."""
    random = torch.Generator().manual_seed(6)
    return {
        name: value + 0.1 * torch.randn(value.shape, generator=random)
        for name, value in method.initial_parameters(0).items()
    }


class _VitB16Text:
    """Stands for the text tower of ViT-B/16 where only shapes matter."""

    width = 512

    def words(self, text: str) -> torch.Tensor:
        return torch.zeros(len(text.split()), 512)

    def suffixes(self, classes: tuple[str, ...]) -> None:
        del classes


@pytest.mark.parametrize(
    ("condition_tokens", "class_tokens", "expected"), [(4, 4, 157_824), (5, 7, 161_408)]
)
def test_the_counted_parameters_at_vit_b16_shape(
    condition_tokens: int, class_tokens: int, expected: int
) -> None:
    backbone = SimpleNamespace(text=_VitB16Text(), width=512, logit_scale=100.0, device="cpu")
    settings = FedMPTConfig(
        adapter_rank=32, gate_rank=32, condition_tokens=condition_tokens, class_tokens=class_tokens
    )
    method = FedMPT(cast(Backbone, backbone), CLASSES, settings)
    assert ParameterSpec.of(method.initial_parameters(0)).size == expected


def test_predictions_are_probabilities_and_gate_rows_sum_to_one(backbone: Backbone) -> None:
    method = _method(backbone)
    parameters, patches = _perturbed(method), _patches(7, backbone)
    text = method.encode_text(parameters)
    scores = method.score(parameters, text, patches)
    assert scores.shape == (7, len(CLASSES))
    assert (scores >= 0).all()
    assert (scores <= 1).all()
    assert torch.allclose(method.gate_weights(parameters, patches).sum(-1), torch.ones(7))


def test_at_the_start_the_gate_is_uniform_and_adapters_are_the_identity(backbone: Backbone) -> None:
    method, bare = _method(backbone), _method(backbone, use_adapters=False)
    parameters, patches = method.initial_parameters(0), _patches(3, backbone)
    text = method.encode_text(parameters)
    assert torch.allclose(method.gate_weights(parameters, patches), torch.full((3, 4), 0.25))
    assert torch.allclose(
        method.score(parameters, text, patches), bare.score(parameters, text, patches), atol=1e-6
    )


def test_similarities_are_cosines_of_patches_that_passed_the_adapters(backbone: Backbone) -> None:
    """The method never forms adapted patches; the oracle does."""
    method = _method(backbone)
    parameters, patches = _perturbed(method), _patches(3, backbone)
    text = method.encode_text(parameters)
    down, up = parameters["adapter_down"], parameters["adapter_up"]
    adapted = torch.nn.functional.normalize(patches[:, None] + patches[:, None] @ down @ up, dim=-1)
    cosines = adapted @ text.reshape(4, len(CLASSES), -1).transpose(-1, -2)
    ours = method._scaled_cosines(parameters, text, patches)
    assert torch.allclose(ours, backbone.logit_scale / 4 * cosines, atol=1e-4)


def test_the_odds_head_keeps_the_order_of_images_and_puts_one_half_at_twice_chance(
    backbone: Backbone,
) -> None:
    method, odds = _method(backbone, head="probability"), _method(backbone, head="odds")
    parameters, patches = _perturbed(method), _patches(9, backbone)
    text = method.encode_text(parameters)
    plain, calibrated = (m.score(parameters, text, patches) for m in (method, odds))
    assert torch.equal(plain.argsort(0), calibrated.argsort(0))
    assert torch.equal(plain > 2 / len(CLASSES), calibrated > 0.5)


def test_equal_similarities_predict_one_over_the_number_of_classes(backbone: Backbone) -> None:
    method = _method(backbone)
    parameters = method.initial_parameters(0)
    text = torch.ones(4 * len(CLASSES), backbone.width) / backbone.width**0.5
    psi = method.conditional_scores(parameters, text, _patches(2, backbone))
    assert torch.allclose(psi, torch.full_like(psi, 1 / len(CLASSES)), atol=1e-5)


def test_permuting_patches_changes_nothing_and_permuting_classes_permutes_scores(
    backbone: Backbone,
) -> None:
    method = _method(backbone)
    parameters, patches = _perturbed(method), _patches(4, backbone)
    text = method.encode_text(parameters)
    scores = method.score(parameters, text, patches)
    assert torch.allclose(
        method.score(parameters, text, patches[:, torch.randperm(16)]), scores, atol=1e-5
    )
    order = [3, 1, 4, 0, 2]
    other = method.for_classes(tuple(CLASSES[index] for index in order))
    permuted = other.score(parameters, other.encode_text(parameters), patches)
    assert torch.allclose(permuted, scores[:, order], atol=1e-5)


def test_an_examples_score_does_not_depend_on_its_batch(backbone: Backbone) -> None:
    method = _method(backbone)
    parameters, patches = _perturbed(method), _patches(5, backbone)
    text = method.encode_text(parameters)
    alone = torch.cat([method.score(parameters, text, row[None]) for row in patches])
    assert torch.allclose(method.score(parameters, text, patches), alone, atol=1e-6)


@pytest.mark.parametrize(
    ("switch", "gone"),
    [
        ({"use_conditions": False}, {"condition_tokens", "gate_down", "gate_up"}),
        ({"use_adapters": False}, {"adapter_down", "adapter_up"}),
        ({"use_gate": False}, {"gate_down", "gate_up"}),
        ({"use_transport": False}, set()),
    ],
)
def test_ablations_drop_exactly_their_parameters(
    backbone: Backbone, switch: dict[str, bool], gone: set[str]
) -> None:
    whole, part = _method(backbone), _method(backbone, **switch)
    assert set(whole.initial_parameters(0)) - set(part.initial_parameters(0)) == gone
    parameters = _perturbed(part)
    scores = part.score(parameters, part.encode_text(parameters), _patches(2, backbone))
    assert scores.shape == (2, len(CLASSES))


def test_transport_changes_the_prediction(backbone: Backbone) -> None:
    method, without = _method(backbone), _method(backbone, use_transport=False)
    parameters, patches = _perturbed(method), _patches(2, backbone)
    text = method.encode_text(parameters)
    assert not torch.allclose(
        method.score(parameters, text, patches), without.score(parameters, text, patches), atol=1e-3
    )


def test_every_block_has_a_gradient_once_training_has_begun(backbone: Backbone) -> None:
    method = _method(backbone)
    parameters = {name: value.requires_grad_() for name, value in _perturbed(method).items()}
    scores = method.score(parameters, method.encode_text(parameters), _patches(6, backbone))
    method.loss(scores, torch.randint(0, 2, scores.shape)).sum().backward()
    for name, value in parameters.items():
        assert value.grad is not None, name
        assert value.grad.abs().max() > 0, name


def test_the_start_depends_on_the_seed_alone(backbone: Backbone) -> None:
    method = _method(backbone)
    first, again, other = (method.initial_parameters(seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["condition_tokens"], other["condition_tokens"])


@pytest.mark.parametrize(
    ("classes", "conditions", "message"),
    [(("cat",), ("shape",), "at least 2"), (CLASSES, (), "empty list")],
)
def test_settings_that_cannot_train_are_refused(
    backbone: Backbone, classes: tuple[str, ...], conditions: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        FedMPT(backbone, classes, SETTINGS, conditions)


def test_evidence_of_patches_sums_to_each_conditions_prediction_and_move_with_the_patch(
    backbone: Backbone,
) -> None:
    method = _method(backbone)
    parameters, patches = _perturbed(method), _patches(2, backbone)
    text = method.encode_text(parameters)
    parts = method.evidence(parameters, text, patches)
    assert parts.shape == (2, 4, 16, len(CLASSES))
    assert (parts >= 0).all()
    expected = method.conditional_scores(parameters, text, patches)
    assert torch.allclose(parts.sum(dim=2), expected, atol=1e-6)
    turned = method.evidence(parameters, text, patches.roll(3, dims=1))
    assert torch.allclose(turned, parts.roll(3, dims=2), atol=1e-5)
    assert not torch.allclose(turned, parts, atol=1e-3)
