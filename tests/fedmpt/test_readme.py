"""The README's commands for a tuned model, run as they are written."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from tests.fedmpt.trees import write_table

Invoke = Callable[..., Result]
README = Path(__file__).parents[2] / "README.md"
HEADING = "## Use the tuned model"


def _commands() -> list[list[str]]:
    section = README.read_text(encoding="utf-8").partition(HEADING)[2].partition("\n## ")[0]
    block = section.split("```")[1]
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    return [line for line in lines if line]


def test_every_command_of_the_section_runs(
    fedmpt: Invoke,
    private_run: Path,
    photos: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "first").symlink_to(private_run)
    write_table(photos[0].parent, ("forklift", "pallet"), photos)
    monkeypatch.chdir(tmp_path)
    commands = _commands()
    assert len(commands) == 7
    for program, *arguments in commands:
        assert program == "fedmpt"
        given, arrow, _ = " ".join(f"{a!r}" for a in arguments).partition(" '>'")
        done = fedmpt(*("photos" if a == "DIR" else a for a in shlex.split(given)))
        assert done.exit_code == 0, f"{arguments}: {done.output} {done.exception}"
        assert done.stdout or arrow
    assert (tmp_path / "model" / "card.json").is_file()
    assert list((tmp_path / "maps").glob("*.png"))
