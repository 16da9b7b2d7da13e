"""The fixed projections of adapters: what they span, where they start, what noise in them can do."""

from __future__ import annotations

import torch

from fedmpt.clip.backbone import Backbone
from fedmpt.config import FedMPTConfig
from fedmpt.methods.adapter_basis import (
    FREE_DIRECTIONS,
    FREE_LENGTH,
    TEXT_GAIN,
    UNIT,
    adapter_basis,
)
from fedmpt.methods.fedmpt import FedMPT

CLASSES = ("cat", "dog", "bus", "sheep")
SETTINGS = FedMPTConfig(adapter_rank=8, gate_rank=2, adapter_projections="text")


def _text(classes: int = 6, width: int = 40) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    text = 2.0 + torch.randn(classes, width, generator=random)  # a long common part, as CLIP's
    return text / text.norm(dim=1, keepdim=True)


def test_the_output_keeps_off_the_common_text_direction_and_shrinks_those_of_classes() -> None:
    text = _text()
    basis = adapter_basis(text, 32)
    assert basis.text_count == 5
    assert basis.down.shape == (40, 5)
    assert basis.out.shape == (5 + FREE_DIRECTIONS, 40)
    common = text.mean(dim=0)
    assert float((basis.out @ common).abs().max()) < 1e-5 * UNIT
    gram = basis.out @ basis.out.T / UNIT**2
    lengths = torch.cat([torch.full((5,), TEXT_GAIN), torch.ones(FREE_DIRECTIONS)])
    torch.testing.assert_close(gram, torch.diag(lengths**2), rtol=0, atol=1e-5)
    torch.testing.assert_close(basis.down.T @ basis.down, torch.eye(5), rtol=0, atol=1e-5)
    differences = (
        text - common - torch.outer((text - common) @ common, common) / common.square().sum()
    )
    assert (
        float((basis.out[5:] @ differences.T).abs().max()) < 1e-5 * UNIT
    )  # across all class texts


def test_the_basis_is_a_function_of_the_texts_and_the_rank() -> None:
    torch.manual_seed(1)
    first = adapter_basis(_text(), 3)
    torch.manual_seed(2)
    again = adapter_basis(_text(), 3)
    assert torch.equal(first.down, again.down)
    assert torch.equal(first.out, again.out)
    assert first.down.shape == (40, 3)


def test_few_dimensions_leave_what_room_there_is() -> None:
    basis = adapter_basis(_text(classes=6, width=8), 32)
    assert basis.out.shape == (5 + 2, 8)  # width less common part and five text directions


def test_the_core_starts_across_the_text_and_at_the_same_length_for_any_number_of_directions() -> (
    None
):
    basis = adapter_basis(_text(), 5)
    core = basis.start(200, torch.Generator().manual_seed(0))
    assert not core[:, :, :5].any()
    length = float((core @ basis.out).square().sum(-1).mean().sqrt())
    assert abs(length / FREE_LENGTH - 1) < 0.05


def test_with_projections_from_text_the_core_alone_is_tuned_of_an_adapter(
    backbone: Backbone,
) -> None:
    parameters = FedMPT(backbone, CLASSES, SETTINGS).initial_parameters(0)
    assert set(parameters) == {
        *("adapter_core", "condition_tokens", "class_tokens"),
        *("gate_down", "gate_up"),
    }
    assert parameters["adapter_core"].shape == (4, 3, 3 + FREE_DIRECTIONS)  # 3 = C - 1


def test_other_classes_keep_the_projections_that_were_tuned_with(backbone: Backbone) -> None:
    method = FedMPT(backbone, CLASSES, SETTINGS)
    other = method.for_classes(("cat", "tree"))
    assert other._basis is method._basis
    parameters = method.initial_parameters(0)
    patches = torch.zeros(1, 6, backbone.width) + 0.1
    assert other.score(parameters, other.encode_text(parameters), patches).shape == (1, 2)
