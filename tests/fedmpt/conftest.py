"""A small CLIP with random weights, for whatever does not need a trained one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save_file

from fedmpt.cli import cli
from fedmpt.clip._torchvision import ensure_torchvision
from fedmpt.clip.backbone import Backbone
from fedmpt.config import load_config
from fedmpt.engine.listener import Preview, RoundRecord
from fedmpt.engine.train import train
from fedmpt.errors import FedMPTError
from fedmpt.metrics import evaluate


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


def write_checkpoint(folder: Path, *, layers: int = 1) -> Path:
    """Write a small CLIP with random weights in open_clip's directory format."""
    ensure_torchvision()
    from open_clip.model import CLIP

    config = {
        "embed_dim": 24,
        "vision_cfg": {
            "image_size": 32,
            "layers": layers,
            "width": 32,
            "head_width": 16,
            "patch_size": 8,
        },
        "text_cfg": {"width": 32, "heads": 4, "layers": layers, "context_length": 32},
    }
    torch.manual_seed(0)
    model = CLIP(**config, init_logit_scale=4.6052)
    torch.nn.init.normal_(model.text_projection, std=0.5)
    folder.mkdir(parents=True)
    preprocessing = {
        "mean": [0.5] * 3,
        "std": [0.2] * 3,
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocessing})
    )
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint folder of this test alone."""
    return write_checkpoint(tmp_path / "clip")


@pytest.fixture(scope="session")
def shared_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder that no test changes."""
    return write_checkpoint(tmp_path_factory.mktemp("backbone") / "clip")


@pytest.fixture(scope="session")
def deep_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with towers of two blocks, that no test changes."""
    return write_checkpoint(tmp_path_factory.mktemp("backbone") / "deep", layers=2)


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A feature cache for runs that use the shared checkpoint."""
    return tmp_path_factory.mktemp("cache")


class Silence:
    """A listener that hears nothing."""

    def progress(self, label: str, done: int, total: int) -> None:
        del label, done, total

    def preview(self, preview: Preview) -> None:
        del preview

    def round_done(self, record: RoundRecord) -> None:
        del record

    def warning(self, text: str) -> None:
        del text


@pytest.fixture
def sample_record() -> RoundRecord:
    """A round with everything that a round can have."""
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.6]], np.float32)
    metrics = evaluate(scores, np.array([[1, 0], [0, 1], [1, 1]], np.int8))
    return RoundRecord(
        round=3,
        rounds=4,
        metrics=metrics,
        shared=metrics,
        by_client=((50.0, 40.0, 41.0), (60.0, 45.0, 44.0)),
        survivors=(0, 2),
        dropped=((1, "upload"),),
        attempts=2,
        epsilon=(1.5, 2.5),
        train_loss=0.25,
        clipped=0.01,
        bytes_up=1234.5,
        seconds=(("train", 1.5), ("secagg", 0.5), ("evaluate", 0.25)),
    )


@pytest.fixture
def sample_preview() -> Preview:
    """What a small private run is about to do."""
    return Preview(
        method="fedmpt",
        data="scenes",
        protocol_digests={"test": "00"},
        backbone="tiny",
        parameters=12,
        clients=2,
        sizes=(10, 20),
        rounds=4,
        cohort=2,
        alone=False,
        local="sgd",
        target_epsilon=8.0,
        delta=1e-5,
        protected="every image of every client",
        against="everyone",
        noise_multipliers=(1.0, 2.0),
        sample_rates=(0.1, 0.2),
        steps=(4, 8),
        planned_epsilons=(7.0, 8.0),
        space="text space",
        secagg="masking",
        statement="the server learns the sum",
        tolerated=(2, 1),
        bytes_up=100.0,
        bytes_down=200.0,
        setup_bytes=None,
        folder="runs/a",
    )


SmallRun = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def small_run(shared_checkpoint: Path, shared_cache: Path) -> SmallRun:
    """Trains a small federation: ``small_run(folder, ledger, privacy__epsilon=2.0)``."""

    def run(folder: Path, ledger: Path | None = None, **options: Any) -> dict[str, Any]:
        config = load_config(
            options={
                "backbone.name": f"local-dir:{shared_checkpoint}",
                "data.scenes.train_size": 240,
                "data.scenes.test_size": 60,
                "data.scenes.resolution": 32,
                "clients.count": 4,
                "train.rounds": 2,
                "device": "cpu",
            }
            | {name.replace("__", "."): value for name, value in options.items()}
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FEDMPT_CACHE", str(shared_cache))
            return train(config, folder=folder, ledger=ledger, listener=Silence())

    return run


@pytest.fixture(scope="session")
def private_run(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small private run, that no test changes."""
    folder = tmp_path_factory.mktemp("runs") / "private"
    small_run(folder)
    return folder


@pytest.fixture(scope="session")
def open_run(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run without privacy, that no test changes."""
    folder = tmp_path_factory.mktemp("runs") / "open"
    small_run(folder, privacy__enabled=False)
    return folder


def write_images(folder: Path, count: int) -> list[Path]:
    """Write images of random noise, of different sizes and formats, and return their paths in order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        random = np.random.default_rng(number)
        pixels = random.integers(0, 256, (40 + number, 52, 3), dtype=np.uint8)
        path = folder / f"{number:02d}.{'png' if number % 2 else 'jpg'}"
        Image.fromarray(pixels).save(path)
        paths.append(path)
    return paths


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Five image files in a folder of their own."""
    return write_images(tmp_path / "photos", 5)


Invoke = Callable[..., Result]


@pytest.fixture
def fedmpt(monkeypatch: pytest.MonkeyPatch, shared_cache: Path) -> Invoke:
    """Run the command line in this process: ``fedmpt("predict", run, folder)``; errors are as its exit code."""
    monkeypatch.setenv("FEDMPT_CACHE", str(shared_cache))

    def invoke(*arguments: object) -> Result:
        result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
        if isinstance(result.exception, FedMPTError):
            result.exit_code = result.exception.exit_code
        elif result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke
