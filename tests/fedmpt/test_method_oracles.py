"""The equations and constants of the compared methods against loops that call nothing of the code they check.

Every oracle is written from the published equations, in NumPy and double precision, with the published constants as
numbers. Only the frozen towers are open_clip's own modules, run here block by block. The towers have 12 blocks, so that
the methods' own depths are the published ones.

Dimensions: ``B`` images, ``M`` patches, ``C`` classes, ``D`` joint, ``W`` text and ``V`` image width, ``k`` tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpt.clip.backbone import Backbone
from fedmpt.config import (
    FedMVPConfig,
    HeadConfig,
    LossConfig,
    MethodConfig,
    RAMConfig,
    SCPNetConfig,
)
from fedmpt.methods.attention import cross_block, fresh_cross_block
from fedmpt.methods.base import Method, Parameters
from fedmpt.methods.pooling import SinglePromptHead, made_up_images
from fedmpt.methods.ram import RAM
from fedmpt.methods.registry import build_method
from fedmpt.methods.scpnet import GraphPrompts
from fedmpt.methods.scpnet_views import SCPNetViews

Array: TypeAlias = NDArray[np.float64]

CLASSES = ("cat", "dog", "dining_table", "bus")
SPOKEN = ("cat", "dog", "dining table", "bus")
UNSEEN = ("dog", "horse", "cat")
FROZEN = tuple(f"a photo of a {name}." for name in SPOKEN)
LOGIT_SCALE = 10.0  # of these towers; at CLIP's 100, random features would saturate every softmax
SCALE, POOLING = 5.0, 20.0  # of the head
HEAD = HeadConfig(pooling=POOLING, scale=SCALE, offset="image-mean")
LOSS = LossConfig(weight=1.0)
IMAGES = 3


@pytest.fixture(scope="module")
def deep() -> Backbone:
    """Narrow towers of 12 blocks with random weights."""
    from fedmpt.clip._torchvision import ensure_torchvision

    ensure_torchvision()
    import open_clip
    from open_clip.model import CLIP

    torch.manual_seed(1)
    model = CLIP(
        embed_dim=48,
        vision_cfg={"image_size": 32, "layers": 12, "width": 32, "head_width": 16, "patch_size": 8},
        text_cfg={"width": 32, "heads": 4, "layers": 12, "context_length": 24},
        init_logit_scale=math.log(LOGIT_SCALE),
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1) if parameter.ndim > 1 else None
    for parameter in model.visual.parameters():  # normalisations and biases do something
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    torch.nn.init.normal_(model.text_projection, std=0.5)
    return Backbone(
        name="deep",
        model=model,
        transform=open_clip.image_transform(32, is_train=False, resize_mode="squash"),
        tokenizer=open_clip.get_tokenizer("ViT-B-32", context_length=24),
        device=torch.device("cpu"),
    )


def _method(
    backbone: Backbone, name: str, classes: tuple[str, ...] = CLASSES, **sections: Any
) -> Method:
    config = MethodConfig(name=name, head=HEAD, loss=LOSS)
    return build_method(backbone, classes, msgspec.structs.replace(config, **sections))


def _moved(method: Method, size: float = 0.3) -> Parameters:
    """Parameters that differ from the start in every value."""
    random = torch.Generator().manual_seed(6)
    return {
        name: value + size * torch.randn(value.shape, generator=random)
        for name, value in method.initial_parameters(0).items()
    }


def _images(count: int = IMAGES) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def _scores(method: Method, backbone: Backbone, parameters: Parameters, images: Tensor) -> Tensor:
    rows = method.prepare_images(backbone.image_tower.patchify(images))
    return method.score(parameters, method.encode_text(parameters), rows)


@torch.no_grad()
def _losses(
    method: Method, backbone: Backbone, parameters: Parameters, images: Tensor, labels: Tensor
) -> Tensor:
    rows = method.prepare_images(backbone.image_tower.patchify(images))
    return method.example_losses(parameters, method.encode_text(parameters), rows, labels)


def _array(value: Tensor) -> Array:
    return value.detach().double().numpy()


def _arrays(parameters: Parameters) -> dict[str, Array]:
    return {name: _array(value) for name, value in parameters.items()}


def _same(value: Tensor, expected: Array, error: float = 2e-5) -> None:
    """Check that two results agree, and that they say something."""
    assert value.shape == expected.shape
    assert expected.std() > 50 * error
    assert np.abs(_array(value) - expected).max() < error


def _unit(x: Array) -> Array:
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _softmax(x: Array) -> Array:
    """Softmax of a vector."""
    powers = np.exp(x - x.max())
    return np.asarray(powers / powers.sum())


def _gelu(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))))


def _norm(x: Array, weight: Array, bias: Array) -> Array:
    """Normalise a vector to mean 0 and variance 1, then scale and shift it."""
    centred = x - x.mean()
    return np.asarray(centred / math.sqrt((centred**2).mean() + 1e-5) * weight + bias)


def _affine(p: Mapping[str, Array], name: str, x: Array) -> Array:
    return np.asarray(p[f"{name}_weight"] @ x + p[f"{name}_bias"])


def _attend(
    p: Mapping[str, Array], query: Array, keys: Array, values: Array, *, heads: int
) -> Array:
    """Multi-head attention, one query and one head after the other; rows are vectors."""
    q = [_affine(p, "attention_query", row) for row in query]
    k = [_affine(p, "attention_key", row) for row in keys]
    v = [_affine(p, "attention_value", row) for row in values]
    width = len(q[0]) // heads
    results = []
    for one in q:
        joined = np.zeros(len(one))
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            weights = _softmax(np.array([one[part] @ other[part] for other in k]) / width**0.5)
            joined[part] = sum(w * other[part] for w, other in zip(weights, v, strict=True))
        results.append(_affine(p, "attention_out", joined))
    return np.array(results)


def _cross(
    p: Mapping[str, Array], query: Array, context: Array, *, heads: int, norm_values: bool
) -> Array:
    """Queries read a context, without a residual; then a GEGLU feed-forward with one."""

    def normed(name: str, rows: Array) -> Array:
        return np.array([_norm(row, p[f"{name}_weight"], p[f"{name}_bias"]) for row in rows])

    keys = normed("context_norm", context)
    values = keys if norm_values else context
    read = _attend(p, normed("query_norm", query), keys, values, heads=heads)
    results = []
    for row, inside in zip(read, normed("feed_norm", read), strict=True):
        wide = _affine(p, "feed_in", inside)
        half = len(wide) // 2
        results.append(row + _affine(p, "feed_out", wide[:half] * _gelu(wide[half:])))
    return np.array(results)


@torch.no_grad()
def _read(
    backbone: Backbone,
    sentences: tuple[str, ...],
    tokens: Mapping[int, Tensor] | None = None,
    *,
    extra: bool = False,
) -> Array:
    """Text features ``[C, D]`` by open_clip's own blocks over whole sentences.

    Tokens ``[k, W]`` or ``[C, k, W]`` take the k places behind the start token before the block they are named after;
    ``extra`` ones are squeezed in there instead, and gone after the block.
    """
    model, tokens = backbone._model, tokens or {}
    ids = backbone._tokenizer(list(sentences))
    x = model.token_embedding(ids)
    for index, block in enumerate(model.transformer.resblocks):
        own = tokens.get(index)
        if own is not None:
            own = own.expand(len(x), -1, -1)
            behind = 1 if extra else 1 + own.shape[1]
            x = torch.cat([x[:, :1], own, x[:, behind:]], dim=1)
        if index == 0:
            x = x + model.positional_embedding[: x.shape[1]]
        x = block(x, attn_mask=torch.full((x.shape[1], x.shape[1]), -math.inf).triu(1))
        if own is not None and extra:
            x = torch.cat([x[:, :1], x[:, 1 + own.shape[1] :]], dim=1)
    ends = x[torch.arange(len(x)), ids.argmax(dim=1)]
    return _unit(_array(model.ln_final(ends) @ model.text_projection))


def _placeholders(count: int, names: tuple[str, ...] = SPOKEN) -> tuple[str, ...]:
    return tuple(f"{' '.join(count * ['X'])} {name}." for name in names)


def _embedded(backbone: Backbone, images: Tensor) -> Tensor:
    """Class token and patches with positions, before the first normalisation: ``[B, 1 + M, V]``."""
    visual = backbone._model.visual
    patches = visual.conv1(images).flatten(2).mT
    first = visual.class_embedding.expand(len(images), 1, -1)
    embedded: Tensor = torch.cat([first, patches], dim=1) + visual.positional_embedding
    return embedded


def _projected(backbone: Backbone, tokens: Tensor) -> Array:
    visual = backbone._model.visual
    return _unit(_array(visual.ln_post(tokens) @ visual.proj))


@torch.no_grad()
def _seen(
    backbone: Backbone,
    embedded: Tensor,
    *,
    before: Callable[[int, Tensor], Tensor] = lambda _, tokens: tokens,
) -> Array:
    """Features of all tokens after open_clip's own blocks, which ``before`` may change tokens before."""
    visual = backbone._model.visual
    x = visual.ln_pre(embedded)
    for index, block in enumerate(visual.transformer.resblocks):
        x = block(before(index, x))
    return _projected(backbone, x)


