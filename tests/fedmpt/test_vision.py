"""The image tower run block by block against open_clip's own, and pixels of patches against images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from fedmpt.clip.backbone import Backbone
from fedmpt.clip.vision import ImageTower, run_block, value_attention
from fedmpt.errors import WeightsError


def _images(count: int) -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(count)
    ]


def test_blocks_run_one_by_one_give_the_towers_own_features(backbone: Backbone) -> None:
    tower, images = backbone.image_tower, _images(3)
    ours = tower.features(tower.run(tower.enter(tower.embed(backbone.patch_pixels(images)))))
    patches, whole = backbone.encode_images(images)
    assert torch.allclose(ours[:, 1:], patches, atol=1e-5)
    assert torch.allclose(ours[:, 0], whole, atol=1e-5)


def test_mirrored_patches_are_the_patches_of_the_mirror_image(backbone: Backbone) -> None:
    tower = backbone.image_tower
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(tower.mirror(tower.patchify(images)), tower.patchify(images.flip(-1)))


def test_value_attention_is_attention_with_values_for_queries_and_keys(backbone: Backbone) -> None:
    """The oracle is torch's own attention module with the value map in all three places."""
    block = backbone.image_tower.blocks[0]
    tokens = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    _, value = run_block(block, tokens)
    values = block.ln_1(tokens) @ block.attn.in_proj_weight[64:].T + block.attn.in_proj_bias[64:]
    oracle = torch.nn.MultiheadAttention(32, block.attn.num_heads, batch_first=True)
    oracle.in_proj_weight.data = torch.eye(32).repeat(3, 1)
    oracle.out_proj.load_state_dict(block.attn.out_proj.state_dict())
    expected, _ = oracle(values, values, values)
    assert torch.allclose(value_attention(block, value), expected, atol=1e-4)


def test_a_tower_that_pools_otherwise_is_refused(make_backbone: Callable[..., Backbone]) -> None:
    visual = make_backbone()._model.visual
    visual.pool_type = "avg"
    with pytest.raises(WeightsError, match="class token"):
        ImageTower(visual)
