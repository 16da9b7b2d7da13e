"""Trains the bundled backbone ``tiny``: a small CLIP that has seen captioned scenes, but no federated sprite.

Scenes are composed like those of ``scenes``, from the three pretraining styles and a wider vocabulary, and captioned by
rule. The losses are CLIP's contrastive loss on scenes and on regions, and cross-entropies that let the class token and
every patch name what they see. Patch tokens are read as open_clip gives them: last block, final LayerNorm, projection.

    python -m experiments.pretrain_tiny train --steps 2600 --images 80000 --target fedmpt/clip/tiny
    python -m experiments.pretrain_tiny measure --target fedmpt/clip/tiny
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn import functional

from fedmpt.clip._torchvision import ensure_torchvision
from fedmpt.data import scenes as scenery
from fedmpt.seeds import generator, seed_of

# B batch, P patches, K phrases (one a label), L tokens, W text width, D embedding width
RESOLUTION = 64
PATCH = 8
CONTEXT_LENGTH = 32
CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 128,
        "vision_cfg": {
            "image_size": RESOLUTION,
            "layers": 5,
            "width": 192,
            "head_width": 64,
            "patch_size": PATCH,
        },
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": 49408,
            "width": 64,
            "heads": 4,
            "layers": 4,
        },
    },
    "preprocess_cfg": {
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
        "interpolation": "bicubic",
        "resize_mode": "squash",
    },
}
LOGIT_SCALE = 100.0  # CLIP's own; reached by a ramp, then fixed
LARGE_SCENES = 0.35  # share of scenes with few large objects: the easier half of the lesson
BACKGROUND_WEIGHT = 0.2  # of a background patch; most patches are, and they are easy
POOL_SCALE = 25.0  # FedMPT's kappa / tau: how sharply patches are weighted when pooled

SYNONYMS = {
    "aeroplane": ("airplane", "plane"),
    "bicycle": ("bike",),
    "boat": ("ship",),
    "car": ("automobile",),
    "cat": ("kitten",),
    "cow": ("cattle",),
    "dining table": ("table",),
    "dog": ("puppy",),
    "horse": ("pony",),
    "motorbike": ("motorcycle",),
    "person": ("human", "man or woman"),
    "potted plant": ("houseplant", "plant in a pot"),
    "sheep": ("lamb",),
    "sofa": ("couch",),
    "tv monitor": ("television", "monitor", "tv"),
    "rabbit": ("bunny",),
    "book": ("books",),
}
ACTIONS = {
    "aeroplane": "flying",
    "bicycle": "rolling",
    "bird": "flying",
    "boat": "sailing",
    "bus": "driving",
    "car": "driving",
    "cat": "sitting",
    "cow": "grazing",
    "dog": "sitting",
    "horse": "running",
    "motorbike": "driving",
    "person": "walking",
    "sheep": "grazing",
    "train": "rolling",
    "elephant": "walking",
    "rabbit": "jumping",
    "fish": "swimming",
    "bear": "sitting",
    "butterfly": "flying",
    "turtle": "walking",
    "octopus": "swimming",
    "frog": "jumping",
    "rocket": "flying",
    "balloon": "floating",
    "whale": "swimming",
    "dolphin": "swimming",
    "monkey": "jumping",
    "bee": "flying",
    "helicopter": "flying",
    "truck": "driving",
    "tractor": "driving",
}
CONDITIONS = (
    *("background", "position", "shape", "action", "color", "texture", "size", "geometry"),
    "contrast",
)
PATTERNS = {
    "noise": "rough",
    "gradient": "smooth",
    "waves": "wavy",
    "dots": "dotted",
    "stripes": "striped",
    "bricks": "brick",
    "planks": "striped",
    "checks": "checked",
}
COLOURS = {
    "red": (210, 50, 50),
    "orange": (240, 150, 50),
    "yellow": (245, 210, 70),
    "green": (90, 160, 70),
    "blue": (70, 130, 200),
    "purple": (130, 80, 170),
    "pink": (240, 150, 180),
    "brown": (130, 85, 60),
    "black": (40, 40, 45),
    "gray": (140, 145, 150),
    "white": (235, 235, 235),
}
PLAIN = (
    *("a photo of a {}.", "a photo of the {}.", "a {}.", "{}.", "{}", "a picture of a {}."),
    *("an image of a {}.", "there is a {} here.", "a drawing of a {}.", "one {}.", "many {}s."),
    *("a small {}.", "a scene with a {}.", "this is a {}.", "a photo of a {} among other things."),
    "a photo of {}s.",
)
# {} label, {c} condition word, * a random vector as a learnt context token would be
CONDITIONED = (
    *("the {c} of a {}.", "a photo of a {}, with its {c}.", "{c} {}.", "{c} of the {}."),
    *("* * * * {c} * * * * {} .", "* * * * {c} * * * * {} .", "* * * * * {c} * * * * * * * {} ."),
)
SOFT = ("* * * * {} .", "* * {} .", "* * * * * * * * {} .", "* * * * * * * * * * * * * * * * {} .")
PLACEHOLDER = "x"  # the token whose embedding a random vector replaces


@cache
def labels() -> tuple[str, ...]:
    """What a patch can show: every label of the atlas in the pretraining styles, then the backgrounds."""
    found = dict.fromkeys(s.label for s in scenery.atlas() if s.style in scenery.PRETRAIN_STYLES)
    rest = [name for name in found if name not in scenery.CLASSES + scenery.UNSEEN]
    backgrounds = [f"{kind} background" for kind in scenery.BACKGROUNDS]
    return (*scenery.CLASSES, *scenery.UNSEEN, *rest, *backgrounds)


OBJECTS = len(labels()) - len(scenery.BACKGROUNDS)


@cache
def sprites_of(label: str) -> tuple[int, ...]:
    return tuple(
        i
        for i, s in enumerate(scenery.atlas())
        if s.label == label and s.style in scenery.PRETRAIN_STYLES
    )


@cache
def sprite_colour(sprite: int) -> str:
    pixels = np.asarray(scenery._picture(sprite, False, 1), np.float32).reshape(-1, 4)
    mean = np.average(pixels[:, :3], axis=0, weights=pixels[:, 3] + 1e-3)
    return min(COLOURS, key=lambda name: float(np.square(mean - COLOURS[name]).sum()))


@cache
def sprite_shape(sprite: int) -> str:
    alpha = np.asarray(scenery._picture(sprite, False, 0).getchannel("A")) > 127
    height, width = alpha.shape
    if width > 1.35 * height:
        return "wide"
    if height > 1.35 * width:
        return "tall"
    filled = alpha.mean()
    return "square" if filled > 0.88 else "round" if filled > 0.7 else "irregular"


def draw_recipe(index: int, seed: int) -> scenery.Recipe:
    """Draw a pretraining scene: any labels, independent, of the pretraining styles."""
    rng = generator(seed, "pretrain", index)
    weights = np.ones(OBJECTS)
    weights[: len(scenery.CLASSES)] = 6.0
    weights[len(scenery.CLASSES) : len(scenery.CLASSES + scenery.UNSEEN)] = 3.0
    names = rng.choice(OBJECTS, int(rng.integers(1, 9)), replace=False, p=weights / weights.sum())
    chosen = [int(rng.choice(sprites_of(labels()[n]))) for n in names]
    if rng.random() < 0.3:
        chosen.append(int(rng.choice(sprites_of(labels()[names[0]]))))
    largest = float(rng.uniform(0.3, 0.5))
    smallest = 0.15
    if rng.random() < LARGE_SCENES:
        chosen, smallest, largest = chosen[:3], 0.35, 0.7
    return scenery.Recipe(
        context=-1,
        background=str(rng.choice(scenery.BACKGROUNDS)),
        texture=int(rng.integers(2**31)),
        placements=scenery.place(chosen, (smallest, largest), rng),
    )


def retouch(layer: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Vary one sprite's proportions, colours and outline, so that what remains is its shape."""
    stretch = np.exp(rng.uniform(-0.25, 0.25))
    size = (max(3, round(layer.width * stretch)), max(3, round(layer.height / stretch)))
    layer = layer.resize(size, Image.Resampling.BILINEAR)
    pixels = np.asarray(layer, np.float32)
    alpha, colours = pixels[..., 3:], pixels[..., :3]
    middle = (colours * alpha).sum((0, 1)) / (alpha.sum() + 1)
    mix = np.eye(3) * np.exp(rng.normal(0, 0.2)) + rng.normal(0, 0.1, (3, 3))
    colours = (colours - middle) @ mix.astype(np.float32) + middle + rng.normal(0, 15, 3)
    if rng.random() < 0.3:  # an outline, dark or light, where the sprite ends
        solid = np.pad(alpha[..., 0], 1)
        inner = np.minimum(solid[2:, 1:-1], solid[:-2, 1:-1])
        inner = np.minimum(inner, np.minimum(solid[1:-1, 2:], solid[1:-1, :-2]))
        tone = 255.0 if rng.random() < 0.3 else 30.0
        strength = rng.uniform(0.3, 0.9) * (inner[..., None] < 128)
        colours = colours * (1 - strength) + tone * strength
    if rng.random() < 0.08:  # no colours at all
        colours = np.broadcast_to(colours.mean(-1, keepdims=True), colours.shape)
    changed = np.concatenate([colours.clip(0, 255), alpha], -1).astype(np.uint8)
    return Image.fromarray(changed)