def _logits(
    text: Array, patches: Array, offset: str, *, anchor: Array | None = None, constant: float = 0.0
) -> Array:
    """Log-odds ``[B, C]`` of the head for one text feature a class, one image and class after the other."""
    similarity = np.zeros((len(patches), len(text)))
    for image, features in enumerate(patches):
        for c, name in enumerate(text):
            cosines = np.array([patch @ name for patch in features])
            if anchor is not None:
                cosines = cosines - np.array([patch @ anchor for patch in features])
            similarity[image, c] = _softmax(POOLING * cosines) @ cosines
        if offset == "image-mean":
            similarity[image] -= similarity[image].mean()
    return SCALE * (similarity - constant)


def _asymmetric(probabilities: Array, labels: Array) -> Array:
    """The asymmetric loss with gamma+ 1, gamma- 2 and shift 0.05, class by class: ``[B]``."""
    losses = np.zeros(len(probabilities))
    for image, (row, present) in enumerate(zip(probabilities, labels, strict=True)):
        for p, label in zip(row, present, strict=True):
            shifted = max(p - 0.05, 0.0)
            losses[image] -= (1 - p) * math.log(p) if label else shifted**2 * math.log(1 - shifted)
    return losses


def _labels(count: int = IMAGES) -> Tensor:
    return torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0], [1, 1, 1, 0]])[:count]


