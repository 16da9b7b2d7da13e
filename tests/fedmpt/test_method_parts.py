"""Parts of single methods against their definitions."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from fedmpt.clip.backbone import Backbone
from fedmpt.config import (
    FedMVPConfig,
    HeadConfig,
    LossConfig,
    MethodConfig,
    PosCoOpConfig,
    SCPNetConfig,
    load_config,
)
from fedmpt.data.class_names import VOC_CLASSES
from fedmpt.data.voc import SPOKEN
from fedmpt.engine.spaces import choose_space
from fedmpt.errors import UsageError
from fedmpt.learner import LocalSettings, make_optimizer
from fedmpt.methods.attention import attention, fresh_attention, fresh_low_rank
from fedmpt.methods.base import Method
from fedmpt.methods.fedmvp import descriptions
from fedmpt.methods.losses import configured_loss, weighted
from fedmpt.methods.pooling import POOLING_SCALE, PairHead
from fedmpt.methods.prompts import fresh_tokens, frozen_features
from fedmpt.methods.registry import build_method
from fedmpt.methods.scpnet import propagation_matrix, relation_matrix
from fedmpt.methods.scpnet_views import SCPNetViews

CLASSES = ("cat", "dog", "dining table", "bus")


def _method(backbone: Backbone, name: str, **sections: Any) -> Method:
    head = HeadConfig(offset="image-mean")
    config = msgspec.structs.replace(MethodConfig(name=name, head=head), **sections)
    return build_method(backbone, CLASSES, config)


def _units(*shape: int, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(shape, generator=random), dim=-1)


def test_swapping_positive_and_negative_gives_the_complement_when_weights_are_fixed() -> None:
    """With one patch there is one weight, 1."""
    text, patch = 0.1 * _units(8, 16), _units(5, 1, 16, seed=1)
    swapped = torch.cat([text[4:], text[:4]])
    p = PairHead(POOLING_SCALE)(text, patch)
    assert p.std() > 0.05
    assert torch.allclose(PairHead(POOLING_SCALE)(swapped, patch), 1 - p, atol=1e-5)


def test_a_pair_is_pooled_by_the_positive_map() -> None:
    """An oracle by loops."""
    text, patches = _units(4, 16), 0.2 * _units(3, 7, 16, seed=1)
    p = PairHead(POOLING_SCALE)(text, patches)
    for image in range(3):
        for c in range(2):
            positive, negative = patches[image] @ text[c], patches[image] @ text[2 + c]
            weights = torch.exp(20 * positive) / torch.exp(20 * positive).sum()
            logit = 5 * (20 * (weights * positive).sum() - 20 * (weights * negative).sum())
            assert p[image, c] == pytest.approx(float(torch.sigmoid(logit)), abs=1e-5)


def test_the_graph_of_labels_has_rows_of_one_with_four_fifths_on_the_diagonal() -> None:
    features = torch.nn.functional.normalize(_units(6, 16) + 0.5, dim=-1)
    matrix = propagation_matrix(features, neighbours=3, share=0.2)
    assert torch.allclose(matrix.sum(1), torch.ones(6), atol=1e-6)
    assert torch.allclose(matrix.diagonal(), torch.full((6,), 0.8), atol=1e-6)
    assert ((matrix > 0).sum(1) == 3).all()
    similarity = features @ features.T
    for row in range(6):
        kept = set(matrix[row].nonzero().flatten().tolist())
        assert kept == set(similarity[row].topk(3).indices.tolist())


def test_attention_equals_torchs_module() -> None:
    random = torch.Generator().manual_seed(0)
    parameters = fresh_attention(random, "a", 16, 16)
    module = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    parts = [parameters[f"a_{part}_weight"] for part in ("query", "key", "value")]
    module.in_proj_weight.data = torch.cat(parts)
    module.in_proj_bias.data.zero_()
    module.out_proj.weight.data = parameters["a_out_weight"]
    module.out_proj.bias.data.zero_()
    query, context = _units(2, 3, 16), _units(2, 5, 16, seed=1)
    expected, _ = module(query, context, context)
    assert torch.allclose(
        attention(parameters, "a", query, context, context, heads=4), expected, atol=1e-5
    )


def test_tcps_penalty_is_eight_times_the_distance_from_clips_own_features(
    backbone: Backbone,
) -> None:
    method, frozen = _method(backbone, "tcp"), frozen_features(backbone, CLASSES)
    assert float(method.penalty({}, frozen)) == pytest.approx(0.0, abs=1e-5)
    assert float(method.penalty({}, -frozen)) == pytest.approx(16.0, abs=1e-4)


def test_fedtpgs_context_changes_with_the_set_of_classes(backbone: Backbone) -> None:
    method = _method(backbone, "fedtpg")
    parameters = method.initial_parameters(0)
    fewer = method.for_classes(CLASSES[:2])
    whole = method.encode_text(parameters)[:2]
    assert not torch.allclose(fewer.encode_text(parameters), whole, atol=1e-4)


def test_rams_adapters_add_nothing_at_the_start(backbone: Backbone) -> None:
    method = _method(backbone, "ram")
    parameters = method.initial_parameters(0)
    other = parameters | {n: torch.randn_like(v) for n, v in parameters.items() if "spread" in n}
    assert method.pixel_shape is not None
    pixels = torch.randn(2, *method.pixel_shape, generator=torch.Generator().manual_seed(0))
    rows = method.prepare_images(pixels)
    text = method.encode_text(parameters)
    scores = method.score(parameters, text, rows)
    assert torch.allclose(method.score(other, text, rows), scores, atol=1e-6)
    moved = {n: torch.randn_like(v) if "out" in n else v for n, v in parameters.items()}
    assert not torch.allclose(method.score(moved, text, rows), scores, atol=1e-3)


def test_rams_teacher_follows_the_labels_and_training_feels_it(backbone: Backbone) -> None:
    method = _method(backbone, "ram")
    parameters = method.initial_parameters(0)
    assert method.pixel_shape is not None
    pixels = torch.randn(1, *method.pixel_shape, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, 0, 0, 1]])
    rows = method.prepare_images(pixels)
    teacher = method._teacher(method._pieces(rows)[-1], labels)  # type: ignore[attr-defined]
    absent = teacher[..., [1, 2]]
    assert (absent == teacher.min()).all()
    assert teacher[..., [0, 3]].std() > 0
    text = method.encode_text(parameters)
    plain = _method(
        backbone, "ram", ram=msgspec.structs.replace(MethodConfig().ram, teacher_weight=0.0)
    )
    guided = method.example_losses(parameters, text, rows, labels)
    assert not torch.allclose(guided, plain.example_losses(parameters, text, rows, labels))


def test_maples_image_tokens_come_from_its_text_tokens(backbone: Backbone) -> None:
    """What is packed behind the text features is the map of the tokens, for every depth."""
    method = _method(
        backbone, "maple", maple=msgspec.structs.replace(MethodConfig().maple, depth=2)
    )
    parameters = {n: v + 0.1 for n, v in method.initial_parameters(0).items()}
    packed = method.encode_text(parameters)
    visual = packed[len(CLASSES) * backbone.width :].reshape(2, 2, -1)
    for depth, tokens in enumerate([parameters["context"], parameters["deep"][0]]):
        weight, bias = parameters["maps_weight"][depth], parameters["maps_bias"][depth]
        assert torch.allclose(visual[depth], tokens @ weight.T + bias, atol=1e-5)


def test_descriptors_are_read_per_class_said_in_sentences_and_missing_ones_are_refused(
    tmp_path: Any,
) -> None:
    file = tmp_path / "words.json"
    file.write_text('{"owl": ["big eyes"], "dog": ["a tail", "often on a lead"]}')
    assert descriptions(("dog", "owl"), str(file)) == [
        ["a photo of a dog, which has a tail.", "a photo of a dog, which is often on a lead."],
        ["a photo of an owl, which has big eyes."],
    ]
    for broken in ("{", '{"owl": []}', '{"owl": 3}', '["owl"]'):
        file.write_text(broken)
        with pytest.raises(UsageError, match="descriptor"):
            descriptions(("owl",), str(file))
    file.write_text('{"owl": ["big eyes"]}')
    with pytest.raises(UsageError, match="bus"):
        descriptions(("owl", "bus"), str(file))
    with pytest.raises(UsageError, match=r"one of .*voc2007"):
        descriptions(("owl",), str(tmp_path / "none.json"))
    assert all(len(many) > 1 for many in descriptions(("cat", "bus"), None))


def test_descriptors_of_vocs_classes_are_bundled_in_both_spellings() -> None:
    spoken = tuple(SPOKEN.get(name, name) for name in VOC_CLASSES)
    written = descriptions(VOC_CLASSES, "voc2007")
    assert all(len(many) >= 5 for many in written)
    said = [
        [one.replace(name, "it") for one in many]
        for name, many in zip(spoken, descriptions(spoken, "voc2007"), strict=True)
    ]
    assert said == [
        [one.replace(name, "it") for one in many]
        for name, many in zip(VOC_CLASSES, written, strict=True)
    ]


def test_an_example_that_is_served_well_tunes_fedmvps_adapters_and_leaves_the_block(
    backbone: Backbone,
) -> None:
    def made(**settings: Any) -> Method:
        return _method(backbone, "fedmvp", fedmvp=FedMVPConfig(consistency_weight=0.0, **settings))

    random = torch.Generator().manual_seed(3)
    first = made(switch_below=1.0)
    assert first.pixel_shape is not None
    parameters = {
        name: value + 0.1 * torch.randn(value.shape, generator=random)
        for name, value in first.initial_parameters(0).items()
    }
    pixels = torch.randn(6, *first.pixel_shape, generator=random)
    labels = torch.randint(0, 2, (6, len(CLASSES)), generator=random)
    rows = first.prepare_images(pixels)
    text = first.encode_text(parameters)
    plain = made().example_losses(parameters, text, made().prepare_images(pixels), labels)
    frozen = first._frozen_features(pixels)[:, 1:]  # type: ignore[attr-defined]
    means = first.constants()["class_means"]
    served = first.loss(first._head(means, frozen), labels)  # type: ignore[attr-defined]
    best, second = (plain / served).sort().values[:2].tolist()
    assert best < second < 1
    method = made(switch_below=(best + second) / 2)
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    losses = method.example_losses(leaves, method.encode_text(leaves), rows, labels)
    assert torch.allclose(losses, plain, atol=1e-5)
    switched = int((plain / served).argmin())
    for example in (switched, (switched + 1) % 6):
        gradients = torch.autograd.grad(losses[example], list(leaves.values()), retain_graph=True)
        tuned = {n for n, g in zip(leaves, gradients, strict=True) if g.abs().max() > 0}
        adapters = {name for name in leaves if "adapter" in name}
        assert len(adapters) == 6
        assert tuned == adapters if example == switched else not tuned & adapters
        assert tuned


def test_fedmvps_adapters_have_the_published_size() -> None:
    random = torch.Generator()
    sizes = [fresh_low_rank(random, name, 768, 8) for name in ("query", "key", "value")]
    assert sum(value.numel() for one in sizes for value in one.values()) == 36_864


def test_a_block_may_learn_at_its_own_rate() -> None:
    parameters = {n: torch.zeros(1, requires_grad=True) for n in ("context", "negative")}
    settings = LocalSettings(
        optimizer="sgd",
        momentum=0.0,
        weight_decay=0.0,
        batch_size=1,
        epochs=1,
        lr_multipliers={"context": 0.01},
    )
    optimizer = make_optimizer(parameters, settings, 0.5)
    for value in parameters.values():
        value.grad = torch.ones(1)
    optimizer.step()
    moved = np.array([float(v.detach()) for v in parameters.values()])
    assert moved == pytest.approx([-0.005, -0.5])


@pytest.mark.parametrize(
    ("name", "word"),
    [("fedpgp", "of their own"), ("dpfpl", "of their own"), ("tcp", "a term of the loss")],
)
def test_a_sketch_is_refused_where_it_does_not_serve_and_never_chosen_by_rule(
    backbone: Backbone, name: str, word: str
) -> None:
    method = _method(backbone, name)
    parameters = method.initial_parameters(0)
    asked = load_config(options={"privacy.space": "sketch", "train.optimizer": "sgd"})
    with pytest.raises(UsageError, match=word):
        choose_space(asked, method, parameters)
    by_rule = load_config(options={"privacy.space": "auto", "train.optimizer": "sgd"})
    assert choose_space(by_rule, method, parameters)[0].privacy.space == "text"


def test_the_strong_view_is_the_grey_mirror_image_without_its_middle(backbone: Backbone) -> None:
    method = _method(backbone, "scpnet", scpnet=SCPNetConfig(self_supervision=True))
    assert isinstance(method, SCPNetViews)
    rows, columns = backbone.image_tower.grid
    assert rows == columns == 4
    side = math.isqrt(backbone.image_tower.patch_values // 3)
    images = torch.rand(
        2, 3, rows * side, columns * side, generator=torch.Generator().manual_seed(2)
    )
    view = method.strong_view(backbone.image_tower.patchify(images))
    expected = images.flip(3).mean(dim=1, keepdim=True).expand_as(images).clone()
    expected[:, :, side : 3 * side, side : 3 * side] = 0
    assert torch.allclose(view, backbone.image_tower.patchify(expected), atol=1e-6)


def test_views_that_agree_with_what_is_sure_cost_less(backbone: Backbone) -> None:
    """By hand: two classes kept a row, one of them sure in the image as it is."""
    method = _method(
        backbone, "scpnet", scpnet=SCPNetConfig(self_supervision=True, supervision_weight=3.0)
    )
    assert isinstance(method, SCPNetViews)
    weak = torch.tensor([[0.97, 0.4, 0.2, 0.1]])
    labels = torch.tensor([[1, 0, 0, 0]])
    weight = method._loss.weight
    assert weight is not None

    def loss(strong: torch.Tensor) -> float:
        scores = iter([weak, strong])
        method._head = lambda *_: next(scores)  # type: ignore[assignment, misc]
        rows = torch.zeros(1, 2 * backbone.patches, backbone.width)
        return float(method.example_losses({}, weak, rows, labels))

    strong = torch.tensor([[0.6, 0.3, 0.3, 0.3]])
    related = weak @ method._prompts.relations.T
    apart = -(related * strong.log() + (1 - related) * (1 - strong).log()).sum()
    by_hand = method.loss(weak, labels) + 3 * weight * (apart - math.log(0.6))
    assert loss(strong) == pytest.approx(float(by_hand), rel=1e-5)
    assert loss(related) < loss(strong)


def test_relations_are_a_softmax_over_the_kept_entries_of_a_row() -> None:
    features = _units(6, 8)
    relations = relation_matrix(
        propagation_matrix(features, neighbours=3, share=0.2), temperature=0.3
    )
    assert torch.allclose(relations.sum(dim=1), torch.ones(6))
    kept = (features @ features.T).topk(3, dim=1).indices
    assert ((relations > 0).sum(dim=1) <= 3).all()
    assert (relations.argmax(dim=1) == torch.arange(6)).all()
    assert (relations.gather(1, kept).sum(dim=1) > 0.999).all()


@pytest.mark.parametrize("scale", [10.0, 25.0, 100.0])
def test_a_step_of_sgd_moves_log_odds_as_far_whatever_the_scale_of_the_head(scale: float) -> None:
    """Near log-odds of 0, where the slope of the loss is the same."""
    config = weighted(LossConfig(), scale=scale)
    cosine = torch.zeros(1, 1, requires_grad=True)
    configured_loss(torch.sigmoid(scale * cosine), torch.ones(1, 1), config).sum().backward()
    assert cosine.grad is not None
    moved = scale * -cosine.grad.item()
    assert moved == pytest.approx(0.02 * 100**2 / 4)  # 0.02 and 100 are DualCoOp's
    assert weighted(LossConfig(weight=0.5), scale=scale).weight == 0.5


def test_fresh_tokens_have_clips_spread() -> None:
    assert float(fresh_tokens(torch.Generator().manual_seed(0), 100, 100).std()) == pytest.approx(
        0.02, rel=0.02
    )


WITH_OFFSETS = [
    *(("coop", offset) for offset in ("none", "anchor", "public", "image-mean")),
    *(("ram", offset) for offset in ("public", "image-mean")),
]


def _with_offset(
    backbone: Backbone, name: str, offset: Any
) -> tuple[Method, dict[str, torch.Tensor], torch.Tensor]:
    """A method with that offset, parameters as after some training, and prepared images."""
    method = _method(backbone, name, head=HeadConfig(scale=5.0, offset=offset))
    random = torch.Generator().manual_seed(3)
    images = torch.randn(3, 3, 32, 32, generator=random)
    parameters = {
        block: value + 0.1 * torch.randn(value.shape, generator=random)
        for block, value in method.initial_parameters(0).items()
    }
    if method.pixel_shape is None:
        return method, parameters, backbone.encode_pixels(images)[0]
    with torch.no_grad():
        return method, parameters, method.prepare_images(backbone.image_tower.patchify(images))


@pytest.mark.parametrize(("name", "offset"), WITH_OFFSETS)
def test_with_every_offset_the_order_of_classes_is_the_order_of_scores(
    backbone: Backbone, name: str, offset: Any
) -> None:
    """Whether a method is asked about other classes or is built for them."""
    method, parameters, rows = _with_offset(backbone, name, offset)
    scores = method.score(parameters, method.encode_text(parameters), rows)
    assert scores.std() > 1e-3
    order = [2, 0, 3, 1]
    permuted = tuple(CLASSES[index] for index in order)
    config = MethodConfig(name=name, head=HeadConfig(scale=5.0, offset=offset))
    for other in (method.for_classes(permuted), build_method(backbone, permuted, config)):
        again = other.score(parameters, other.encode_text(parameters), rows)
        assert torch.allclose(again, scores[:, order], atol=1e-5)


@pytest.mark.parametrize(("name", "offset"), WITH_OFFSETS)
def test_with_every_offset_tuned_parameters_serve_other_classes(
    backbone: Backbone, name: str, offset: Any
) -> None:
    """What a class scores does not depend on the others, but for a mean over them and for RAM's softmax."""
    method, parameters, rows = _with_offset(backbone, name, offset)
    other = method.for_classes(("dog", "horse", "cat"))
    assert other.classes == ("dog", "horse", "cat")
    scores = other.score(parameters, other.encode_text(parameters), rows)
    assert scores.shape == (3, 3)
    assert scores.std() > 1e-3
    assert ((scores > 0) & (scores < 1)).all()
    before = method.score(parameters, method.encode_text(parameters), rows)[:, [1, 0]]
    if name == "coop" and offset == "image-mean":
        assert torch.logit(scores).sum(dim=1).abs().max() < 1e-4
    elif name == "coop":
        assert torch.allclose(scores[:, [0, 2]], before, atol=1e-5)


