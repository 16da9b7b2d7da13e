"""``fedmpt data`` as a user meets it: what it prints, where, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from fedmpt.cli import main

REAL = Path(__file__).parents[3] / "shared" / "real"


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


class Cli:
    """Runs the command line in this process, with a cache of its own."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    def __call__(self, *arguments: str) -> Done:
        self._monkeypatch.setattr("sys.argv", ["fedmpt", *arguments])
        code: int | str | None = 0
        try:
            main()
        except SystemExit as error:
            code = error.code
        out, err = self._capsys.readouterr()
        return Done(int(code or 0), out, err)


@pytest.fixture
def fedmpt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Cli:
    monkeypatch.setenv("FEDMPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "100")
    return Cli(capsys, monkeypatch)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Sixty images of three classes; two files are missing and one is damaged."""
    root = tmp_path / "own"
    root.mkdir()
    rows = ["image,split,cat,dog,fork lift"]
    for i in range(60):
        Image.fromarray(np.full((8, 8, 3), i, dtype=np.uint8)).save(root / f"patient_{i}.png")
        rows.append(
            f"patient_{i}.png,{'test' if i % 3 == 0 else 'train'},{i % 2},{i % 2},{i // 30}"
        )
    (root / "labels.csv").write_text("\n".join(rows))
    for i in (4, 6):
        (root / f"patient_{i}.png").unlink()
    (root / "patient_7.png").write_bytes(b"damaged")
    return root


def test_check_shows_one_screen_and_lists_unreadable_files_only_where_asked(
    fedmpt: Cli, tmp_path: Path, table: Path
) -> None:
    done = fedmpt("data", "check", "--data", "table", "--data-root", str(table))
    assert done.returncode == 0, done.stderr
    for words in ("3 classes", "left out: missing", "left out: damaged", "cat, dog", "fork lift"):
        assert words in done.stdout
    assert "give --out FILE" in done.stdout
    assert len(done.stdout.splitlines()) < 50
    assert "patient_" not in done.stdout + done.stderr
    target = tmp_path / "unreadable.tsv"
    done = fedmpt(
        *("data", "check", "--data", "table", "--data-root", str(table), "--out", str(target))
    )
    assert "the 3 images that cannot be read are listed in" in done.stdout
    assert sorted(line.split("\t") for line in target.read_text().splitlines()) == [
        ["test", "missing", "patient_6.png"],
        ["training", "damaged", "patient_7.png"],
        ["training", "missing", "patient_4.png"],
    ]


def test_check_prints_one_json_object_with_every_count(
    fedmpt: Cli, tmp_path: Path, table: Path
) -> None:
    done = fedmpt(*("data", "check", "--data", "table", "--data-root", str(table), "--json"))
    value = json.loads(done.stdout)
    assert value["schema"] == "fedmpt.data-check/1"
    assert value["classes"] == ["cat", "dog", "fork lift"]
    assert (value["train"]["images"], value["test"]["images"]) == (38, 19)
    assert value["train"]["left_out"] == {"damaged": 1, "missing": 1}
    assert value["pairs"][0]["correlation"] == pytest.approx(1)


def test_check_in_strict_mode_exits_with_2(fedmpt: Cli, tmp_path: Path, table: Path) -> None:
    done = fedmpt(*("data", "check", "--data", "table", "--data-root", str(table), "--strict"))
    assert done.returncode == 2
    assert "3 of 60 images cannot be read (1 damaged, 2 missing)" in done.stderr


def test_partition_shows_clients_and_draws_them_without_a_backbone(
    fedmpt: Cli, tmp_path: Path, table: Path
) -> None:
    figure = tmp_path / "clients.svg"
    options = ("--data", "table", "--data-root", str(table), "--partition", "label")
    done = fedmpt(
        *("data", "partition", *options, "--clients", "3", "--seed", "2", "--figure", str(figure))
    )
    assert done.returncode == 0, done.stderr
    assert "3 clients of 10 to" in done.stdout
    assert "cat 100%" in done.stdout
    ElementTree.fromstring(figure.read_text())  # noqa: S314 - made two lines above
    done = fedmpt(*("data", "partition", *options, "--clients", "3", "--seed", "2", "--json"))
    value = json.loads(done.stdout)
    assert value["schema"] == "fedmpt.data-partition/1"
    assert sum(value["sizes"]) == 38
    assert np.array(value["label_counts"]).shape == (3, 3)


def test_partition_is_the_one_that_a_run_makes(
    fedmpt: Cli,
    tmp_path: Path,
    shared_checkpoint: Path,
    shared_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FEDMPT_CACHE", str(shared_cache))
    settings = (
        *("--backbone", f"local-dir:{shared_checkpoint}", "--clients", "4", "--seed", "3"),
        *("--set", "data.scenes.train_size=240", "--set", "data.scenes.test_size=60"),
        *("--set", "data.scenes.resolution=32"),
    )
    done = fedmpt("data", "partition", "--json", *settings)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    run = tmp_path / "run"
    done = fedmpt("train", "--no-dp", "--rounds", "1", *settings, "--out", str(run))
    assert done.returncode == 0, done.stderr
    kept = json.loads((run / "partition.json").read_text())
    assert {name: kept[name] for name in ("method", "digest", "sizes", "label_counts")} == {
        name: shown[name] for name in ("method", "digest", "sizes", "label_counts")
    }


def test_check_needs_no_torch(tmp_path: Path, table: Path) -> None:
    code = (
        "import sys; from fedmpt.cli import cli\n"
        f"cli.main(['data', 'check', '--data', 'table', '--data-root', {str(table)!r}], "
        "standalone_mode=False)\n"
        "sys.exit('imported torch' if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "FEDMPT_CACHE": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check", "--data", "nowhere"], ["nowhere", "table"]),
        (["check", "--data", "table"], ["--data-root DIR"]),
        (["partition", "--figure", "clients.png"], ["clients.png", ".svg"]),
        (["partition", "--partition", "magic"], ["magic", "cluster"]),
        (["check", "--set", "data.speed=1"], ["speed", "fedmpt config"]),
    ],
)
def test_bad_input_exits_with_2_and_names_value_and_remedy(
    fedmpt: Cli, arguments: list[str], words: list[str]
) -> None:
    done = fedmpt("data", *arguments)
    assert done.returncode == 2, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr


def test_infeasible_partition_names_what_would_do(fedmpt: Cli, tmp_path: Path, table: Path) -> None:
    done = fedmpt(
        *("data", "partition", "--data", "table", "--data-root", str(table), "--partition", "iid"),
        *("--clients", "5"),
    )
    assert done.returncode == 2
    assert "use --clients 3 or fewer" in done.stderr
    assert "clients.minimum_size=7" in done.stderr


@pytest.mark.real
def test_real_photographs_are_checked_and_spread_over_48_clients(fedmpt: Cli) -> None:
    photos = REAL / "photos"
    if not photos.is_dir():
        pytest.skip(f"{photos} is absent")
    options = ("--data", "coco", "--data-root", str(photos), "--json")
    check = json.loads(fedmpt("data", "check", *options).stdout)
    assert (check["train"]["images"], check["test"]["images"]) == (563, 254)
    assert check["in_both"] == 0
    assert check["train"]["never_positive"] == []
    assert check["test"]["never_positive"] == ["hair drier"]
    parts = json.loads(fedmpt("data", "partition", *options, "--partition", "label").stdout)
    assert len(parts["sizes"]) == 48
    assert min(parts["sizes"]) >= 10