@pytest.mark.parametrize("norm_values", [True, False])
def test_a_cross_block_equals_a_loop_over_queries_and_heads(norm_values: bool) -> None:
    random = torch.Generator().manual_seed(0)
    parameters = fresh_cross_block(random, 16, 12)
    parameters = {
        n: v + 0.3 * torch.randn(v.shape, generator=random) for n, v in parameters.items()
    }
    query = 1 + 2 * torch.randn(2, 3, 16, generator=random)
    context = 1 + 2 * torch.randn(2, 5, 12, generator=random)
    ours = cross_block(parameters, query, context, heads=4, norm_values=norm_values)
    p = _arrays(parameters)
    for one in range(2):
        expected = _cross(
            p, _array(query[one]), _array(context[one]), heads=4, norm_values=norm_values
        )
        _same(ours[one], expected, 1e-4)


def test_fedtpgs_queries_read_the_bare_names_of_the_classes_with_values_normalised(
    deep: Backbone,
) -> None:
    method = _method(deep, "fedtpg")
    parameters = _moved(method)
    names = _read(deep, SPOKEN)
    p = _arrays(parameters)
    context = _cross(p, p["queries"], names, heads=4, norm_values=True)
    assert len(context) == 4
    expected = _read(deep, _placeholders(4), {0: torch.from_numpy(context).float()})
    _same(method.encode_text(parameters), expected)


def test_tcps_class_tokens_enter_before_the_ninth_of_twelve_text_blocks(deep: Backbone) -> None:
    method = _method(deep, "tcp")
    parameters = _moved(method, 1.0)
    p = _arrays(parameters)
    tokens = []
    for knowledge in _read(deep, FROZEN):
        hidden = _affine(p, "down", knowledge)
        assert len(hidden) == 12  # a quarter of the joint width
        hidden = hidden * _sigmoid(1.702 * hidden)
        tokens.append(_affine(p, "up", hidden).reshape(4, 32))
    later = torch.from_numpy(np.array(tokens)).float()
    expected = _read(deep, _placeholders(4), {0: parameters["context"], 8: later})
    _same(method.encode_text(parameters), expected)


def test_fedpgps_shared_context_is_drawn_to_clips_prompt_and_from_the_personal_one(
    deep: Backbone,
) -> None:
    """Two logits a class at temperature 0.5, CLIP's the target of a cross-entropy."""
    method = _method(deep, "fedpgp")
    parameters = _moved(method)
    assert parameters["left"].shape == (16, 4)
    own = parameters["left"] @ parameters["right"]
    shared = _read(deep, _placeholders(16), {0: parameters["shared"]})
    personal = _read(deep, _placeholders(16), {0: parameters["shared"] + own})
    encoded = method.encode_text(parameters)
    _same(encoded, personal)
    terms = []
    for one, frozen, mine in zip(shared, _read(deep, FROZEN), personal, strict=True):
        target, _ = _softmax(np.array([one @ frozen, one @ mine]) / 0.5)
        terms.append(-math.log(target))
    penalty = float(method.penalty(parameters, encoded))
    assert penalty == pytest.approx(float(np.mean(terms)), abs=1e-5)


