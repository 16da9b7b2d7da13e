"""The embedded data set ``scenes``: multi-label images composed from the bundled sprite atlas.

An image is a pure function of (settings, split, index). First its *recipe* is drawn (which sprites lie where, on which
background), which also gives the labels; pixels are composed from the recipe when the image is opened. Training images
follow, with probability ``bias``, the law of a latent *context*: certain pairs of classes occur together, on certain
backgrounds. Test images never do, so a model that learnt the context instead of the object pays for it. Each training
image also has a site; with probability ``company`` its objects keep the company of that site (`fedmpt.data.partners`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedmpt.data.dataset import Dataset, LabelMatrix, Split
from fedmpt.data.partners import company_of, pairing
from fedmpt.errors import UsageError
from fedmpt.seeds import generator

SplitName: TypeAlias = Literal["train", "test"]
Retouch: TypeAlias = Callable[[Image.Image], Image.Image]

CLASSES: Final = (  # the classes of PASCAL VOC 2007, in its order
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa"),
    *("train", "tv monitor"),
)
UNSEEN: Final = (
    *("elephant", "rabbit", "fish", "tree", "house", "umbrella"),
    *("guitar", "banana", "cake", "clock", "book", "bear"),
)
BACKGROUNDS: Final = (
    *("grass", "sky", "water", "sand", "snow", "night"),
    *("road", "brick", "wood", "tiles", "wallpaper", "forest"),
)
SCENE_STYLES: Final = ("noto", "fxemoji")
PRETRAIN_STYLES: Final = (
    *("noto-v1", "twemoji", "emojione"),
    *("fluent-emoji-flat", "fluent-emoji", "streamline-emojis"),
)

_RECIPE_VERSION = 1  # part of every content digest: raise it when pixels of the same recipe change
_ATLAS = Path(__file__).with_name("sprites")

# Distinct classes an image, 1 to 6. These weights make E[k(k-1)] = (19/20) E[k]^2, so two of 20 classes drawn without
# replacement occur together exactly as often as independent ones (derivation in docs/scenes.md).
_COUNT_WEIGHTS = (0.35, 0.25, 0.16, 0.12, 0.08, 0.04)
_MAX_OBJECTS = len(_COUNT_WEIGHTS)
_SECOND_INSTANCE = 0.15  # chance that a class appears twice, while there is room
_UNSEEN_WEIGHTS = (0.55, 0.30, 0.15)  # test only: 0, 1 or 2 objects of the unseen classes
_MAX_CLUTTER = 2
_SIDE = (0.18, 0.45)  # longer side of an object, as a share of the image's side
_MAX_ANGLE = 30.0  # degrees
_PLACING_TRIES = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """A latent context: what occurs together in training, and where."""

    name: str
    backgrounds: tuple[str, str]
    pairs: tuple[tuple[str, str], ...]


CONTEXTS: Final = tuple(
    Context(name=name, backgrounds=backgrounds, pairs=pairs)
    for name, backgrounds, pairs in (
        (
            "kitchen",
            ("wood", "tiles"),
            (("dining table", "chair"), ("dining table", "bottle"), ("cat", "chair")),
        ),
        (
            "living room",
            ("wallpaper", "wood"),
            (("sofa", "tv monitor"), ("cat", "sofa"), ("potted plant", "tv monitor")),
        ),
        ("farm", ("grass", "sand"), (("cow", "sheep"), ("horse", "person"), ("dog", "sheep"))),
        (
            "street",
            ("road", "brick"),
            (("car", "bus"), ("cat", "bicycle"), ("motorbike", "person")),
        ),
        (
            "station",
            ("brick", "tiles"),
            (("train", "person"), ("train", "bottle"), ("bus", "potted plant")),
        ),
        ("harbour", ("water", "sky"), (("boat", "bird"), ("boat", "person"), ("bird", "chair"))),
        (
            "airport",
            ("sky", "road"),
            (("aeroplane", "bus"), ("aeroplane", "person"), ("bird", "aeroplane")),
        ),
        (
            "park",
            ("forest", "grass"),
            (("dog", "bicycle"), ("bird", "dog"), ("horse", "potted plant")),
        ),
        (
            "office",
            ("tiles", "wallpaper"),
            (("tv monitor", "bottle"), ("chair", "tv monitor"), ("sofa", "potted plant")),
        ),
        ("winter", ("snow", "night"), (("sheep", "motorbike"), ("train", "horse"), ("cow", "car"))),
        (
            "night market",
            ("night", "wood"),
            (("dining table", "motorbike"), ("cat", "bottle"), ("bicycle", "car")),
        ),
        (
            "beach",
            ("sand", "water"),
            (("boat", "horse"), ("aeroplane", "cow"), ("dining table", "sofa")),
        ),
    )
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sprite:
    """One picture of the atlas; ``box`` is its place in ``<style>.png``."""

    label: str
    kind: str
    style: str
    icon: str
    role: str
    licence: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """One sprite in an image.

    Attributes:
        sprite: index into `atlas()`.
        x: centre, share of the image's side, from the left.
        y: centre, share of the image's side, from the top.
        side: longer side, share of the image's side.
        angle: rotation in degrees.
        flipped: mirrored left to right.
    """

    sprite: int
    x: float
    y: float
    side: float
    angle: float
    flipped: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What decides the pixels of one image.

    Attributes:
        context: index into `CONTEXTS` of the law the objects follow, -1 where they are independent.
        background: one of `BACKGROUNDS`.
        texture: seed of the background's variant, crop, light and grain.
        placements: in drawing order, later ones cover earlier ones.
    """

    context: int
    background: str
    texture: int
    placements: tuple[Placement, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneSettings:
    """The settings of ``scenes``.

    Attributes:
        train_size: training images, >= 1.
        test_size: test images, >= 1.
        bias: share of the training images that follow a context's law, in [0, 1].
        resolution: side of an image in px, 32 to 512.
        seed: of the recipes, >= 0.
        company: share of the training images that hold whole pairs of their site's pairing, in [0, 1]; of the rest,
            the share ``bias`` follows a context.
        sites: training image i is of site i modulo ``sites``, >= 1.
        pairings: site s has pairing s modulo ``pairings``, 1 to 19; 1 is one pairing for all.
    """

    train_size: int = 6000
    test_size: int = 1500
    bias: float = 0.8
    resolution: int = 64
    seed: int = 0
    company: float = 0.0
    sites: int = 12
    pairings: int = 2

    def __post_init__(self) -> None:
        for name in ("train_size", "test_size", "sites"):
            size = getattr(self, name)
            if size < 1:
                raise UsageError(f"scenes: {name}={size}: must be >= 1 (raise it)")
        for name in ("bias", "company"):
            share = getattr(self, name)
            if not 0.0 <= share <= 1.0:
                raise UsageError(f"scenes: {name}={share}: must be in [0, 1] (0 turns it off)")
        if not 1 <= self.pairings < len(CLASSES):
            raise UsageError(
                f"scenes: pairings={self.pairings}: must be 1 to {len(CLASSES) - 1} (so many exist)"
            )
        if not 32 <= self.resolution <= 512:
            raise UsageError(
                f"scenes: resolution={self.resolution}: must be 32 to 512 px (sprites hold 64 px)"
            )
        if self.seed < 0:
            raise UsageError(f"scenes: seed={self.seed}: must be >= 0 (choose another)")


def scenes(
    *,
    train_size: int = 6000,
    test_size: int = 1500,
    bias: float = 0.8,
    resolution: int = 64,
    seed: int = 0,
    company: float = 0.0,
    sites: int = 12,
    pairings: int = 2,
) -> Dataset:
    """Return the data set ``scenes``; images are composed when they are opened.

    Raises:
        UsageError: a setting is outside its range (see `SceneSettings`).
    """
    settings = SceneSettings(
        train_size=train_size,
        test_size=test_size,
        bias=bias,
        resolution=resolution,
        seed=seed,
        company=company,
        sites=sites,
        pairings=pairings,
    )
    train = _split(settings, "train", train_size)
    return Dataset(
        name="scenes",
        classes=CLASSES,
        train=replace(train, sites=np.arange(train_size) % sites),
        test=_split(settings, "test", test_size),
    )


def scene_contexts(settings: SceneSettings) -> NDArray[np.int8]:
    """Return the latent context of every training image: index into `CONTEXTS`, -1 for none."""
    recipes = (scene_recipe(settings, "train", i) for i in range(settings.train_size))
    return np.fromiter((r.context for r in recipes), np.int8, settings.train_size)


def scene_unseen_labels(settings: SceneSettings) -> LabelMatrix:
    """Return which `UNSEEN` classes each test image holds: int8 ``[test_size, 12]``.

    Training images hold none.
    """
    recipes = [scene_recipe(settings, "test", i) for i in range(settings.test_size)]
    return _label_matrix(recipes, UNSEEN)


@cache
def atlas() -> tuple[Sprite, ...]:
    """Return every sprite of the bundled atlas, in the order of its index."""
    rows = json.loads((_ATLAS / "index.json").read_text())["sprites"]
    return tuple(
        Sprite(
            label=row["label"],
            kind=row["kind"],
            style=row["style"],
            icon=row["icon"],
            role=row["role"],
            licence=row["licence"],
            box=tuple(row["box"]),
        )
        for row in rows
    )


def scene_recipe(settings: SceneSettings, split: SplitName, index: int) -> Recipe:
    """Draw the recipe of one image; it depends on the seed, bias and company, the split and the index."""
    rng = generator(settings.seed, "scenes", split, index)
    count = int(rng.choice(_MAX_OBJECTS, p=_COUNT_WEIGHTS)) + 1
    together = _company(settings, index) if split == "train" else []
    if together:
        context = -1
        labels = [CLASSES[c] for c in together]
        background = str(rng.choice(BACKGROUNDS))
    elif split == "train" and rng.random() < settings.bias:
        context = int(rng.integers(len(CONTEXTS)))
        labels = _labels_of_context(CONTEXTS[context], count, rng)
        background = str(rng.choice(CONTEXTS[context].backgrounds))
    else:
        context = -1
        labels = [CLASSES[c] for c in rng.choice(len(CLASSES), count, replace=False)]
        background = str(rng.choice(BACKGROUNDS))
    for label in tuple(labels):
        if len(labels) < _MAX_OBJECTS and rng.random() < _SECOND_INSTANCE:
            labels.append(label)
    others: list[int] = []
    if split == "test":
        unseen = rng.choice(len(UNSEEN), int(rng.choice(3, p=_UNSEEN_WEIGHTS)), replace=False)
        others += [int(rng.choice(_sprites_of(UNSEEN[u], split))) for u in unseen]
    clutter = int(rng.integers(1, _MAX_CLUTTER + 1)) - len(others)
    others += [int(s) for s in rng.choice(_clutter(), max(clutter, 0), replace=False)]
    chosen = [int(rng.choice(_sprites_of(label, split))) for label in labels]
    return Recipe(
        context=context,
        background=background,
        texture=int(rng.integers(2**31)),
        placements=place(chosen + others, _SIDE, rng),
    )


def place(
    chosen: list[int], side: tuple[float, float], rng: np.random.Generator
) -> tuple[Placement, ...]:
    """Lay sprites out so that each stays visible, and return them in random drawing order.

    Two sprites may overlap, but the smaller one's centre stays outside the larger one's circle. A sprite that finds no
    such place shrinks; the last resort is the best place seen.
    """
    placed: list[Placement] = []
    for sprite in chosen:
        size = float(rng.uniform(*side))
        best: tuple[float, float, float, float] | None = None
        for attempt in range(_PLACING_TRIES):
            if attempt == _PLACING_TRIES // 2:
                size = max(side[0], size * 0.75)
            x, y = rng.uniform(size * 0.4, 1 - size * 0.4, 2)
            slack = min((_slack(x, y, size, other) for other in placed), default=1.0)
            if best is None or slack > best[0]:
                best = (slack, float(x), float(y), size)
            if slack >= 0:
                break
        if best is None:  # pragma: no cover  (there is always one attempt)
            raise AssertionError
        placed.append(
            Placement(
                sprite=sprite,
                x=best[1],
                y=best[2],
                side=best[3],
                angle=float(rng.uniform(-_MAX_ANGLE, _MAX_ANGLE)),
                flipped=bool(rng.random() < 0.5),
            )
        )
    return tuple(placed[i] for i in rng.permutation(len(placed)))


def render(recipe: Recipe, resolution: int) -> Image.Image:
    """Compose the image of a recipe: RGB, ``resolution`` px a side."""
    return render_with_owners(recipe, resolution)[0]


def render_with_owners(
    recipe: Recipe, resolution: int, retouch: Retouch | None = None
) -> tuple[Image.Image, NDArray[np.uint8]]:
    """Compose an image, and say which placement each pixel shows.

    Args:
        recipe: what to compose.
        resolution: side in px.
        retouch: changes each sprite (RGBA, scaled and rotated) before it is laid down; None leaves it as it is.

    Returns:
        The image, and uint8 ``[resolution, resolution]``: 0 for background, ``i + 1`` where ``placements[i]`` shows.
    """
    rng = np.random.default_rng(recipe.texture)
    canvas = _background(recipe.background, resolution, rng)
    owners = np.zeros((resolution, resolution), np.uint8)
    for number, placement in enumerate(recipe.placements, start=1):
        layer = _layer(placement, resolution)
        if retouch is not None:
            layer = retouch(layer)
        left = round(placement.x * resolution - layer.width / 2)
        top = round(placement.y * resolution - layer.height / 2)
        canvas.paste(layer, (left, top), layer)
        alpha = np.asarray(layer.getchannel("A")) > 127
        rows = slice(max(top, 0), min(top + layer.height, resolution))
        columns = slice(max(left, 0), min(left + layer.width, resolution))
        seen = alpha[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        owners[rows, columns][seen] = number
    return _light(canvas, rng), owners


def _split(settings: SceneSettings, split: SplitName, size: int) -> Split:
    recipes = [scene_recipe(settings, split, i) for i in range(size)]
    prefix = f"{_RECIPE_VERSION}/{_atlas_digest()}/{settings.resolution}/"
    return Split(
        labels=_label_matrix(recipes, CLASSES),
        content=tuple(
            hashlib.sha256(f"{prefix}{recipe!r}".encode()).hexdigest()[:20] for recipe in recipes
        ),
        open_image=partial(_open, settings, split, size),
    )


def _open(settings: SceneSettings, split: SplitName, size: int, index: int) -> Image.Image:
    if not 0 <= index < size:
        raise IndexError(f"scenes: image {index} of {size}")
    return render(scene_recipe(settings, split, index), settings.resolution)


def _label_matrix(recipes: list[Recipe], classes: tuple[str, ...]) -> LabelMatrix:
    column = {name: i for i, name in enumerate(classes)}
    labels = np.zeros((len(recipes), len(classes)), np.int8)
    for row, recipe in enumerate(recipes):
        for placement in recipe.placements:
            found = column.get(atlas()[placement.sprite].label)
            if found is not None:
                labels[row, found] = 1
    return labels


def _labels_of_context(context: Context, count: int, rng: np.random.Generator) -> list[str]:
    """Draw pairs of the context until there are at least ``count`` distinct classes."""
    labels: list[str] = []
    for pair in rng.permutation(len(context.pairs)):
        labels += [label for label in context.pairs[pair] if label not in labels]
        if len(labels) >= count:
            break
    return labels[:_MAX_OBJECTS]


def _company(settings: SceneSettings, index: int) -> list[int]:
    """Return the classes of a training image that keeps its site's company; none for one that does not.

    A stream of its own, so that without company every image is what it would be if there were no sites.
    """
    rng = generator(settings.seed, "company", index)
    if rng.random() >= settings.company:
        return []
    site = index % settings.sites
    return company_of(pairing(site % settings.pairings, len(CLASSES)), rng)


def _slack(x: float, y: float, size: float, other: Placement) -> float:
    """How much further than required two sprites are from each other; negative if too close."""
    small, large = sorted((size / 2, other.side / 2))
    return math.hypot(x - other.x, y - other.y) - max(0.65 * (small + large), large)


@cache
def _sprites_of(label: str, split: SplitName) -> NDArray[np.int64]:
    return np.array(
        [
            i
            for i, sprite in enumerate(atlas())
            if sprite.label == label
            and sprite.style in SCENE_STYLES
            and sprite.role in (split, "both")
        ]
    )


@cache
def _clutter() -> NDArray[np.int64]:
    return np.array(
        [
            i
            for i, sprite in enumerate(atlas())
            if sprite.kind == "clutter" and sprite.style in SCENE_STYLES
        ]
    )


@cache
def _atlas_digest() -> str:
    digest = hashlib.sha256((_ATLAS / "index.json").read_bytes())
    for style in SCENE_STYLES:
        digest.update((_ATLAS / f"{style}.png").read_bytes())
    return digest.hexdigest()


@cache
def _sheet(style: str) -> Image.Image:
    with Image.open(_ATLAS / f"{style}.png") as image:
        return image.convert("RGBA")


@cache
def _picture(sprite: int, flipped: bool, level: int) -> Image.Image:
    """A sprite, halved ``level`` times: what a smaller one is sampled from without aliasing."""
    if level:
        whole = _picture(sprite, flipped, level - 1).convert("RGBa")
        return whole.reduce(2).convert("RGBA")
    entry = atlas()[sprite]
    picture = _sheet(entry.style).crop(entry.box)
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else picture


def _layer(placement: Placement, resolution: int) -> Image.Image:
    """The sprite, scaled and rotated, on a transparent canvas that just holds it."""
    size = placement.side * resolution
    left, top, right, bottom = atlas()[placement.sprite].box
    longest = max(right - left, bottom - top)
    level = min(3, int(math.log2(longest / size))) if size < longest else 0
    picture = _picture(placement.sprite, placement.flipped, level)
    scale = max(picture.size) / size  # picture px a layer px
    cos, sin = (f(math.radians(placement.angle)) for f in (math.cos, math.sin))
    width, height = picture.width / scale, picture.height / scale
    columns = math.ceil(abs(width * cos) + abs(height * sin)) + 1
    rows = math.ceil(abs(width * sin) + abs(height * cos)) + 1
    matrix = (
        *(scale * cos, scale * sin),
        picture.width / 2 - scale * (cos * columns + sin * rows) / 2,
        *(-scale * sin, scale * cos),
        picture.height / 2 - scale * (cos * rows - sin * columns) / 2,
    )
    return picture.transform(
        (columns, rows), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
    )


_VARIANTS = 12  # textures a background kind
_MARGIN = 1.5  # side of a texture, in sides of an image


def _background(kind: str, resolution: int, rng: np.random.Generator) -> Image.Image:
    texture = _texture(kind, int(rng.integers(_VARIANTS)), resolution)
    left, top = (int(o) for o in rng.integers(0, texture.width - resolution + 1, 2))
    crop = texture.crop((left, top, left + resolution, top + resolution))
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop


def _light(canvas: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Vary brightness, contrast and tint of the whole image, and add grain."""
    gain = rng.uniform(0.75, 1.15) * rng.uniform(0.94, 1.06, 3)
    offset = rng.uniform(-12, 12)
    grain = rng.standard_normal((canvas.height, canvas.width, 1), np.float32) * rng.uniform(0, 10)
    pixels = np.asarray(canvas, np.float32) * gain.astype(np.float32) + (grain + offset)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


# Two colours between which a texture moves, and how: (pattern, strength of its fine noise).
_TEXTURES: Final = {
    "grass": ((70, 130, 50), (140, 190, 80), "noise", 0.5),
    "sky": ((110, 170, 230), (225, 238, 250), "gradient", 0.05),
    "water": ((30, 90, 150), (100, 175, 205), "waves", 0.1),
    "sand": ((200, 170, 115), (235, 214, 170), "noise", 0.3),
    "snow": ((205, 216, 230), (250, 252, 255), "gradient", 0.12),
    "night": ((10, 14, 40), (55, 50, 95), "dots", 0.05),
    "road": ((75, 75, 80), (150, 150, 150), "stripes", 0.35),
    "brick": ((130, 60, 45), (195, 150, 130), "bricks", 0.2),
    "wood": ((115, 75, 40), (180, 130, 80), "planks", 0.25),
    "tiles": ((170, 180, 185), (235, 235, 230), "checks", 0.06),
    "wallpaper": ((200, 160, 170), (235, 215, 190), "dots", 0.05),
    "forest": ((20, 60, 30), (85, 120, 55), "noise", 0.7),
}


@cache
def _texture(kind: str, variant: int, resolution: int) -> Image.Image:
    """Draw one variant of a background; the same for every seed of the data set."""
    low, high, pattern, roughness = _TEXTURES[kind]
    rng = generator(0, "texture", kind, variant)
    side = round(resolution * _MARGIN)
    grid = np.arange(side) / resolution
    x, y = np.meshgrid(grid, grid)
    turn = rng.uniform(-0.2, 0.2)
    x, y = x + turn * y, y - turn * x
    period = rng.uniform(0.12, 0.3)
    smooth = _smooth_noise(side, int(rng.integers(3, 7)), rng)
    match pattern:
        case "gradient":
            level = 0.6 * y / _MARGIN + 0.5 * smooth
        case "waves":
            level = 0.5 + 0.3 * np.sin(2 * np.pi * (y / period + smooth)) + 0.3 * (smooth - 0.5)
        case "stripes":
            level = 0.35 * smooth + 0.9 * ((x % (3 * period)) < 0.06)
        case "planks":
            level = 0.25 + 0.6 * smooth - 0.5 * ((y % period) < 0.025)
        case "checks":
            level = 0.75 * (((x // period) + (y // period)) % 2) + 0.3 * smooth
        case "bricks":
            shift = 0.5 * ((y // (period / 2)) % 2)
            joint = (y % (period / 2) < 0.025) | (((x / period + shift) % 1.0) < 0.1)
            level = 0.9 * joint + 0.4 * smooth
        case "dots":
            off_x, off_y = (x % period) - period / 2, (y % period) - period / 2
            level = 0.4 * smooth + 0.9 * (np.hypot(off_x, off_y) < rng.uniform(0.015, 0.04))
        case _:  # "noise"
            level = smooth
    fine = _smooth_noise(side, side // 3, rng) - 0.5
    level = np.clip(level + roughness * fine, 0, 1)[..., None]
    ends = [np.array(c) + rng.uniform(-22, 22, 3) for c in (low, high)]
    pixels = ends[0] * (1 - level) + ends[1] * level
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _smooth_noise(side: int, cells: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Noise in [0, 1] with about ``cells`` bumps a side."""
    coarse = Image.fromarray(rng.random((cells + 1, cells + 1), np.float32))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)).clip(0, 1)
