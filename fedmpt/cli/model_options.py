"""The options of commands that use a tuned model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from fedmpt.inference.model import TunedModel

Command = TypeVar("Command", bound=Callable[..., Any])


def model_argument(function: Command) -> Command:
    """Add the argument MODEL: a run folder or a bundle."""
    return click.argument("model", type=click.Path(path_type=Path))(function)


def backbone_options(function: Command) -> Command:
    """Add the options that say where the backbone is, and where to compute."""
    for option in reversed(
        (
            click.option(
                "--backbone",
                help="Where the model's CLIP is here, if not where the card says; its fingerprint must match.",
            ),
            click.option("--pretrained", help="Weights of that CLIP: a tag, a file, or TAG=FILE."),
            click.option(
                "--local",
                type=click.Path(path_type=Path),
                help="File of a client's own blocks, for methods where clients keep some.  [default: zeros]",
            ),
            click.option(
                "--device",
                type=click.Choice(["auto", "cpu", "cuda"]),
                default="auto",
                show_default=True,
                help="Where to compute.",
            ),
        )
    ):
        function = option(function)
    return function


def json_option(function: Command) -> Command:
    """Add ``--json``."""
    option = click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object on standard output."
    )
    return option(function)


def open_model(
    folder: Path, *, device: str, backbone: str | None, pretrained: str | None, local: Path | None
) -> TunedModel:
    """Load the tuned model of a run folder or a bundle, and say so if only its shared part is there."""
    from fedmpt.clip.backbone import resolve_device
    from fedmpt.inference.model import load_tuned

    model = load_tuned(
        folder, device=resolve_device(device), backbone=backbone, pretrained=pretrained, local=local
    )
    if model.method.local_blocks and local is None:
        click.echo(
            f"clients of {model.method.name} keep blocks of their own: this is the shared part alone, with zeros for "
            "them; give a client's file with --local",
            err=True,
        )
    return model