def test_dpfpls_own_context_is_added_as_it_is_and_learns_through_eight_factors(
    deep: Backbone,
) -> None:
    """The factors' gradients by autograd, put together as published: dU V + U dV + U U' dU V."""
    method = _method(deep, "dpfpl")
    parameters = {n: v.clone().requires_grad_() for n, v in _moved(method).items()}
    assert {name: tuple(value.shape) for name, value in parameters.items()} == {
        "shared": (16, 32),
        "own": (16, 32),
    }
    assert method.local_blocks == ("own",)
    encoded = method.encode_text(parameters)
    context = (parameters["shared"] + parameters["own"]).detach()
    _same(encoded.detach(), _read(deep, _placeholders(16), {0: context}))

    direction = torch.randn(encoded.shape, generator=torch.Generator().manual_seed(7))
    (encoded * direction).sum().backward()
    own = parameters["own"].detach().double().numpy()
    u, _, v = np.linalg.svd(own, full_matrices=False)
    left = torch.from_numpy(u[:, :8]).float().requires_grad_()
    right = torch.from_numpy(v[:8]).float().requires_grad_()
    residual = parameters["own"].detach() - (left @ right).detach()
    again = {"shared": parameters["shared"].detach() + left @ right + residual}
    plain = method.encode_text(again | {"own": torch.zeros(16, 32)})
    (plain * direction).sum().backward()
    assert left.grad is not None
    assert right.grad is not None
    u_part = left.grad @ right.detach()
    whole = u_part + left.detach() @ right.grad + left.detach() @ (left.detach().T @ u_part)
    found = parameters["own"].grad
    assert found is not None
    assert torch.allclose(found, whole, atol=1e-5 * float(whole.abs().max()))


def _graph(text: Array, neighbours: int) -> Array:
    """SCPNet's propagation matrix, row by row."""
    matrix = np.zeros((len(text), len(text)))
    for row, own in enumerate(text):
        similar = np.array([own @ other for other in text])
        assert (similar > 0).all()
        others = [c for c in np.argsort(-similar)[:neighbours] if c != row]
        for c in others:
            matrix[row, c] = 0.2 * similar[c] / sum(similar[other] for other in others)
        matrix[row, row] = 0.8
    return matrix


@pytest.mark.parametrize(("count", "neighbours"), [(4, 3), (20, 20), (80, 62), (81, 50), (30, 22)])
def test_scpnets_classes_have_the_published_number_of_neighbours(
    deep: Backbone, count: int, neighbours: int
) -> None:
    names = tuple(f"class {number}" for number in range(count))
    prompts = GraphPrompts(deep, names, SCPNetConfig())
    expected = _graph(_read(deep, tuple(f"a photo of a {name}." for name in names)), neighbours)
    assert ((expected > 0).sum(axis=1) == neighbours).all()
    assert np.abs(_array(prompts._graph) - expected).max() < 1e-6
    temperature = 0.3 if count == 20 else 0.2
    for row, relations in zip(expected, _array(prompts.relations), strict=True):
        powers = np.array([math.exp(entry / temperature) if entry else 0.0 for entry in row])
        assert np.abs(relations - powers / powers.sum()).max() < 1e-6


