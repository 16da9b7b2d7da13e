"""Prefix-shared prompt encoding against open_clip's own text encoder."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fedmpt.clip.backbone import Backbone
from fedmpt.clip.text import DeepTokens, TextTower, normalise
from fedmpt.errors import UsageError, WeightsError

CLASSES = ["cat", "dining table", "tv_monitor", "a rather long name of a thing"]
PHRASES = ["a photo of a", "background", "the shape of a round"]


def _prefixes(tower: TextTower) -> list[torch.Tensor]:
    return [torch.cat([tower.start, tower.words(phrase)]) for phrase in PHRASES]


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_shared_prefix_equals_whole_sentences_for_prefixes_of_any_length(
    make_backbone: Callable[..., Backbone], quick_gelu: bool
) -> None:
    backbone = make_backbone(quick_gelu=quick_gelu)
    tower = backbone.text
    shared = normalise(tower.encode(_prefixes(tower), tower.suffixes(CLASSES)))
    for row, phrase in zip(shared, PHRASES, strict=True):
        whole = backbone.encode_sentences(
            [f"{phrase} {name.replace('_', ' ')}." for name in CLASSES]
        )
        assert torch.allclose(row, whole, atol=1e-5)


def test_gradient_of_learnt_tokens_equals_that_of_whole_sentences(backbone: Backbone) -> None:
    """The oracle runs open_clip's own tower with the learnt tokens written over placeholders."""
    tower, model = backbone.text, backbone._model
    learnt = torch.randn(
        4, tower.width, generator=torch.Generator().manual_seed(1)
    ).requires_grad_()
    direction = torch.randn(
        len(CLASSES), backbone.width, generator=torch.Generator().manual_seed(2)
    )

    prefix = torch.cat([tower.start, learnt, tower.words("shape")])
    ours = tower.encode([prefix], tower.suffixes(CLASSES))[0]
    (ours_gradient,) = torch.autograd.grad((ours * direction).sum(), learnt)

    sentences = [f"x x x x shape {name.replace('_', ' ')}." for name in CLASSES]
    ids = backbone._tokenizer(sentences)
    embedded = model.token_embedding(ids)
    embedded = torch.cat([embedded[:, :1], learnt.expand(len(CLASSES), -1, -1), embedded[:, 5:]], 1)
    hidden = model.transformer(
        embedded + model.positional_embedding[: ids.shape[1]], attn_mask=model.attn_mask
    )
    end = model.ln_final(hidden)[torch.arange(len(CLASSES)), ids.argmax(1)]
    whole = end @ model.text_projection
    (whole_gradient,) = torch.autograd.grad((whole * direction).sum(), learnt)

    assert torch.allclose(ours, whole, atol=1e-5)
    assert torch.allclose(ours_gradient, whole_gradient, rtol=1e-4, atol=1e-5)


def test_a_prompt_longer_than_the_context_is_refused_with_its_length(backbone: Backbone) -> None:
    tower = backbone.text
    with pytest.raises(UsageError, match="prompt of 4"):
        tower.encode([torch.zeros(40, tower.width)], tower.suffixes(["cat", "dog"]))


def test_a_tower_that_is_not_causal_is_refused(make_backbone: Callable[..., Backbone]) -> None:
    backbone = make_backbone()
    model = backbone._model
    model.attn_mask = None
    with pytest.raises(WeightsError, match="not causal"):
        TextTower(model, backbone._tokenizer)


def test_frozen_weights_receive_no_gradient(backbone: Backbone) -> None:
    assert not any(parameter.requires_grad for parameter in backbone._model.parameters())


@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize("of_each_class", [False, True])
def test_tokens_of_later_blocks_equal_whole_sentences_run_block_by_block(
    backbone: Backbone, extra: bool, of_each_class: bool
) -> None:
    """The oracle runs open_clip's blocks on whole sentences and edits the tokens between them."""
    tower, model = backbone.text, backbone._model
    random = torch.Generator().manual_seed(1)
    shape = (len(CLASSES), 2, tower.width) if of_each_class else (2, tower.width)
    layers = {index: torch.randn(shape, generator=random) for index in (1, 2)}
    deep = {index: DeepTokens(tokens=value, extra=extra) for index, value in layers.items()}
    prefix = torch.cat([tower.start, tower.words("a photo of a")])
    ours = tower.encode([prefix], tower.suffixes(CLASSES), deep)[0]

    names = [name.replace("_", " ") for name in CLASSES]
    ids = backbone._tokenizer([f"a photo of a {name}." for name in names])
    ids = ids[:, : int(ids.argmax(1).max()) + 1]
    hidden = model.token_embedding(ids) + model.positional_embedding[: ids.shape[1]]
    for index, block in enumerate(model.transformer.resblocks):
        if index in layers:
            tokens = layers[index].expand(len(CLASSES), -1, -1)
            hidden = torch.cat([hidden[:, :1], tokens, hidden[:, 1 if extra else 3 :]], dim=1)
        length = hidden.shape[1]
        hidden = block(hidden, attn_mask=torch.full((length, length), -torch.inf).triu(1))
        if index in layers and extra:
            hidden = torch.cat([hidden[:, :1], hidden[:, 3:]], dim=1)
    end = model.ln_final(hidden)[torch.arange(len(CLASSES)), ids.argmax(1)]
    assert torch.allclose(ours, end @ model.text_projection, atol=1e-4)
