"""Running a grid: what is run when, what is kept, and what the results say. A stand-in takes the place of training."""

from __future__ import annotations

import csv
import json
import math
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from scipy import stats

from fedmpt.cli.train import OPTIONS
from fedmpt.errors import UsageError
from fedmpt.sweep.cells import Cell, cells_of
from fedmpt.sweep.curve import Level, Panel, Point, Series, privacy_utility_svg
from fedmpt.sweep.figure import curve_of
from fedmpt.sweep.files import as_csv, as_dict, read_results, write_results
from fedmpt.sweep.grid import Block, Grid, parse_axis
from fedmpt.sweep.price import sweep_prices
from fedmpt.sweep.results import SweepResults, gather
from fedmpt.sweep.run import Failure, run_cells
from fedmpt.sweep.statistics import estimate, paired, share
from fedmpt.sweep.table import price_lines, to_markdown
from privacy import (
    Arithmetic,
    Ledger,
    LedgerTerms,
    NoiseMode,
    PLDAccountant,
    PrivacyUnit,
    make_plan,
    read_ledger,
)
from privacy.grid import delta_of_plans

STAND_IN = """
import json, os, pathlib, sys, time, tomllib
settings, folder = map(pathlib.Path, sys.argv[1:3])
resumed = sys.argv[3] == "1"
config = tomllib.loads(settings.read_text())
with (settings.parents[1] / "started").open("a") as file:
    file.write(f"{'resumed' if resumed else 'new'} {os.environ['OMP_NUM_THREADS']} {folder.name}" + chr(10))
folder.mkdir(exist_ok=resumed)
if (settings.parents[1] / "charged").exists():
    (folder / "state.safetensors").touch()
(folder / "config.toml").write_text(settings.read_text())
if (settings.parents[1] / "slow").exists():
    time.sleep(60)
if (settings.parents[1] / "logs cleared").exists():
    for log in (settings.parents[1] / "logs").iterdir():
        log.unlink()
if (settings.parents[1] / "broken").exists() and config["privacy"]["epsilon"] == 1.0:
    sys.exit("fedmpt: the disk is on fire")
private, seed = config["privacy"]["enabled"], config["seed"]
utility = 50.0 + seed + (config["privacy"]["epsilon"] if private else 20.0 + seed * seed)
figures = {name: utility + i for i, name in enumerate(("mAP", "CF1", "OF1"))}
summary = {
    "schema": "fedmpt.summary/1", "final": figures, "zero_shot": dict.fromkeys(figures, 40.0), "seconds": 1.5,
    "privacy": {"clients": [{"epsilon": config["privacy"]["epsilon"] - 0.001}] if private else []},
}
if config["train"]["weighting"] == "none":
    summary["final_clients"] = {end: {n: v + off for n, v in figures.items()} for end, off in (("min", -3), ("max", 2))}
(folder / "summary.json").write_text(json.dumps(summary))
"""


class Heard:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.planned_finished = -1
        self.failures: list[Failure] = []

    def planned(self, *, cells: int, finished: int, jobs: int) -> None:
        del cells, jobs
        self.planned_finished = finished

    def started(self, cell: Cell) -> None:
        del cell

    def finished(self, cell: Cell, seconds: float) -> None:
        assert seconds >= 0
        del cell

    def failed(self, failure: Failure) -> None:
        self.failures.append(failure)


def stand_in(settings: Path, folder: Path, resumed: bool) -> list[str]:
    return [sys.executable, "-c", STAND_IN, str(settings), str(folder), str(int(resumed))]


def grid_of(*axes: str, seeds: int = 3) -> Grid:
    parsed = tuple(parse_axis(text, OPTIONS) for text in axes)
    return Grid(blocks=(Block(axes=parsed),), seeds=tuple(range(seeds)))


def run(grid: Grid, folder: Path, *, jobs: int = 2) -> tuple[Heard, list[Failure]]:
    heard = Heard()
    failures = run_cells(cells_of(grid), folder, jobs=jobs, watcher=heard, command=stand_in)
    return heard, failures


