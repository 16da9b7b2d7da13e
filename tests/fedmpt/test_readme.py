"""The README's commands for own images and for a tuned model, run as they are written."""

from __future__ import annotations

import csv
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image

from tests.fedmpt.trees import write_table

Invoke = Callable[..., Result]
README = Path(__file__).parents[2] / "README.md"
OWN_IMAGES = "## From your own images to predictions"
TUNED_MODEL = "## Use the tuned model"
IMAGES = 60


def _section(heading: str) -> str:
    return README.read_text(encoding="utf-8").partition(heading)[2].partition("\n## ")[0]


def _commands() -> list[list[str]]:
    block = _section(TUNED_MODEL).split("```")[1]
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    return [line for line in lines if line]


def _own_images(folder: Path) -> None:
    """Write what the section describes, with its own header and its own first line."""
    header, first = "image,cat,dog", "archive/0001.jpg,1,0"
    assert f"`{header}`" in _section(OWN_IMAGES)
    assert f"`{first}`" in _section(OWN_IMAGES)
    (folder / "archive").mkdir(parents=True)
    lines = [header]
    for number in range(1, IMAGES + 1):
        cat, dog = number % 2, int(number % 3 == 0)
        colour = (60 + 180 * cat, 60 + 180 * dog, 4 * number)
        Image.new("RGB", (48, 40), colour).save(folder / "archive" / f"{number:04d}.jpg")
        lines.append(f"archive/{number:04d}.jpg,{cat},{dog}")
    assert lines[1] == first
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.slow
def test_own_images_become_predictions_as_the_section_is_written(tmp_path: Path) -> None:
    section = _section(OWN_IMAGES)
    script = section.split("```")[1]
    assert len(section.strip().splitlines()) <= 12  # ten, and the fences
    _own_images(tmp_path / "photos")
    program = tmp_path / "bin" / "fedmpt"
    program.parent.mkdir()
    program.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c 'from fedmpt.cli import main; main()' \"$@\"\n"
    )
    program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(README.parent),
        "FEDMPT_CACHE": str(tmp_path / "cache"),
    }
    done = subprocess.run(
        ["/bin/sh", "-e", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with (tmp_path / "predicted.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == IMAGES
    assert {"cat", "dog"} <= set(rows[0])
    assert re.search(r"images\D+48\D+12\b", done.stdout)  # of `data check`: a fifth is for testing


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
