"""Runs that are stopped: what is kept, how they go on, and that nothing charged is ever forgotten."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedmpt import runstore
from fedmpt.audit.run import audit_run
from fedmpt.engine import sites, train
from fedmpt.engine.listener import Preview, RoundRecord
from fedmpt.engine.loop import Loop
from fedmpt.errors import RunError, StorageError, UsageError
from fedmpt.runstore import RunStore
from fedmpt.types import Update
from privacy import Budget, Ledger, LedgerRolledBack, PLDAccountant, read_ledger

SmallRun = Callable[..., dict[str, Any]]
OPEN: dict[str, Any] = {"privacy__enabled": False, "train__rounds": 3}


class Watcher:
    """A listener that remembers, and that can stop the run after a round."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.rounds: list[int] = []
        self.warnings: list[str] = []

    def progress(self, label: str, done: int, total: int) -> None:
        del label, done, total

    def preview(self, preview: Preview) -> None:
        del preview

    def round_done(self, record: RoundRecord) -> None:
        self.rounds.append(record.round)
        if record.round == self.stop_after:
            raise KeyboardInterrupt

    def warning(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture(autouse=True)
def cache(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMPT_CACHE", str(shared_cache))


@pytest.fixture
def stopped(
    small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Makes a run that Ctrl-C stops in the middle of a round: once a client has trained."""

    def make(folder: Path = tmp_path / "stopped", *, in_round: int = 2, **options: Any) -> Path:
        def power_cut(site: Any, number: int) -> None:
            keep(site, number)
            if number == in_round and site.client == 1:
                raise KeyboardInterrupt

        keep = sites.Site.keep
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(sites.Site, "keep", power_cut)
            small_run(folder, **options)
        return folder

    return make


def _metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("seconds")
    return lines


def _model(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"secagg__mode": "ckks"},
        {"method__name": "fedpgp"},
        {"method__name": "fedawa", "secagg__dropout": 0.1, "clients__count": 5},
    ],
)
def test_without_privacy_a_run_that_was_stopped_ends_as_one_that_was_not_bit_for_bit(
    small_run: SmallRun, stopped: Callable[..., Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    whole = small_run(tmp_path / "whole", **OPEN, **options)
    folder = stopped(**OPEN, **options)
    assert [line["round"] for line in _metrics(folder)] == [0, 1]
    assert not (folder / "summary.json").exists()
    watcher = Watcher()
    summary = train.resume(folder, listener=watcher)
    assert watcher.rounds == [2, 3]
    assert _model(folder) == _model(tmp_path / "whole")
    assert _metrics(folder) == _metrics(tmp_path / "whole")
    assert summary["final"] == whole["final"]
    assert summary["zero_shot_class_token"] == whole["zero_shot_class_token"]
    audit = audit_run(folder)
    assert audit.findings == ()
    assert not [item for item in audit.manifest.items if item.kind == "unknown"]


def test_two_runs_without_privacy_give_the_same_model_and_another_seed_another(
    small_run: SmallRun, tmp_path: Path
) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        small_run(tmp_path / name, **OPEN, seed=seed)
    assert _model(tmp_path / "a") == _model(tmp_path / "b") != _model(tmp_path / "c")
