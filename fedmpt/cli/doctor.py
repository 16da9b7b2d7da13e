"""``fedmpt doctor``: what works here."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import click

from fedmpt.cli.model_options import json_option
from fedmpt.config import load_config

if TYPE_CHECKING:
    from fedmpt.diagnosis import Line

SCHEMA: Final = "fedmpt.doctor/1"
_COLOURS: Final = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command("doctor")
@click.option("--backbone", help="CLIP to look at.  [default: tiny]")
@click.option("--pretrained", help="Its weights: a tag, a file, or TAG=FILE.")
@click.option("--data", help="Data set to look at.  [default: scenes]")
@click.option("--data-root", type=click.Path(), help="Its folder.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where you compute.")
@json_option
def command(
    *,
    backbone: str | None,
    pretrained: str | None,
    data: str | None,
    data_root: str | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Say what works on this machine and what does not: packages, device, backbone, data, cache.

    Every line is ok, warn (a part that you may not need is missing) or fail, with the remedy. Exit code 1 if any line
    is fail.
    """
    from fedmpt.diagnosis import diagnose

    config = load_config(
        options={
            "backbone.name": backbone,
            "backbone.pretrained": pretrained,
            "data.name": data,
            "data.root": data_root,
            "device": device,
        }
    )
    lines = []
    for line in diagnose(config):
        lines.append(line)
        if not as_json:
            _show(line)
    failed = any(line.state == "fail" for line in lines)
    if as_json:
        import json
        from dataclasses import asdict

        record = {"schema": SCHEMA, "ok": not failed, "lines": [asdict(line) for line in lines]}
        click.echo(json.dumps(record, indent=2))
    if failed:
        sys.exit(1)


def _show(line: Line) -> None:
    state = click.style(f"{line.state:<4}", fg=_COLOURS[line.state])
    click.echo(f"{state}  {line.name:<17} {line.text}")
    if line.remedy:
        click.echo(f"{'':<6}{'':<17} -> {line.remedy}")