def said(label: str, rng: np.random.Generator) -> str:
    """A label, now and then by another name."""
    if label in SYNONYMS and rng.random() < 0.15:
        return str(rng.choice(SYNONYMS[label]))
    return label


def where(placement: scenery.Placement) -> str:
    row = "top" if placement.y < 0.36 else "bottom" if placement.y > 0.64 else ""
    column = "left" if placement.x < 0.36 else "right" if placement.x > 0.64 else ""
    return f"{row} {column}".strip() or "center"


def region_phrase(
    recipe: scenery.Recipe, placement: scenery.Placement, rng: np.random.Generator
) -> str:
    """Describe one object by something that is true of it, with the word of the condition."""
    sprite = scenery.atlas()[placement.sprite]
    name, colour = said(sprite.label, rng), sprite_colour(placement.sprite)
    size = "small" if placement.side < 0.22 else "large" if placement.side > 0.34 else "medium"
    pattern = PATTERNS[scenery._TEXTURES[recipe.background][2]]
    dark = recipe.background in ("night", "forest", "road", "brick", "wood", "water")
    contrast = "low" if dark == (colour in ("black", "brown", "purple", "blue")) else "high"
    geometry = "upright" if abs(placement.angle) < 10 else "tilted"
    options = [
        f"a {name} at the {where(placement)} position.",
        f"the position of the {name} is {where(placement)}.",
        f"a {name} on a {recipe.background} background.",
        f"the background of the {name} is {recipe.background}.",
        f"a {name} of {sprite_shape(placement.sprite)} shape.",
        f"the shape of a {sprite_shape(placement.sprite)} {name}.",
        f"a {colour} {name}.",
        f"a {name} of {colour} color.",
        f"a {size} {name}.",
        f"a {name} of {size} size.",
        f"a {size} {colour} {name} at the {where(placement)} position.",
        f"a {name} before a {pattern} texture.",
        f"a {name} in {contrast} contrast.",
        f"a {name} of {geometry} geometry.",
    ]
    if sprite.label in ACTIONS:
        verb = ACTIONS[sprite.label]
        options += [f"a {name} in {verb} action.", f"the action of the {name} is {verb}."] * 2
    return str(rng.choice(options))


