"""The command line as a user meets it, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from fedmpt.cli.train import OPTIONS
from tests.fedmpt.conftest import Invoke

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
        ["sweep", "--help"],
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
        (["--dp-epsilon", "4", "--no-dp"], ["--no-dp", "--dp-epsilon", "exclude"]),
        (["--no-dp", "--dp-lifetime", "3"], ["--no-dp", "--dp-lifetime", "leave one of them out"]),
        (["--dp-unit", "client", "--set", "privacy.enabled=false"], ["--dp-unit", "exclude"]),
        (["--no-dp", "--ledger", "L"], ["--ledger L", "--no-dp", "leave --ledger out"]),
        (["--method", "nobody"], ["nobody", "fedmpt"]),
        (["--data", "nowhere"], ["nowhere", "scenes"]),
        (["--data", "table"], ["--data-root"]),
        (["--data", "table", "--data-root", "/nowhere"], ["/nowhere"]),
        (["--backbone", "nobody"], ["nobody", "tiny"]),
        (["--config", "/nowhere.toml"], ["/nowhere.toml"]),
        (["--set", "train.speed=1"], ["speed", "fedmpt config"]),
        (["--secagg", "magic"], ["magic", "masking"]),
        (["--resume", "/nowhere"], ["--resume", "--out"]),
        (["--baseline", "centralised", "--clients", "5"], ["clients.count", "leave that out"]),
        (["--baseline", "zero-shot", "--set", "method.name=coop"], ["method.name", "leave that"]),
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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["config.toml", "folder of a run"]),
        (["--rounds", "3"], ["leave --rounds out"]),
        (["--no-dp"], ["leave --no-dp out"]),
        (["--set", "seed=1"], ["leave --set out"]),
        (["--json"], ["config.toml"]),
    ],
)
def test_a_run_is_resumed_with_its_own_settings_or_not_at_all(
    tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    done = _fedmpt("train", "--resume", str(tmp_path), *arguments)
    assert done.returncode == 2, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_exits_with_130_and_says_how_to_go_on(
    tmp_path: Path, shared_checkpoint: Path, shared_cache: Path
) -> None:
    out = tmp_path / "run"
    command = (
        *("train", "--no-dp", "--out", str(out), "--backbone", f"local-dir:{shared_checkpoint}"),
        *SMALL,
        *("--rounds", "1000"),
    )
    code = (
        "import signal, sys; from fedmpt.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background\n"
        "sys.exit(main())"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, *command],
        env={**os.environ, "OMP_NUM_THREADS": "1", "FEDMPT_CACHE": str(shared_cache)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while process.poll() is None and not (out / "state.safetensors").exists():
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130, said
    assert f"fedmpt train --resume {out}" in said
    assert "Traceback" not in said


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
    last = done.stderr.splitlines()[-1]
    assert "3 required; round 1 needs at least 3 of its 4 clients" in last
    assert "smaller --dropout, more --clients" in last
    assert "--resume" not in done.stderr


@pytest.mark.parametrize("option", [name for name in OPTIONS if name.startswith("dp_")])
def test_no_option_of_privacy_goes_with_none(option: str, fedmpt: Invoke) -> None:
    value = {"dp_noise": "shares", "dp_unit": "client", "dp_arithmetic": "integer"}.get(option, "3")
    value = {"dp_space": "text", "dp_delta": "1e-6"}.get(option, value)
    name = f"--{option.replace('_', '-')}"
    for off in (["--no-dp"], ["--set", "privacy.enabled=false"]):
        done = fedmpt("train", *off, name, value)
        assert done.exit_code == 2
        assert f"{name} exclude each other" in done.output


def test_a_spent_budget_exits_with_3_and_a_target_beyond_accounting_with_2() -> None:
    from fedmpt.cli import _leaf_package_code
    from privacy import BudgetExhausted, CalibrationError

    spent = BudgetExhausted(limit="target", limit_epsilon=1, spent_epsilon=1, epsilon_after=2)
    assert _leaf_package_code(spent) == 3
    assert _leaf_package_code(CalibrationError("epsilon too large")) == 2
    assert _leaf_package_code(ValueError("a bug")) is None


@pytest.mark.slow
def test_a_sweep_runs_its_cells_and_writes_results_and_again_runs_nothing(
    tmp_path: Path, shared_checkpoint: Path, shared_cache: Path
) -> None:
    out = tmp_path / "sweep"
    small = {
        "data.scenes.train_size": 240,
        "data.scenes.test_size": 60,
        "data.scenes.resolution": 32,
        "clients.count": 4,
        "train.rounds": 2,
        "backbone.name": f"local-dir:{shared_checkpoint}",
    }
    fixed = [part for key, value in small.items() for part in ("--set", f"{key}={value}")]
    grid = ("--grid", "dp.epsilon=8,inf", "--baseline", "centralised", "--jobs", "2", "--json")
    first = _fedmpt("sweep", *grid, "--out", str(out), *fixed, cache=shared_cache)
    assert first.returncode == 0, first.stderr
    found = json.loads(first.stdout)
    assert found == json.loads((out / "results.json").read_text())
    (price,) = found["privacy"]["prices"]
    assert price["single"] == price["composition"] == pytest.approx(8.0, abs=0.01)
    assert found["privacy"]["open_runs"] == 2
    assert "3 cells, 0 finished before" in first.stderr
    assert "trained WITHOUT differential privacy" in first.stderr
    summaries = {path: path.stat().st_mtime_ns for path in out.glob("cells/*/summary.json")}
    assert len(summaries) == 3
    again = _fedmpt("sweep", *grid, "--out", str(out), *fixed, cache=shared_cache)
    assert again.stdout == first.stdout
    assert "3 cells, 3 finished before" in again.stderr
    assert summaries == {path: path.stat().st_mtime_ns for path in summaries}


def test_a_sweep_with_a_failing_cell_exits_with_1_and_names_its_log(tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    done = _fedmpt(
        *("sweep", "--grid", "rounds=1,2", "--set", "data.name=table", "--out", str(out)),
        cache=tmp_path / "cache",
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("FAILED with exit code 2") == 2
    assert "--data-root" in next(out.glob("logs/*.log")).read_text()
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--grid", "dp.epsilon=0"], ["dp.epsilon=0", "> 0"]),
        ([], ["nothing to sweep over", "--grid"]),
        (["--grid", "rounds=1", "--seeds", "0"], ["--seeds", "0"]),
        (["--grid", "rounds=1", "--jobs", "0"], ["--jobs 0"]),
        (["--grid", "rounds=1", "--reference", "rounds=2"], ["rounds=2", "rounds=1"]),
        (["--grid", "rounds=1,2", "--set", "train.rounds=3"], ["rounds", "the grid varies it"]),
        (["--grid", "rounds=1", "--set", "nothing"], ["--set nothing", "key=value"]),
        (["/nowhere.toml"], ["/nowhere.toml"]),
    ],
)
def test_a_sweep_that_cannot_be_run_exits_with_2_and_writes_nothing(
    tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    out = tmp_path / "sweep"
    done = _fedmpt("sweep", "--out", str(out), *arguments)
    assert done.returncode == 2, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()
