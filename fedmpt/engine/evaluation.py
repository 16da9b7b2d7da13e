"""A tuned model on a labelled split, beside the frozen CLIP on the same images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedmpt.data.dataset import Dataset, Split
from fedmpt.data.features import FeatureBank
from fedmpt.engine.prepare import Progress, feature_bank, input_bank
from fedmpt.errors import UsageError
from fedmpt.inference.card import ThresholdCard
from fedmpt.inference.model import TunedModel
from fedmpt.learner import predict
from fedmpt.methods.zero_shot import ZeroShot
from fedmpt.metrics import Labels, Metrics, evaluate, tuned_threshold

SCHEMA: Final = "fedmpt.evaluation/1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """How well a model does on a split.

    Attributes:
        data: name of the data set.
        split: ``train`` or ``test``.
        images: images scored.
        skipped: images left out because they could not be read.
        classes: classes scored.
        own_classes: whether they are others than the model was tuned on.
        tuned: the model's metrics, at a threshold of 0.5.
        at_own_thresholds: CF1 and OF1 at the thresholds that the model's card holds; None if it holds none.
        zero_shot: those of the frozen CLIP by pooled patches.
        zero_shot_class_token: those of the frozen CLIP by its class token.
    """

    data: str
    split: str
    images: int
    skipped: int
    classes: tuple[str, ...]
    own_classes: bool
    tuned: Metrics
    at_own_thresholds: dict[str, float] | None
    zero_shot: Metrics
    zero_shot_class_token: Metrics

    def as_dict(self) -> dict[str, Any]:
        """Return the evaluation as plain values that any JSON writer takes."""
        rows = (
            ("tuned", self.tuned),
            ("zero_shot", self.zero_shot),
            ("zero_shot_class_token", self.zero_shot_class_token),
        )
        return {
            "schema": SCHEMA,
            "data": self.data,
            "split": self.split,
            "images": self.images,
            "images_skipped": self.skipped,
            "own_classes": self.own_classes,
            "classes": list(self.classes),
            "at_own_thresholds": self.at_own_thresholds,
            **{
                name: metrics.as_dict() | {"AP": dict(zip(self.classes, metrics.AP, strict=True))}
                for name, metrics in rows
            },
        }


def evaluate_model(
    model: TunedModel, dataset: Dataset, *, split: str, progress: Progress
) -> Evaluation:
    """Score a split with the model and with the frozen CLIP, over the data set's own classes.

    The feature cache serves as in training, so a split that was seen there is not encoded again.

    Args:
        model: the tuned model.
        dataset: its classes are scored, whether the model was tuned on them or not.
        split: ``train`` or ``test``.
        progress: hears how far encoding is.

    Raises:
        UsageError: the method has no prompts for the data set's classes.
    """
    images = _split(dataset, split)
    classes = dataset.scored if split == "test" else dataset.classes
    scorer = model.for_classes(classes)
    bank, scores = _scores(scorer, images, split, progress)
    frozen = ZeroShot(model.backbone, classes, model.card.method.head)
    return Evaluation(
        data=dataset.name,
        split=split,
        images=len(images),
        skipped=images.skipped,
        classes=classes,
        own_classes=scorer is not model,
        tuned=evaluate(scores, images.labels),
        at_own_thresholds=_at_own_thresholds(scorer, scores, images.labels),
        zero_shot=evaluate(frozen.patch_scores(bank).cpu().numpy(), images.labels),
        zero_shot_class_token=evaluate(
            frozen.class_token_scores(bank).cpu().numpy(), images.labels
        ),
    )


def tune_thresholds(
    model: TunedModel, dataset: Dataset, *, split: str, progress: Progress
) -> ThresholdCard:
    """Choose the threshold of each class with the highest F1 on a split that its user declared public.

    A class without a positive there takes the one threshold that is best for all classes together.

    Raises:
        UsageError: the data set has other classes than the model.
    """
    if dataset.classes != model.classes or dataset.held_out is not None:
        raise UsageError(
            f"--public-data {dataset.name}: its classes are not those of the model, so no threshold can be tuned "
            "on it; use data with the same classes in the same order"
        )
    images = _split(dataset, split)
    _, scores = _scores(model, images, split, progress)
    common = tuned_threshold(scores, images.labels)
    values = [
        tuned_threshold(scores[:, [column]], images.labels[:, [column]])
        if (images.labels[:, column] == 1).any()
        else common
        for column in range(len(model.classes))
    ]
    return ThresholdCard(data=f"{dataset.name}, {split} split", images=len(images), values=values)


def _split(dataset: Dataset, name: str) -> Split:
    split = dataset.train if name == "train" else dataset.test
    if not len(split):
        raise UsageError(f"--split {name}: {dataset.name} has no images there")
    return split


def _scores(
    model: TunedModel, images: Split, split: str, progress: Progress
) -> tuple[FeatureBank, NDArray[np.float32]]:
    """Return the features of a split, and the model's scores ``[n, C]``."""
    bank = feature_bank(model.backbone, images, f"{split} features", progress)
    inputs = input_bank(
        model.backbone, model.method, images, f"{split} images", progress, features=bank
    )
    return bank, predict(model.method, model.parameters, inputs)


def _at_own_thresholds(
    model: TunedModel, scores: NDArray[np.float32], labels: Labels
) -> dict[str, float] | None:
    if model.card.thresholds is None or model.classes != model.card.classes:
        return None
    margins = scores - np.asarray(model.thresholds, dtype=np.float32)
    metrics = evaluate(margins, labels, threshold=0.0)
    return {"CF1": metrics.CF1, "OF1": metrics.OF1}