def scene_caption(recipe: scenery.Recipe, rng: np.random.Generator) -> str:
    """Describe a scene by one to all of its labels, usually with its background."""
    names = list(dict.fromkeys(scenery.atlas()[p.sprite].label for p in recipe.placements))
    names = [names[i] for i in rng.permutation(len(names))][: int(rng.integers(1, 6))]
    listed = [f"a {said(name, rng)}" for name in names]
    text = listed[0] if len(listed) == 1 else ", ".join(listed[:-1]) + " and " + listed[-1]
    ending = (
        "",
        f" on a {recipe.background} background",
        f" on {recipe.background}",
        f" with {recipe.background} in the background",
    )[int(rng.integers(4))]
    opening = ("", "a photo of ", "a picture of ", "a scene with ")[int(rng.integers(4))]
    return f"{opening}{text}{ending}."


class Scenes(NamedTuple):
    """Rendered pretraining scenes.

    Attributes:
        images: uint8 ``[n, 64, 64, 3]``.
        shown: uint8 ``[n, 64, 64]``, index into `labels()` of what each pixel shows.
        region: uint8 ``[n, 64]``, per patch the share (0 to 64 px) of the object that ``phrase`` describes.
        caption: int32 ``[n, L]`` tokens of the scene's caption.
        phrase: int32 ``[n, L]`` tokens of the region's phrase.
    """

    images: NDArray[np.uint8]
    shown: NDArray[np.uint8]
    region: NDArray[np.uint8]
    caption: NDArray[np.int32]
    phrase: NDArray[np.int32]


@cache
def tokenizer() -> Callable[[list[str]], Tensor]:
    ensure_torchvision()
    import open_clip

    return open_clip.SimpleTokenizer(context_length=CONTEXT_LENGTH)  # type: ignore[no-any-return]


def draw_scenes(start: int, stop: int, seed: int) -> Scenes:
    """Render scenes ``start`` to ``stop`` of the pretraining stream ``seed``."""
    column = {name: i for i, name in enumerate(labels())}
    images, shown, region, captions, phrases = [], [], [], [], []
    for index in range(start, stop):
        recipe = draw_recipe(index, seed)
        rng = generator(seed, "caption", index)
        touch = partial(retouch, rng=generator(seed, "retouch", index))
        image, owners = scenery.render_with_owners(recipe, RESOLUTION, touch)
        table = [column[f"{recipe.background} background"]]
        table += [column[scenery.atlas()[p.sprite].label] for p in recipe.placements]
        chosen = int(rng.integers(len(recipe.placements)))
        images.append(np.asarray(image))
        shown.append(np.array(table, np.uint8)[owners])
        side = RESOLUTION // PATCH
        mask = (owners == chosen + 1).reshape(side, PATCH, side, PATCH)
        region.append(mask.sum((1, 3)).reshape(-1).astype(np.uint8))
        captions.append(scene_caption(recipe, rng))
        phrases.append(region_phrase(recipe, recipe.placements[chosen], rng))
    return Scenes(
        np.stack(images),
        np.stack(shown),
        np.stack(region),
        tokenizer()(captions).numpy().astype(np.int32),
        tokenizer()(phrases).numpy().astype(np.int32),
    )


