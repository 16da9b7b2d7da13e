"""``fedmpt sweep``: a grid of runs, cell by cell, with what they say together and what they cost together."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Never

import click

from fedmpt.baselines import BASELINES
from fedmpt.cli.train import OPTIONS
from fedmpt.errors import UsageError

if TYPE_CHECKING:
    from fedmpt.sweep.grid import Grid


@click.command("sweep")
@click.argument("grid_file", required=False, type=click.Path(path_type=Path))
@click.option(
    "--grid",
    "axes",
    multiple=True,
    metavar="KEY=V,V,...",
    help="A setting and its values; `dp.epsilon=1,8,inf` (inf: no privacy), or any `train` option. Repeatable.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="KEY=V,V,...",
    help="Of the file's grid, only the cells with these values of a setting; others can follow in the same folder. "
    "Repeatable.",
)
@click.option("--seeds", type=int, help="Number of seeds of every cell.  [default: 1]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the sweep; the same call again goes on where it stopped.",
)
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any setting, of every cell."
)
@click.option(
    "--baseline",
    "baselines",
    multiple=True,
    type=click.Choice(list(BASELINES)),
    help="Also run this, without privacy, to compare with. Repeatable.",
)
@click.option(
    "--reference",
    help="Cell to compare others with, as `key=value key=value`; a part, as `method=fedmpt`: each with the cell that "
    "differs in this alone.  [default: without privacy, else the first]",
)
@click.option(
    "--jobs", type=int, help="Cells at a time, each of one thread.  [default: half of the cores]"
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
def command(
    *,
    grid_file: Path | None,
    axes: tuple[str, ...],
    only: tuple[str, ...],
    seeds: int | None,
    out: Path,
    settings: tuple[str, ...],
    baselines: tuple[str, ...],
    reference: str | None,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Run every combination of settings over several seeds; finished cells are never run twice.

    The grid comes from --grid or from a TOML file. Results: results.csv, results.json, table.md and curve.svg in --out;
    `fedmpt report` makes one page of them. A cell that was stopped is resumed.
    A cell that fails is reported, the others go on, and the exit code is 1.
    """
    grid = _grid(grid_file, axes, only, seeds, settings, baselines, reference)
    # Imported here: the help needs neither numpy nor rich.
    from fedmpt.cli.sweep_progress import SweepProgress
    from fedmpt.sweep.cells import cells_of
    from fedmpt.sweep.figure import curve_of
    from fedmpt.sweep.files import as_dict, write_results
    from fedmpt.sweep.results import gather, references_of
    from fedmpt.sweep.run import default_jobs, run_cells
    from fedmpt.sweep.table import price_lines, to_markdown

    cells = cells_of(grid)
    try:
        references_of(grid, cells)  # before hours of work, not after
    except UsageError:
        if not only or reference is not None:
            raise
        grid = replace(grid, reference=None)  # the file's is not of this part
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)  # the terminal was closed
    with SweepProgress() as progress:
        try:
            failures = run_cells(
                cells, out, jobs=default_jobs() if jobs is None else jobs, watcher=progress
            )
        except KeyboardInterrupt:
            progress.interrupted()
            raise click.Abort from None
        results = gather(grid, cells, failures, out)
        table = to_markdown(results)
        write_results(results, out, table=table, curve=curve_of(results))
    progress.tell(price_lines(results), folder=out)
    click.echo(f"to look at them: fedmpt report {out}", err=True)
    if as_json:
        click.echo(json.dumps(as_dict(results), indent=2))
    else:
        click.echo(table, nl=False)
    if failures:
        sys.exit(1)


def _interrupt(number: int, frame: object) -> Never:
    """Stop as Ctrl-C does, with every running cell."""
    raise KeyboardInterrupt


def _grid(
    file: Path | None,
    axes: tuple[str, ...],
    only: tuple[str, ...],
    seeds: int | None,
    settings: tuple[str, ...],
    baselines: tuple[str, ...],
    reference: str | None,
) -> Grid:
    """Return what is asked for; options add to a file's grid, or say otherwise than it."""
    from fedmpt.sweep.grid import (
        Block,
        Grid,
        parse_axis,
        parse_setting,
        read_grid,
        seed_list,
        slice_of,
    )

    given = Grid(blocks=(), seeds=(0,)) if file is None else read_grid(file, OPTIONS)
    fixed = tuple(parse_setting(text, OPTIONS) for text in settings)
    named = {one.key for one in fixed}
    blocks = given.blocks
    if axes:
        blocks = (Block(axes=tuple(parse_axis(text, OPTIONS) for text in axes)),)
    for varied in (axis for block in blocks for axis in block.axes):
        if varied.key in named:
            raise UsageError(f"--set {varied.name}: the grid varies it; leave one of the two out")
    whole = Grid(
        blocks=tuple(
            replace(
                block,
                fixed=tuple(one for one in block.fixed if one.key not in named),
                seeds=block.seeds if seeds is None else None,
            )
            for block in blocks
        ),
        seeds=given.seeds if seeds is None else seed_list(seeds, source="--seeds"),
        fixed=(*(one for one in given.fixed if one.key not in named), *fixed),
        baselines=baselines or given.baselines,
        reference=reference or given.reference,
    )
    return slice_of(whole, [parse_axis(text, OPTIONS) for text in only])
