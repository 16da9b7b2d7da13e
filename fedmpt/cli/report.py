"""``fedmpt report``: a finished run as one HTML file."""

from __future__ import annotations

from pathlib import Path

import click

from fedmpt.cli.audit import ledger_option


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path))
@ledger_option
@click.option(
    "--no-images", is_flag=True, help="Show no test images and no predictions of single images."
)
def command(*, run: Path, ledger: Path | None, no_images: bool) -> None:
    """Write report.html into the run folder RUN: one file that opens anywhere, offline.

    The first images of the test split are in it; on private data keep the file with the data, or give --no-images.
    """
    from fedmpt.cli.console import Console
    from fedmpt.report.write import Choices, write_report

    choices = Choices(ledgers=ledger, images=not no_images)
    click.echo(write_report(run, choices, progress=Console()))