def draw_all(count: int, seed: int, workers: int) -> Scenes:
    """Render ``count`` scenes with several processes; the result does not depend on how many."""
    chunk = 1000
    bounds = [(i, min(i + chunk, count)) for i in range(0, count, chunk)]
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
        parts = list(pool.map(draw_scenes, *zip(*bounds, strict=True), [seed] * len(bounds)))
    return Scenes(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


class PhraseWriter:
    """Writes one phrase a label, anew each step, as token ids with places for random vectors."""

    def __init__(self, names: tuple[str, ...], seed: int) -> None:
        ensure_torchvision()
        import open_clip

        self.names = names
        self.rng = generator(seed, "phrases")
        self.inner: Any = open_clip.SimpleTokenizer(context_length=CONTEXT_LENGTH)
        self.cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a piece of a phrase."""
        if text not in self.cache:
            self.cache[text] = self.inner.encode(text)
        return self.cache[text]

    def write(self) -> tuple[Tensor, Tensor]:
        """Return ids ``[K, L]`` and, where a random vector goes, True ``[K, L]``."""
        ids = np.zeros((len(self.names), CONTEXT_LENGTH), np.int64)
        free = np.zeros((len(self.names), CONTEXT_LENGTH), bool)
        for row, label in enumerate(self.names):
            kind = self.rng.random()
            templates = PLAIN if kind < 0.4 else CONDITIONED if kind < 0.7 else SOFT
            template = templates[int(self.rng.integers(len(templates)))]
            word = CONDITIONS[int(self.rng.integers(len(CONDITIONS)))]
            text = template.replace("{c}", word).replace("{}", said(label, self.rng))
            tokens, marks = [self.inner.sot_token_id], [False]
            for piece in text.split():
                piece_ids = self.encode(PLACEHOLDER if piece == "*" else piece)
                tokens += piece_ids
                marks += [piece == "*"] * len(piece_ids)
            tokens.append(self.inner.eot_token_id)
            ids[row, : len(tokens)] = tokens
            free[row, : len(marks)] = marks
        return torch.from_numpy(ids), torch.from_numpy(free)


def encode_text(model: Any, ids: Tensor, free: Tensor | None, noise: Tensor | None) -> Tensor:
    """Encode sentences, some places of which hold given vectors instead of a word's; unit length."""
    length = int((ids != 0).sum(1).max())
    ids = ids[:, :length]
    x = model.token_embedding(ids)  # [K, L, W]
    if free is not None and noise is not None:
        x = torch.where(free[:, :length, None], noise[:, :length], x)
    x = x + model.positional_embedding[:length]
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x)
    x = x[torch.arange(len(ids)), ids.argmax(1)] @ model.text_projection  # [K, D]
    return functional.normalize(x.float(), dim=-1)


