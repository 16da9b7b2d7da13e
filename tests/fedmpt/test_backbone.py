"""The door to CLIP: patch features, naming, and refusal of what cannot be loaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedmpt.clip.backbone import Backbone, automatic_precision, load_backbone
from fedmpt.clip.text import normalise
from fedmpt.errors import WeightsError


def _images(count: int) -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [
        Image.fromarray(random.integers(0, 256, (40, 48, 3), dtype=np.uint8)) for _ in range(count)
    ]


def test_patch_features_are_normalised_projected_tokens_without_the_class_token(
    backbone: Backbone,
) -> None:
    images = _images(3)
    patches, whole = backbone.encode_images(images)
    visual = backbone._model.visual
    visual.output_tokens = True
    try:
        with torch.no_grad():
            pooled, tokens = visual(torch.stack([backbone._transform(image) for image in images]))
    finally:
        visual.output_tokens = False
    assert patches.shape == (3, backbone.patches, backbone.width) == (3, 16, 24)
    assert torch.allclose(patches, normalise(tokens @ visual.proj), atol=1e-6)
    assert torch.allclose(whole, normalise(pooled), atol=1e-6)


@pytest.mark.parametrize(("precision", "bits"), [("bfloat16", 8), ("float16", 11)])
def test_half_precision_towers_give_unit_features_near_those_of_single_precision(
    precision: str, bits: int, checkpoint: Path
) -> None:
    name, pixels = f"local-dir:{checkpoint}", torch.randn(3, 3, 32, 32)
    exact = load_backbone(name, precision="float32").encode_pixels(pixels)
    half = load_backbone(name, precision=precision).encode_pixels(pixels)  # type: ignore[arg-type]
    for right, found in zip(exact, half, strict=True):
        assert found.dtype == torch.float32
        assert torch.allclose(found.norm(dim=-1), torch.ones(found.shape[:-1]), atol=1e-6)
        assert (found - right).abs().max() < 8 * 2.0**-bits
        assert not torch.equal(found, right)  # the tower did compute in another precision


def test_precision_follows_the_device_unless_it_is_given(checkpoint: Path) -> None:
    assert automatic_precision("cuda") == "float16"
    assert load_backbone(f"local-dir:{checkpoint}").precision == automatic_precision("cpu")
    given = load_backbone(f"local-dir:{checkpoint}", precision="bfloat16")
    assert given.precision == "bfloat16"


def test_a_local_checkpoint_loads_with_its_own_preprocessing_and_a_stable_fingerprint(
    checkpoint: Path,
) -> None:
    folder = checkpoint
    first, second = (load_backbone(f"local-dir:{folder}") for _ in range(2))
    assert first.fingerprint == second.fingerprint
    assert "0.2" in repr(first._transform)


def test_other_preprocessing_or_weights_change_the_fingerprint(checkpoint: Path) -> None:
    folder = checkpoint
    before = load_backbone(f"local-dir:{folder}").fingerprint
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["mean"] = [0.4] * 3
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    assert load_backbone(f"local-dir:{folder}").fingerprint != before


def test_a_truncated_weights_file_is_refused_with_the_remedy(checkpoint: Path) -> None:
    folder = checkpoint
    weights = folder / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match="truncated"):
        load_backbone(f"local-dir:{folder}")


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("ViT-Z-99", None, "unknown"),
        ("ViT-B-16", None, "random weights"),
        ("ViT-B-16", "nobody", "neither a tag"),
        ("local-dir:/nowhere", None, "open_clip_config.json"),
    ],
)
def test_a_backbone_that_cannot_be_had_is_refused_by_name(
    name: str, pretrained: str | None, message: str
) -> None:
    with pytest.raises(WeightsError, match=message):
        load_backbone(name, pretrained=pretrained)
