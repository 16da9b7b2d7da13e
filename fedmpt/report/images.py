"""Pictures as data URIs, and maps over them."""

from __future__ import annotations

import base64
import io
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_KEPT_EXACTLY: Final = 128  # pixels a side up to which a picture is stored without loss
_JPEG_QUALITY: Final = 85
_SHADE: Final = 0.8  # opacity over a patch that adds nothing


def picture_uri(image: Image.Image) -> str:
    """Return a picture as a data URI: PNG if it is small, else JPEG."""
    if max(image.size) <= _KEPT_EXACTLY:
        return _uri(image, "PNG")
    return _uri(image, "JPEG", quality=_JPEG_QUALITY)


def draw_maps(maps: NDArray[np.float32]) -> tuple[str, ...]:
    """Draw maps to be laid over the picture: patches that matter less are darkened.

    Args:
        maps: float32 ``[N, h, w]`` in [0, 1], as `fedmpt.inference.maps.class_maps` gives them.

    Returns:
        N data URIs of PNGs, one pixel a patch.
    """
    pixels = np.zeros((*maps.shape, 4), np.uint8)  # black, of varying opacity
    pixels[..., 3] = np.rint(255 * _SHADE * (1 - maps))
    return tuple(_uri(Image.fromarray(one), "PNG") for one in pixels)


def _uri(image: Image.Image, form: str, **settings: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, form, **settings)
    content = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{form.lower()};base64,{content}"