def encode_image(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return class token ``[B, D]`` and patch tokens ``[B, P, D]`` in the shared space; unit length."""
    model.visual.output_tokens = True
    pooled, tokens = model.visual(images)
    patches = tokens @ model.visual.proj
    return (
        functional.normalize(pooled.float(), dim=-1),
        functional.normalize(patches.float(), dim=-1),
    )


def pooled_scores(cosines: Tensor, scale: float = POOL_SCALE) -> Tensor:
    """Pool patch cosines ``[B, P, C]`` by a softmax over patches: ``[B, C]``."""
    weights = functional.softmax(scale * cosines, dim=1)
    return (weights * cosines).sum(1)


def augment(images: Tensor, rng: torch.Generator) -> Tensor:
    """Vary colours of normalised-to-be uint8 images ``[B, H, W, 3]``; return float ``[B, 3, H, W]``."""
    x = images.float().div_(255)  # [B, H, W, 3]
    batch = len(x)
    mix = torch.eye(3) + 0.12 * torch.randn(batch, 3, 3, generator=rng)
    centre = x.mean((1, 2), keepdim=True)
    gain = torch.exp(0.15 * torch.randn(batch, 1, 1, 1, generator=rng))
    shift = 0.06 * torch.randn(batch, 1, 1, 1, generator=rng)
    x = torch.einsum("bhwc,bcd->bhwd", x - centre, mix) * gain + centre + shift
    x = x.clamp_(0, 1).permute(0, 3, 1, 2)
    blurred = functional.avg_pool2d(functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    amount = torch.rand(batch, 1, 1, 1, generator=rng) * 0.8 - 0.3  # below 0 it sharpens
    return normalise((x + amount * (blurred - x)).clamp_(0, 1))


def normalise(x: Tensor) -> Tensor:
    settings = CONFIG["preprocess_cfg"]
    mean = torch.tensor(settings["mean"]).view(1, 3, 1, 1)
    std = torch.tensor(settings["std"]).view(1, 3, 1, 1)
    return (x - mean) / std


def batches(count: int, size: int, seed: int) -> Iterator[NDArray[np.int64]]:
    epoch = 0
    while True:
        order = generator(seed, "order", epoch).permutation(count)
        yield from (order[i : i + size] for i in range(0, count - size + 1, size))
        epoch += 1


def same(ids: Tensor) -> Tensor:
    """Targets of a contrastive loss in which equal sentences are equally right: ``[B, B]``."""
    equal = (ids[:, None] == ids[None]).all(-1).float()
    return equal / equal.sum(1, keepdim=True)


def contrast(left: Tensor, right: Tensor, targets: Tensor, scale: float) -> Tensor:
    logits = scale * left @ right.T
    return 0.5 * (
        functional.cross_entropy(logits, targets) + functional.cross_entropy(logits.T, targets.T)
    )


class Scaffold(nn.Module):
    """What only the training needs.

    ``anchors`` is one free vector a label. In the first half patches learn to name them and the text tower learns to
    reproduce them, so that neither has to wait for the other; then they are faded out. ``border`` is where the sigmoid
    losses put the border between present and absent, in cosine.
    """

    def __init__(self) -> None:
        super().__init__()
        width = CONFIG["model_cfg"]["embed_dim"]
        self.anchors = nn.Parameter(torch.randn(len(labels()), width) / math.sqrt(width))
        self.border = nn.Parameter(torch.tensor([0.15, 0.15]))


def losses(
    model: Any,
    scaffold: Scaffold,
    batch: dict[str, Tensor],
    phrases: tuple[Tensor, Tensor, Tensor],
    scale: float,
) -> dict[str, Tensor]:
    """All terms of the loss for one batch."""
    whole, patches = encode_image(model, batch["images"])
    ids, free, noise = phrases
    words = encode_text(model, ids, free, noise)  # [K, D]
    sentences = encode_text(model, batch["sentence"], None, None)  # [B, D]

    side = RESOLUTION // PATCH
    size = len(whole)
    pixels = batch["shown"].view(size, side, PATCH, side, PATCH).permute(0, 1, 3, 2, 4)
    pixels = pixels.reshape(size, side * side, PATCH * PATCH)  # [B, P, px]
    share = torch.zeros(size, side * side, len(words))
    share.scatter_add_(2, pixels.long(), torch.full(pixels.shape, 1 / PATCH**2))  # [B, P, K]
    # An object that covers a third of a patch owns most of it: it is what a reader would name.
    share[..., :OBJECTS] *= 3
    share = share / share.sum(-1, keepdim=True)
    present = (share.amax(1) > 0).float()  # [B, K]

    cosine_patch = patches @ words.T  # [B, P, K]
    cosine_whole = whole @ words.T  # [B, K]
    region = batch["region"].float()[..., None]  # [B, P, 1]
    regions = functional.normalize((patches * region).sum(1) + 1e-6, dim=-1)
    objects = present[:, :OBJECTS]

    def border(cosines: Tensor, which: int) -> Tensor:
        logits = 40 * (cosines[:, :OBJECTS] - scaffold.border[which])
        terms = functional.binary_cross_entropy_with_logits(logits, objects, reduction="none")
        return terms.sum(1).mean() / 8

    shown = regions if batch["of_region"] else whole
    important = share[..., :OBJECTS].sum(-1) * (1 - BACKGROUND_WEIGHT) + BACKGROUND_WEIGHT
    important = important.flatten() / important.sum()

    def naming(cosines: Tensor) -> Tensor:
        logits = (scale * cosines).flatten(0, 1)
        terms = functional.cross_entropy(logits, share.flatten(0, 1), reduction="none")
        return (terms * important).sum()

    anchors = functional.normalize(scaffold.anchors, dim=-1)
    own = torch.arange(len(words))
    with torch.no_grad():
        clear = share[..., :OBJECTS].amax(-1) > 0.8
        right = cosine_patch[..., :OBJECTS].argmax(-1) == share[..., :OBJECTS].argmax(-1)
    return {
        "sentence": contrast(shown, sentences, same(batch["sentence"]), scale),
        "patch": naming(cosine_patch),
        "anchor patch": naming(patches @ anchors.T),
        "anchor text": functional.cross_entropy(scale * words @ anchors.T, own),
        "whole": functional.cross_entropy(
            scale * cosine_whole, present / present.sum(1, keepdim=True)
        ),
        "whole border": border(cosine_whole, 0),
        "pooled border": border(pooled_scores(cosine_patch[..., :OBJECTS]), 1),
        "named": (right & clear).sum() / clear.sum(),
    }


WEIGHTS = {
    "sentence": 0.25,  # of scenes and of regions in turn
    "patch": 1.5,
    "anchor patch": 2.0,
    "anchor text": 1.0,
    "whole": 1.5,
    "whole border": 2.5,
    "pooled border": 1.0,
}


def new_model(seed: int) -> Any:
    ensure_torchvision()
    from open_clip.model import CLIP

    torch.manual_seed(seed_of(seed, "weights"))
    config = CONFIG["model_cfg"]
    model = CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
    start_local(model.visual)
    return model


@torch.no_grad()
def start_local(tower: Any) -> None:
    """Start an image tower whose patches attend to their neighbours.

    Positions are sines and cosines; queries equal keys and values nearly cancel, both but for noise, so that attention
    begins as a smooth function of distance. Source: Trockman and Kolter, "Mimetic Initialization of Self-Attention
    Layers" (2023). A tower that has to find neighbourhoods by itself needs far more steps than this one gets.
    """
    width = tower.positional_embedding.shape[1]
    side = RESOLUTION // PATCH
    grid = torch.arange(side).float()
    rates = torch.pi / side * 2 ** (torch.arange(width // 4) / (width / 4) * 3.0)
    waves = torch.cat([torch.sin(grid[:, None] * rates), torch.cos(grid[:, None] * rates)], 1)
    rows = waves[:, None].expand(side, side, -1)
    columns = waves[None].expand(side, side, -1)
    places = torch.cat([rows, columns], 2).reshape(side * side, width)
    tower.positional_embedding[1:] = 0.5 * places
    for block in tower.transformer.resblocks:
        attention = block.attn
        head = width // attention.num_heads
        for h in range(attention.num_heads):
            target = 0.7 * torch.randn(width, width) / math.sqrt(width) + 0.7 * torch.eye(width)
            u, s, v = torch.linalg.svd(target)
            root = s[:head].sqrt()
            attention.in_proj_weight[h * head : (h + 1) * head] = (u[:, :head] * root).T
            lower = width + h * head
            attention.in_proj_weight[lower : lower + head] = v[:head] * root[:, None]
        target = 0.4 * torch.randn(width, width) / math.sqrt(width) - 0.4 * torch.eye(width)
        u, s, v = torch.linalg.svd(target)
        attention.in_proj_weight[2 * width :] = s.sqrt()[:, None] * v
        attention.out_proj.weight.copy_(u * s.sqrt())


def train(arguments: argparse.Namespace) -> None:
    """Train and write the checkpoint."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    started = time.monotonic()
    data = draw_all(arguments.images, arguments.seed, arguments.threads)
    print(f"{len(data.images)} scenes in {time.monotonic() - started:.0f} s", flush=True)
    torch.set_num_threads(arguments.threads)
    model, scaffold = new_model(arguments.seed), Scaffold()
    earlier: dict[str, Any] | None = None
    if arguments.resume is not None:
        model = load(arguments.resume).train()
        earlier = json.loads((arguments.resume / "card.json").read_text())["training"]
    average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    # Matrices inside the blocks take orthogonalised steps: the same loss in far fewer of them.
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and "resblocks" in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "resblocks" not in n]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(
            inner, lr=arguments.rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(
            [*others, *scaffold.parameters()], lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0
        ),
    ]
    peaks = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    rng = torch.Generator().manual_seed(seed_of(arguments.seed, "augment"))
    writer = PhraseWriter(labels(), arguments.seed)
    order = batches(arguments.images, arguments.batch, arguments.seed)
    began = time.monotonic()
    sums: dict[str, float] = {}
    for step in range(arguments.steps):
        progress = step / arguments.steps
        warm = min(1.0, (step + 1) / 60)
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * warm * (0.5 + 0.5 * math.cos(math.pi * progress))
        rise = LOGIT_SCALE / arguments.scale
        scale = min(LOGIT_SCALE, arguments.scale * rise ** (progress / 0.7))
        rows = np.sort(next(order))
        batch = {
            "images": augment(torch.from_numpy(data.images[rows]), rng),
            "shown": torch.from_numpy(data.shown[rows]),
            "region": torch.from_numpy(data.region[rows]),
            "sentence": torch.from_numpy((data.phrase if step % 2 else data.caption)[rows]).long(),
            "of_region": torch.tensor(step % 2 == 1),
        }
        ids, free = writer.write()
        spread = 0.02 * 4 ** torch.rand(len(ids), 1, 1, generator=rng)
        noise = spread * torch.randn(*ids.shape, model.token_embedding.embedding_dim, generator=rng)
        with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16):
            terms = losses(model, scaffold, batch, (ids, free, noise), scale)
            fading = max(0.0, 1 - 2 * progress) if earlier is None else 0.0
            weights = {n: w * (fading if "anchor" in n else 1.0) for n, w in WEIGHTS.items()}
            total = torch.stack([weight * terms[name] for name, weight in weights.items()]).sum()
        for optimizer in optimizers:
            optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        keep = min(0.998, 1 - 1 / (1 + step / 10))
        with torch.no_grad():
            for name, value in model.state_dict().items():
                average[name].lerp_(value, 1 - keep)
        for name, term in terms.items():
            sums[name] = sums.get(name, 0.0) + float(term.detach())
        if (step + 1) % 50 == 0:
            told = " ".join(f"{name} {value / 50:.3f}" for name, value in sums.items())
            print(f"{step + 1} {time.monotonic() - began:.0f} s: {told}", flush=True)
            sums = {}
        if arguments.snapshot and (step + 1) % arguments.snapshot == 0:
            print("  ", quick_look(average), flush=True)
            keep_checkpoint(arguments, average, step + 1, began - started, began, earlier)
    keep_checkpoint(arguments, average, arguments.steps, began - started, began, earlier)


