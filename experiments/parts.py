"""What each condition of a tuned FedMPT says by itself, and what the gate makes of them.

``python -m experiments.parts RUN...`` prints, for each finished run, a table of its conditions on the test split: the
mAP of each one's prediction alone, how far its prompts lie apart by class, and the weight that the gate gives it; then
the mAP with the gate and with equal weights.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fedmpt.cli.progress import ProgressBar
from fedmpt.config import load_config
from fedmpt.engine.prepare import Progress, feature_bank, load_data
from fedmpt.errors import FedMPTError, UsageError
from fedmpt.inference.model import load_tuned
from fedmpt.methods.fedmpt import FedMPT
from fedmpt.metrics import evaluate

_BATCH = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class ConditionReport:
    """One condition of a tuned model.

    Attributes:
        name: its phrase.
        alone: mAP of its prediction alone, percent.
        spread: mean distance of its classes' text features from their mean; near 0 its prompts tell classes no longer
            apart.
        weight: of the gate, mean over images.
        weight_spread: standard deviation over images.
    """

    name: str
    alone: float
    spread: float
    weight: float
    weight_spread: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PartsReport:
    """A tuned FedMPT, taken apart.

    Attributes:
        conditions: in the model's order.
        gated: mAP of the model, percent.
        equal: mAP where every condition has the same weight.
    """

    conditions: tuple[ConditionReport, ...]
    gated: float
    equal: float


@torch.no_grad()
def take_apart(folder: Path, progress: Progress) -> PartsReport:
    """Measure the parts of a finished run on its test split.

    Raises:
        UsageError: it is no run of FedMPT, or cannot be read.
    """
    model = load_tuned(folder)
    method, parameters = model.method, model.parameters
    if not isinstance(method, FedMPT):
        raise UsageError(f"{folder}: a run of {method.name}; only FedMPT has conditions")
    dataset = load_data(load_config(file=folder / "config.toml"), progress)
    bank = feature_bank(model.backbone, dataset.test, "test features", progress)
    text = method.encode_text(parameters)
    scores, weights, mixed = [], [], []
    for rows in torch.split(torch.arange(len(dataset.test)), _BATCH):
        patches = torch.from_numpy(bank.patches(rows.numpy())).to(text.device)
        scores.append(method.conditional_scores(parameters, text, patches))
        weights.append(method.gate_weights(parameters, patches))
        mixed.append(method.score(parameters, text, patches))
    by_condition, weight = torch.cat(scores).cpu().numpy(), torch.cat(weights).cpu().numpy()
    labels = dataset.test.labels
    features = text.reshape(len(method.conditions), -1, text.shape[-1])
    spread = (features - features.mean(dim=1, keepdim=True)).norm(dim=-1).mean(dim=1)
    return PartsReport(
        conditions=tuple(
            ConditionReport(
                name=name,
                alone=evaluate(by_condition[:, index], labels).mAP,
                spread=float(spread[index]),
                weight=float(weight[:, index].mean()),
                weight_spread=float(weight[:, index].std()),
            )
            for index, name in enumerate(method.conditions)
        ),
        gated=evaluate(torch.cat(mixed).cpu().numpy(), labels).mAP,
        equal=evaluate(np.mean(by_condition, axis=1), labels).mAP,
    )


def to_markdown(name: str, report: PartsReport) -> str:
    """Return a run's parts as a table with a line below."""
    lines = [
        f"{name}\n",
        "| condition | mAP alone | spread of prompts | weight |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {one.name or '(none)'} | {one.alone:.1f} | {one.spread:.3f} | {one.weight:.3f} ± {one.weight_spread:.3f} |"
        for one in report.conditions
    ]
    return (
        "\n".join(lines)
        + f"\n\nmAP with the gate {report.gated:.2f}, with equal weights {report.equal:.2f}\n"
    )


def main(arguments: Sequence[str]) -> int:
    """Print the parts of each run."""
    if not arguments:
        print("usage: python -m experiments.parts RUN...", file=sys.stderr)
        return 2
    try:
        for folder in map(Path, arguments):
            print(to_markdown(folder.name, take_apart(folder, ProgressBar())))
    except FedMPTError as error:
        print(f"parts: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
