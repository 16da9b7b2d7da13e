"""Runs that evaluate only some of their rounds: what they keep, and that whoever reads them can."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedmpt.audit.run import audit_run
from fedmpt.engine import sites, train
from fedmpt.engine.listener import RoundRecord
from fedmpt.engine.loop import Loop
from fedmpt.report.source import read_source
from fedmpt.report.write import Choices, write_report
from privacy import Admission, Budget, BudgetExhausted, Charge
from tests.fedmpt.conftest import Silence

SmallRun = Callable[..., dict[str, Any]]
METRICS = {
    *("mAP", "CF1", "OF1", "CF1_mean", "CP", "CR", "OP", "OR", "CF1_top3", "OF1_top3"),
    *("CF1_top5", "OF1_top5", "threshold", "classes_scored", "classes_without_positives", "AP"),
    *("CF1_oracle_optimistic", "CF1_mean_oracle_optimistic", "OF1_oracle_optimistic"),
}
OPEN: dict[str, Any] = {"privacy__enabled": False, "train__rounds": 3}


@pytest.fixture(autouse=True)
def cache(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMPT_CACHE", str(shared_cache))


def _lines(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("seconds")
    return lines


def _evaluated(folder: Path) -> list[int]:
    return [line["round"] for line in _lines(folder) if "mAP" in line]


@pytest.fixture(scope="module")
def always(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "always"
    small_run(folder, **OPEN)
    return folder


@pytest.fixture(scope="module")
def sometimes(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "sometimes"
    small_run(folder, **OPEN, evaluation__every=2)
    return folder


def test_the_start_each_so_many_rounds_and_the_last_are_evaluated_and_the_run_is_the_same(
    always: Path, sometimes: Path
) -> None:
    assert _evaluated(sometimes) == [0, 2, 3]
    for name in ("model.safetensors", "partition.json", "protocol.json"):
        assert (sometimes / name).read_bytes() == (always / name).read_bytes()
    for line, other in zip(_lines(sometimes), _lines(always), strict=True):
        assert line == {name: other[name] for name in line}
        assert set(other) - set(line) == (set() if line["round"] != 1 else METRICS)
    summaries = [
        json.loads((folder / "summary.json").read_text()) for folder in (always, sometimes)
    ]
    for name in ("final", "final_AP", "final_top_k", "zero_shot", "rounds"):
        assert summaries[0][name] == summaries[1][name]


def test_a_run_with_rounds_that_were_not_evaluated_is_audited_and_reported(sometimes: Path) -> None:
    assert audit_run(sometimes).findings == ()
    source = read_source(sometimes)
    assert [line["round"] for line in source.evaluated] == [0, 2, 3]
    page = write_report(sometimes, Choices(images=False), progress=Silence()).read_text()
    rounds = page[page.index("metrics by round") :]
    rounds = rounds[: rounds.index("</table>")]
    assert rounds.count("<tr") == 1 + 4  # head and every round
    last = source.evaluated[-1]
    assert f"{last['mAP']:.1f}" in rounds


def test_a_resumed_run_evaluates_the_rounds_that_one_without_a_stop_does(
    small_run: SmallRun, sometimes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def power_cut(site: Any, number: int) -> None:
        keep(site, number)
        if number == 2:
            raise KeyboardInterrupt

    keep = sites.Site.keep
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(sites.Site, "keep", power_cut)
        with pytest.raises(KeyboardInterrupt):
            small_run(folder, **OPEN, evaluation__every=2)
    assert _evaluated(folder) == [0]
    assert [line["round"] for line in _lines(folder)] == [0, 1]
    train.resume(folder, listener=Silence())
    assert _lines(folder) == _lines(sometimes)


def test_a_run_that_ends_early_evaluates_the_round_it_ended_with(
    small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    charge = Budget.charge

    def admit_two_rounds(budget: Budget, round_index: int) -> tuple[Charge, Admission]:
        if round_index > 2:
            raise BudgetExhausted(
                limit="lifetime", limit_epsilon=1, spent_epsilon=0.9, epsilon_after=1.1
            )
        return charge(budget, round_index)

    heard: list[RoundRecord] = []
    monkeypatch.setattr(Budget, "charge", admit_two_rounds)
    monkeypatch.setattr(Silence, "round_done", lambda _, record: heard.append(record))
    folder = tmp_path / "run"
    summary = small_run(folder, train__rounds=9, evaluation__every=5)
    assert summary["rounds"] == 2
    assert _evaluated(folder) == [0, 2]
    assert summary["final"]["mAP"] == _lines(folder)[-1]["mAP"]
    assert [record.round for record in heard] == [0, 1, 2, 2]
    assert [record.metrics is None for record in heard] == [False, True, True, False]
    assert dict(heard[-1].seconds)["evaluate"] > 0
    assert audit_run(folder).findings == ()


def test_a_round_that_is_not_evaluated_costs_no_evaluation(
    small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    evaluate = Loop._evaluate

    def counting(loop: Loop) -> Any:
        calls.append(loop.state.round)
        return evaluate(loop)

    monkeypatch.setattr(Loop, "_evaluate", counting)
    small_run(tmp_path / "run", **OPEN | {"train__rounds": 5}, evaluation__every=2)
    assert calls == [2, 4, 5]