def keep_checkpoint(
    arguments: argparse.Namespace,
    weights: dict[str, Tensor],
    steps: int,
    drawing_s: float,
    began: float,
    earlier: dict[str, Any] | None,
) -> None:
    history: dict[str, Any] = {
        "steps": steps,
        "batch": arguments.batch,
        "samples": steps * arguments.batch,
        "scenes": arguments.images,
        "seed": arguments.seed,
        "learning_rate": arguments.rate,
        "threads": arguments.threads,
        "seconds": round(time.monotonic() - began),
        "drawing_seconds": round(drawing_s),
        "torch": torch.__version__,
        "note": arguments.note,
    }
    if earlier is not None:
        history["continues"] = earlier
    scale = {"logit_scale": torch.tensor(math.log(LOGIT_SCALE))}
    save(weights | scale, history, arguments.target)


def quick_look(weights: dict[str, Tensor]) -> str:
    model = new_model(0)
    model.load_state_dict(weights)
    figures = [zero_shot(model, *federated_test(250)), zero_shot(model, *held_out(250))]
    return " | ".join(
        " ".join(f"{k} {v['mean']:.1f}" for k, v in found.items()) for found in figures
    )


def save(weights: dict[str, Tensor], history: dict[str, Any], target: Path) -> None:
    """Write weights (fp16), configuration and card, each whole or not at all."""
    from safetensors.torch import save as to_bytes

    target.mkdir(parents=True, exist_ok=True)
    halves = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in weights.items()}
    replace(target / "open_clip_model.safetensors", to_bytes(halves))
    replace(target / "open_clip_config.json", (json.dumps(CONFIG, indent=2) + "\n").encode())
    replace(target / "card.json", (json.dumps({"training": history}, indent=2) + "\n").encode())


