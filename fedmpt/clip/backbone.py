"""The one door to CLIP: a frozen backbone with patch tokens, through open_clip.

Nothing else in the project imports open_clip. A backbone is named as ``tiny`` (bundled), as an architecture of
open_clip with a pretrained tag or weights file (``ViT-B-16`` / ``openai``), or as ``local-dir:FOLDER``.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedmpt.clip._torchvision import ensure_torchvision
from fedmpt.clip.text import TextTower, normalise
from fedmpt.clip.vision import ImageTower
from fedmpt.errors import WeightsError

if TYPE_CHECKING:
    from PIL import Image

TINY = Path(__file__).parent / "tiny"


class Backbone:
    """A frozen CLIP: images to patch features, sentences to text features, prompts to text features.

    Attributes:
        name: how it was named, with its pretrained tag.
        fingerprint: SHA-256 of all weights and of the preprocessing; the key of cached features.
        logit_scale: CLIP's own multiplier of cosines, about 100.
        text: the text tower, for prompts.
        patches: number ``M`` of patch tokens of an image.
        grid: patches down and across.
        width: width ``D`` of the joint space.
    """

    def __init__(
        self,
        *,
        name: str,
        model: torch.nn.Module,
        transform: Callable[[Image.Image], Tensor],
        tokenizer: Callable[[list[str]], Tensor],
        device: torch.device,
    ) -> None:
        model.eval()
        model.requires_grad_(requires_grad=False)
        model.float().to(device)
        self._model: Any = model  # attributes of open_clip modules are untyped
        self._transform = transform
        self._tokenizer = tokenizer
        self.device = device
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
        self.width = int(visual.output_dim)

    @torch.no_grad()
    def encode_images(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """Encode images with the frozen image tower.

        Patch tokens pass the final LayerNorm and CLIP's projection, which was trained on normalised tokens.

        Args:
            images: B RGB images of any size.

        Returns:
            Patch features float32 ``[B, M, D]`` and global (class token) features float32 ``[B, D]``, all of unit
            length.
        """
        batch = torch.stack([self._transform(image) for image in images]).to(self.device)
        output = self._model.visual.forward_intermediates(
            batch, indices=1, normalize_intermediates=True, output_fmt="NLC"
        )
        tokens = output["image_intermediates"][
            -1
        ]  # [B, M, width of the tower], after the final LayerNorm
        projection = self._model.visual.proj
        patches = tokens if projection is None else tokens @ projection
        return normalise(patches), normalise(output["image_features"])

    @cached_property
    def image_tower(self) -> ImageTower:
        """The frozen image tower, block by block.

        Raises:
            WeightsError: it is not CLIP's own kind of tower.
        """
        return ImageTower(self._model.visual)

    def patch_pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the pixels of the images' patches after preprocessing: float32 ``[B, M, Q]``, on the CPU."""
        return self.image_tower.patchify(torch.stack([self._transform(image) for image in images]))

    def seen(self, image: Image.Image) -> Image.Image:
        """Return what the image tower sees of an RGB image: its crop at its resolution, under the grid of patches."""
        from PIL import Image

        steps: Any = self._transform
        scale = next(step for step in steps.transforms if hasattr(step, "std"))
        values = self._transform(image)  # [3, side, side]
        mean, std = (torch.tensor(part).reshape(-1, 1, 1) for part in (scale.mean, scale.std))
        pixels = ((values * std + mean).clamp(0, 1) * 255).round().to(torch.uint8)
        return Image.fromarray(pixels.permute(1, 2, 0).numpy())

    @torch.no_grad()
    def encode_sentences(self, sentences: Sequence[str]) -> Tensor:
        """Encode whole sentences with CLIP's own text encoder: float32 ``[n, D]`` of unit length."""
        tokens = self._tokenizer(list(sentences)).to(self.device)
        return normalise(self._model.encode_text(tokens))


def load_backbone(
    name: str = "tiny", *, pretrained: str | None = None, device: str = "cpu"
) -> Backbone:
    """Load a frozen CLIP by name.

    Args:
        name: ``tiny``, an architecture of open_clip such as ``ViT-B-16``, or ``local-dir:FOLDER``.
        pretrained: for an architecture: a tag of open_clip (``openai``) or the path of a weights file.
        device: ``cpu`` or ``cuda``.

    Raises:
        WeightsError: unknown name or tag, missing, truncated or ill-fitting weights, or a tower that has no patch
            tokens. The message names the remedy.
    """
    ensure_torchvision()
    import open_clip

    if name == "tiny":
        source, label = f"local-dir:{TINY}", "tiny"
    elif name.startswith("local-dir:"):
        source, label = name, name
        folder = Path(name.removeprefix("local-dir:"))
        if not (folder / "open_clip_config.json").is_file():
            raise WeightsError(
                f"--backbone {name}: no open_clip_config.json in that folder; give a folder in open_clip's format"
            )
    else:
        if name not in open_clip.list_models():
            raise WeightsError(
                f"--backbone {name}: unknown; use tiny, local-dir:FOLDER or an architecture of "
                "open_clip such as ViT-B-16"
            )
        if pretrained is None:
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "a weights file"
            raise WeightsError(
                f"--backbone {name} without --pretrained would have random weights; give one of: {tags}"
            )
        if (
            pretrained not in open_clip.list_pretrained_tags_by_model(name)
            and not Path(pretrained).is_file()
        ):
            raise WeightsError(
                f"--pretrained {pretrained}: neither a tag that open_clip knows for {name} nor a file"
            )
        source, label = name, f"{name}/{Path(pretrained).name}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # open_clip warns of architecture details that weights files decide
            model, _, transform = open_clip.create_model_and_transforms(
                source, pretrained=pretrained
            )
            tokenizer = open_clip.get_tokenizer(source)
    except (
        Exception
    ) as error:  # open_clip, safetensors, torch and the hub each raise their own kinds
        raise WeightsError(
            f"the weights of backbone {label} could not be loaded ({type(error).__name__}: {_first_line(error)}); "
            "the file may be truncated or of another architecture, or a download was not possible: fetch it again, "
            "or give a local file with --pretrained FILE"
        ) from error
    return Backbone(
        name=label,
        model=model,
        transform=transform,
        tokenizer=tokenizer,
        device=torch.device(device),
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:160]


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
