"""The frozen CLIP with "a photo of a {class}.": what every method has to beat, logged as round 0."""

from __future__ import annotations

from torch import Tensor

from fedmpt.clip.backbone import Backbone
from fedmpt.methods.base import Parameters
from fedmpt.methods.losses import asymmetric_loss
from fedmpt.methods.pooling import centred_probabilities, pooled_similarity

TEMPLATE = "a photo of a {}."


class ZeroShot:
    """No tunable parameter: patch similarities to the hand-written prompt, pooled and centred."""

    name = "zero-shot"
    prompt_blocks: tuple[str, ...] = ()

    def __init__(self, backbone: Backbone, classes: tuple[str, ...]) -> None:
        self._backbone = backbone
        self.classes = classes
        self._text = backbone.encode_sentences([TEMPLATE.format(name) for name in classes])

    def initial_parameters(self, seed: int) -> Parameters:
        """Return nothing: there is nothing to tune."""
        del seed
        return {}

    def encode_text(self, parameters: Parameters) -> Tensor:
        """Return the frozen text features ``[C, D]``."""
        del parameters
        return self._text

    def score(self, parameters: Parameters, text: Tensor, patches: Tensor) -> Tensor:
        """Return pooled and centred probabilities ``[B, C]``."""
        del parameters
        similarity = pooled_similarity(patches, text)
        return centred_probabilities(similarity, scale=self._backbone.logit_scale)

    def global_scores(self, features: Tensor) -> Tensor:
        """Return probabilities ``[B, C]`` from class-token features ``[B, D]`` instead of patches."""
        return centred_probabilities(features @ self._text.T, scale=self._backbone.logit_scale)

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return the asymmetric loss of each example."""
        return asymmetric_loss(scores, labels)

    def for_classes(self, classes: tuple[str, ...]) -> ZeroShot:
        """Return zero-shot recognition of other classes."""
        return ZeroShot(self._backbone, classes)
