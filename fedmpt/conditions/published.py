"""The conditions that the paper found with its language model: the default of every data set."""

from __future__ import annotations

from typing import Final

# Table 11 of FedMPT, arXiv 2605.28347; `scenes` has VOC's classes and takes VOC's list.
CONDITIONS: Final[dict[str, tuple[str, ...]]] = {
    "scenes": ("background", "position", "shape", "action"),
    "voc2007": ("background", "position", "shape", "action"),
    "coco2014": ("background", "position", "shape", "action"),
    "nuswide": ("color", "texture", "shape", "action"),
    "multiscene": ("color", "geometry", "shape", "contrast"),
    "mlrsnet": ("size", "color", "shape", "texture"),
}
DEFAULT_CONDITIONS: Final = CONDITIONS["voc2007"]
