"""``fedmpt evaluate``: a tuned model on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedmpt.cli.model_options import backbone_options, json_option, model_argument, open_model

if TYPE_CHECKING:
    from fedmpt.config import Config
    from fedmpt.engine.evaluation import Evaluation
    from fedmpt.inference.card import Card


@click.command("evaluate")
@model_argument
@click.option(
    "--data", help="Data set.  [default: the one the run was tuned on; a bundle needs one]"
)
@click.option("--data-root", type=click.Path(), help="Folder of a data set on disk.")
@click.option(
    "--split",
    type=click.Choice(["train", "test"]),
    default="test",
    show_default=True,
    help="Which of its images.",
)
@json_option
@backbone_options
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Settings of the data set (data.*); see `fedmpt config`.",
)
def command(
    *,
    model: Path,
    data: str | None,
    data_root: str | None,
    split: str,
    as_json: bool,
    backbone: str | None,
    pretrained: str | None,
    local: Path | None,
    device: str,
    settings: tuple[str, ...],
) -> None:
    """Score MODEL, a run folder or a bundle, on a labelled data set, beside the frozen CLIP.

    The data set's own classes are scored, whether the model was tuned on them or not. --json adds the average
    precision of each class. A split that is drawn by a seed is the one of the run.
    """
    from fedmpt.cli.console import Console
    from fedmpt.engine.authors_code import compatibility_note
    from fedmpt.engine.evaluation import evaluate_model
    from fedmpt.engine.prepare import load_data

    tuned = open_model(model, device=device, backbone=backbone, pretrained=pretrained, local=local)
    config = data_config(model, tuned.card, data=data, data_root=data_root, settings=settings)
    console = Console()
    result = evaluate_model(tuned, load_data(config, console), split=split, progress=console)
    note = compatibility_note(config)
    if as_json:
        import json

        report = result.as_dict() | {"compatibility": note}
        click.echo(json.dumps(report, indent=2, allow_nan=False))
    else:
        _show(result)
        if note is not None:
            console.warning(note)


def data_config(
    folder: Path, card: Card, *, data: str | None, data_root: str | None, settings: tuple[str, ...]
) -> Config:
    """Return a configuration that names the data: the given set, or the one of the run in ``folder``."""
    from fedmpt.config import load_config

    options = {"data.name": data, "data.root": data_root, "seed": card.seed}
    file = None
    if data is None:
        file = folder / "config.toml"
        if not file.is_file():
            raise click.UsageError(
                f"{folder} is a bundle, which holds no data settings: give --data NAME"
            )
    return load_config(file=file, settings=settings, options=options)


def _show(result: Evaluation) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{result.data}, {result.split}: {result.images} images, {len(result.classes)} classes",
        title_justify="left",
    )
    for column in ("", "mAP", "CF1", "OF1"):
        table.add_column(column, justify="left" if not column else "right")
    for label, metrics in (
        ("zero-shot, pooled patches", result.zero_shot),
        ("zero-shot, class token", result.zero_shot_class_token),
        ("tuned", result.tuned),
    ):
        table.add_row(label, f"{metrics.mAP:.1f}", f"{metrics.CF1:.1f}", f"{metrics.OF1:.1f}")
    if result.at_own_thresholds is not None:
        at = result.at_own_thresholds
        table.add_row("tuned, own thresholds", "", f"{at['CF1']:.1f}", f"{at['OF1']:.1f}")
    out = Console(highlight=False)
    out.print(table)
    if result.own_classes:
        out.print("these are other classes than it was tuned on", soft_wrap=True)
    without = result.tuned.classes_without_positives
    if without:
        out.print(f"classes without a positive, left out of means: {without}")
    if result.skipped:
        out.print(f"images skipped because they could not be read: {result.skipped}")
