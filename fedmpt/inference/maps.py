"""Region maps: where in an image a class was seen, under each condition, as one PNG for each predicted class.

A map is what each patch adds to the prediction, laid over what the backbone saw of the image. The first map mixes
the conditions by the gate, on a scale of its own; those of the conditions share one scale, so a pale one adds little.
What is drawn goes by the square root, for a few patches often add most. Reports scale maps in the same way.

Dimensions: ``N`` conditions, ``M`` patches, ``C`` classes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from fedmpt.data.folder import open_rgb
from fedmpt.errors import RunError
from fedmpt.inference.model import TunedModel
from fedmpt.inference.predict import Prediction

PANEL: Final = 224  # pixels of a panel's longer side
_CAPTION: Final = 16  # pixels of the line below a panel
_GAP: Final = 4
_HEAT: Final = ("#20004c", "#e0482d", "#ffe66d")  # little, half, most
_STRONGEST: Final = 0.75  # opacity of the map where a patch adds most
_PAPER: Final = "white"


def write_maps(
    model: TunedModel,
    prediction: Prediction,
    present: Sequence[int],
    *,
    folder: Path,
    number: int,
) -> list[Path]:
    """Write a PNG for each class that counts as present.

    Args:
        model: the model that made the prediction.
        prediction: with evidence.
        present: classes to draw.
        folder: where to; it exists.
        number: of the image in its list, so that equal names in two folders stay apart.

    Returns:
        The files, in the order of ``present``.

    Raises:
        RunError: a file cannot be written.
        DataError: the image can no longer be read.
    """
    if prediction.evidence is None or not present:
        return []
    evidence = prediction.evidence.numpy()  # [N, M, C]
    image = seen_part(open_rgb(prediction.path), str(model.backbone.preprocessing["resize_mode"]))
    image.thumbnail((PANEL, PANEL))
    if max(image.size) < PANEL:
        image = ImageOps.contain(image, (PANEL, PANEL))
    written = []
    for column in present:
        maps = class_maps(evidence[..., column], prediction.gate, model.backbone.grid)
        captions = [f"{model.classes[column]} {prediction.scores[column]:.2f}"]
        captions += [
            f"{condition or 'prompt'}: gate {weight:.2f}"
            for condition, weight in zip(model.conditions, prediction.gate, strict=True)
        ]
        name = f"{number:05d}-{_plain(prediction.path.stem)}-{_plain(model.classes[column])}.png"
        sheet = _sheet([image, *(_overlay(image, values) for values in maps)], ["image", *captions])
        try:
            sheet.save(folder / name)
        except OSError as error:
            raise RunError(f"--maps {folder}: cannot be written ({error.strerror})") from error
        written.append(folder / name)
    return written


def class_maps(
    evidence: NDArray[np.float32], gate: NDArray[np.float32], grid: tuple[int, int]
) -> NDArray[np.float32]:
    """Return the maps of one class: all conditions mixed by the gate, then each condition.

    Args:
        evidence: float32 ``[N, M]`` of the class.
        gate: float32 ``[N]``, summing to 1.
        grid: patches down and across.

    Returns:
        float32 ``[1 + N, down, across]``, how strongly to draw each patch: the square root of its share of the largest
        value, so that 1 is the largest of the first map, and of the others together.
    """
    mixed = (gate[:, None] * evidence).sum(axis=0, keepdims=True)  # [1, M]
    maps = np.concatenate([_scaled(mixed), _scaled(evidence)])
    strength: NDArray[np.float32] = np.sqrt(maps).reshape(-1, *grid).astype(np.float32)
    return strength


def _scaled(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Divide by the largest value, if anything adds anything."""
    largest = float(values.max())
    return values / largest if largest > 0 else values


def seen_part(image: Image.Image, resize_mode: str) -> Image.Image:
    """Return the part of an image that the backbone's preprocessing keeps, undistorted.

    ``squash`` keeps everything, ``shortest`` the square in the middle, ``longest`` pads to a square.
    """
    width, height = image.size
    if resize_mode == "squash":
        return image
    side = min(width, height) if resize_mode == "shortest" else max(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _overlay(image: Image.Image, values: NDArray[np.float32]) -> Image.Image:
    """Lay a map ``[down, across]`` in [0, 1] over an image."""
    small = Image.fromarray((255 * values).round().astype(np.uint8))
    strength = small.resize(image.size, Image.Resampling.BICUBIC)
    heat = ImageOps.colorize(strength, black=_HEAT[0], mid=_HEAT[1], white=_HEAT[2])
    opacity = strength.point([round(_STRONGEST * level) for level in range(256)])
    grey = image.convert("L").convert("RGB")
    return Image.composite(heat, grey, opacity)


def _sheet(panels: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """Put panels of one size side by side, each with its caption below."""
    width, height = panels[0].size
    cell = max(width, PANEL // 2) + _GAP
    sheet = Image.new("RGB", (cell * len(panels), height + _CAPTION), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, (panel, caption) in enumerate(zip(panels, captions, strict=True)):
        sheet.paste(panel, (place * cell, 0))
        draw.text((place * cell + 2, height + 2), caption, fill="black")
    return sheet


def _plain(text: str) -> str:
    """Return a text that any file system takes as part of a name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:60] or "image"
