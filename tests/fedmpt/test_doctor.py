"""The doctor: every line with a state, a remedy where something is wrong, and the exit code."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from fedmpt import diagnosis

Invoke = Callable[..., Result]


def _lines(result: Result) -> dict[str, dict[str, str]]:
    return {line["name"]: line for line in json.loads(result.stdout)["lines"]}


def test_a_sound_machine_gets_0_and_a_line_for_each_thing(fedmpt: Invoke) -> None:
    done = fedmpt("doctor", "--json", "--device", "cpu")
    assert done.exit_code == 0, done.output
    lines = _lines(done)
    assert {
        "python",
        "torch",
        "open_clip_torch",
        "device",
        "threads",
        "backbone",
        "data",
        "cache",
    } <= set(lines)
    assert all(line["state"] in ("ok", "warn") for line in lines.values())
    assert all(line["remedy"] for line in lines.values() if line["state"] != "ok")
    shown = fedmpt("doctor", "--device", "cpu").stdout
    assert all(name in shown for name in lines)


def test_what_is_wrong_fails_with_the_remedy_and_exit_code_1(
    fedmpt: Invoke, tmp_path: Path
) -> None:
    done = fedmpt(
        *("doctor", "--json", "--backbone", f"local-dir:{tmp_path}"),
        *("--data", "table", "--data-root", tmp_path / "nowhere"),
    )
    assert done.exit_code == 1
    lines = _lines(done)
    assert lines["backbone"]["state"] == lines["data"]["state"] == "fail"
    assert "open_clip_config.json" in lines["backbone"]["remedy"]
    assert "nowhere" in lines["data"]["remedy"]
    assert lines["cache"]["state"] == "ok"  # it goes on after a failure


def test_a_missing_old_or_broken_package_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"numpy": "1.26.4", "torch": "2.9.0"}

    def version(name: str) -> str:
        if name not in found:
            raise importlib.metadata.PackageNotFoundError(name)
        return found[name]

    def broken(module: str) -> str:
        return "OSError: no libgomp" if module == "torch" else ""

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(diagnosis, "_import_error", broken)
    missing = diagnosis._package("opacus", "opacus>=1.5.4", None)
    assert (missing.state, missing.text) == ("fail", "not installed")
    assert "opacus>=1.5.4" in missing.remedy
    optional = diagnosis._package("flwr", "flwr>=1.41", "bench")
    assert optional.state == "warn"
    assert "fedmpt[bench]" in optional.remedy
    old = diagnosis._package("numpy", "numpy>=2.0", None)
    assert (old.state, old.text) == ("fail", "1.26.4, too old")
    cannot = diagnosis._package("torch", "torch>=2.6", None)
    assert cannot.state == "fail"
    assert "libgomp" in cannot.text


def test_a_cache_that_cannot_be_written_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedmpt.config import Config

    monkeypatch.setenv("FEDMPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("os.access", lambda path, mode: False)
    (line,) = diagnosis._cache(Config())
    assert line.state == "fail"
    assert "FEDMPT_CACHE" in line.remedy


def test_cached_weights_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedmpt.config import Config

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda page, name: None)
    (line,) = diagnosis._published(Config())
    assert line.state == "warn"
    assert "openai=FILE" in line.remedy
    folder = tmp_path / ".cache" / "clip"
    folder.mkdir(parents=True)
    (folder / "ViT-B-16.pt").touch()
    (line,) = diagnosis._published(Config())
    assert line.state == "ok"
