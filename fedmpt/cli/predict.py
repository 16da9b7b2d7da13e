"""``fedmpt predict``: labels of one's own images."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedmpt.cli.model_options import backbone_options, json_option, model_argument, open_model

if TYPE_CHECKING:
    from fedmpt.cli.prediction_output import Output
    from fedmpt.inference.model import TunedModel
    from fedmpt.inference.predict import Rule

UNREADABLE = 1  # exit code where an image could not be read


@click.command("predict")
@model_argument
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@json_option
@click.option(
    "--csv", "as_csv", is_flag=True, help="Print a line for each image, a column for each class."
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    help="Score above which a class is present.  [default: the bundle's own thresholds, else 0.5]",
)
@click.option(
    "--top-k", type=click.IntRange(min=1), help="Instead: the K classes with the highest scores."
)
@click.option(
    "--classes",
    help="Classes of your own: names between commas, or a file with a name a line.",
)
@click.option(
    "--maps",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for PNGs of where each predicted class was seen, under each condition (FedMPT).",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Images encoded at a time.",
)
@backbone_options
def command(
    *,
    model: Path,
    paths: tuple[Path, ...],
    as_json: bool,
    as_csv: bool,
    threshold: float | None,
    top_k: int | None,
    classes: str | None,
    maps: Path | None,
    batch_size: int,
    backbone: str | None,
    pretrained: str | None,
    local: Path | None,
    device: str,
) -> None:
    """Recognise classes in images with MODEL, a run folder or a bundle.

    PATHS are image files, or folders that are searched with all below them. The order of the output is that of the
    paths, folders by name. Exit code 0 if every image was read, 1 if some could not be; the others are done all the
    same.
    """
    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other")
    if threshold is not None and top_k is not None:
        raise click.UsageError("--threshold and --top-k exclude each other")

    from fedmpt.data.class_list import read_classes
    from fedmpt.inference.files import find_images
    from fedmpt.inference.predict import predict_files

    if model.is_file():
        raise click.UsageError(
            f"MODEL {model} is a file: give a run folder or a bundle first, then images"
        )
    found = find_images(paths)
    own = read_classes(classes) if classes is not None else None
    tuned = open_model(model, device=device, backbone=backbone, pretrained=pretrained, local=local)
    if own is not None:
        tuned = tuned.for_classes(own)
    if maps is not None:
        _require_maps(tuned, maps)
    rule = _rule(tuned, threshold, top_k)

    from fedmpt.cli.prediction_output import CSVOutput, JSONOutput, TableOutput, show_all

    if as_json:
        output: Output = JSONOutput(tuned, rule)
    else:
        output = CSVOutput(tuned) if as_csv else TableOutput(tuned, found.images)
    outcomes = predict_files(tuned, found.images, batch_size=batch_size, evidence=maps is not None)
    failed = show_all(output, outcomes, model=tuned, rule=rule, maps=maps)
    if found.passed_over:
        click.echo(f"{found.passed_over} other files in the folders passed over", err=True)
    if failed:
        click.echo(f"{failed} of {len(found.images)} images could not be read", err=True)
        sys.exit(UNREADABLE)


def _rule(tuned: TunedModel, threshold: float | None, top_k: int | None) -> Rule:
    from fedmpt.inference.predict import Rule

    if threshold is not None:
        return Rule(thresholds=(threshold,) * len(tuned.classes))
    return Rule(thresholds=tuned.thresholds, top_k=top_k)


def _require_maps(tuned: TunedModel, folder: Path) -> None:
    if not tuned.conditions:
        raise click.UsageError(
            f"--maps: region maps are FedMPT's; this model is of {tuned.method.name}"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.UsageError(f"--maps {folder}: cannot be created ({error.strerror})") from error
