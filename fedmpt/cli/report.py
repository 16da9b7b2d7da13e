"""``fedmpt report``: a finished run, or a sweep, as one HTML file."""

from __future__ import annotations

from pathlib import Path

import click

from fedmpt.cli.audit import ledger_option


@click.command("report")
@click.argument("folder", metavar="RUN|SWEEP", type=click.Path(path_type=Path))
@ledger_option
@click.option(
    "--no-images", is_flag=True, help="Show no test images and no predictions of single images."
)
def command(*, folder: Path, ledger: Path | None, no_images: bool) -> None:
    """Write report.html into the folder of a run or of a sweep: one file that opens anywhere, offline.

    In a run's, the first images of the test split are shown; on private data keep the file with the data, or give
    --no-images. A sweep's links to its runs.
    """
    from fedmpt.cli.console import Console
    from fedmpt.report.write import Choices, write_report
    from fedmpt.sweep.files import RESULTS_FILE
    from fedmpt.sweep.page import write_sweep_report

    if (folder / RESULTS_FILE).is_file():
        if ledger is not None or no_images:
            raise click.UsageError(
                "--ledger and --no-images are for the report of a run; a sweep's shows neither"
            )
        click.echo(write_sweep_report(folder))
        return
    choices = Choices(ledgers=ledger, images=not no_images)
    click.echo(write_report(folder, choices, progress=Console()))
