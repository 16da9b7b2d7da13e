"""Makes ``import torchvision`` succeed beside a CPU-only torch.

The package index carries no CPU build of torchvision. The CUDA build imports beside a CPU torch up to the point where
it registers fake kernels for ``torchvision::nms`` and ``qnms``, operators that its missing extension would have
declared. Declaring the two schemas first is all it needs: models, preprocessing and tokenizers of open_clip use neither
operator. A healthy installation never takes this path.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_keep_alive: list[Any] = []  # a collected torch Library takes its operator declarations with it


def ensure_torchvision() -> None:
    """Import torchvision, declaring the operators that a CPU-only torch lacks if that is what stops it.

    Raises:
        RuntimeError: torchvision fails for any other reason.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        import torch

        declare: Any = torch.library.Library  # untyped in torch
        library = declare("torchvision", "DEF")
        for schema in _SCHEMAS:
            library.define(schema)
        _keep_alive.append(library)
        importlib.import_module("torchvision")