@pytest.mark.parametrize(("count", "sure", "relations"), [(20, 5, 2.0), (80, 2, 1.0), (81, 6, 1.0)])
def test_scpnets_views_count_as_many_sure_classes_and_weigh_relations_as_published(
    deep: Backbone, count: int, sure: int, relations: float
) -> None:
    """A view that says 1/2 of every class costs log 2 a sure class, and log 2 a class for relations."""
    names = tuple(f"class {number}" for number in range(count))
    method = _method(deep, "scpnet", names, scpnet=SCPNetConfig(self_supervision=True))
    assert isinstance(method, SCPNetViews)
    weak, strong = torch.full((1, count), 0.96), torch.full((1, count), 0.5)
    seen = iter([weak, strong])
    method._head = lambda *_: next(seen)
    rows = torch.zeros(1, 2 * deep.patches, deep.width)
    labels = torch.zeros(1, count)
    loss = method.example_losses({}, weak, rows, labels) - method.loss(weak, labels)
    expected = 0.125 * (sure + relations * count) * math.log(2)
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_scpnets_graph_layers_equal_a_loop_over_classes(deep: Backbone) -> None:
    method = _method(deep, "scpnet")
    parameters = _moved(method, 0.2)
    p = _arrays(parameters)
    text = _read(deep, _placeholders(4), {0: parameters["context"]})
    graph = _graph(_read(deep, FROZEN), 3)
    layer = list(text)
    for index in (1, 2, 3):
        mapped = [row @ p[f"graph_{index}"] for row in layer]
        layer = []
        for c in range(len(CLASSES)):
            gathered = sum(share * other for share, other in zip(graph[c], mapped, strict=True))
            rectified = np.array([x if x > 0 or index == 3 else 0.2 * x for x in gathered])
            layer.append(rectified)
    expected = _unit(np.array([one + added for one, added in zip(text, layer, strict=True)]))
    _same(method.encode_text(parameters), expected)


def test_maples_tokens_enter_the_first_nine_of_twelve_blocks_of_both_towers(
    deep: Backbone,
) -> None:
    method = _method(deep, "maple")
    start = method.initial_parameters(0)
    phrase = deep._model.token_embedding(deep._tokenizer(["a photo"]))[0, 1:3]
    assert torch.equal(start["context"], phrase)
    parameters = _moved(method)
    texts = [parameters["context"], *parameters["deep"]]
    assert len(texts) == 9
    text = _read(deep, _placeholders(2), dict(enumerate(texts)))
    maps = zip(texts, parameters["maps_weight"], parameters["maps_bias"], strict=True)
    visual = [tokens @ weight.T + bias for tokens, weight, bias in maps]

    def replaced(index: int, tokens: Tensor) -> Tensor:
        """Patches stay; what stands behind them is the block's own, or goes on where it has none."""
        if not 1 <= index < 9:
            return tokens
        return torch.stack([torch.cat([image[:17], visual[index]]) for image in tokens])

    embedded = torch.stack([torch.cat([x, visual[0]]) for x in _embedded(deep, _images())])
    features = _seen(deep, embedded, before=replaced)
    expected = _sigmoid(_logits(text, features[:, 1:17], "image-mean"))
    _same(_scores(method, deep, parameters, _images()), expected)


def _described(folder: Path) -> tuple[FedMVPConfig, list[list[str]]]:
    """Settings with descriptors of the classes, and the sentences that they are."""
    words = {"cat": ["fur"], "dog": ["a tail", "a wet nose"], "dining_table": ["legs"]}
    words["bus"] = ["wheels", "windows", "often on a road"]
    file = folder / "words.json"
    file.write_text(json.dumps(words))
    sentences = [
        ["a photo of a cat, which has fur."],
        ["a photo of a dog, which has a tail.", "a photo of a dog, which has a wet nose."],
        ["a photo of a dining table, which has legs."],
        [
            "a photo of a bus, which has wheels.",
            "a photo of a bus, which has windows.",
            "a photo of a bus, which is often on a road.",
        ],
    ]
    return FedMVPConfig(descriptors=str(file)), sentences


def test_fedmvps_patches_read_descriptions_and_their_quarters_are_its_four_visual_tokens(
    deep: Backbone, tmp_path: Path
) -> None:
    """Scores; and losses, with ten times the mean distance over a batch of 32 from the mirror image's class token."""
    settings, sentences = _described(tmp_path)
    method = _method(deep, "fedmvp", fedmvp=settings)
    parameters, images = _moved(method, 0.5), _images()
    p = _arrays(parameters)
    described = [_read(deep, tuple(many)) for many in sentences]
    context = np.array([_affine(p, "context", row) for many in described for row in many])
    embedded = _embedded(deep, images)
    prompted = []
    for tokens in embedded:
        read = _cross(p, _array(tokens[1:]), context, heads=4, norm_values=False)
        pooled = np.array([read[4 * group : 4 * group + 4].mean(axis=0) for group in range(4)])
        assert np.ptp(pooled, axis=0).mean() > 0.2 * pooled.std()  # groups differ
        prompted.append(torch.cat([tokens, torch.from_numpy(pooled).float()]))
    features = _seen(deep, torch.stack(prompted))
    means = np.array([many.mean(axis=0) for many in described])
    expected = _sigmoid(_logits(means, features[:, 1:17], "image-mean"))
    _same(_scores(method, deep, parameters, images), expected)
    mirrored = _seen(deep, _embedded(deep, images.flip(3)))[:, 0]
    distances = np.array([1 - one @ two for one, two in zip(features[:, 0], mirrored, strict=True)])
    assert distances.min() > 0.02
    labels = _labels()
    losses = _asymmetric(expected, labels.numpy()) + 10 / 32 * distances
    _same(_losses(method, deep, parameters, images, labels), losses, 1e-4)


