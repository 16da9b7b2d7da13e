"""Prefix-shared prompt encoding against whole sentences through the same text tower, at the shape of ViT-B/16.

The weights are random: neither time nor rounding depends on them. Whole sentences are encoded twice: truncated to the
longest prompt, which is the fair peer, and by open_clip's own ``encode_text``, always over the full context.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from experiments.bench.table import show
from fedmpt.clip._torchvision import ensure_torchvision
from fedmpt.clip.text import TextTower, normalise

REPETITIONS = 5
TOLERANCE = 1e-5  # of features of unit length
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
VISION = {"image_size": 32, "layers": 1, "width": 64, "head_width": 64, "patch_size": 32}
CONDITIONS = (
    "a photo of a street in bright light with a",
    "a photo of a room in dim light with a",
    "a drawing of a park at night with a",
    "a photo of a field in thick fog with a",
)
CLASSES = (  # noqa: SIM905
    "aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, dining table, dog, horse, motorbike, person, "
    "potted plant, sheep, sofa, train, tv monitor"
).split(", ")


def tower() -> tuple[Any, Callable[[list[str]], Tensor]]:
    """Return an open_clip model with a random text tower of ViT-B/16's shape, and its tokenizer."""
    ensure_torchvision()
    from open_clip.model import CLIP
    from open_clip.tokenizer import SimpleTokenizer

    torch.manual_seed(0)
    model = CLIP(embed_dim=512, vision_cfg=VISION, text_cfg=TEXT)
    return model.eval().requires_grad_(requires_grad=False), SimpleTokenizer()


def whole(model: Any, ids: Tensor) -> Tensor:
    """Encode whole sentences, int64 ``[n, L]`` with L up to the context, through open_clip's blocks: ``[n, D]``."""
    length = ids.shape[1]
    x = model.token_embedding(ids) + model.positional_embedding[:length]
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    pooled = x[torch.arange(len(x)), ids.argmax(dim=1)]
    return model.ln_final(pooled) @ model.text_projection  # type: ignore[no-any-return]


@torch.no_grad()
def main() -> None:
    model, tokenizer = tower()
    text = TextTower(model, tokenizer)
    prefixes = [torch.cat([text.start, text.words(words)]) for words in CONDITIONS]
    suffixes = text.suffixes(CLASSES)
    ids = tokenizer([f"{words} {name}." for words in CONDITIONS for name in CLASSES])
    lengths = ids.argmax(dim=1) + 1
    longest = int(lengths.max())
    sides: dict[str, Callable[[], Tensor]] = {
        "prefix-shared": lambda: text.encode(prefixes, suffixes).flatten(0, 1),
        f"whole, {longest} tokens": lambda: whole(model, ids[:, :longest]),
        f"whole, {text.context_length} tokens": lambda: model.encode_text(ids),
    }
    features = {side: normalise(encode()) for side, encode in sides.items()}  # also warms up
    wall: dict[str, list[float]] = {side: [] for side in sides}
    cpu: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(REPETITIONS):
        for side, encode in sides.items():
            started, used = time.perf_counter(), time.process_time()
            encode()
            wall[side].append(time.perf_counter() - started)
            cpu[side].append(time.process_time() - used)
    shared = features["prefix-shared"]
    rows, differences = [], []
    for side in sides:
        ratios = [other / own for other, own in zip(wall[side], wall["prefix-shared"], strict=True)]
        cpu_ratio = median(o / s for o, s in zip(cpu[side], cpu["prefix-shared"], strict=True))
        differences.append(float((features[side] - shared).abs().max()))
        rows.append(
            [
                side,
                f"{median(wall[side]):.3f}",
                f"{median(cpu[side]):.3f}",
                f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                f"{cpu_ratio:.2f}",
                f"{differences[-1]:.1e}",
            ]
        )
    show(
        "prefix",
        (
            "encoding",
            "wall s",
            "CPU s",
            "wall over prefix-shared (range)",
            "CPU over prefix-shared",
            "largest difference",
        ),
        rows,
        f"{len(ids)} prompts ({len(CONDITIONS)} conditions x {len(CLASSES)} classes) of {int(lengths.min())} to "
        f"{longest} tokens, prefixes of {min(map(len, prefixes))} to {max(map(len, prefixes))}; forward only; medians "
        f"of {REPETITIONS} alternated repetitions; differences of unit features, bound {TOLERANCE:.0e}; "
        f"{torch.get_num_threads()} torch threads.",
    )
    if not max(differences) < TOLERANCE:
        raise SystemExit(f"prefix: features differ by {max(differences):.1e}")


if __name__ == "__main__":
    main()
