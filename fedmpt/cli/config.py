"""``fedmpt config``: the whole configuration tree with its defaults."""

from __future__ import annotations

import click

from fedmpt.config import Config, to_toml


@click.command("config")
def command() -> None:
    """Print every configuration key with its default, as TOML.

    Keys that are chosen by a rule when a run starts are shown by the run folder's config.toml.
    """
    click.echo(to_toml(Config()), nl=False)