def replace(path: Path, content: bytes) -> None:
    unfinished = path.with_name(path.name + ".partial")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)


def load(folder: Path) -> Any:
    ensure_torchvision()
    import open_clip

    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return model.eval().float()


Pictures = tuple[NDArray[np.uint8], NDArray[np.int8], tuple[str, ...]]


def federated_test(count: int, *, classes: tuple[str, ...] = scenery.CLASSES) -> Pictures:
    """The first ``count`` test images of ``scenes`` with their labels."""
    settings = scenery.SceneSettings(test_size=count, train_size=1)
    found = scenery.scenes(test_size=count, train_size=1)
    images = np.stack([np.asarray(found.test.open_image(i)) for i in range(count)])
    if classes == scenery.UNSEEN:
        return images, scenery.scene_unseen_labels(settings), classes
    return images, found.test.labels, classes


@cache
def held_out(count: int, *, classes: tuple[str, ...] = scenery.CLASSES) -> Pictures:
    """Scenes of the pretraining styles that no training run draws."""
    drawn = draw_scenes(0, count, seed=1_000_003)
    there = np.stack([np.isin(np.arange(len(labels())), s) for s in drawn.shown])
    columns = [labels().index(name) for name in classes]
    return drawn.images, there[:, columns].astype(np.int8), classes


@torch.no_grad()
def features(model: Any, images: NDArray[np.uint8], batch: int = 250) -> tuple[Tensor, Tensor]:
    """Class token ``[n, D]`` and patch tokens ``[n, P, D]``, fp32, unit length."""
    model.eval()
    parts = [
        encode_image(
            model,
            normalise(torch.from_numpy(images[i : i + batch]).float().div(255).permute(0, 3, 1, 2)),
        )
        for i in range(0, len(images), batch)
    ]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


@torch.no_grad()
def zero_shot(
    model: Any, images: NDArray[np.uint8], truth: NDArray[np.int8], classes: tuple[str, ...]
) -> dict[str, dict[str, Any]]:
    """Average precision of "a photo of a {class}." by class token and by pooled patches, in %."""
    words = encode_text(
        model, tokenizer()([f"a photo of a {name}." for name in classes]), None, None
    )
    whole, patches = features(model, images)
    cosines = patches @ words.T
    scores = {
        "class_token": whole @ words.T,
        "pooled_25": pooled_scores(cosines, 25.0),
        "pooled_100": pooled_scores(cosines, 100.0),
    }
    return {name: average_precision(truth, s.numpy(), classes) for name, s in scores.items()}


def average_precision(
    truth: NDArray[np.int8], scores: NDArray[np.float32], classes: tuple[str, ...]
) -> dict[str, Any]:
    values = [
        100 * float(average_precision_score(truth[:, c], scores[:, c])) for c in range(len(classes))
    ]
    return {
        "mean": round(float(np.mean(values)), 2),
        "classes": {name: round(v, 1) for name, v in zip(classes, values, strict=True)},
    }


def whole_training(history: dict[str, Any]) -> dict[str, Any]:
    """Sum up the stages of a training that was continued, the first stage first."""
    if "stages" in history:
        return history
    stages: list[dict[str, Any]] = []
    stage: dict[str, Any] | None = history
    while stage is not None:
        stages.insert(0, {k: v for k, v in stage.items() if k != "continues"})
        stage = stage.get("continues")
    summed = {k: sum(s[k] for s in stages) for k in ("steps", "samples", "seconds", "scenes")}
    return summed | {"batch": stages[-1]["batch"], "seed": stages[0]["seed"], "stages": stages}