def test_reduced_fedmvps_visual_token_is_read_off_the_prompts_by_the_images_own_feature(
    deep: Backbone,
) -> None:
    method = _method(deep, "fedmvp", fedmvp=FedMVPConfig(variant="reduced"))
    parameters, images = _moved(method, 0.3), _images()
    p = _arrays(parameters)
    text = _read(deep, _placeholders(4), {0: parameters["context"]})
    embedded = _embedded(deep, images)
    prompted = []
    for tokens, whole in zip(embedded, _seen(deep, embedded)[:, :1], strict=True):
        (read,) = _attend(p, whole, text, text, heads=8)
        hidden = _gelu(_affine(p, "down", read))
        assert len(hidden) == 64
        visual = torch.from_numpy(_affine(p, "up", hidden)).float()
        prompted.append(torch.cat([tokens[:1], visual[None], tokens[1:]]))
    features = _seen(deep, torch.stack(prompted))
    expected = _sigmoid(_logits(text, features[:, 2:], "image-mean"))
    _same(_scores(method, deep, parameters, images), expected)
    encoded = method.encode_text(parameters)
    cosines = [own @ frozen for own, frozen in zip(text, _read(deep, FROZEN), strict=True)]
    penalty = float(method.penalty(parameters, encoded))
    assert penalty == pytest.approx(1 - np.mean(cosines), abs=1e-5)
    assert penalty > 0.05


def _plan(cost: Array, marginal: Array, regularisation: float) -> Array:
    """Ten iterations of Sinkhorn's algorithm, the column's half-step last, entry by entry."""
    M, C = cost.shape
    kernel = [[math.exp(-cost[m, c] / regularisation) for c in range(C)] for m in range(M)]
    u, v = M * [1.0], C * [1.0]
    for _ in range(10):
        u = [marginal[m] / sum(kernel[m][c] * v[c] for c in range(C)) for m in range(M)]
        v = [1 / C / sum(kernel[m][c] * u[m] for m in range(M)) for c in range(C)]
    return np.array([[u[m] * kernel[m][c] * v[c] for c in range(C)] for m in range(M)])


def _matched(cosines: Array, teacher: Array | None = None) -> Array:
    """RAM's local similarity of every class: ``[B, M, C]`` -> ``[B, C]``."""
    results = []
    for image, own in enumerate(cosines):
        cost = np.array([1 - _softmax(LOGIT_SCALE * row) for row in own])
        regularisation = 0.1
        if teacher is not None:
            cost = cost - 0.05 * np.log(np.maximum(teacher[image], 1e-6))
            regularisation = 0.1 + 0.05
        marginal = _softmax(np.array([row.max() for row in own]) / 0.1)
        plan = _plan(cost, marginal, regularisation)
        C = own.shape[1]
        results.append([C * sum(plan[:, c] * own[:, c]) for c in range(C)])
    return np.array(results)


def _taught(local: Array, text: Array, labels: Array) -> Array:
    """Where frozen CLIP sees each present class; absent ones have the image's smallest value: ``[B, M, C]``."""
    teacher = np.zeros((*local.shape[:2], len(text)))
    for image, features in enumerate(local):
        classes = np.array([_softmax(LOGIT_SCALE * (text @ patch)) for patch in features])
        for c in range(len(text)):
            teacher[image, :, c] = _softmax(20 * classes[:, c])
        smallest = teacher[image].min()
        for c in range(len(text)):
            if not labels[image, c]:
                teacher[image, :, c] = smallest
    return teacher


@pytest.mark.parametrize("taught", [False, True])
def test_rams_transport_equals_a_loop_over_patches_and_classes(
    deep: Backbone, taught: bool
) -> None:
    method = _method(deep, "ram")
    assert isinstance(method, RAM)
    random = torch.Generator().manual_seed(2)
    cosines = 0.3 * torch.randn(2, 9, len(CLASSES), generator=random)
    teacher = torch.rand(2, 9, len(CLASSES), generator=random).softmax(dim=1) if taught else None
    expected = _matched(_array(cosines), None if teacher is None else _array(teacher))
    _same(method._matched(cosines, teacher=teacher), expected)


