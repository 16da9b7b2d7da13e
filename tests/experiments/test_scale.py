"""The benchmark of training from disk runs as a whole on a small bank."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_stage_is_measured_and_the_bank_is_removed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "experiments.bench.scale", "--images", "800"],
        cwd=ROOT,
        env={"PATH": "", "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 6  # header, rule and stages
    assert all(float(cell.replace(",", "")) > 0 for row in rows[2:] for cell in row[1:])
    assert "A bank of 800 images, 154 MiB." in done.stdout
    # torch makes a folder of its own for compiled code
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith("torchinductor")]