def measure(arguments: argparse.Namespace) -> None:
    """Measure the saved file and write its card."""
    torch.set_num_threads(arguments.threads)
    target: Path = arguments.target
    card = json.loads((target / "card.json").read_text())
    weights = (target / "open_clip_model.safetensors").read_bytes()
    model = load(target)
    first = zero_shot(model, *federated_test(300))
    figures = {
        "scenes test, 20 classes": zero_shot(model, *federated_test(1500)),
        "scenes test, 12 unseen classes": zero_shot(
            model, *federated_test(1500, classes=scenery.UNSEEN)
        ),
        "held-out scenes of the pretraining styles (sprites retouched), 20 classes": zero_shot(
            model, *held_out(1000)
        ),
    }
    card = {
        "name": "tiny",
        "weights": {
            "file": "open_clip_model.safetensors",
            "bytes": len(weights),
            "sha256": hashlib.sha256(weights).hexdigest(),
            "dtype": "float16",
        },
        "parameters": {
            "image": sum(p.numel() for p in model.visual.parameters()),
            "text": sum(p.numel() for n, p in model.named_parameters() if not n.startswith("vis")),
        },
        "logit_scale": round(float(model.logit_scale.detach().exp()), 3),
        "training": whole_training(card["training"])
        | {"styles": list(scenery.PRETRAIN_STYLES), "words": len(labels())},
        "zero_shot": {
            "prompt": "a photo of a {class}.",
            "class_token": "cosine of the class token",
            "pooled_25": "sum over patches of softmax(25 cosine) cosine",
            "pooled_100": "sum over patches of softmax(100 cosine) cosine",
            "mAP in %": figures,
        },
        "check": {
            "images": "first 300 of scenes test",
            "mAP": {name: found["mean"] for name, found in first.items()},
        },
    }
    replace(target / "card.json", (json.dumps(card, indent=2) + "\n").encode())
    for name, found in figures.items():
        print(name, {k: v["mean"] for k, v in found.items()})


def headroom(arguments: argparse.Namespace) -> None:
    """How much tuning on frozen patch features gains over zero-shot, centralised, by training bias."""
    torch.set_num_threads(arguments.threads)
    model = load(arguments.target)
    images, truth, classes = federated_test(1500)
    test_whole, test_patches = features(model, images)
    with torch.no_grad():
        words = encode_text(model, tokenizer()([f"a photo of a {n}." for n in classes]), None, None)
    for bias in (0.8, 0.5, 0.0):
        train_split = scenery.scenes(bias=bias).train
        opened = [np.asarray(train_split.open_image(i)) for i in range(len(train_split))]
        whole, patches = features(model, np.stack(opened))
        targets = torch.from_numpy(train_split.labels).float()
        probe = fit(ClassTokenProbe(len(classes)), whole, targets, arguments.epochs)
        tuned = fit(PatchAdapter(words), patches, targets, arguments.epochs)
        with torch.no_grad():
            figures = [
                average_precision(truth, scores.numpy(), classes)["mean"]
                for scores in (probe(test_whole), tuned(test_patches))
            ]
        print(f"bias {bias}: class token, linear {figures[0]}; patches, adapter {figures[1]}")


class ClassTokenProbe(nn.Module):
    """A linear head on the class token."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(CONFIG["model_cfg"]["embed_dim"], classes)

    def forward(self, whole: Tensor) -> Tensor:
        """Return logits ``[B, C]`` of features ``[B, D]``."""
        return self.head(10 * whole)


class PatchAdapter(nn.Module):
    """A residual adapter of rank 32 on patches, and a free offset on each class's text feature."""

    def __init__(self, words: Tensor) -> None:
        super().__init__()
        torch.manual_seed(0)
        width = words.shape[1]
        self.words = words
        self.down = nn.Parameter(torch.randn(width, 32) / math.sqrt(width))
        self.up = nn.Parameter(torch.zeros(32, width))
        self.offset = nn.Parameter(torch.zeros_like(words))
        self.border = nn.Parameter(torch.full((len(words),), 0.2))
        self.slope = nn.Parameter(torch.tensor(4.0))

    def forward(self, patches: Tensor) -> Tensor:
        """Return logits ``[B, C]`` of features ``[B, P, D]``."""
        adapted = functional.normalize(patches + (patches @ self.down) @ self.up, dim=-1)
        cosines = adapted @ functional.normalize(self.words + self.offset, dim=-1).T
        return self.slope.exp() * (pooled_scores(cosines, 50.0) - self.border)


def fit(head: nn.Module, inputs: Tensor, targets: Tensor, epochs: int) -> nn.Module:
    """Fit a head by Adam with a linearly falling rate; return it."""
    optimizer = torch.optim.Adam(head.parameters(), lr=5e-3)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, epochs)
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs)).split(128):
            loss = functional.binary_cross_entropy_with_logits(head(inputs[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        falling.step()
    return head


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("train", "measure", "headroom"))
    parser.add_argument("--target", type=Path, default=Path("fedmpt/clip/tiny"))
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--images", type=int, default=80_000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", type=Path, help="folder of a checkpoint to go on from")
    parser.add_argument("--note", default="", help="what the card should say of this stage")
    parser.add_argument("--scale", type=float, default=20.0, help="logit scale at the start")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--snapshot", type=int, default=0, help="look at mAP every so many steps")
    arguments = parser.parse_args()
    {"train": train, "measure": measure, "headroom": headroom}[arguments.what](arguments)


if __name__ == "__main__":
    main()
