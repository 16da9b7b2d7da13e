"""FedMVP: image patches read descriptions of the classes, and what they gather enters the image tower as tokens.

Descriptions of classes go through frozen CLIP once; clients tune the network between them and the patches.

Dimensions: ``B`` images, ``M`` patches, ``C`` classes, ``A`` descriptions in all, ``D`` joint and ``V`` image width.

Source: FedMVP, ICCV 2025, section 3.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from fedmpt.config import FedMVPConfig
from fedmpt.errors import UsageError
from fedmpt.methods.attention import cross_block, fresh_cross_block, fresh_low_rank
from fedmpt.methods.base import Parameters
from fedmpt.methods.image_method import ImageMethod, pack, unpack
from fedmpt.methods.pooling import Head
from fedmpt.methods.prompts import fresh_linear, linear

_HEADS: Final = 4
_ADAPTERS: Final = ("query_adapter", "key_adapter", "value_adapter")
_OF_PLACE: Final = ("often on ", "often at ", "often in ", "used ")  # of what a thing is, not has
_BUNDLED: Final = Path(__file__).with_name("descriptors")  # NAME.json
BUNDLED_DESCRIPTORS: Final = frozenset(file.stem for file in _BUNDLED.glob("*.json"))
_CONSISTENCY: Final = 10 / 32  # ten times the mean over a batch of 32, as a weight of each example
_GENERAL: Final = (  # where no descriptions are given
    "a photo of a {}.",
    "a photo of a {}, seen as a whole.",
    "a photo of a {}, seen in part.",
    "a photo of a {} among other things.",
)


class FedMVP(ImageMethod[FedMVPConfig, Head]):
    """The published design, for one backbone and one list of classes.

    Blocks: the map ``context`` D -> V and those of a cross-attention block of width V; with ``switch_below``, also
    residuals of low rank of what attention takes in. An example that the block serves well already (its loss is below a
    share of frozen CLIP's) then tunes the residuals and leaves the block as it is. The original decides so for a client
    at a time, by its mean loss; for each example alone, it tells nothing of other examples.
    """

    name = "fedmvp"
    prompt_blocks = ("context_weight", "context_bias")

    def _set_up(self) -> None:
        settings, backbone = self._settings, self._backbone
        self._heads = settings.heads or _HEADS
        if self._tower.width % self._heads or backbone.patches % settings.image_tokens:
            raise UsageError(
                f"method.fedmvp: {self._heads} heads must divide the image tower's width {self._tower.width}, and "
                f"{settings.image_tokens} image_tokens its {backbone.patches} patches"
            )
        frozen = "" if settings.switch_below is None else ", features of patches"
        self.prepared_as = f"pixels, class token of the mirror image{frozen}"
        weight = settings.consistency_weight
        self._consistency = _CONSISTENCY if weight is None else weight
        self._encoded: Parameters | None = None  # see `constants`

    def constants(self) -> Parameters:
        """Return what is known of the classes: descriptions ``described`` ``[A, D]``, ``class_means`` ``[C, D]``.

        They are read and encoded when they are first asked for: a tuned model brings its own and needs no file.

        Raises:
            UsageError: as `descriptions`.
        """
        if self._encoded is None:
            sentences = descriptions(self.classes, self._settings.descriptors)
            encoded = self._backbone.encode_sentences([one for many in sentences for one in many])
            groups = torch.split(encoded, [len(many) for many in sentences])
            means = torch.stack([group.mean(dim=0) for group in groups])
            self._encoded = {"described": encoded, "class_means": means}
        return self._encoded

    def with_constants(self, constants: Parameters) -> FedMVP:
        """Return the same method with the descriptions that it was tuned with."""
        if not constants:
            return self
        other = self.for_classes(self.classes)
        other._encoded = dict(constants)
        return other

    def _initial(self, random: torch.Generator) -> Parameters:
        V, settings = self._tower.width, self._settings
        self.constants()  # what cannot be read is refused before anything runs
        values = {
            **fresh_linear(random, "context", self._backbone.width, V),
            **fresh_cross_block(random, V, V),
        }
        for name in _ADAPTERS if settings.switch_below is not None else ():
            values |= fresh_low_rank(random, name, V, settings.adapter_rank)
        return values

    def prepare_images(self, pixels: Tensor) -> Tensor:
        """Return pixels ``[B, M, Q]``, the mirror image's class token and, for the switch, features of patches."""
        pieces = [pixels, self._frozen_features(self._tower.mirror(pixels))[:, :1]]
        if self._settings.switch_below is not None:
            pieces.append(self._frozen_features(pixels)[:, 1:])
        return pack(*pieces)

    def encode_text(self, parameters: Parameters) -> Tensor:
        """Return the descriptions in the image tower's width: ``[A, V]``."""
        return linear(parameters, "context", self.constants()["described"])

    def score(self, parameters: Parameters, text: Tensor, patches: Tensor) -> Tensor:
        """Return probabilities ``[B, C]`` from prepared images."""
        pixels = patches[:, : self._backbone.patches, : self._tower.patch_values]
        return self._head(
            self.constants()["class_means"], self._prompted(parameters, text, pixels)[:, 1:]
        )

    def example_losses(
        self, parameters: Parameters, text: Tensor, patches: Tensor, labels: Tensor
    ) -> Tensor:
        """Return loss plus distance of the class token from frozen CLIP's on the mirror image: ``[B]``."""
        M, D = self._backbone.patches, self._backbone.width
        shapes = (self.pixel_shape, (1, D), (M, D))
        if self._settings.switch_below is None:
            pixels, target = unpack(patches, *shapes[:2])
            loss, distance = self._losses(parameters, text, pixels, labels, target[:, 0])
            return loss + distance
        pixels, target, frozen = unpack(patches, *shapes)
        adapters = {name for name in parameters if name.startswith(_ADAPTERS)}
        block = {n: v.detach() if n in adapters else v for n, v in parameters.items()}
        residuals = {n: v if n in adapters else v.detach() for n, v in parameters.items()}
        by_block, distance = self._losses(block, text, pixels, labels, target[:, 0])
        served = self._head(self.constants()["class_means"], frozen)
        well = by_block.detach() < self._settings.switch_below * self.loss(served, labels)
        by_residuals, far = self._losses(residuals, text.detach(), pixels, labels, target[:, 0])
        return torch.where(well, by_residuals + far, by_block + distance)

    def _losses(
        self, parameters: Parameters, text: Tensor, pixels: Tensor, labels: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return loss and weighted distance of the class token from ``target`` ``[B, D]``: each ``[B]``."""
        features = self._prompted(parameters, text, pixels)
        scores = self._head(self.constants()["class_means"], features[:, 1:])
        distance = 1 - (features[:, 0] * target).sum(dim=-1)
        return self.loss(scores, labels), self._consistency * distance

    def _frozen_features(self, pixels: Tensor) -> Tensor:
        """Return frozen CLIP's features of class token and patches: ``[B, 1 + M, D]``."""
        tower = self._tower
        return tower.features(tower.run(tower.enter(tower.embed(pixels))))

    def _prompted(self, parameters: Parameters, text: Tensor, pixels: Tensor) -> Tensor:
        """Return features of class token and patches with the visual prompt in place: ``[B, 1 + M, D]``."""
        tower = self._tower
        tokens = tower.embed(pixels)  # [B, 1 + M, V]
        read = cross_block(parameters, tokens[:, 1:], text, heads=self._heads, norm_values=False)
        groups = read.reshape(len(read), self._settings.image_tokens, -1, tower.width)
        prompted = tower.enter(torch.cat([tokens, groups.mean(dim=2)], dim=1))
        return tower.features(tower.run(prompted)[:, : tokens.shape[1]])


def descriptions(classes: tuple[str, ...], source: str | None) -> list[list[str]]:
    """Return the sentences that describe every class.

    Args:
        classes: class names.
        source: JSON file with an object from class to a list of descriptors ("whiskers", "often on a meadow"), or the
            name of a bundled one; None for a few general sentences.

    Raises:
        UsageError: the file cannot be read, or lacks descriptors of a class.
    """
    if source is None:
        return [[template.format(name) for template in _GENERAL] for name in classes]
    bundled = _BUNDLED / f"{source}.json"
    try:
        file = bundled if bundled.exists() else Path(source)
        given = json.loads(file.read_text(encoding="utf-8"))
        sentences = [[described(name, str(one)) for one in given[name]] for name in classes]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"method.fedmvp.descriptors={source}: {type(error).__name__} ({error}); give a JSON file with an object "
            f"from every class to a list of descriptors, or one of {sorted(BUNDLED_DESCRIPTORS)}"
        ) from error
    if not all(sentences):
        raise UsageError(f"method.fedmvp.descriptors={source}: a class has no descriptor")
    return sentences


def described(name: str, descriptor: str) -> str:
    """Return the sentence that says a descriptor of a class: "a photo of an aeroplane, which has two long wings."."""
    article = "an" if name[:1].lower() in tuple("aeiou") else "a"
    link = "which is" if descriptor.startswith(_OF_PLACE) else "which has"
    return f"a photo of {article} {name.replace('_', ' ')}, {link} {descriptor}."