def processes(folder: Path) -> int:
    return len((folder / "started").read_text().splitlines())


def results_of(grid: Grid, folder: Path, failures: list[Failure]) -> SweepResults:
    return gather(grid, cells_of(grid), failures, folder)


def test_the_same_call_again_does_no_work_and_a_larger_grid_only_what_is_new(
    tmp_path: Path,
) -> None:
    heard, failures = run(grid_of("dp.epsilon=1,8", seeds=2), tmp_path)
    assert (heard.planned_finished, processes(tmp_path), failures) == (0, 4, [])
    heard, _ = run(grid_of("dp.epsilon=1,8", seeds=2), tmp_path)
    assert (heard.planned_finished, processes(tmp_path)) == (4, 4)
    run(grid_of("dp.epsilon=1,8,inf", seeds=2), tmp_path)
    assert processes(tmp_path) == 6


def test_a_failing_cell_is_reported_the_rest_goes_on_and_it_is_tried_again(tmp_path: Path) -> None:
    grid = grid_of("dp.epsilon=1,8", seeds=1)
    (tmp_path / "broken").touch()
    heard, failures = run(grid, tmp_path, jobs=1)
    assert heard.failures == failures
    (failure,) = failures
    assert failure.cell.condition.label == "dp.epsilon=1"
    assert (failure.exit_code, failure.reason) == (1, "fedmpt: the disk is on fire")
    assert "on fire" in failure.log.read_text()
    results = results_of(grid, tmp_path, failures)
    assert [len(outcome.rows) for outcome in results.outcomes] == [0, 1]
    assert "dp.epsilon=1, seed 0: exit code 1" in to_markdown(results)
    assert as_dict(results)["failed"][0]["reason"] == failure.reason
    assert len(list((tmp_path / "unfinished").iterdir())) == 1
    (tmp_path / "broken").unlink()
    _, failures = run(grid, tmp_path)
    assert failures == []
    assert processes(tmp_path) == 3
    assert len(list((tmp_path / "unfinished").iterdir())) == 1


def test_a_cell_that_fails_without_its_log_is_reported_and_the_rest_goes_on(tmp_path: Path) -> None:
    for mark in ("broken", "logs cleared"):
        (tmp_path / mark).touch()
    _, failures = run(grid_of("dp.epsilon=1,8", seeds=1), tmp_path, jobs=1)
    assert [one.cell.condition.label for one in failures] == ["dp.epsilon=1"]
    assert "its log cannot be read (No such file" in failures[0].reason
    assert processes(tmp_path) == 2


