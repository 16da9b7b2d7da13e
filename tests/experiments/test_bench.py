from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from experiments.bench import BENCHMARKS

ROOT = Path(__file__).parents[2]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "experiments.bench", *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )


def test_help_lists_every_benchmark_and_each_has_a_module() -> None:
    done = bench("--help")
    assert done.returncode == 0
    assert {"prefix", "masking", "clients", "dp_step", "secagg_vs_flower"} <= set(BENCHMARKS)
    for name, text in BENCHMARKS.items():
        assert f"  {name} " in done.stdout
        assert text in done.stdout
        assert find_spec(f"experiments.bench.{name}") is not None


def test_unknown_benchmark_is_refused_before_any_runs() -> None:
    done = bench("prefix", "speed")
    assert done.returncode == 2
    assert done.stdout == ""
    assert f"unknown benchmark speed; choose from {', '.join(BENCHMARKS)}" in done.stderr
