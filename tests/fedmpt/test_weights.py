"""Weights of a backbone: their own activation and preprocessing, refusal of misfits, what to fetch offline."""

from __future__ import annotations

import json
import resource
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fedmpt.clip._torchvision import ensure_torchvision
from fedmpt.clip.backbone import load_backbone
from fedmpt.clip.weights import published
from fedmpt.errors import WeightsError

ensure_torchvision()
import open_clip  # noqa: E402
import open_clip.pretrained  # noqa: E402
from open_clip.model import CLIP  # noqa: E402

NAME = "Small-8"
CONFIG: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"width": 32, "heads": 4, "layers": 2, "context_length": 77},
}
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OTHER_MEAN = (0.11, 0.12, 0.13)


@pytest.fixture
def architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A small architecture that open_clip knows for the time of a test, with a tag of each kind."""
    configs = dict(open_clip.factory._MODEL_CONFIGS)
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", configs | {NAME: CONFIG})
    tags = {
        "openai": {"hf_hub": "someone/small/", "mean": OPENAI_MEAN, "quick_gelu": True},
        "other": {"hf_hub": "someone/other/", "mean": OTHER_MEAN, "resize_mode": "squash"},
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, NAME, tags)
    return NAME


def _model(*, quick_gelu: bool = False, **vision: int) -> CLIP:
    torch.manual_seed(1)
    config = CONFIG | {"vision_cfg": CONFIG["vision_cfg"] | vision}
    model = CLIP(**config, quick_gelu=quick_gelu)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def _state(model: CLIP) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _file(path: Path, state: dict[str, torch.Tensor]) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


class _Tensors(torch.nn.Module):
    """Holds tensors under dotted names, as OpenAI's archives do."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, value in state.items():
            *path, leaf = name.split(".")
            module: torch.nn.Module = self
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, torch.nn.Module())
                module = getattr(module, part)
            module.register_buffer(leaf, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def _archive(path: Path, state: dict[str, torch.Tensor]) -> Path:
    marks = {
        "input_resolution": torch.tensor(32),
        "context_length": torch.tensor(77),
        "vocab_size": torch.tensor(49408),
    }
    half = {name: value.half() for name, value in state.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the format is old
        torch.jit.trace(_Tensors(half | marks), torch.zeros(1)).save(str(path))
    return path


def _images(count: int = 2) -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [
        Image.fromarray(random.integers(0, 256, (40, 48, 3), dtype=np.uint8)) for _ in range(count)
    ]


def _features(model: CLIP, backbone: Any) -> torch.Tensor:
    model.eval()
    pixels = torch.stack([backbone.preprocess(image) for image in _images()])
    with torch.no_grad():
        return torch.nn.functional.normalize(model.encode_image(pixels), dim=-1)


@pytest.mark.parametrize("kind", ["tag", "tag=file", "archive"])
def test_openai_weights_get_their_activation_however_they_are_named(
    kind: str, architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {name: value.half().float() for name, value in _state(_model()).items()}
    if kind == "archive":  # holds float16
        pretrained = str(_archive(tmp_path / "small.pt", state))
    else:
        file = _file(tmp_path / "small.safetensors", state)
        monkeypatch.setattr(open_clip.pretrained, "download_pretrained", lambda _: str(file))
        pretrained = "openai" if kind == "tag" else f"openai={file}"
    backbone = load_backbone(architecture, pretrained=pretrained)
    _, found = backbone.encode_images(_images())
    right, wrong = _model(quick_gelu=True), _model()
    right.load_state_dict(state)
    wrong.load_state_dict(state)
    assert torch.allclose(found, _features(right, backbone), atol=1e-5)
    # the positive control: the architecture's own activation gives other features
    assert not torch.allclose(found, _features(wrong, backbone), atol=1e-3)
    assert backbone.name == f"{architecture}/openai"


def test_a_tag_brings_its_own_preprocessing(architecture: str, tmp_path: Path) -> None:
    file = _file(tmp_path / "small.pt", _state(_model()))
    backbone = load_backbone(architecture, pretrained=f"other={file}")
    assert backbone.preprocessing["mean"] == OTHER_MEAN
    assert backbone.preprocessing["resize_mode"] == "squash"
    assert "0.11" in repr(backbone._transform)
    openai = load_backbone(architecture, pretrained=f"openai={file}")
    assert openai.preprocessing["mean"] == OPENAI_MEAN
    assert openai.fingerprint != backbone.fingerprint


def test_a_file_that_says_nothing_of_its_preprocessing_is_taken_with_a_warning(
    architecture: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = _file(tmp_path / "own.safetensors", _state(_model()))
    backbone = load_backbone(architecture, pretrained=str(file))
    assert backbone.name == f"{architecture}/own.safetensors"
    assert "defaults of Small-8 are assumed" in caplog.text


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_of_another_architecture_are_refused_by_name_and_shape(
    suffix: str, architecture: str, tmp_path: Path
) -> None:
    wider = _model(width=64)
    file = _file(tmp_path / f"wide{suffix}", _state(wider))
    with pytest.raises(WeightsError) as caught:
        load_backbone(architecture, pretrained=f"openai={file}")
    message = str(caught.value)
    first = next(
        name
        for name, value in _model().state_dict().items()
        if value.shape != wider.state_dict()[name].shape
    )
    assert f"{first} is {list(wider.state_dict()[first].shape)} in the file" in message
    assert f"{list(_model().state_dict()[first].shape)} in {architecture}" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("text_projection"), "text_projection [32, 24], which the file lacks"),
        (lambda s: s.update(extra=torch.zeros(1)), "a tensor extra, which Small-8 lacks"),
    ],
)
def test_a_missing_or_unknown_tensor_is_refused_by_name(
    change: Callable[[dict[str, torch.Tensor]], Any],
    words: str,
    architecture: str,
    tmp_path: Path,
) -> None:
    state = _state(_model())
    change(state)
    file = _file(tmp_path / "small.safetensors", state)
    with pytest.raises(WeightsError, match="another architecture") as caught:
        load_backbone(architecture, pretrained=f"openai={file}")
    assert words in str(caught.value)


def test_a_folder_whose_weights_do_not_fit_its_configuration_is_refused(checkpoint: Path) -> None:
    weights = checkpoint / "open_clip_model.safetensors"
    state = load_file(weights)
    state["visual.conv1.weight"] = torch.zeros(32, 3, 16, 16)
    save_file(state, weights)
    with pytest.raises(WeightsError, match=r"visual.conv1.weight is \[32, 3, 16, 16\] in the file"):
        load_backbone(f"local-dir:{checkpoint}")


def test_no_pickled_object_is_loaded(architecture: str, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return open, (str(tmp_path / "sprung"), "w")  # type: ignore[return-value]

    file = tmp_path / "trap.pt"
    torch.save({"state_dict": Trap()}, file)
    with pytest.raises(WeightsError, match="could not be loaded"):
        load_backbone(architecture, pretrained=f"openai={file}")
    assert not (tmp_path / "sprung").exists()


def test_offline_the_message_says_what_to_fetch_and_how_to_give_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def offline(_: object) -> str:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(open_clip.pretrained, "download_pretrained", offline)
    with pytest.raises(WeightsError) as caught:
        load_backbone("ViT-B-16", pretrained="openai")
    known = published("ViT-B-16", "openai")
    for words in (
        "Network is unreachable",
        "open_clip_model.safetensors",
        "timm/vit_base_patch16_clip_224.openai",
        "ViT-B-16.pt",
        known.sha256,
        "--pretrained openai=FILE",
    ):
        assert words in str(caught.value)
    assert len(known.sha256) == 64


def test_a_fetched_file_is_checked_against_the_published_digest(tmp_path: Path) -> None:
    file = tmp_path / "ViT-B-16.pt"
    with pytest.raises(WeightsError, match="no such file; fetch"):
        load_backbone("ViT-B-16", pretrained=f"openai={file}")
    file.write_bytes(b"half a download")
    with pytest.raises(WeightsError, match="SHA-256"):
        load_backbone("ViT-B-16", pretrained=f"openai={file}")


def test_image_towers_without_patch_tokens_are_refused(checkpoint: Path) -> None:
    path = checkpoint / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["vision_cfg"]["timm_model_name"] = "convnext_tiny"
    path.write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="not a vision transformer"):
        load_backbone(f"local-dir:{checkpoint}")


@pytest.mark.slow
def test_vit_b_16_at_its_true_shape_encodes_eight_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    config = open_clip.get_model_config("ViT-B-16")
    model = CLIP(**config, quick_gelu=True)
    file = _file(
        tmp_path / "vit.safetensors",
        {name: value.half() for name, value in model.state_dict().items()},
    )
    started, busy = time.perf_counter(), time.process_time()
    backbone = load_backbone("ViT-B-16", pretrained=f"openai={file}")
    loaded = time.perf_counter()
    patches, whole = backbone.encode_images(_images(8))
    encoded = time.perf_counter()
    assert patches.shape == (8, 196, 512)
    assert whole.shape == (8, 512)
    assert backbone.grid == (14, 14)
    assert sum(parameter.numel() for parameter in backbone._model.parameters()) == 149_620_737
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    with capsys.disabled():
        print(
            f"\nViT-B/16: {loaded - started:.1f} s to load, {encoded - loaded:.2f} s for 8 images "
            f"({torch.get_num_threads()} thread; {time.process_time() - busy:.1f} s of CPU in all), "
            f"peak memory {peak:.2f} GB"
        )
