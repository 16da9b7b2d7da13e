"""What a private step costs beside a step without privacy, at ViT-B/16's text shape, and how much memory it takes.

Both sides are the learner's own: FedMPT, 4 conditions x 20 classes, 32 images of 196 patches, all of them in the batch.
Weights are random: neither time nor memory depends on them. The peer is what Opacus' functorch mode does, per-example
gradients through text tower and head at once, ``vmap(grad)`` in chunks of 8; frozen weights are left out of it, which
Opacus does not do.

Times are CPU seconds of alternated steps in one process, so that the ratios hold on a machine that others use too;
peak memory is that of one process for each side. `python -m experiments.bench.dp_step times none text` takes the
times of some sides alone.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from statistics import median
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch

from experiments.bench.prefix import CLASSES, tower
from experiments.bench.table import show
from fedmpt.clip.backbone import Backbone
from fedmpt.clip.text import TextTower
from fedmpt.config import Config, FedMPTConfig, PrivacyConfig
from fedmpt.data.features import FeatureBank
from fedmpt.engine.spaces import round_sketch
from fedmpt.learner import ClientData, LocalSettings, train, train_privately
from fedmpt.methods.fedmpt import FedMPT
from fedmpt.types import GlobalState, ParameterSpec
from privacy import DPPlan, DPSpace, GaussianNoise, PoissonSampler
from privacy.dpsgd import StepHistory

BATCH, PATCHES, WIDTH = 32, 196, 512
REPETITIONS = 5
SLOW_REPETITIONS = 1  # of sides that cost ten times as much
PEER_CHUNK = 8
SKETCH_SHARED_BY = 12 * 8  # clients x local steps of a round, for which one sketch is built
SETTINGS = FedMPTConfig(adapter_rank=2, gate_rank=2)
CPU = torch.device("cpu")
OPTIMISER = LocalSettings(
    optimizer="sgd", momentum=0.9, weight_decay=0.0, batch_size=BATCH, epochs=1
)
OPEN, PEER, BUILD = "none", "peer", "build"
NAMES = {
    OPEN: "no privacy",
    "text": "text",
    "sketch": "sketch, without building it",
    BUILD: f"sketch, built once for {SKETCH_SHARED_BY} steps",
    "prompt": "prompt",
    PEER: "vmap(grad) through the tower (peer)",
}


def sides() -> dict[str, Callable[[], object]]:
    """Return one step, or one build, by name."""
    model, tokenizer = tower()
    backbone = SimpleNamespace(
        text=TextTower(model, tokenizer), width=WIDTH, logit_scale=100.0, device=CPU
    )
    method = FedMPT(cast(Backbone, backbone), CLASSES, SETTINGS)
    parameters = method.initial_parameters(0)
    spec = ParameterSpec.of(parameters)
    state = GlobalState(round=0, vector=spec.flatten(parameters))
    random = np.random.default_rng(0)
    patches = random.normal(size=(BATCH, PATCHES, WIDTH)).astype(np.float16)
    bank = FeatureBank(key="", stored_patches=patches, stored_globals=patches[:, 0])
    labels = random.integers(0, 2, (BATCH, len(CLASSES))).astype(np.int8)
    data = ClientData(bank=bank, rows=np.arange(BATCH), labels=labels)
    common: dict[str, Any] = {"settings": OPTIMISER, "lr": 1e-3, "weight": 1, "device": CPU}
    config = Config(privacy=PrivacyConfig(space="sketch"))

    def build() -> Any:
        return round_sketch(config, method, parameters, round_number=0)

    def private(space: DPSpace) -> None:
        plan = DPPlan(
            **{"n_pub": BATCH, "target_epsilon": 8.0, "delta": 1e-5, "sample_rate": 1.0},
            **{"noise_multiplier": 1.0, "max_grad_norm": 1.0, "steps_per_round": 1, "rounds": 1},
            space=space,
        )
        train_privately(
            *(method, spec, state, data),
            **common,
            plan=plan,
            sampler=PoissonSampler(plan),
            noise=GaussianNoise(),
            history=StepHistory(),
            sketch=sketch[0] if space is DPSpace.SKETCH else None,
        )

    def peer() -> None:
        some, known = data.take(np.arange(BATCH), CPU)

        def loss(values: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            scores = method.score(values, method.encode_text(values), x[None])
            return method.loss(scores, y[None])[0]

        torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0), chunk_size=PEER_CHUNK)(
            parameters, some, known
        )

    sketch: list[Any] = []

    def in_sketch() -> None:
        if not sketch:
            sketch.append(build())
        private(DPSpace.SKETCH)

    return {
        OPEN: lambda: train(method, spec, state, data, **common, order=np.random.default_rng(0)),
        "text": lambda: private(DPSpace.TEXT),
        "sketch": in_sketch,
        BUILD: build,
        "prompt": lambda: private(DPSpace.PROMPT),
        PEER: peer,
    }


def times(names: Collection[str]) -> dict[str, list[float]]:
    """Return CPU seconds of alternated steps by side; the first of each quick side warms up."""
    found: dict[str, list[float]] = {name: [] for name in names}
    steps = sides()
    for repetition in range(REPETITIONS + 1):
        for name in names:
            step = steps[name]
            slow = name in (BUILD, "prompt", PEER)
            if slow and not 1 <= repetition <= SLOW_REPETITIONS:
                continue
            if name == "sketch" and repetition == 0:
                step()  # builds
            started = time.process_time()
            step()
            if repetition:
                found[name].append(time.process_time() - started)
    return found


def peak_mib(name: str) -> float:
    """Return the peak resident memory of a process that makes two steps of one side."""
    command = [sys.executable, "-m", "experiments.bench.dp_step", "memory", name]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


def main(arguments: list[str]) -> None:
    match arguments:
        case ["memory", name]:  # of a child
            step = sides()[name]
            for _ in range(1 if name in (BUILD, "prompt", PEER) else 2):
                step()
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        case ["times", *names]:
            for name, values in times(names).items():
                print(f"{NAMES[name]}: {median(values):.3f} CPU s, median of {len(values)}")
        case _:
            everything()


def everything() -> None:
    """Print times and memory of all sides."""
    memory = {name: peak_mib(name) for name in NAMES}  # first: a child inherits its parent's peak
    found = times(NAMES)
    middle = {name: median(values) for name, values in found.items()}
    middle[BUILD] = middle["sketch"] + middle[BUILD] / SKETCH_SHARED_BY
    rows = [
        [
            label,
            f"{middle[name]:.3f}",
            f"{middle[name] / middle[OPEN]:.2f}",
            f"{memory[name]:.0f}",
            f"{memory[name] / memory[OPEN]:.2f}",
        ]
        for name, label in NAMES.items()
    ]
    show(
        "dp_step",
        ("step", "CPU s", "over no privacy", "peak MiB", "over no privacy"),
        rows,
        f"{BATCH} images of {PATCHES} patches, {len(CLASSES)} classes, 4 conditions; medians of "
        f"{REPETITIONS} alternated steps ({SLOW_REPETITIONS} of the build, prompt and the peer); building a sketch "
        f"took {median(found[BUILD]):.1f} CPU s; {torch.get_num_threads()} torch threads.",
    )


if __name__ == "__main__":
    main(sys.argv[1:])
