"""``fedmpt bench``: a table of the paper, measured beside what was printed.

How fast this program is, is another matter: ``python -m experiments.bench``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Never

import click

if TYPE_CHECKING:
    from fedmpt.tables.definition import TableDefinition


@click.command("bench")
@click.argument("table", required=False)
@click.option("--data", default="scenes", show_default=True, help="Data set.")
@click.option("--data-root", type=click.Path(), help="Folder of a data set on disk.")
@click.option(
    "--backbone",
    default="tiny",
    show_default=True,
    help="CLIP: tiny, an open_clip name, or local-dir:FOLDER.",
)
@click.option("--pretrained", help="Tag of open_clip or weights file for a named backbone.")
@click.option(
    "--preset",
    type=click.Choice(["paper", "native", "authors-code", "none"]),
    help="Training settings.  [default: paper on the paper's data sets, none (this project's rules) elsewhere]",
)
@click.option(
    "--seeds", type=int, help="Number of seeds of every cell.  [default: the table's, 3 or 20]"
)
@click.option(
    "--quick",
    is_flag=True,
    help="A slice that takes minutes on scenes: two rounds, few images, outer columns.",
)
@click.option(
    "--row", "rows", multiple=True, metavar="NAME", help="Only this row of the table. Repeatable."
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="NAME",
    help="Only this column of the table. Repeatable.",
)
@click.option(
    "--beside",
    metavar="NAME",
    help="Show the printed figures of another data set, to compare shapes.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the runs, which tables share; the same call goes on where it stopped.  [default: tables/DATA]",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any setting, of every run. Repeatable.",
)
@click.option(
    "--jobs", type=int, help="Runs at a time.  [default: half of the cores; --quick: all]"
)
@click.option("--estimate", "estimate_only", is_flag=True, help="Say what it would take, and stop.")
@click.option("--no-estimate", is_flag=True, help="Start at once.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
def command(
    *,
    table: str | None,
    data: str,
    data_root: str | None,
    backbone: str,
    pretrained: str | None,
    preset: str | None,
    seeds: int | None,
    quick: bool,
    rows: tuple[str, ...],
    columns: tuple[str, ...],
    beside: str | None,
    out: Path | None,
    settings: tuple[str, ...],
    jobs: int | None,
    estimate_only: bool,
    no_estimate: bool,
    as_json: bool,
) -> None:
    """Run TABLE of the paper and write it as Markdown, CSV and LaTeX beside the printed figures.

    TABLE is a name (without one, all are listed) or a TOML file. Every cell is a run of `fedmpt train`; finished runs
    are never run again, and tables in one folder share them. A run that fails is reported, the others go on, and the
    exit code is 1. Without privacy unless --set privacy.enabled=true: nothing printed was private.
    """
    # Imported here: the help needs neither numpy nor rich.
    from fedmpt.tables.definition import read_table, table_names

    if table is None:
        for name in table_names():
            click.echo(f"{name:<10} {_summary(read_table(name))}")
        return
    if estimate_only and no_estimate:
        raise click.UsageError("--estimate and --no-estimate exclude each other")
    from fedmpt.cli.sweep_progress import SweepProgress
    from fedmpt.sweep.run import default_jobs
    from fedmpt.tables.bench import probe_table, run_table
    from fedmpt.tables.compare import compare
    from fedmpt.tables.estimate import usable_cores
    from fedmpt.tables.plan import Request, plan_table
    from fedmpt.tables.render import to_records

    request = Request(
        data=data,
        data_root=data_root,
        backbone=backbone,
        pretrained=pretrained,
        preset=preset,
        seeds=seeds,
        settings=settings,
        quick=quick,
        rows=rows,
        columns=columns,
    )
    plan = plan_table(read_table(table), request)
    compare(plan, {}, beside=beside)  # what cannot be shown is refused before anything runs
    folder = out or Path("tables") / data
    at_once = jobs if jobs is not None else usable_cores() if quick else default_jobs()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)  # the terminal was closed
    with SweepProgress() as progress:
        try:
            if not no_estimate:
                estimate, _ = probe_table(plan, folder, jobs=at_once, watcher=progress)
                for line in estimate.lines(jobs=at_once):
                    click.echo(line, err=True)
            if estimate_only:
                return
            result = run_table(table, plan, folder, jobs=at_once, watcher=progress, beside=beside)
        except KeyboardInterrupt:
            progress.interrupted()
            raise click.Abort from None
    progress.tell([], folder=result.folder)
    if as_json:
        name = Path(table).stem
        report = {
            "schema": "fedmpt.table/1",
            "table": name,
            "facts": result.facts,
            "figures": to_records(result.comparison, table=name),
        }
        click.echo(json.dumps(report, indent=2))
    else:
        click.echo(result.markdown, nl=False)
    if result.failures:
        sys.exit(1)


def _summary(table: TableDefinition) -> str:
    from fedmpt.tables.published import read_published

    printed = "no printed figures"
    if table.published is not None:
        printed = f"printed for {', '.join(read_published(table.published).datasets)}"
    runs = len(table.rows) * (1 if table.kind == "convergence" else len(table.columns))
    return f"{table.title}; {runs} x {table.seeds} runs; {printed}"


def _interrupt(number: int, frame: object) -> Never:
    """Stop as Ctrl-C does, with every run."""
    raise KeyboardInterrupt
