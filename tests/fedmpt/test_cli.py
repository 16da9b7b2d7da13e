"""The command line as a user meets it, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

SMALL = (
    *("--set", "data.scenes.train_size=240", "--set", "data.scenes.test_size=60"),
    *("--set", "data.scenes.resolution=32", "--clients", "4", "--rounds", "2"),
)


def _fedmpt(*arguments: str, cache: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if cache is not None:
        environment["FEDMPT_CACHE"] = str(cache)
    code = "import sys; from fedmpt.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "--help"],
        ["audit", "--help"],
        ["report", "--help"],
        ["evaluate", "--help"],
        ["predict", "--help"],
        ["export", "--help"],
        ["doctor", "--help"],
        ["data", "--help"],
        ["data", "check", "--help"],
        ["config"],
    ],
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from fedmpt.cli import cli\n"
        f"cli.main({arguments!r}, standalone_mode=False)\n"
        "heavy = {'torch', 'numpy', 'open_clip', 'opacus', 'sklearn', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_config_prints_toml_with_every_section() -> None:
    done = _fedmpt("config")
    tree = tomllib.loads(done.stdout)
    assert {"data", "backbone", "clients", "method", "train", "privacy", "secagg"} <= set(tree)
    assert "# rounds is chosen by a rule" in done.stdout


def test_json_prints_one_object_on_standard_output(
    tmp_path: Path, shared_checkpoint: Path, shared_cache: Path
) -> None:
    out = tmp_path / "run"
    done = _fedmpt(
        *("train", "--json", "--out", str(out), "--backbone", f"local-dir:{shared_checkpoint}"),
        *SMALL,
        cache=shared_cache,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary == json.loads((out / "summary.json").read_text())
    assert "projected epsilon per client" in done.stderr
    assert "zero-shot" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dp-epsilon", "0"], ["epsilon", "0"]),
        (["--dp-epsilon", "-3"], ["epsilon"]),
        (["--dp-epsilon", "4", "--no-dp"], ["--no-dp", "exclude"]),
        (["--method", "nobody"], ["nobody", "fedmpt"]),
        (["--data", "nowhere"], ["nowhere", "scenes"]),
        (["--data", "table"], ["--data-root"]),
        (["--data", "table", "--data-root", "/nowhere"], ["/nowhere"]),
        (["--backbone", "nobody"], ["nobody", "tiny"]),
        (["--config", "/nowhere.toml"], ["/nowhere.toml"]),
        (["--set", "train.speed=1"], ["speed", "fedmpt config"]),
        (["--secagg", "magic"], ["magic", "masking"]),
    ],
)
def test_bad_input_exits_with_2_and_names_value_and_remedy(
    tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    out = tmp_path / "run"
    done = _fedmpt("train", "--out", str(out), *arguments, cache=tmp_path / "cache")
    assert done.returncode == 2, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()


def test_a_round_that_cannot_be_completed_exits_with_4(
    tmp_path: Path, shared_checkpoint: Path, shared_cache: Path
) -> None:
    done = _fedmpt(
        *("train", "--dropout", "0.95", "--out", str(tmp_path / "run")),
        *("--backbone", f"local-dir:{shared_checkpoint}"),
        *SMALL,
        cache=shared_cache,
    )
    assert done.returncode == 4, done.stderr
    assert "Traceback" not in done.stderr


def test_a_spent_budget_exits_with_3_and_a_target_beyond_accounting_with_2() -> None:
    from fedmpt.cli import _leaf_package_code
    from privacy import BudgetExhausted, CalibrationError

    spent = BudgetExhausted(limit="target", limit_epsilon=1, spent_epsilon=1, epsilon_after=2)
    assert _leaf_package_code(spent) == 3
    assert _leaf_package_code(CalibrationError("epsilon too large")) == 2
    assert _leaf_package_code(ValueError("a bug")) is None
