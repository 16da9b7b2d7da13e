"""A training step of every method at the shape of ViT-B/16: time, tunable parameters, peak memory.

The last row is FedMPT done straightforwardly: every step runs the image tower on its images and the text tower on
sentences padded to the full context, as released implementations of prompt tuning do. Weights are random: neither time
nor memory depends on them. Each method runs in a process of its own, for its peak memory.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from experiments.bench.prefix import CLASSES, TEXT
from experiments.bench.table import show
from fedmpt.clip._torchvision import ensure_torchvision
from fedmpt.clip.backbone import Backbone
from fedmpt.clip.text import normalise
from fedmpt.config import FedMPTConfig, FedMVPConfig, HeadConfig, MethodConfig
from fedmpt.methods.base import Method, Parameters
from fedmpt.methods.registry import build_method

BATCH = 32
PIXEL_BATCH = 2  # of methods that run the image tower; their step is given for BATCH images
REPETITIONS = 3
LONG = 10.0  # seconds: no further step begins after as many, but for one behind the first
GOAL = 20.0  # straightforward FedMPT over ours
STRAIGHT = "fedmpt, straightforward"
REDUCED = "fedmvp, reduced"
NAMES = (
    *("fedmpt", "dualcoop", "poscoop", "scpnet", "maple", "fedpgp", "tcp", "fedtpg", "fedawa"),
    *("ram", REDUCED, "fedmvp", "promptfl", STRAIGHT),
)
VISION = {"image_size": 224, "layers": 12, "width": 768, "head_width": 64, "patch_size": 16}
CONDITIONS = ("background", "position", "shape", "action")


def vit_b16() -> Backbone:
    """Return a backbone of ViT-B/16's shape with random weights."""
    ensure_torchvision()
    import open_clip
    from open_clip.model import CLIP

    torch.manual_seed(0)
    model = CLIP(embed_dim=512, vision_cfg=VISION, text_cfg=TEXT, init_logit_scale=4.6052)
    return Backbone(
        name="random ViT-B/16",
        model=model,
        transform=open_clip.image_transform(224, is_train=False, resize_mode="squash"),
        tokenizer=open_clip.get_tokenizer("ViT-B-16"),
        device=torch.device("cpu"),
    )


def build(backbone: Backbone, name: str) -> Method:
    own = FedMPTConfig(conditions=CONDITIONS, adapter_rank=32, gate_rank=32)
    config = MethodConfig(
        name=name.partition(",")[0],
        fedmpt=own,
        head=HeadConfig(offset="image-mean"),  # the other offsets cost nothing a step
        fedmvp=FedMVPConfig(variant="reduced" if name == REDUCED else "official"),
    )
    return build_method(backbone, tuple(CLASSES), config)


def ours(backbone: Backbone, method: Method) -> Callable[[Parameters], Tensor]:
    """Return the loss of a step as the learner computes it: all that no training changes is made before."""
    if method.pixel_shape is None:
        patches = normalise(torch.randn(BATCH, backbone.patches, backbone.width))
    else:
        with torch.no_grad():
            patches = method.prepare_images(torch.randn(PIXEL_BATCH, *method.pixel_shape))
    labels = torch.randint(0, 2, (len(patches), len(CLASSES)))

    def loss(parameters: Parameters) -> Tensor:
        text = method.encode_text(parameters)
        total = method.example_losses(parameters, text, patches, labels).sum()
        return total + method.penalty(parameters, text)

    return loss


def straightforward(backbone: Backbone, method: Method) -> Callable[[Parameters], Tensor]:
    """Return the loss of a step that caches and shares nothing."""
    model: Any = backbone._model
    images = torch.randn(BATCH, 3, 224, 224)
    labels = torch.randint(0, 2, (BATCH, len(CLASSES)))
    blanks = " ".join(["x"] * 4)
    sentences = [f"{blanks} {word} {blanks} {name}." for word in CONDITIONS for name in CLASSES]
    ids = backbone._tokenizer(sentences)  # [N C, 77]
    ends, count = ids.argmax(dim=1), len(CLASSES)

    def loss(parameters: Parameters) -> Tensor:
        with torch.no_grad():
            output = model.visual.forward_intermediates(
                images, indices=1, normalize_intermediates=True, output_fmt="NLC"
            )
            patches = normalise(output["image_intermediates"][-1] @ model.visual.proj)
        own = parameters["condition_tokens"].repeat_interleave(count, dim=0)  # [N C, 4, W]
        shared = parameters["class_tokens"].expand(len(ids), -1, -1)
        x = model.token_embedding(ids)
        x = torch.cat([x[:, :1], own, x[:, 5:6], shared, x[:, 10:]], dim=1)
        x = model.transformer(x + model.positional_embedding, attn_mask=model.attn_mask)
        text = normalise(model.ln_final(x[torch.arange(len(x)), ends]) @ model.text_projection)
        return method.example_losses(parameters, text, patches, labels).sum()

    return loss


def measure(name: str) -> dict[str, float]:
    """Return seconds a step for BATCH images, tunable parameters and peak memory of this process, with its base."""
    backbone = vit_b16()
    method = build(backbone, name)
    loss = (straightforward if name == STRAIGHT else ours)(backbone, method)
    values = method.initial_parameters(0)
    parameters = {block: value.requires_grad_() for block, value in values.items()}
    optimizer = torch.optim.SGD(list(parameters.values()), lr=0.001, momentum=0.9)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    wall: list[float] = []
    cpu: list[float] = []
    while len(wall) < 2 or (len(wall) < 1 + REPETITIONS and sum(wall) < LONG):
        started, used = time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        loss(parameters).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - used)
    factor = BATCH / PIXEL_BATCH if method.pixel_shape is not None else 1.0
    return {
        "wall": factor * median(wall[1:]),
        "cpu": factor * median(cpu[1:]),
        "parameters": sum(value.numel() for value in parameters.values()),
        "base": base,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main(arguments: list[str]) -> None:
    if arguments:
        print(json.dumps(measure(" ".join(arguments))))
        return
    results: dict[str, dict[str, float]] = {}
    for name in NAMES:
        command = [sys.executable, "-m", "experiments.bench.methods", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        results[name] = json.loads(done.stdout)
    own = results["fedmpt"]
    rows = [
        [
            name,
            f"{int(found['parameters']):,}",
            f"{1000 * found['wall']:,.0f}",
            f"{1000 * found['cpu']:,.0f}",
            f"{found['cpu'] / own['cpu']:.1f}",
            f"{found['peak']:,.0f}",
            f"{found['peak'] - found['base']:,.0f}",
        ]
        for name, found in results.items()
    ]
    show(
        "methods",
        (
            "method",
            "tunable",
            "wall ms a step",
            "CPU ms a step",
            "CPU over fedmpt",
            "peak MiB",
            "of it for steps",
        ),
        rows,
        f"{BATCH} images of 224 pixels, {len(CLASSES)} classes, no privacy; medians of up to {REPETITIONS} steps after "
        f"one; methods that run the image tower were measured with {PIXEL_BATCH} images, and their times (not memory) "
        f"multiplied; {torch.get_num_threads()} torch threads.",
    )
    gain = results[STRAIGHT]["cpu"] / own["cpu"]
    if gain < GOAL:
        raise SystemExit(f"methods: straightforward FedMPT costs {gain:.1f} times ours, not {GOAL}")


if __name__ == "__main__":
    main(sys.argv[1:])
