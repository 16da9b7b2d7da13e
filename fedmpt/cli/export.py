"""``fedmpt export``: the tuned model of a run as a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from fedmpt.cli.model_options import backbone_options, json_option, open_model


@click.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder of the bundle to create."
)
@click.option(
    "--public-data",
    help="Data set to tune a threshold for each class on. It must be PUBLIC: thresholds are not protected.",
)
@click.option("--data-root", type=click.Path(), help="Folder of that data set.")
@click.option(
    "--split",
    type=click.Choice(["train", "test"]),
    default="train",
    show_default=True,
    help="Which of its images.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Settings of that data set (data.*); see `fedmpt config`.",
)
@json_option
@backbone_options
def command(
    *,
    run: Path,
    out: Path,
    public_data: str | None,
    data_root: str | None,
    split: str,
    settings: tuple[str, ...],
    as_json: bool,
    backbone: str | None,
    pretrained: str | None,
    local: Path | None,
    device: str,
) -> None:
    """Write the tuned model of the run folder RUN as a bundle: model.safetensors and card.json.

    `fedmpt predict` needs nothing else but the backbone. The card says what the model recognises, with which method
    and backbone, how well, and what its tuning spent of the clients' privacy.
    """
    if public_data is None and (data_root is not None or settings):
        raise click.UsageError("--data-root and --set belong to --public-data")
    if out.exists():
        raise click.UsageError(f"--out {out}: exists already; give another folder")

    from fedmpt.inference.export import export

    thresholds = None
    if public_data is not None:
        from fedmpt.cli.console import Console
        from fedmpt.cli.evaluate import data_config
        from fedmpt.engine.evaluation import tune_thresholds
        from fedmpt.engine.prepare import load_data

        tuned = open_model(
            run, device=device, backbone=backbone, pretrained=pretrained, local=local
        )
        config = data_config(
            run, tuned.card, data=public_data, data_root=data_root, settings=settings
        )
        console = Console()
        thresholds = tune_thresholds(
            tuned, load_data(config, console), split=split, progress=console
        )
    card = export(run, out, thresholds=thresholds)
    if as_json:
        from fedmpt.inference.card import card_text

        click.echo(card_text(card), nl=False)
        return
    values = sum(_size(shape) for shape in card.parameters.values())
    click.echo(
        f"{out}: {card.method.name}, {values:,} tuned values, {len(card.classes)} classes, "
        f"backbone {card.backbone.name}"
    )
    click.echo(f"privacy: {card.privacy.guarantee}")


def _size(shape: tuple[int, ...]) -> int:
    from math import prod

    return prod(shape)