def test_an_interrupted_sweep_stops_its_cells_and_goes_on_later(tmp_path: Path) -> None:
    (tmp_path / "slow").touch()
    script = (
        "import test_sweep as t, pathlib, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background\n"
        "t.run(t.grid_of('dp.epsilon=1,8', seeds=1), pathlib.Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    process = subprocess.Popen(command, cwd=Path(__file__).parent, stderr=subprocess.PIPE)
    started = tmp_path / "started"
    deadline = time.monotonic() + 60
    while not (started.exists() and processes(tmp_path) == 2):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    with pytest.raises(UsageError, match="another sweep is at work"):
        run(grid_of("dp.epsilon=1", seeds=1), tmp_path)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert b"KeyboardInterrupt" in said
    (tmp_path / "slow").unlink()
    heard, failures = run(grid_of("dp.epsilon=1,8", seeds=1), tmp_path)  # not refused: none is left
    assert (heard.planned_finished, failures) == (0, [])
    assert processes(tmp_path) == 4


def test_a_cell_that_was_stopped_after_its_first_checkpoint_is_resumed(tmp_path: Path) -> None:
    grid = grid_of("dp.epsilon=1,8", seeds=1)
    for mark in ("broken", "charged"):
        (tmp_path / mark).touch()
    _, failures = run(grid, tmp_path, jobs=1)
    assert [failure.reason for failure in failures] == ["fedmpt: the disk is on fire"]
    (tmp_path / "broken").unlink()
    _, failures = run(grid, tmp_path, jobs=1)
    assert failures == []
    begun = [line.split()[0] for line in (tmp_path / "started").read_text().splitlines()]
    assert begun == ["new", "new", "resumed"]
    assert not list((tmp_path / "unfinished").iterdir())
    (stopped,) = (tmp_path / "logs").glob("dp.epsilon=1*")
    assert "on fire" in stopped.read_text()  # what was said before is kept


def test_each_cell_has_one_thread_unless_it_is_alone_and_asked_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def threads(folder: Path, *, jobs: int) -> set[str]:
        run(grid_of("dp.epsilon=1,8", seeds=1), tmp_path / folder, jobs=jobs)
        lines = (tmp_path / folder / "started").read_text().splitlines()
        return {line.split()[1] for line in lines}

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads(Path("a"), jobs=1) == {"1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads(Path("b"), jobs=1) == {"3"}
    assert threads(Path("c"), jobs=2) == {"1"}


def test_a_cell_that_another_grid_ran_is_not_run_again(tmp_path: Path) -> None:
    run(grid_of("dp.epsilon=8", seeds=1), tmp_path)
    wider = grid_of("dp.epsilon=8", "dp.noise=local,shares", seeds=1)
    heard, _ = run(wider, tmp_path)
    assert (heard.planned_finished, processes(tmp_path)) == (1, 2)
    rows = [row for outcome in results_of(wider, tmp_path, []).outcomes for row in outcome.rows]
    assert [(tmp_path / "cells" / row.name).is_dir() for row in rows] == [True, True]


def test_fiellers_interval_holds_the_ratios_that_a_paired_test_does_not_refuse() -> None:
    ours, theirs = [6.1, 5.2, 6.6, 5.0, 6.3], [9.9, 9.4, 10.3, 9.1, 10.4]
    found = share(dict(enumerate(ours)), dict(enumerate(theirs)) | {9: 1.0})
    assert found is not None
    assert found.value == pytest.approx(sum(ours) / sum(theirs))
    assert found.low is not None
    assert found.high is not None

    def doubt(ratio: float) -> float:
        rest = [a - ratio * b for a, b in zip(ours, theirs, strict=True)]
        return float(stats.ttest_1samp(rest, 0).pvalue)

    assert doubt(found.low) == pytest.approx(0.05)
    assert doubt(found.high) == pytest.approx(0.05)
    assert found.low < found.value < found.high


def test_one_seed_gives_a_share_without_an_interval() -> None:
    assert str(share({0: 3.0}, {0: 6.0})) == "50%"
    assert str(share({0: 3.0, 1: 3.1}, {0: 5, 1: 5.1})).endswith(")")


def test_there_is_no_share_of_nothing_nor_of_what_cannot_be_told_from_it() -> None:
    assert share({0: 1.0}, {1: 1.0}) is None
    assert share({0: 1.0}, {0: -1.0}) is None
    assert share({0: 3.0, 1: 3.1}, {0: 9.0, 1: -3.0}) is None


def test_the_share_of_the_gain_is_of_the_same_settings_without_privacy(tmp_path: Path) -> None:
    grid = grid_of("dp.epsilon=8,inf", "rounds=1,2", "dp.noise=local,shares", seeds=1)
    run(grid, tmp_path)
    results = results_of(grid, tmp_path, [])
    of = {one.condition.label: one.kept_of for one in results.outcomes}
    assert of["dp.epsilon=8 rounds=2 dp.noise=shares"] == "dp.epsilon=inf rounds=2"
    assert of["dp.epsilon=8 rounds=1 dp.noise=local"] == "dp.epsilon=inf rounds=1"
    assert of["dp.epsilon=inf rounds=1"] is None
    table = to_markdown(results)
    assert "| 60% |" in table  # 58 of 70, above 40
    assert "of that of the same settings without privacy" in table
    kept = as_dict(results)["conditions"][0]["gain_kept"]
    assert kept == {"of": of["dp.epsilon=8 rounds=1 dp.noise=local"], "value": 0.6} | dict.fromkeys(
        ("low", "high")
    ) | {"count": 1}


def test_where_every_client_has_its_own_model_the_lowest_and_the_highest_are_told(
    tmp_path: Path,
) -> None:
    grid = replace(grid_of("dp.epsilon=inf", seeds=2), baselines=("local-only",))
    run(grid, tmp_path)
    results = results_of(grid, tmp_path, [])
    assert (
        "local-only: a mean over clients' own models, whose mAP lies between 68.0 and 73.0"
        in to_markdown(results)
    )
    (alone,) = [one for one in as_dict(results)["conditions"] if one["baseline"] == "local-only"]
    assert alone["cells"][1]["clients"]["min"] == {"mAP": 69.0, "CF1": 70.0, "OF1": 71.0}
    write_results(results, tmp_path, table="", curve=None)
    assert read_results(tmp_path) == results


def test_without_a_run_without_privacy_there_is_no_share(tmp_path: Path) -> None:
    grid = grid_of("dp.epsilon=1,8", seeds=1)
    run(grid, tmp_path)
    assert "gain kept" not in to_markdown(results_of(grid, tmp_path, []))


def test_a_sweep_whose_folder_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        UsageError, match=r"--out .*file/sweep: cannot be written \(Not a directory"
    ):
        run(grid_of("rounds=1", seeds=1), tmp_path / "file" / "sweep")


def test_a_finished_cell_of_another_version_is_refused(tmp_path: Path) -> None:
    grid = grid_of("rounds=1", seeds=1)
    run(grid, tmp_path)
    (summary,) = tmp_path.glob("cells/*/summary.json")
    summary.write_text(summary.read_text().replace("summary/1", "summary/2"))
    with pytest.raises(UsageError, match=r"is of schema fedmpt.summary/2"):
        run(grid, tmp_path)


def test_estimates_and_differences_agree_with_scipy() -> None:
    ours, theirs = [51.0, 53.5, 52.2, 50.1], [50.0, 51.0, 53.0, 49.5]
    found = estimate(ours)
    low, high = stats.ttest_1samp(ours, 0).confidence_interval(0.95)
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx(
        (low, high)
    )
    difference = paired(dict(enumerate(ours)), dict(enumerate(theirs)) | {9: 1.0})
    assert difference is not None
    low, high = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    half = difference.estimate.half_width
    assert half is not None
    assert (difference.estimate.mean - half, difference.estimate.mean + half) == pytest.approx(
        (low, high)
    )
    assert list(difference.by_seed) == [0, 1, 2, 3]
    assert estimate([3.0]).half_width is None
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_results_hold_every_cell_and_compare_by_seed(tmp_path: Path) -> None:
    grid = grid_of("dp.epsilon=1,8,inf")
    _, failures = run(grid, tmp_path)
    results = results_of(grid, tmp_path, failures)
    table = to_markdown(results)
    write_results(results, tmp_path, table=table, curve=curve_of(results))
    rows = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    assert len(rows) == 9
    assert {row["dp.epsilon"] for row in rows} == {"1", "8", "inf"}
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept["schema"] == "fedmpt.sweep/1"
    assert kept["reference"] == "dp.epsilon=inf"
    by_label = {one["label"]: one for one in kept["conditions"]}
    assert by_label["dp.epsilon=8"]["final"]["mAP"]["mean"] == pytest.approx(59.0)
    assert by_label["dp.epsilon=8"]["against_reference"]["mAP"]["by_seed"] == {
        "0": -12.0,
        "1": -13.0,
        "2": -16.0,
    }
    assert by_label["dp.epsilon=inf"]["against_reference"] == {}
    half = float(stats.t.ppf(0.975, 2)) / math.sqrt(3)
    assert f"59.0 ± {half:.1f}" in table
    assert "0: -12.0, 1: -13.0, 2: -16.0" in table
    assert "3 run(s) trained WITHOUT differential privacy" in table
    assert as_csv(results) == (tmp_path / "results.csv").read_text()


def test_the_curve_has_a_panel_a_metric_the_reference_lines_and_every_error_bar(
    tmp_path: Path,
) -> None:
    grid = replace(grid_of("dp.epsilon=1,8,inf"), baselines=("centralised",))
    _, failures = run(grid, tmp_path)
    svg = curve_of(results_of(grid, tmp_path, failures))
    assert svg is not None
    space = "{http://www.w3.org/2000/svg}"
    root = ElementTree.fromstring(svg)  # noqa: S314 -- our own
    texts = [element.text for element in root.iter(f"{space}text")]
    assert {"mAP (%)", "CF1 (%)", "OF1 (%)", "zero-shot", "non-private"} <= set(texts)
    assert "centralised, non-private" in texts
    assert texts.count("epsilon (log scale)") == 3
    notes = [element.text for element in root.iter(f"{space}title")]
    assert "private, 95% interval, epsilon 8: 59.0 ± 2.5" in notes
    assert "zero-shot: 40.0" in notes


def test_there_is_no_curve_over_one_epsilon(tmp_path: Path) -> None:
    grid = grid_of("rounds=1,2", seeds=1)
    _, failures = run(grid, tmp_path)
    assert curve_of(results_of(grid, tmp_path, failures)) is None


def test_labels_are_escaped_in_the_curve() -> None:
    points = (Point(epsilon=1.0, mean=1.0, half_width=None),)
    series = Series(label='<a href="x">&', points=points)
    panel = Panel(metric="<m>", series=(series,), levels=(Level(label="<l>", value=2.0),))
    root = ElementTree.fromstring(privacy_utility_svg([panel], title="<t>"))  # noqa: S314
    assert {'<a href="x">&', "<m>", "<l>"} <= {e.text for e in root.iter() if e.text}


def charge(folder: Path, *, holding: str, rounds: int, **options: Any) -> float:
    """Write the ledger of a run with one client, and return what it spent."""
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text('[privacy]\nenabled = true\n[method]\nname = "fedmpt"\n')
    (folder / "ledger").mkdir()
    plan = make_plan(
        n_pub=500,
        target_epsilon=8.0,
        rounds=4,
        batch_size=100,
        max_grad_norm=1.0,
        **options,
    )
    terms = LedgerTerms(
        holding=holding,
        n_pub=plan.n_pub,
        delta=plan.delta,
        lifetime_epsilon=8.0,
        unit=plan.unit,
    )
    with Ledger(folder / "ledger" / "client-000.jsonl", terms=terms) as ledger:
        ledger.accept_plan("run", plan)
        for number in range(rounds):
            ledger.charge(run="run", round_index=number, plan=plan)
    return PLDAccountant().epsilon([plan.event(plan.steps_per_round * rounds)], plan.delta)


def test_the_price_is_the_composition_on_a_holding_with_what_unfinished_runs_spent(
    tmp_path: Path,
) -> None:
    single = charge(tmp_path / "cells" / "a", holding="scenes/client-000", rounds=4)
    part = charge(tmp_path / "unfinished" / "b.1", holding="scenes/client-000", rounds=2)
    charge(tmp_path / "cells" / "c", holding="scenes-dealt-anew/client-000", rounds=4)
    (price,) = sweep_prices(tmp_path, PLDAccountant())
    ledger = tmp_path / "cells" / "a" / "ledger" / "client-000.jsonl"
    event = read_ledger(ledger).charges[0].event
    delta = read_ledger(ledger).terms.delta
    both = PLDAccountant().epsilon([replace(event, steps=6 * event.steps)], delta)
    assert price.single == pytest.approx(single) == pytest.approx(8.0, abs=0.01)
    assert price.composition == pytest.approx(both, abs=1e-5)
    assert max(single, part) < price.composition < single + part
    assert (price.runs, price.holdings, price.runs_on_holding) == (3, 2, 2)
    everything = PLDAccountant().epsilon([replace(event, steps=10 * event.steps)], delta)
    assert price.any_image is not None
    assert everything < price.any_image < 1.15 * everything
    assert price.selection.keys() == {"geometric", "poisson"}
    assert min(price.selection.values()) > single


def test_words_about_the_price_put_the_composition_first_and_call_the_rest_hypothetical(
    tmp_path: Path,
) -> None:
    grid = grid_of("dp.epsilon=1,8", seeds=1)
    _, failures = run(grid, tmp_path)
    for name in ("a", "b"):
        charge(tmp_path / "cells" / name, holding="scenes/client-000", rounds=4)
    alone, composed, chosen, hypothetical = price_lines(results_of(grid, tmp_path, failures))
    assert alone.startswith("One run alone: epsilon 8.00")
    assert "Everything that left a client, 2 run(s) on one holding" in composed
    assert "The best cell costs epsilon" in chosen
    assert composed.split("epsilon ")[1].split(",")[0] in chosen
    assert hypothetical.startswith("HYPOTHETICAL, not this sweep")


def test_with_noise_of_integers_the_claims_delta_is_told_and_what_is_unproven_of_several_runs(
    tmp_path: Path,
) -> None:
    grid = grid_of("dp.epsilon=1,8", seeds=1)
    _, failures = run(grid, tmp_path)
    of_integers = {
        "arithmetic": Arithmetic.INTEGER,
        "released_values": 100,
        "delta": delta_of_plans(1e-5),
    }
    for name, options in (("a", {}), ("b", of_integers)):
        charge(tmp_path / "cells" / name, holding="scenes/client-000", rounds=4, **options)
        lines = price_lines(results_of(grid, tmp_path, failures))
        told = [line for line in lines if line.startswith("Noise of integers is counted as Gauss")]
        (price,) = sweep_prices(tmp_path, PLDAccountant())
        assert price.integer_noise == (len(told) == 1) == (options == of_integers)
        assert price.delta == 1e-5  # of both claims, though one ledger has a hundredth less
        assert "delta 1e-05" in lines[0]


def test_every_figure_holds_at_the_delta_that_is_told(tmp_path: Path) -> None:
    """The composition of runs with several deltas is one at the largest, whichever folder comes first."""
    deltas = {"a": 1e-9, "b": 1e-5, "c": 1e-7}
    for name, delta in deltas.items():
        charge(tmp_path / "cells" / name, holding="scenes/client-000", rounds=4, delta=delta)
    (price,) = sweep_prices(tmp_path, PLDAccountant())
    assert price.delta == 1e-5
    ledgers = [tmp_path / "cells" / name / "ledger" / "client-000.jsonl" for name in deltas]
    events = [event for path in ledgers for event in read_ledger(path).events()]
    together = PLDAccountant().epsilon(events, 1e-5)
    assert price.composition == pytest.approx(together, abs=1e-5)
    at_the_smallest = PLDAccountant().epsilon(events, 1e-9)
    assert price.composition < at_the_smallest
    assert price.single == pytest.approx(8.0, abs=0.01)


def test_a_client_as_the_unit_is_the_same_client_in_every_run(tmp_path: Path) -> None:
    """Seeds deal images out anew, and not clients."""
    spent = [
        charge(
            tmp_path / "cells" / name,
            holding=f"scenes-{name}/client-000",
            rounds=4,
            noise=NoiseMode.SHARES,
            arithmetic=Arithmetic.INTEGER,
            released_values=100,
            honest=2,
            steps_per_round=1,
            unit=PrivacyUnit.CLIENT,
        )
        for name in ("a", "b", "c")
    ]
    (price,) = sweep_prices(tmp_path, PLDAccountant())
    assert (price.holdings, price.runs_on_holding, price.any_image) == (1, 3, None)
    assert max(spent) + 2 < price.composition < sum(spent)
    grid = grid_of("dp.epsilon=1,8", seeds=1)
    _, failures = run(grid, tmp_path)
    charge(tmp_path / "cells" / "d", holding="scenes-a/client-000", rounds=4)
    lines = price_lines(results_of(grid, tmp_path, failures))
    assert "no figure here covers all runs together" in lines[-1]
    assert sum(line.startswith("One run alone") for line in lines) == 2