@pytest.mark.parametrize("offset", ["none", "anchor"])
def test_ram_refuses_offsets_that_it_has_not(backbone: Backbone, offset: Any) -> None:
    with pytest.raises(UsageError, match="use public or image-mean"):
        _method(backbone, "ram", head=HeadConfig(offset=offset))


def test_free_negatives_drawn_at_random_build_score_and_have_gradients(backbone: Backbone) -> None:
    """PositiveCoOp's published start: one standard normal vector a class."""
    names = tuple(f"class {number}" for number in range(80))
    config = MethodConfig(name="poscoop", poscoop=PosCoOpConfig(negative_start="normal"))
    method = build_method(backbone, names, config)
    leaves = {name: v.requires_grad_() for name, v in method.initial_parameters(0).items()}
    negative = leaves["negative"].detach()
    assert negative.shape == (80, backbone.width)
    assert float(negative.std()) == pytest.approx(1, abs=0.1)
    assert negative.mean(dim=0).norm() < 1  # no direction in common; 4.9 is one vector's length
    text = method.encode_text(leaves)
    units = torch.nn.functional.normalize(negative, dim=-1)
    assert torch.allclose(text[80:], units, atol=1e-6)
    patches = 0.05 * _units(4, backbone.patches, backbone.width)
    scores = method.score(leaves, text, patches)
    assert scores.detach().std() > 0.05
    labels = torch.randint(0, 2, (4, 80), generator=torch.Generator().manual_seed(4))
    losses = method.example_losses(leaves, text, patches, labels)
    gradients = torch.autograd.grad(losses.sum(), list(leaves.values()))
    for block, gradient in zip(leaves, gradients, strict=True):
        assert torch.isfinite(gradient).all(), block
        assert (gradient.abs().amax(dim=-1) > 0).all(), block