def test_rams_teacher_equals_a_loop_over_patches_and_classes(deep: Backbone) -> None:
    method = _method(deep, "ram")
    assert isinstance(method, RAM)
    random = torch.Generator().manual_seed(2)
    local = torch.nn.functional.normalize(
        torch.randn(IMAGES, 16, deep.width, generator=random), dim=-1
    )
    expected = _taught(_array(local), _read(deep, FROZEN), _labels().numpy())
    _same(method._teacher(local, _labels()), expected, 1e-6)


def _adapted(p: Mapping[str, Array], name: str, text: Array, patches: Array) -> Array:
    """What RAM's ladder adapter adds to the local stream of one image: ``[M, V]`` on a grid of 4 x 4."""
    p = {n.removeprefix(f"{name}_"): value for n, value in p.items() if n.startswith(f"{name}_")}

    def convolved(grid: Array, kernel: Array) -> Array:
        side = kernel.shape[-1] // 2
        result = np.zeros((len(kernel), 4, 4))
        for row, column, i, j in np.ndindex(4, 4, *kernel.shape[2:]):
            r, c = row + i - side, column + j - side
            if 0 <= r < 4 and 0 <= c < 4:
                result[:, row, column] += kernel[:, :, i, j] @ grid[:, r, c]
        return result

    classes = [_norm(row, p["text_norm_weight"], p["text_norm_bias"]) for row in text]
    grid = patches.T.reshape(-1, 4, 4)
    streams = []
    for stream in ("point", "spread"):
        maps = convolved(grid, p[stream])
        for group in range(0, len(maps), 16):
            some = maps[group : group + 16]
            some -= some.mean()
            some /= math.sqrt((some**2).mean() + 1e-5)
        weight, bias = p[f"{stream}_group_weight"], p[f"{stream}_group_bias"]
        maps = _gelu(maps * weight[:, None, None] + bias[:, None, None])
        for row, column in np.ndindex(4, 4):
            token = maps[:, row, column]
            query = _norm(token, p[f"{stream}_norm_weight"], p[f"{stream}_norm_bias"])
            weights = _softmax(np.array([query @ key for key in classes]) / math.sqrt(len(query)))
            maps[:, row, column] = token + sum(
                w * value for w, value in zip(weights, classes, strict=True)
            )
        streams.append(maps)
    both = np.concatenate(streams)
    gates = _sigmoid(convolved(np.array([both.mean(axis=0), both.max(axis=0)]), p["gates"]))
    mixed = gates[0] * streams[0] + gates[1] * streams[1]
    return np.array([p["out"] @ mixed[:, row, column] for row, column in np.ndindex(4, 4)])


@torch.no_grad()
def _two_paths(
    backbone: Backbone, images: Tensor, text: Array, parameters: Parameters | None
) -> tuple[Array, Array]:
    """RAM's global features ``[B, D]`` and local ones ``[B, M, D]``; frozen CLIP's without parameters."""
    visual = backbone._model.visual
    x = visual.ln_pre(_embedded(backbone, images))
    local = x.clone()
    for index, block in enumerate(visual.transformer.resblocks):
        width, heads = 32, 2
        values = block.ln_1(x) @ block.attn.in_proj_weight[2 * width :].T
        values = values + block.attn.in_proj_bias[2 * width :]
        joined = torch.zeros_like(values)
        for head in range(heads):
            part = slice(16 * head, 16 * head + 16)
            for image, rows in enumerate(values[..., part]):
                joined[image, :, part] = torch.softmax(rows @ rows.T / 4, dim=1) @ rows
        local = local + block.attn.out_proj(joined)
        if parameters is None or index < 9:  # adapters and tokens in the last 3 of 12
            x = block(x)
            continue
        extra = parameters["image_tokens"][index - 9].expand(len(x), -1, -1)
        x = block(torch.cat([x, extra], dim=1))[:, :17]
        p = _arrays(parameters)
        for image, tokens in enumerate(x):
            added = _adapted(p, f"adapter{index - 9}", text, _array(tokens[1:]))
            local[image, 1:] += torch.from_numpy(added).float()
    return _projected(backbone, x[:, 0]), _projected(backbone, local[:, 1:])


def _ram_text(backbone: Backbone, parameters: Parameters) -> Array:
    """Text features with four more tokens in each of the last six blocks."""
    tokens = parameters["text_tokens"]
    assert tokens.shape[:2] == (6, 4)
    return _read(backbone, FROZEN, {6 + i: one for i, one in enumerate(tokens)}, extra=True)


