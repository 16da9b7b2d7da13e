"""Training from a feature bank on disk: peak memory beside the bank's size, and beside holding all of it in memory.

The bank has ViT-B/16's shape (196 patches of 512 channels in float16) and made-up features, written by the same code
as real ones. COCO's 82,081 training images make 16.5 GB; by default a quarter of them is written, and never more than a
part of the free disk: ``python -m experiments.bench.scale --images 82081`` writes all. Every stage runs in a fresh
process, because Linux counts the memory of the process that started another into its peak.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from experiments.bench.table import show

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fedmpt.data.features import FeatureBank
    from fedmpt.methods.base import Method

COCO_IMAGES: Final = 82_081
PATCHES: Final = 196
WIDTH: Final = 512
CLASSES: Final = 80
CLIENTS: Final = 12
BATCH: Final = 64
IMAGE_BYTES: Final = (PATCHES + 1) * WIDTH * 2
DISK_SHARE: Final = 0.4  # of what is free
MEMORY_SHARE: Final = 0.5  # of what is free, for holding all in memory
FEW: Final = 64  # images a client on which FedMPT itself is trained
SCORED: Final = 2048  # images scored after training
GOAL_MIB: Final = 4 * 1024


class Stage(NamedTuple):
    """What a stage took, in its own process."""

    wall_s: float
    cpu_s: float
    peak_mib: float


def fill(folder: Path, images: int) -> FeatureBank:
    """Write the bank, or open it and compare all checksums where it is there."""
    import numpy as np
    from PIL import Image

    from fedmpt.data.dataset import Split
    from fedmpt.data.features import Encoded, open_or_fill

    random = np.random.default_rng(0)
    block = random.standard_normal((64, PATCHES, WIDTH), dtype=np.float32)
    block /= np.linalg.norm(block, axis=-1, keepdims=True)
    centres = random.standard_normal((CLIENTS, WIDTH), dtype=np.float32)

    def encode(rows: list[int]) -> Encoded:
        patches = np.roll(block[: len(rows)], rows[0], axis=2)  # other features in every batch
        return patches, patches.mean(axis=1) + centres[np.array(rows) % CLIENTS]

    split = Split(
        labels=np.zeros((images, 1), dtype=np.int8),
        content=tuple(map(str, range(images))),
        open_image=lambda row: Image.new("I", (1, 1), row),
    )
    return open_or_fill(
        folder,
        backbone="made up",
        preprocessing="none",
        split=split,
        prepare=lambda image: int(image.getpixel((0, 0))),  # type: ignore[arg-type]
        encode=encode,
    )


def cluster(bank: FeatureBank) -> None:
    """Spread the images over clients by k-means, as a run does."""
    from fedmpt.data.partition import partition

    partition(
        "cluster",
        features=bank.global_features(),
        labels=_labels(len(bank)),
        clients=CLIENTS,
        seed=0,
        alpha=0.5,
        minimum=1,
    )


def train_coop(bank: FeatureBank) -> None:
    """Let every client train an epoch with the cheapest method, and score some images."""
    import numpy as np

    from fedmpt.data.features import FeatureBank
    from fedmpt.learner import predict

    method = _method("coop")
    _train(method, bank, [np.arange(client, len(bank), CLIENTS) for client in range(CLIENTS)])
    few = FeatureBank(
        key="",
        stored_patches=bank.stored_patches[:SCORED],
        stored_globals=bank.stored_globals[:SCORED],
    )
    predict(method, method.initial_parameters(0), few)


def train_fedmpt(bank: FeatureBank) -> None:
    """Let every client train FedMPT on a few images from all over the bank."""
    import numpy as np

    rows = np.random.default_rng(0).permutation(len(bank))[: CLIENTS * FEW]
    _train(_method("fedmpt"), bank, [rows[client::CLIENTS] for client in range(CLIENTS)], batch=32)


def train_held(bank: FeatureBank) -> None:
    """Do what `train_coop` does with all features in memory."""
    from fedmpt.data.features import FeatureBank

    patches = bank.patches_half(slice(None))
    train_coop(FeatureBank(key="", stored_patches=patches, stored_globals=patches[:, 0]))


STAGES: Final[dict[str, tuple[str, Callable[[FeatureBank], None] | None]]] = {
    "fill": ("written (encoder made up)", None),
    "open": ("opened, all checksums compared", None),
    "cluster": (f"clustered into {CLIENTS} clients", cluster),
    "coop": ("an epoch of CoOp, streamed", train_coop),
    "held": ("an epoch of CoOp, all held in memory", train_held),
    "fedmpt": (f"FedMPT on {FEW} images a client, streamed", train_fedmpt),
}


def measure(name: str, folder: Path, images: int) -> Stage:
    """Run a stage; to be called in a fresh process."""
    import torch  # noqa: F401 -- what every stage needs is not part of its time

    _, act = STAGES[name]
    bank = None if act is None else fill(folder, images)
    wall, cpu = time.perf_counter(), time.process_time()
    if act is None or bank is None:
        fill(folder, images)
    else:
        act(bank)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts KiB
    return Stage(time.perf_counter() - wall, time.process_time() - cpu, peak)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.bench.scale")
    parser.add_argument("--images", type=int, default=COCO_IMAGES // 4)
    asked: int = parser.parse_args(arguments).images
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fitting = int(DISK_SHARE * shutil.disk_usage(folder).free / IMAGE_BYTES)
        images = min(asked, fitting)
        size_mib = images * IMAGE_BYTES / 2**20
        rows, stages = [], {}
        for stage, (label, _) in STAGES.items():
            if stage == "held" and size_mib > MEMORY_SHARE * _free_memory_mib():
                rows.append([label, "not run: too little memory", "", "", ""])
                continue
            with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as child:
                found = stages[stage] = child.submit(measure, stage, folder, images).result()
            rows.append(
                [
                    label,
                    f"{found.wall_s:.1f}",
                    f"{found.cpu_s:.1f}",
                    f"{found.peak_mib:,.0f}",
                    f"{found.peak_mib / size_mib:.2f}",
                ]
            )
    notes = [
        f"A bank of {images:,} images, {size_mib:,.0f} MiB"
        + (f"; {asked:,} were asked for, the disk has no room for more." if images < asked else ".")
    ]
    if "held" in stages:
        streamed, held = stages["coop"], stages["held"]
        notes.append(
            f"Streamed over held in memory: {streamed.peak_mib / held.peak_mib:.2f} of the peak memory, "
            f"{streamed.cpu_s / held.cpu_s:.2f} of the CPU time, {streamed.wall_s / held.wall_s:.2f} of the wall time."
        )
    show("scale", ("stage", "wall s", "CPU s", "peak MiB", "over the bank"), rows, *notes)
    worst = max(found.peak_mib for stage, found in stages.items() if stage != "held")
    if worst > GOAL_MIB:
        raise SystemExit(f"scale: a streamed stage took {worst:,.0f} MiB, not {GOAL_MIB:,}")


def _method(name: str) -> Method:
    """Return a method on a CLIP with random weights and short towers: the features are made up already."""
    import torch

    from fedmpt.clip._torchvision import ensure_torchvision
    from fedmpt.clip.backbone import Backbone
    from fedmpt.config import load_config
    from fedmpt.engine.defaults import resolve
    from fedmpt.methods.registry import build_method

    ensure_torchvision()
    import open_clip
    from open_clip.model import CLIP

    torch.manual_seed(0)
    model = CLIP(
        embed_dim=WIDTH,
        vision_cfg={"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        text_cfg={"width": 32, "heads": 2, "layers": 1, "context_length": 32},
        init_logit_scale=4.6052,
    )
    backbone = Backbone(
        name="random",
        model=model,
        transform=open_clip.image_transform(32, is_train=False),
        tokenizer=open_clip.get_tokenizer("ViT-B-32", context_length=32),
        device=torch.device("cpu"),
    )
    config = load_config(options={"method.name": name, "privacy.enabled": False})
    classes = tuple(f"thing {number}" for number in range(CLASSES))
    return build_method(backbone, classes, resolve(config, data_name="coco2014").method)


def _train(
    method: Method, bank: FeatureBank, clients: list[NDArray[np.int64]], *, batch: int = BATCH
) -> None:
    import numpy as np
    import torch

    from fedmpt.learner import ClientData, LocalSettings, train
    from fedmpt.types import GlobalState, ParameterSpec

    initial = method.initial_parameters(0)
    spec = ParameterSpec.of(initial)
    state = GlobalState(round=0, vector=spec.flatten(initial))
    labels = _labels(len(bank))
    settings = LocalSettings(
        optimizer="adam", momentum=0.0, weight_decay=0.0, batch_size=batch, epochs=1
    )
    for rows in clients:
        train(
            method,
            spec,
            state,
            ClientData(bank=bank, rows=rows, labels=labels[rows]),
            settings=settings,
            lr=0.001,
            weight=1,
            device=torch.device("cpu"),
            order=np.random.default_rng(0),
        )


def _labels(images: int) -> NDArray[np.int8]:
    import numpy as np

    return np.random.default_rng(1).integers(0, 2, (images, CLASSES), dtype=np.int8)


def _free_memory_mib() -> float:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
