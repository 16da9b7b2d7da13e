"""A run's figures for TensorBoard: those of metrics.jsonl, read back with TensorBoard's own reader."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from fedmpt.audit.run import audit_run
from fedmpt.cli.tensorboard import TensorBoard
from fedmpt.config import load_config
from fedmpt.engine.listener import Preview, RoundRecord, Several
from fedmpt.engine.train import resume, train
from fedmpt.errors import UsageError
from tests.fedmpt.conftest import Invoke, Silence
from tests.fedmpt.test_resume import Watcher

SMALL = {
    "data.scenes.train_size": 160,
    "data.scenes.test_size": 30,
    "data.scenes.resolution": 32,
    "clients.count": 4,
    "train.rounds": 2,
    "device": "cpu",
}


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Return the scalars that TensorBoard would show: tag -> step -> value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, dict[int, float]] = defaultdict(dict)
    events = EventAccumulator(str(folder)).Reload()
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            assert event.step not in found[tag]
            found[tag][event.step] = event.value
    return found


def options(checkpoint: Path) -> list[str]:
    given = SMALL | {"backbone.name": f"local-dir:{checkpoint}"}
    return [part for key, value in given.items() for part in ("--set", f"{key}={value}")]


def test_the_scalars_are_the_lines_of_metrics(
    fedmpt: Invoke, shared_checkpoint: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = fedmpt("train", "--tensorboard", "--out", run, *options(shared_checkpoint))
    assert done.exit_code == 0, done.output
    found = scalars(run / "tensorboard")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for tag, key in (
        ("metrics/mAP", "mAP"),
        ("metrics/OF1", "OF1"),
        ("epsilon/largest", "epsilon_max"),
        ("aggregation/bytes_up_per_client", "bytes_up_per_client"),
    ):
        told = {line["round"]: line[key] for line in lines if line["round"] or "metrics" in tag}
        assert found[tag] == pytest.approx(told, rel=1e-5)
    assert set(found["clients/in_sum"]) == {1, 2}
    assert "train/loss" not in found  # it must not leave a client of a private run
    assert not [item for item in audit_run(run).manifest.items if item.kind == "unknown"]


def test_a_resumed_run_goes_on_in_the_same_chart_and_shows_every_round_once(
    shared_checkpoint: Path, shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDMPT_CACHE", str(shared_cache))
    run = tmp_path / "run"
    config = load_config(
        options=SMALL
        | {"backbone.name": f"local-dir:{shared_checkpoint}", "privacy.enabled": False}
    )
    with TensorBoard() as board, pytest.raises(KeyboardInterrupt):
        train(config, folder=run, listener=Several(board, Watcher(stop_after=1)))
    state = (run / "state.safetensors").read_bytes()
    with TensorBoard() as board:
        resume(run, listener=Several(Silence(), board))
    assert set(scalars(run / "tensorboard")["metrics/mAP"]) == {0, 1, 2}
    assert set(scalars(run / "tensorboard")["train/loss"]) == {1, 2}
    (run / "summary.json").unlink()  # round 2 once more, as if its commit had been lost
    (run / "state.safetensors").write_bytes(state)
    with TensorBoard() as board:
        resume(run, listener=board)
    assert set(scalars(run / "tensorboard")["metrics/mAP"]) == {0, 1, 2}


def test_without_the_package_the_run_is_refused_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, fedmpt: Invoke, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    done = fedmpt("train", "--tensorboard", "--out", tmp_path / "run")
    assert isinstance(done.exception, UsageError)
    assert "pip install 'fedmpt[tensorboard]'" in str(done.exception)
    assert not (tmp_path / "run").exists()


def test_a_round_that_is_told_again_with_its_metrics_shows_every_figure_once(
    tmp_path: Path, sample_record: RoundRecord, sample_preview: Preview
) -> None:
    with TensorBoard() as board:
        board.preview(replace(sample_preview, folder=str(tmp_path)))
        board.round_done(replace(sample_record, metrics=None, shared=None, by_client=()))
        board.round_done(sample_record)
    found = scalars(tmp_path / "tensorboard")
    assert sample_record.metrics is not None
    assert found["metrics/mAP"] == {3: pytest.approx(sample_record.metrics.mAP)}
    assert found["metrics/mAP_highest_client"] == {3: 60.0}
    assert found["clients/in_sum"] == {3: 2.0}


def test_a_run_that_never_says_where_it_is_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sample_record: RoundRecord
) -> None:
    monkeypatch.chdir(tmp_path)
    with TensorBoard() as board:
        board.warning("early")
        board.round_done(sample_record)
    assert list(tmp_path.iterdir()) == []
