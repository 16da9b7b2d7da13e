"""A small CLIP with random weights, for whatever does not need a trained one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fedmpt.clip._torchvision import ensure_torchvision
from fedmpt.clip.backbone import Backbone


def random_backbone(*, seed: int = 0, text_width: int = 32, quick_gelu: bool = False) -> Backbone:
    ensure_torchvision()
    import open_clip
    from open_clip.model import CLIP

    torch.manual_seed(seed)
    model = CLIP(
        embed_dim=24,
        vision_cfg={"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        text_cfg={"width": text_width, "heads": 4, "layers": 3, "context_length": 32},
        quick_gelu=quick_gelu,
        init_logit_scale=4.6052,
    )
    for (
        parameter
    ) in model.parameters():  # CLIP's initial weights are so small that errors would drown
        torch.nn.init.normal_(parameter, std=0.1) if parameter.ndim > 1 else None
    torch.nn.init.normal_(model.text_projection, std=0.5)
    return Backbone(
        name="random",
        model=model,
        transform=open_clip.image_transform(32, is_train=False, resize_mode="squash"),
        tokenizer=open_clip.get_tokenizer("ViT-B-32", context_length=32),
        device=torch.device("cpu"),
    )


@pytest.fixture(scope="session")
def make_backbone() -> Callable[..., Backbone]:
    return random_backbone


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    return random_backbone()
