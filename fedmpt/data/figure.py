"""Drawing of a partition as SVG: a row a client, its size as a bar, its labels as a heat map.

Written by hand, since a plotting library would be the project's largest dependency for one figure.
Cells are tinted by the share of a client's images that show a class; hovering one gives the number.
"""

from __future__ import annotations

from typing import Final
from xml.sax.saxutils import escape

import numpy as np

from fedmpt.data.partition import Partition

MOST_CLASSES: Final = 80  # columns; of more classes the most frequent are drawn

_CELL, _ROW = 14, 18  # pixels
_MARGIN, _NAMES, _CLIENT, _BAR, _DIVERGENCE = 16, 100, 56, 140, 64
_TITLE = 40
_LEGEND_STEPS = (0.0, 0.05, 0.1, 0.25, 0.5, 1.0)
_LIGHT, _DARK = (247, 249, 252), (8, 48, 107)
_STYLE = "font-family:sans-serif;font-size:11px;fill:#222"


def partition_svg(partition: Partition, classes: tuple[str, ...], *, title: str) -> str:
    """Return the drawing as an SVG document.

    Args:
        partition: who holds which training images.
        classes: names of the training labels.
        title: what the figure is of.
    """
    description = partition.description
    counts, sizes = description.label_counts, description.sizes  # [S, C], [S]
    order = np.argsort(-counts.sum(axis=0), kind="stable")[:MOST_CLASSES]
    left = _MARGIN + _CLIENT + _BAR + _DIVERGENCE
    top = _MARGIN + _TITLE + _NAMES
    width = left + max(_CELL * len(order) + 80, 320) + _MARGIN
    height = top + _ROW * len(sizes) + 60
    shown = "" if len(order) == len(classes) else f", {len(order)} most frequent of {len(classes)}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" style="{_STYLE}" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(_MARGIN, _MARGIN + 12, title, size=14),
        _text(
            _MARGIN,
            _MARGIN + 30,
            f"{len(sizes)} clients of {sizes.min()} to {sizes.max()} images; tint: share of a "
            f"client's images that show the class{shown}",
        ),
        _text(_MARGIN + _CLIENT - 8, top - 6, "client", anchor="end"),
        _text(_MARGIN + _CLIENT, top - 6, "images"),
        _text(left - 8, top - 6, "divergence", anchor="end"),
    ]
    for position, column in enumerate(order):
        x = left + _CELL * position + _CELL - 3
        parts.append(
            f'<text transform="translate({x},{top - 6}) rotate(-60)">{escape(classes[column])}</text>'
        )
    for client, size in enumerate(sizes.tolist()):
        y = top + _ROW * client
        bar = (_BAR - 40) * size / int(sizes.max())
        divergence = description.divergence[client]
        parts += [
            _text(_MARGIN + _CLIENT - 8, y + 13, str(client), anchor="end"),
            f'<rect x="{_MARGIN + _CLIENT}" y="{y + 3}" width="{bar:.1f}" height="{_ROW - 6}" fill="#6b7f99"/>',
            _text(_MARGIN + _CLIENT + bar + 4, y + 13, str(size)),
            _text(
                left - 8, y + 13, "-" if np.isnan(divergence) else f"{divergence:.2f}", anchor="end"
            ),
        ]
        for position, column in enumerate(order):
            count = int(counts[client, column])
            parts.append(
                f'<rect x="{left + _CELL * position}" y="{y}" width="{_CELL - 1}" '
                f'height="{_ROW - 1}" fill="{_tint(count / size)}"><title>client {client}, '
                f"{escape(classes[column])}: {count} of {size} images</title></rect>"
            )
    parts += _legend(left, top + _ROW * len(sizes) + 16)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _legend(x: int, y: int) -> list[str]:
    parts = []
    for position, share in enumerate(_LEGEND_STEPS):
        place = x + 52 * position
        parts += [
            f'<rect x="{place}" y="{y}" width="{_CELL}" height="{_CELL}" fill="{_tint(share)}" stroke="#ccc"/>',
            _text(place + _CELL + 3, y + 11, f"{share:.0%}"),
        ]
    return parts


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 11) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'


def _tint(share: float) -> str:
    """Return the colour of a share; its square root, so that rare classes are seen."""
    weight = min(1.0, share) ** 0.5
    channels = (round(a + (b - a) * weight) for a, b in zip(_LIGHT, _DARK, strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in channels)
