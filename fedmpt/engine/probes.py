"""Typical gradient norms of a method's blocks, from public probes and no client's data.

One joint clip norm serves all blocks. Text features, adapters and gate have gradients of very different sizes, and
without weights the largest block would take the whole budget. The weights must be public: they come from made-up
images, whose patches point at the frozen text features of made-up labels.

Dimensions: ``B`` probes, ``M`` patches, ``C`` classes, ``D`` width.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from fedmpt.clip.backbone import Backbone
from fedmpt.errors import UsageError
from fedmpt.learner import make_space, per_example_gradients
from fedmpt.methods.base import Method, Parameters
from fedmpt.methods.pooling import made_up_images
from privacy import DPSpace
from privacy.jacobian import TEXT_BLOCK
from privacy.sketch import Sketch

_PROBES: Final = 32
_PATCHES: Final = 32
_LABEL_SHARE: Final = 0.12  # of the classes in a probe
_OBJECT_SHARE: Final = 0.3  # of the patches that show a labelled class
_NOISE: Final = 0.8  # length of a patch's random part, beside a text feature of length 1
_PIXEL_PROBES: Final = 8  # fewer, for each runs the image tower
_PIXEL_NOISE: Final = 0.3  # in units of the spread of normalised pixels
_MOVED: Final = 0.05  # what training adds to blocks that start at zero, whose neighbours have no gradient before
_SMALLEST: Final = (
    1e-3  # in units of the largest norm: a block that hardly matters is not blown up without limit
)


def typical_norms(
    method: Method,
    parameters: Parameters,
    *,
    space: DPSpace,
    sketch: Sketch | None = None,
    backbone: Backbone | None = None,
) -> dict[str, float]:
    """Return the median per-example gradient norm of every block that is clipped, over public probes.

    Deterministic, and a function of the method, its public start and the class names alone.

    Args:
        method: the method.
        parameters: its starting parameters.
        space: where the prompt side is clipped.
        sketch: at ``parameters``; for the space of that name.
        backbone: whose view of made-up images is asked where the usual probes have no gradient.

    Returns:
        Block name -> norm, > 0.

    Raises:
        UsageError: no block has a gradient.
    """
    random = torch.Generator().manual_seed(0)
    moved = {
        name: value
        if value.any()
        else _MOVED * torch.randn(value.shape, generator=random).to(value.device)
        for name, value in parameters.items()
    }
    with torch.no_grad():
        text = method.encode_text(moved)
    if method.pixel_shape is None:
        probes = _probes(text, len(method.classes), random)
    else:
        pixels, labels = _pixel_probes(method.pixel_shape, len(method.classes), random)
        with torch.no_grad():
            probes = method.prepare_images(pixels.to(text.device)), labels
    norms = _norms(method, moved, text, probes, space=space, sketch=sketch)
    if not max(norms.values()) > 0 and backbone is not None and method.pixel_shape is None:
        # Probes lie closer to texts than patches of images do. Where cosines are multiplied by much, all scores are
        # saturated so close by; whether training has a gradient, images tell.
        probes = _image_probes(backbone, len(method.classes), random)
        norms = _norms(method, moved, text, probes, space=space, sketch=sketch)
    largest = max(norms.values())
    if not largest > 0:
        raise UsageError(
            f"method {method.name} has no gradient at its start: its scores are saturated, so nothing would be learnt; "
            "change how it starts (for poscoop: --set method.poscoop.negative_start=text)"
        )
    return {name: max(norm, _SMALLEST * largest) for name, norm in norms.items()}


def _norms(
    method: Method,
    moved: Parameters,
    text: Tensor,
    probes: tuple[Tensor, Tensor],
    *,
    space: DPSpace,
    sketch: Sketch | None,
) -> dict[str, float]:
    """Return each block's median norm over probes, patches and labels; 0 where all is saturated."""
    patches, labels = (part.to(text.device) for part in probes)
    prompts = {name: moved[name] for name in method.prompt_blocks}
    head = {name: value for name, value in moved.items() if name not in prompts} | {
        TEXT_BLOCK: text
    }
    where = make_space(space, method, sketch=sketch)
    where.encode(prompts)
    each: dict[str, list[Tensor]] = {}
    for part in torch.split(torch.arange(len(patches)), method.examples_per_chunk):
        rows = per_example_gradients(method, head, patches[part], labels[part])
        rows |= where.rows(rows.pop(TEXT_BLOCK))
        for name, value in rows.items():
            each.setdefault(name, []).append(value.flatten(1).norm(dim=1))
    return {name: float(torch.cat(values).median()) for name, values in each.items()}


def _image_probes(
    backbone: Backbone, classes: int, random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the patches of made-up images, as the frozen tower sees them, and labels that mean nothing."""
    with torch.no_grad():
        patches, _ = backbone.encode_images(made_up_images())
    return patches, _made_up_labels(len(patches), classes, random).to(torch.int8)


def _probes(text: Tensor, classes: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return made-up patches ``[B, M, D]`` of unit length and labels int8 ``[B, C]``."""
    per_class = (
        text.reshape(-1, classes, text.shape[-1]).mean(0).cpu()
    )  # [C, D], over a method's variants
    labels = _made_up_labels(_PROBES, classes, random)
    shown = torch.multinomial(
        labels.float(), _PATCHES, replacement=True, generator=random
    )  # [B, M]
    noise = torch.randn(_PROBES, _PATCHES, per_class.shape[1], generator=random)
    noise = _NOISE * torch.nn.functional.normalize(noise, dim=-1)
    is_object = torch.rand(_PROBES, _PATCHES, 1, generator=random) < _OBJECT_SHARE
    patches = torch.where(is_object, per_class[shown], per_class.mean(0)) + noise
    patches = torch.nn.functional.normalize(patches, dim=-1).to(text.device)
    return patches, labels.to(torch.int8).to(text.device)


def _pixel_probes(
    shape: tuple[int, int], classes: int, random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the pixels of made-up images, patches of one colour with noise, and labels that mean nothing."""
    patches, values = shape
    colours = torch.randn(_PIXEL_PROBES, patches, 3, generator=random)
    pixels = colours.repeat_interleave(values // 3, dim=-1)
    pixels = pixels + _PIXEL_NOISE * torch.randn(pixels.shape, generator=random)
    return pixels, _made_up_labels(_PIXEL_PROBES, classes, random).to(torch.int8)


def _made_up_labels(count: int, classes: int, random: torch.Generator) -> Tensor:
    """Return bool ``[count, C]`` with at least one label a row."""
    labels = torch.rand(count, classes, generator=random) < _LABEL_SHARE
    labels[torch.arange(count), torch.randint(classes, (count,), generator=random)] = True
    return labels