def _nearest(similarities: Array) -> float:
    """The mean over images of the largest similarity to a class."""
    return float(np.mean([max(row) for row in similarities]))


def _ram_offsets(backbone: Backbone) -> list[float]:
    """Global and local constants of `public`: how similar made-up images are to the nearest class, by frozen CLIP."""
    images = torch.stack([backbone.preprocess(image) for image in made_up_images()])
    frozen = _read(backbone, FROZEN)
    whole, local = _two_paths(backbone, images, frozen, None)
    return [_nearest(whole @ frozen.T), _nearest(_matched(local @ frozen.T))]


@pytest.mark.parametrize("offset", ["image-mean", "public"])
def test_rams_scores_and_losses_equal_loops(deep: Backbone, offset: Any) -> None:
    head = HeadConfig(pooling=POOLING, scale=SCALE, offset=offset)
    method = _method(deep, "ram", head=head)
    parameters, images, labels = _moved(method, 0.1), _images(), _labels()
    text, frozen = _ram_text(deep, parameters), _read(deep, FROZEN)
    whole, local = _two_paths(deep, images, text, parameters)
    _, untuned = _two_paths(deep, images, frozen, None)
    offsets = _ram_offsets(deep) if offset == "public" else [0.0, 0.0]

    def both(matched: Array) -> list[Array]:
        logits = []
        for similarity, constant in zip([whole @ text.T, matched], offsets, strict=True):
            taken = similarity.mean(axis=1, keepdims=True) if offset == "image-mean" else constant
            logits.append(_sigmoid(SCALE * (similarity - taken)))
        return logits

    cosines = local @ text.T
    expected = np.mean(both(_matched(cosines)), axis=0)
    _same(_scores(method, deep, parameters, images), expected)
    taught = both(_matched(cosines, _taught(untuned, frozen, labels.numpy())))
    losses = sum(_asymmetric(one, labels.numpy()) for one in taught)
    _same(_losses(method, deep, parameters, images, labels), np.asarray(losses), 1e-4)


@pytest.mark.parametrize("offset", ["none", "anchor", "public", "image-mean"])
def test_a_head_takes_off_what_its_offset_says(deep: Backbone, offset: Any) -> None:
    config = HeadConfig(pooling=POOLING, scale=SCALE, offset=offset)
    text = _read(deep, FROZEN)
    images = _images()
    features = _seen(deep, _embedded(deep, images))[:, 1:]
    anchor, constant = None, 0.0
    if offset == "anchor":
        (anchor,) = _read(deep, ("a photo.",))
    if offset == "public":
        pixels = torch.stack([deep.preprocess(image) for image in made_up_images()])
        assert len(pixels) == 16
        made_up = _seen(deep, _embedded(deep, pixels))[:, 1:]
        constant = _nearest(_logits(text, made_up, "none") / SCALE)
        assert abs(constant) > 0.01
    expected = _logits(text, features, offset, anchor=anchor, constant=constant)
    head = SinglePromptHead.of(deep, CLASSES, config)
    patches, given = torch.from_numpy(features).float(), torch.from_numpy(text).float()
    _same(head.logits(given, patches), expected)
    _same(head(given, patches), _sigmoid(expected))


def test_rams_public_offsets_stay_with_it_for_other_classes(deep: Backbone) -> None:
    head = HeadConfig(pooling=POOLING, scale=SCALE)
    method, built = _method(deep, "ram", head=head), _method(deep, "ram", UNSEEN, head=head)
    assert isinstance(method, RAM)
    assert isinstance(built, RAM)
    assert method._offsets == pytest.approx(_ram_offsets(deep), abs=1e-5)
    assert built._offsets != method._offsets
    other = method.for_classes(UNSEEN)
    assert other._offsets == method._offsets
    assert other.for_classes(CLASSES)._offsets == method._offsets
    parameters, images = _moved(method), _images()
    kept, own = (_scores(one, deep, parameters, images) for one in (other, built))
    assert (kept - own).abs().max() > 1e-3


def test_ram_without_a_teacher_trains_as_it_scores(deep: Backbone) -> None:
    method = _method(deep, "ram", ram=RAMConfig(teacher_weight=0.0))
    assert isinstance(method, RAM)
    cosines = 0.3 * torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(2))
    teacher = torch.full((2, 9, 4), 0.1)
    teacher[:, 0] = 0.9
    assert torch.equal(
        method._matched(cosines, teacher=teacher), method._matched(cosines, teacher=None)
    )
