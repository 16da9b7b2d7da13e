"""The one door to CLIP: a frozen backbone with patch tokens, through open_clip.

Nothing else in the project imports open_clip. A backbone is named as ``tiny`` (bundled), as an architecture of
open_clip with a pretrained tag or weights file (``ViT-B-16`` / ``openai``), or as ``local-dir:FOLDER``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import torch
from torch import Tensor

from fedmpt.clip._torchvision import ensure_torchvision
from fedmpt.clip.text import TextTower, normalise
from fedmpt.clip.vision import ImageTower
from fedmpt.clip.weights import find_architecture, find_folder, load_model
from fedmpt.errors import UsageError, WeightsError

if TYPE_CHECKING:
    from PIL import Image

TINY = Path(__file__).parent / "tiny"
Precision: TypeAlias = Literal["float32", "float16", "bfloat16"]
_TYPES: Final[dict[Precision, torch.dtype]] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


class Backbone:
    """A frozen CLIP: images to patch features, sentences to text features, prompts to text features.

    Attributes:
        name: how it was named, with its pretrained tag.
        fingerprint: SHA-256 of all weights and of the preprocessing; the key of cached features.
        logit_scale: CLIP's own multiplier of cosines, about 100.
        text: the text tower, for prompts.
        patches: number ``M`` of patch tokens of an image.
        parameters: number of values in both towers.
        grid: patches down and across.
        preprocessing: size, mean, standard deviation, interpolation and resize mode, as open_clip names them.
        width: width ``D`` of the joint space.
        precision: in which the image tower computes; features are float32 whatever it is.
    """

    def __init__(
        self,
        *,
        name: str,
        model: torch.nn.Module,
        transform: Callable[[Image.Image], Tensor],
        tokenizer: Callable[[list[str]], Tensor],
        device: torch.device,
        precision: Precision = "float32",
    ) -> None:
        model.eval()
        model.requires_grad_(requires_grad=False)
        model.float().to(device)
        self._model: Any = model  # attributes of open_clip modules are untyped
        self._transform = transform
        self._tokenizer = tokenizer
        self.device = device
        self.precision = precision
        self.name = name
        self.fingerprint = _fingerprint(model, transform)
        log_scale: Any = model.logit_scale
        self.logit_scale = math.exp(float(log_scale))
        self.text = TextTower(model, tokenizer)
        visual: Any = self._model.visual
        if not all(hasattr(visual, part) for part in ("conv1", "ln_post", "transformer")):
            raise WeightsError(
                f"{name}: the image tower {type(visual).__name__} is not a vision transformer with patch tokens; "
                "choose a ViT backbone"
            )
        self.grid = (int(visual.grid_size[0]), int(visual.grid_size[1]))
        self.patches = self.grid[0] * self.grid[1]
        self.parameters = sum(value.numel() for value in model.parameters())
        self.preprocessing: dict[str, Any] = dict(getattr(visual, "preprocess_cfg", {}))
        self.width = int(visual.output_dim)

    def encode_images(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """Encode images with the frozen image tower.

        Args:
            images: B RGB images of any size.

        Returns:
            What `encode_pixels` does.
        """
        return self.encode_pixels(torch.stack([self.preprocess(image) for image in images]))

    def preprocess(self, image: Image.Image) -> Tensor:
        """Return an RGB image of any size as the tower takes it: float32 ``[3, height, width]``, on the CPU."""
        return self._transform(image)

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Encode preprocessed images with the frozen image tower.

        Patch tokens pass the final LayerNorm and CLIP's projection, which was trained on normalised tokens.

        Args:
            pixels: float32 ``[B, 3, height, width]``.

        Returns:
            Patch features float32 ``[B, M, D]`` and global (class token) features float32 ``[B, D]``, all of unit
            length.
        """
        with torch.autocast(
            self.device.type, _TYPES[self.precision], enabled=self.precision != "float32"
        ):
            output = self._model.visual.forward_intermediates(
                pixels.to(self.device), indices=1, normalize_intermediates=True, output_fmt="NLC"
            )
        # Out of the tower in half precision, on in single: lengths and projection are cheap.
        tokens = output["image_intermediates"][
            -1
        ].float()  # [B, M, width of the tower], after the final LayerNorm
        projection = self._model.visual.proj
        patches = tokens if projection is None else tokens @ projection
        return normalise(patches), normalise(output["image_features"].float())

    @cached_property
    def image_tower(self) -> ImageTower:
        """The frozen image tower, block by block.

        Raises:
            WeightsError: it is not CLIP's own kind of tower.
        """
        return ImageTower(self._model.visual)

    def patch_pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the pixels of the images' patches after preprocessing: float32 ``[B, M, Q]``, on the CPU."""
        return self.image_tower.patchify(torch.stack([self.preprocess(image) for image in images]))

    @torch.no_grad()
    def encode_sentences(self, sentences: Sequence[str]) -> Tensor:
        """Encode whole sentences with CLIP's own text encoder: float32 ``[n, D]`` of unit length."""
        tokens = self._tokenizer(list(sentences)).to(self.device)
        return normalise(self._model.encode_text(tokens))


def load_backbone(
    name: str = "tiny",
    *,
    pretrained: str | None = None,
    device: str = "cpu",
    precision: Precision | Literal["auto"] = "auto",
) -> Backbone:
    """Load a frozen CLIP by name.

    Args:
        name: ``tiny``, an architecture of open_clip such as ``ViT-B-16``, or ``local-dir:FOLDER``.
        pretrained: for an architecture: a tag of open_clip (``openai``), a weights file, or ``TAG=FILE`` for a file of
            that tag which was fetched by hand.
        device: ``cpu`` or ``cuda``.
        precision: in which the image tower computes; ``auto``: `automatic_precision`.

    Raises:
        WeightsError: unknown name or tag, missing, truncated or ill-fitting weights, or a tower that has no patch
            tokens. The message names the remedy.
    """
    ensure_torchvision()
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    if name == "tiny":
        source = find_folder(TINY, label=name)
    elif name.startswith("local-dir:"):
        source = find_folder(Path(name.removeprefix("local-dir:")), label=name)
    else:
        source = find_architecture(name, pretrained)
    model: Any = load_model(source)
    return Backbone(
        name=source.label,
        model=model,
        transform=image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False),
        tokenizer=open_clip.get_tokenizer(source.tokenizer),
        device=torch.device(device),
        precision=automatic_precision(device) if precision == "auto" else precision,
    )


def automatic_precision(device: str) -> Precision:
    """Return float16 on a GPU, where it is several times faster and what features are kept in; float32 elsewhere.

    bfloat16 has eight bits of mantissa and float16 eleven, so it is left to towers that overflow float16.
    """
    return "float16" if device == "cuda" else "float32"


def resolve_device(name: str) -> str:
    """Return ``cpu`` or ``cuda`` for ``auto|cpu|cuda``.

    Raises:
        UsageError: ``cuda`` where there is none.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no CUDA device; use --device cpu")
    return name


def _fingerprint(model: torch.nn.Module, transform: Callable[[Image.Image], Tensor]) -> str:
    """Return the SHA-256 of all weights in name order and of the preprocessing's description."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(
            value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    digest.update(repr(transform).encode())
    return digest.hexdigest()
