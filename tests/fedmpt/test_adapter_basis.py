"""The fixed projections of adapters: what they span, where they start, what noise in them can do."""

from __future__ import annotations

import pytest
import torch

from fedmpt.clip.backbone import Backbone
from fedmpt.config import FedMPTConfig
from fedmpt.methods.adapter_basis import (
    FREE_DIRECTIONS,
    FREE_LENGTH,
    TEXT_GAIN,
    UNIT,
    adapter_basis,
    to_blocks,
    to_cores,
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


def test_with_projections_from_text_the_cores_alone_are_tuned_of_adapters(
    backbone: Backbone,
) -> None:
    parameters = FedMPT(backbone, CLASSES, SETTINGS).initial_parameters(0)
    assert set(parameters) == {
        *("adapter_common", "adapter_core", "condition_tokens", "class_tokens"),
        *("gate_down", "gate_up"),
    }
    assert parameters["adapter_common"].shape == (3, 3 + FREE_DIRECTIONS)  # 3 = C - 1
    assert parameters["adapter_core"].shape == (3, 3, 3 + FREE_DIRECTIONS)  # of 4 conditions


def test_blocks_stand_for_the_cores_they_were_made_of() -> None:
    cores = torch.randn(5, 3, 7, generator=torch.Generator().manual_seed(0))
    for count in range(1, 6):
        blocks = to_blocks(cores[:count])
        torch.testing.assert_close(to_cores(blocks), cores[:count])
        lengths = sum(float(block.square().sum()) for block in blocks.values())
        assert lengths == pytest.approx(float(cores[:count].square().sum()))


def test_what_all_cores_have_in_common_is_one_block_and_how_they_differ_the_other() -> None:
    core = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    alike = to_blocks(core.expand(4, -1, -1))
    torch.testing.assert_close(alike["adapter_common"], 2 * core)  # the root of 4
    torch.testing.assert_close(alike["adapter_core"], torch.zeros(3, 3, 7))
    unlike = to_blocks(torch.stack([core, -core]))
    torch.testing.assert_close(unlike["adapter_common"], torch.zeros(3, 7))


def test_a_condition_alone_has_a_core_and_nothing_in_common(backbone: Backbone) -> None:
    method = FedMPT(backbone, CLASSES, SETTINGS, ("background",))
    parameters = method.initial_parameters(0)
    assert parameters["adapter_core"].shape == (1, 3, 3 + FREE_DIRECTIONS)
    assert "adapter_common" not in parameters
    patches = torch.zeros(1, 6, backbone.width) + 0.1
    assert method.score(parameters, method.encode_text(parameters), patches).shape == (1, 4)


def test_other_classes_keep_the_projections_that_were_tuned_with(backbone: Backbone) -> None:
    method = FedMPT(backbone, CLASSES, SETTINGS)
    other = method.for_classes(("cat", "tree"))
    assert other._basis is method._basis
    parameters = method.initial_parameters(0)
    patches = torch.zeros(1, 6, backbone.width) + 0.1
    assert other.score(parameters, other.encode_text(parameters), patches).shape == (1, 2)
