"""``fedmpt data``: what is in a data set, and who would hold what, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from fedmpt.config import Config, load_config

if TYPE_CHECKING:
    from fedmpt.data.summary import Summary

CHECK_SCHEMA: Final = "fedmpt.data-check/1"
PARTITION_SCHEMA: Final = "fedmpt.data-partition/1"

_OPTIONS: dict[str, str] = {  # option -> configuration key
    "data": "data.name",
    "data_root": "data.root",
    "protocol": "data.protocol",
    "strict": "data.strict",
    "seed": "seed",
    "partition": "clients.partition",
    "heterogeneity": "clients.heterogeneity",
    "clients": "clients.count",
    "backbone": "backbone.name",
    "pretrained": "backbone.pretrained",
    "device": "device",
}
F = TypeVar("F", bound=Callable[..., Any])


def _data_options(function: F) -> F:
    """Add the options that say which data is meant."""
    options = (
        click.option("--data", help="Data set.  [default: scenes]"),
        click.option("--data-root", type=click.Path(), help="Folder of a data set on disk."),
        click.option(
            "--protocol",
            type=click.Choice(["standard", "fzsl", "fgzsl"]),
            help="Zero-shot: tested on unseen classes, or on seen and unseen ones.",
        ),
        click.option(
            "--strict",
            is_flag=True,
            default=None,
            help="Refuse corrupt images instead of counting them.",
        ),
        click.option("--seed", type=int, help="Experiment seed (splits that have to be drawn)."),
        click.option(
            "--json", "as_json", is_flag=True, help="Print one JSON object on standard output."
        ),
        click.option(
            "--config",
            "config_file",
            type=click.Path(path_type=Path),
            help="TOML file of settings.",
        ),
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="KEY=VALUE",
            help="Any setting; see `fedmpt config`.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def _config(config_file: Path | None, settings: tuple[str, ...], given: dict[str, Any]) -> Config:
    options = {_OPTIONS[name]: value for name, value in given.items()}
    return load_config(file=config_file, settings=settings, options=options)


@click.group("data")
def command() -> None:
    """Look at a data set, and at the clients it would be spread over."""


@command.command("check")
@_data_options
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="File for the list of images that cannot be read: split, reason and path.",
)
def check(
    *,
    as_json: bool,
    out: Path | None,
    config_file: Path | None,
    settings: tuple[str, ...],
    **given: Any,
) -> None:
    """Say what a data set holds: images, classes, labels, what goes together, what is missing or damaged."""
    config = _config(config_file, settings, given)

    from fedmpt.cli.progress import ProgressBar
    from fedmpt.data.registry import load_dataset
    from fedmpt.data.summary import summarise

    bar = ProgressBar()
    dataset = load_dataset(
        config.data,
        seed=config.seed,
        unreadable_list=out,
        progress=lambda done, total: bar.progress("image files", done, total),
    )
    summary = summarise(dataset)
    if as_json:
        _print_json({"schema": CHECK_SCHEMA, **summary.as_dict(), "remarks": [*summary.remarks()]})
        return
    _show_summary(summary)
    unreadable = dataset.train.skipped + dataset.test.skipped
    if unreadable and out is None:
        click.echo("give --out FILE to have the images listed that cannot be read")
    elif unreadable:
        click.echo(f"the {unreadable} images that cannot be read are listed in {out}")


@command.command("partition")
@_data_options
@click.option(
    "--partition",
    type=click.Choice(["cluster", "label", "dirichlet", "iid", "site"]),
    help="Who holds what.  [default: cluster]",
)
@click.option(
    "--heterogeneity",
    type=float,
    help="Number of clients as a share of the classes.  [default: 0.6]",
)
@click.option("--clients", type=int, help="Number of clients.")
@click.option(
    "--backbone",
    help="CLIP whose features are clustered: tiny, an open_clip name, or local-dir:FOLDER.  [default: tiny]",
)
@click.option("--pretrained", help="Tag of open_clip or weights file for a named backbone.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]))
@click.option("--figure", type=click.Path(path_type=Path), help="SVG file to draw.")
def partition(
    *,
    as_json: bool,
    figure: Path | None,
    config_file: Path | None,
    settings: tuple[str, ...],
    **given: Any,
) -> None:
    """Show the clients that a run with the same settings would have: sizes and labels of each."""
    config = _config(config_file, settings, given)
    if figure is not None and figure.suffix.lower() != ".svg":
        raise click.UsageError(
            f"--figure {figure}: the figure is SVG; give a name that ends in .svg"
        )

    from fedmpt.cli.progress import ProgressBar
    from fedmpt.data.figure import partition_svg
    from fedmpt.engine.prepare import plan_clients

    dataset, parts = plan_clients(config, progress=ProgressBar())
    if figure is not None:
        title = f"{dataset.name}: {parts.method} partition, seed {config.seed}"
        _write_figure(figure, partition_svg(parts, dataset.classes, title=title))
    record = {
        "schema": PARTITION_SCHEMA,
        "data": dataset.name,
        "classes": list(dataset.classes),
        "method": parts.method,
        "seed": config.seed,
        "digest": parts.digest,
        **parts.description.as_dict(),
    }
    if as_json:
        _print_json(record)
    else:
        _show_clients(record)
        if figure is not None:
            click.echo(f"figure: {figure}")


def _write_figure(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.UsageError(
            f"--figure {path}: cannot be written ({error.strerror}); choose another file"
        ) from error


def _print_json(value: dict[str, Any]) -> None:
    import json

    click.echo(json.dumps(value, indent=2, allow_nan=False))


def _show_summary(summary: Summary) -> None:
    from rich.columns import Columns
    from rich.console import Console
    from rich.table import Table

    out = Console(highlight=False)
    classes = f"{len(summary.classes)} classes"
    if summary.source is not None:
        classes += f", tested on {len(summary.scored)} ({summary.source})"
    out.print(f"[bold]{summary.name}[/]: {classes}", soft_wrap=True)
    splits = Table()
    splits.add_column("")
    for name in ("training", "test"):
        splits.add_column(name, justify="right")
    parts = (summary.train, summary.test)
    splits.add_row("images", *(str(part.images) for part in parts))
    splits.add_row("without any label", *(str(part.without_label) for part in parts))
    splits.add_row("labels an image", *(f"{part.mean_labels:.2f}" for part in parts))
    splits.add_row("most labels", *(str(max(part.labels_per_image)) for part in parts))
    splits.add_row("classes without positives", *(str(len(part.never_positive)) for part in parts))
    for reason in dict.fromkeys(reason for part in parts for reason in part.left_out):
        splits.add_row(
            f"left out: {reason}", *(str(part.left_out.get(reason, 0)) for part in parts)
        )
    out.print(Columns([splits, _frequency_table(summary), _pair_table(summary)]))
    for remark in summary.remarks():
        out.print(f"note: {remark}", soft_wrap=True)


def _frequency_table(summary: Summary) -> Any:
    from rich.table import Table

    table = Table(title="classes of the training images", title_justify="left")
    for column in ("most frequent", "", "least frequent", ""):
        table.add_column(column, justify="left" if column else "right")
    ranked = sorted(summary.train.frequency.items(), key=lambda item: -item[1])
    rows = min(10, (len(ranked) + 1) // 2)
    for high, low in zip(ranked[:rows], ranked[: -rows - 1 : -1], strict=True):
        table.add_row(*(text for name, count in (high, low) for text in (name, str(count))))
    return table


def _pair_table(summary: Summary) -> Any:
    from rich.table import Table

    table = Table(title="what goes together", title_justify="left")
    for column in ("classes", "images", "correlation"):
        table.add_column(column, justify="left" if column == "classes" else "right")
    for pair in summary.pairs:
        table.add_row(f"{pair.first}, {pair.second}", str(pair.together), f"{pair.correlation:.2f}")
    return table


def _show_clients(record: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    out = Console(highlight=False)
    sizes = record["sizes"]
    out.print(
        f"[bold]{record['data']}[/]: {len(sizes)} clients of {min(sizes)} to {max(sizes)} images, "
        f"{record['method']} partition, seed {record['seed']}, digest {record['digest'][:16]}",
        soft_wrap=True,
    )
    if record["moved"]:
        out.print(f"{record['moved']} images were moved to clients that were too small")
    table = Table()
    for column in ("client", "images", "divergence"):
        table.add_column(column, justify="right")
    table.add_column("most frequent classes (share of its images)")
    for client, (size, counts, divergence) in enumerate(
        zip(sizes, record["label_counts"], record["divergence"], strict=True)
    ):
        ranked = sorted(zip(counts, record["classes"], strict=True), key=lambda item: -item[0])
        table.add_row(
            str(client),
            str(size),
            "-" if divergence is None else f"{divergence:.2f}",
            ", ".join(f"{name} {count / size:.0%}" for count, name in ranked[:4] if count),
        )
    out.print(table)
