"""Tables: which runs fill them, what is measured of these, and how it stands beside the printed figures.

Nothing is trained: finished runs are written, with figures that are sums which the tests make again.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from scipy import stats

from fedmpt.cli.train import OPTIONS
from fedmpt.errors import RunError, UsageError
from fedmpt.sweep.cells import Cell
from fedmpt.sweep.grid import configuration_key
from fedmpt.sweep.run import Failure
from fedmpt.tables.bench import BenchResult, probe_table, run_table, table_folder
from fedmpt.tables.compare import BEST_GAIN_ROW, compare
from fedmpt.tables.definition import TableDefinition, leaves, read_table, table_names
from fedmpt.tables.estimate import Estimate, estimate_table, probes
from fedmpt.tables.measure import OPTIMISTIC, measure
from fedmpt.tables.plan import Request, TablePlan, plan_table
from fedmpt.tables.published import read_published
from fedmpt.tables.significance import cliffs_delta, wilcoxon_p
from tests.fedmpt.test_sweep import Heard

Invoke = Callable[..., Result]

FAILING = "import sys; sys.exit('fedmpt: the disk is on fire')"


def failing(*arguments: object) -> list[str]:
    """Return a command in place of training: whatever was not finished before fails."""
    del arguments
    return [sys.executable, "-c", FAILING]


def finish(cell: Cell, folder: Path) -> None:
    """Write what a finished run leaves behind."""
    run, config = folder / "cells" / cell.name, cell.config
    if run.exists():
        return
    share = config.clients.participation
    value = utility(
        config.method.name, t=config.clients.heterogeneity, seed=config.seed, share=share
    )
    value -= 0 if config.method.fedmpt.use_gate else 3
    figures = {name: value + i for i, name in enumerate(("mAP", "CF1", "OF1"))}
    rounds = config.train.rounds or 20
    summary = {
        "schema": "fedmpt.summary/1",
        "final": figures,
        "final_oracle": {name: 90.0 + i for i, name in enumerate(OPTIMISTIC)},
        "parameters": 250_000,
        "backbone_parameters": 1_000_000,
        "rounds": rounds,
        "seconds": 30.0,
        "seconds_by_phase": {"train": 12.0, "secagg": 2.0, "evaluate": 4.0},
        "peak_memory_bytes": 10**9,
    }
    run.mkdir(parents=True)
    (run / "partition.json").write_text(json.dumps({"sizes": [100, 64, 30]}))
    (run / "config.toml").write_text("[train]\nbatch_size = 32\nlocal_epochs = 2\n")
    lines = [json.dumps({"round": r, "mAP": value - 40 / (1 + r)}) for r in range(rounds + 1)]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    (run / "summary.json").write_text(json.dumps(summary))


def utility(method: str, *, t: float = 0.6, seed: int = 0, share: float = 1.0) -> float:
    return 50 + len(method) + 10 * t + seed**2 + share


def planned(name: str, **request: Any) -> TablePlan:
    return plan_table(read_table(name), Request(**{"data": "scenes"} | request))


def bench(
    name: str, folder: Path, *, beside: str | None = None, broken: str = "", **request: Any
) -> BenchResult:
    plan = planned(name, **request)
    for cell in plan.cells:
        if cell.config.method.name not in broken.split():
            finish(cell, folder)
    return run_table(name, plan, folder, jobs=2, watcher=Heard(), beside=beside, command=failing)


def finished(folder: Path) -> int:
    return len(list((folder / "cells").iterdir()))


def rows_of(result: BenchResult) -> dict[tuple[str, str, str], dict[str, str]]:
    with (result.folder / "table.csv").open(newline="") as file:
        return {
            (line["row"], line["column"], line["metric"]): line for line in csv.DictReader(file)
        }


@pytest.mark.parametrize("name", table_names())
def test_every_installed_table_can_be_planned_on_every_kind_of_data(name: str) -> None:
    definition = read_table(name)
    for data, root in (("scenes", None), ("voc2007", "somewhere")):
        plan = planned(name, data=data, data_root=root)
        columns = 1 if definition.kind == "convergence" else len(definition.columns)
        assert len(plan.runs) == len(definition.rows) * columns * definition.seeds
        assert len(plan.cells) == len(plan.runs)
        for cell in plan.cells:
            assert not cell.config.privacy.enabled
            assert cell.config.data.name == data
            assert cell.config.train.preset == (None if data == "scenes" else "paper")


def test_tables_hold_no_setting_by_another_name_than_its_path() -> None:
    for name in table_names():
        table = read_table(name)
        for part in (*table.rows, *table.columns):
            for key in leaves(part.set) | leaves(table.set):
                assert configuration_key(key, OPTIONS) == key


def test_runs_have_the_settings_of_their_row_and_column() -> None:
    plan = planned("table6", seeds=1)
    cell = plan.runs["Fed-RAM", "participation=0.3", 0]
    assert cell.config.method.name == "ram"
    assert (cell.config.clients.participation, cell.config.clients.heterogeneity) == (0.3, 0.6)
    reduced = plan.runs["FedMVP", "participation=0.9", 0].config.method.fedmvp
    assert reduced.variant == "reduced"
    zero = planned("table7", seeds=1).runs["FedMPT", "", 0].config
    assert zero.data.protocol == "fzsl"


def test_tables_that_share_a_folder_share_runs(tmp_path: Path) -> None:
    bench("table13", tmp_path, seeds=1)
    assert finished(tmp_path) == 8
    bench("table12", tmp_path, seeds=1)  # 11 lists, of which one is the first order of table 13
    assert finished(tmp_path) == 8 + 11 - 1
    bench("table12", tmp_path, seeds=1)
    assert finished(tmp_path) == 18


def test_settings_by_hand_win_over_common_ones_and_not_over_what_is_varied(tmp_path: Path) -> None:
    plan = planned("table6", settings=("clients.heterogeneity=0.4", "train.rounds=3"), seeds=1)
    assert {cell.config.clients.heterogeneity for cell in plan.cells} == {0.4}
    for key in ("clients.participation=0.5", "method.name=coop", "seed=3"):
        with pytest.raises(UsageError, match="the table itself varies it"):
            planned("table6", settings=(key,))
    result = bench("figure7b", tmp_path, settings=("train.rounds=3",), seeds=1)
    assert result.folder.name.startswith("figure7b-changed-")
    assert "Settings changed by hand: train.rounds=3" in result.markdown


def test_figures_stand_beside_the_printed_ones_with_differences(tmp_path: Path) -> None:
    result = bench("table1", tmp_path, data="voc2007", data_root="x", seeds=2)
    found = rows_of(result)
    line = found["FedMPT", "t=60%", "mAP"]
    mean = (utility("fedmpt") + utility("fedmpt", seed=1)) / 2
    assert float(line["measured"]) == pytest.approx(mean, abs=1e-4)
    assert float(line["half_width"]) == pytest.approx(stats.t.ppf(0.975, 1) * 0.5, rel=1e-4)
    assert (line["published"], line["published_data"], line["seeds"]) == ("90", "voc2007", "2")
    assert float(line["difference"]) == pytest.approx(mean - 90.0, abs=1e-4)
    half = float(stats.t.ppf(0.975, 1)) * 0.5
    assert f"{mean:.1f} ± {half:.1f} (90.00, {mean - 90:+.1f})" in result.markdown
    average = found["FedPGP", "avg", "OF1"]
    by_hand = sum(utility("fedpgp", t=t) + 2.5 for t in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)) / 6
    assert float(average["measured"]) == pytest.approx(by_hand, abs=1e-3)
    assert float(average["published"]) == 72.30
    gain = found[BEST_GAIN_ROW, "t=100%", "CF1"]
    best = max(len(name) for name in ("dualcoop", "poscoop", "scpnet"))
    assert float(gain["measured"]) == pytest.approx(len("fedmpt") - best)
    assert float(gain["published"]) == 1.75
    assert all(
        line["published"] for (_, _, metric), line in found.items() if "oracle" not in metric
    )


def test_marked_figures_carry_their_note(tmp_path: Path) -> None:
    result = bench("table10", tmp_path, data="coco2014", data_root="x", seeds=1)
    assert "(50.72*," in result.markdown
    assert "- * Fed-RAM: the same three figures stand for both data sets" in result.markdown
    note = rows_of(result)["Fed-MaPLe", "", "CF1"]["note"]
    assert "42,56" in note
    assert rows_of(result)["Fed-MaPLe", "", "mAP"]["note"] == ""


def test_on_other_data_nothing_is_compared_and_beside_shows_the_shape_alone(tmp_path: Path) -> None:
    alone = bench("table3", tmp_path, seeds=1)
    assert "Nothing was published on scenes" in alone.markdown
    assert all(line["published"] == "" for line in rows_of(alone).values())
    beside = bench("table3", tmp_path, seeds=1, beside="mlrsnet")
    assert "[58.76]" in beside.markdown
    assert "the values cannot" in beside.markdown
    line = rows_of(beside)["FedMPT", "", "mAP"]
    assert (line["published_data"], line["difference"]) == ("mlrsnet", "")
    for data, other in (("scenes", "coco2014"), ("multiscene", "mlrsnet")):
        with pytest.raises(UsageError, match="--beside"):
            bench("table3", tmp_path, data=data, data_root="x", seeds=1, beside=other)
    with pytest.raises(UsageError, match="nothing was printed"):
        bench("figure5a", tmp_path, seeds=1, beside="voc2007")


def test_a_cell_that_was_not_published_says_so(tmp_path: Path) -> None:
    result = bench("table12", tmp_path, data="voc2007", data_root="x", seeds=1)
    (line,) = [one for one in result.markdown.splitlines() if "surface, habits |" in one]
    assert line.count("(not published)") == 3


def test_convergence_is_read_from_one_run_a_row(tmp_path: Path) -> None:
    result = bench("table8", tmp_path, data="voc2007", data_root="x", seeds=1)
    assert finished(tmp_path) == 4
    found = rows_of(result)
    line = found["Fed-RAM", "round=5", "mAP"]
    assert float(line["measured"]) == pytest.approx(utility("ram") - 40 / 6, abs=1e-4)
    assert float(line["published"]) == 77.5
    assert found["Fed-RAM", "round=30", "mAP"]["measured"] == ""  # 20 rounds were done
    elsewhere = bench("table8", tmp_path, seeds=1).comparison.columns
    assert elsewhere == ("round=1", "round=5", "round=10", "round=20")


def test_cost_counts_parameters_and_time_of_a_step(tmp_path: Path) -> None:
    found = rows_of(bench("table5", tmp_path, seeds=1))
    assert float(found["FedMPT", "", "total_parameters_M"]["measured"]) == 1.25
    assert float(found["FedMPT", "", "tunable_parameters_M"]["measured"]) == 0.25
    steps = 20 * 2 * (4 + 2 + 1)  # rounds, epochs, batches of clients with 100, 64 and 30 images
    assert float(found["FedMPT", "", "ms_per_iteration"]["measured"]) == pytest.approx(
        12_000 / steps, rel=1e-4
    )


def test_significance_is_over_paired_seeds(tmp_path: Path) -> None:
    result = bench("table9", tmp_path, data="voc2007", data_root="x")
    found = rows_of(result)
    assert finished(tmp_path) == 60
    squares = [seed**2 for seed in range(20)]
    mean = sum(squares) / 20
    spread = math.sqrt(sum((x - mean) ** 2 for x in squares) / 19)
    line = found["SD of FedMPT", "", "mAP"]
    assert float(line["measured"]) == pytest.approx(spread, rel=1e-4)
    assert float(line["published"]) == 0.27
    p = found["p-value against FedMPT without gate", "", "CF1"]
    assert float(p["measured"]) == pytest.approx(2**-19, rel=1e-4)  # 3 better in all of 20 pairs
    assert p["published"] == ""
    assert float(found["p-value", "", "CF1"]["published"]) == 1.907e-6
    delta = found["Cliff's delta against Fed-RAM", "", "OF1"]
    assert float(delta["measured"]) == pytest.approx(
        cliffs_delta([x + 6 for x in squares], [x + 3 for x in squares]), abs=1e-5
    )
    assert "against what" in result.markdown


def test_cliffs_delta_is_the_difference_of_two_shares() -> None:
    draw = random.Random(0)  # noqa: S311 -- no secret
    for _ in range(20):
        ours = [draw.randint(0, 6) for _ in range(draw.randint(1, 8))]
        theirs = [draw.randint(0, 6) for _ in range(draw.randint(1, 8))]
        pairs = list(itertools.product(ours, theirs))
        above = sum(1 for a, b in pairs if a > b) / len(pairs)
        below = sum(1 for a, b in pairs if a < b) / len(pairs)
        assert cliffs_delta(ours, theirs) == pytest.approx(above - below)
    assert cliffs_delta([2, 3], [1, 0]) == 1
    assert cliffs_delta([1.0] * 20, [*[0.0] * 19, 1.2]) == pytest.approx(0.9)


def signed_rank_p(differences: list[float]) -> float:
    """Return the p-value by trying every pattern of signs."""
    kept = [value for value in differences if value]
    ranks = stats.rankdata([abs(value) for value in kept])
    total = sum(r for r, value in zip(ranks, kept, strict=True) if value > 0)
    sums = [
        sum(r for r, sign in zip(ranks, signs, strict=True) if sign)
        for signs in itertools.product((False, True), repeat=len(kept))
    ]
    low = sum(s <= total for s in sums) / len(sums)
    high = sum(s >= total for s in sums) / len(sums)
    return min(1.0, 2 * min(low, high))


@pytest.mark.parametrize("largest", [3, 1000])
def test_the_signed_rank_test_is_exact_with_and_without_ties(largest: int) -> None:
    draw = random.Random(largest)  # noqa: S311 -- no secret
    for _ in range(12):
        ours = [draw.randint(-largest, largest) / 10 for _ in range(draw.randint(1, 9))]
        theirs = [0.0] * len(ours)
        if any(ours):
            assert wilcoxon_p(ours, theirs) == pytest.approx(signed_rank_p(ours))
    assert wilcoxon_p([1.0, 2.0], [1.0, 2.0]) is None
    assert wilcoxon_p([1.0] * 20, [0.0] * 20) == pytest.approx(2**-19)
    assert wilcoxon_p([1.0 + i for i in range(20)], [0.0] * 20) == pytest.approx(1.907e-6, rel=1e-3)
    with pytest.raises(ValueError, match="zip"):
        wilcoxon_p([1.0], [])


def test_the_authors_preset_is_labelled_and_takes_thresholds_from_the_test_set(
    tmp_path: Path,
) -> None:
    plain = bench("table3", tmp_path, data="mlrsnet", data_root="x", seeds=1)
    result = bench(
        "table3", tmp_path, data="mlrsnet", data_root="x", seeds=1, preset="authors-code"
    )
    assert result.folder != plain.folder
    assert "AUTHORS-CODE, NOT THE BENCHMARK" in result.markdown
    assert "fewer than 7 labels" in result.markdown
    assert "AUTHORS-CODE, NOT THE BENCHMARK" in (result.folder / "table.tex").read_text()
    found = rows_of(result)["FedMPT", "", "CF1"]
    assert float(found["measured"]) == 91.0  # the mean over classes, as that code computes CF1
    assert found["preset"] == "authors-code"
    assert "AUTHORS-CODE" not in plain.markdown
    assert float(rows_of(plain)["FedMPT", "", "CF1"]["measured"]) == utility("fedmpt") + 1


def test_a_quick_slice_is_small_and_says_that_it_is_one(tmp_path: Path) -> None:
    plan = planned("table1", quick=True)
    assert len(plan.cells) == 22
    config = plan.cells[0].config
    assert (config.train.rounds, config.data.scenes.train_size) == (2, 1500)
    result = bench("table1", tmp_path, quick=True)
    assert "QUICK SLICE" in result.markdown
    assert "avg" not in result.comparison.columns
    assert result.folder.name == "table1-quick"


def test_runs_that_fail_are_reported_and_their_cells_are_empty(tmp_path: Path) -> None:
    result = bench("table7", tmp_path, seeds=2, broken="scpnet ram")
    assert len(result.failures) == 4
    assert "INCOMPLETE: 4 of 22 runs failed" in result.markdown
    assert rows_of(result)["Fed-SCPNet", "", "mAP"]["measured"] == ""
    assert "| Fed-SCPNet | - | - | - |" in result.markdown


def probe(plan: TablePlan, folder: Path, *, broken: str = "") -> tuple[Estimate, list[Failure]]:
    for cell in probes(plan, folder):
        assert cell.config.train.rounds == 1
        if cell.config.method.name != broken:
            finish(cell, folder / "probes")
    return probe_table(plan, folder, jobs=2, watcher=Heard(), command=failing)


def test_an_estimate_is_made_of_one_round_of_each_method(tmp_path: Path) -> None:
    plan = planned("table6", seeds=1)
    found, failures = probe(plan, tmp_path)
    assert (finished(tmp_path / "probes"), failures) == (11, [])
    shares = (0.1, 0.3, 0.5, 0.7, 0.9)
    outside, evaluated = 30 - 18, 2
    expected = 11 * sum(outside + 3 * evaluated + 20 * 14 * share for share in shares)
    assert found.runs == 55
    assert found.seconds == pytest.approx(expected)
    assert found.peak_bytes == 10**9
    (line, *more) = replace(found, available_bytes=int(1.5e9)).lines(jobs=2)
    assert f"about {expected / 2 / 60:.0f} min with 2 at a time" in line
    assert more == ["MEMORY: 2 at a time may not fit; use --jobs 1"]
    bench("table6", tmp_path, seeds=1)
    found, _ = probe(plan, tmp_path)
    assert found.lines(jobs=2) == ["every run of this table is finished"]


def test_methods_that_cannot_run_are_found_by_the_probes(tmp_path: Path) -> None:
    found, failures = probe(planned("table7", seeds=1), tmp_path, broken="ram")
    assert [failure.cell.config.method.name for failure in failures] == ["ram"]
    assert found.unknown == ("ram",)
    assert "not probed, taken as the mean of the others that train on the same: ram" in found.lines(
        jobs=1
    )


def test_nothing_is_run_where_not_one_probe_can(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no method of this table can run here: fedmpt: the disk"):
        probe(planned("table4", seeds=1), tmp_path, broken="fedmpt")


def test_a_quick_slice_probes_one_method_on_features_and_one_on_pixels(tmp_path: Path) -> None:
    plan = planned("table7", quick=True)
    assert [cell.config.method.name for cell in probes(plan, tmp_path)] == ["dualcoop", "maple"]
    found, _ = probe(plan, tmp_path)
    assert finished(tmp_path / "probes") == 2
    assert (found.runs, len(found.unknown)) == (11, 9)
    assert found.seconds is not None


def test_what_was_not_probed_costs_as_much_as_its_kind(tmp_path: Path) -> None:
    plan = planned("table7", quick=True)
    features, pixels = probes(plan, tmp_path)
    finish(features, tmp_path / "probes")
    alone = estimate_table(plan, tmp_path, [features]).seconds
    finish(pixels, tmp_path / "probes")
    summary = tmp_path / "probes" / "cells" / pixels.name / "summary.json"
    slow = json.loads(summary.read_text()) | {"seconds": 1030.0}
    summary.write_text(json.dumps(slow))
    both = estimate_table(plan, tmp_path, [features, pixels]).seconds
    assert alone is not None
    assert both == pytest.approx(
        alone + 3 * 1000
    )  # eleven methods, three of them through the image tower


def test_rows_and_columns_can_be_chosen(tmp_path: Path) -> None:
    whole = planned("table1", seeds=1)
    part = planned("table1", seeds=1, rows=("FedMPT", "Fed-RAM"), columns=("t=60%",))
    assert list(part.runs) == [("Fed-RAM", "t=60%", 0), ("FedMPT", "t=60%", 0)]
    assert {cell.name for cell in part.cells} < {cell.name for cell in whole.cells}
    result = bench("table1", tmp_path, seeds=1, rows=("FedMPT",), columns=("t=60%",))
    assert result.folder.name.startswith("table1-part-")
    assert "Rows were chosen; the table has more." in result.markdown
    assert "Columns were chosen; the table has more." in result.markdown
    assert result.comparison.columns == ("t=60%",)


def test_tables_of_other_parts_or_settings_are_written_beside_each_other() -> None:
    requests: list[dict[str, Any]] = [
        {},
        {"rows": ("FedMPT",)},
        {"columns": ("t=60%",)},
        {"rows": ("FedMPT", "Fed-RAM")},
        {"settings": ("train.rounds=2",)},
        {"settings": ("train.rounds=3",)},
        {"rows": ("FedMPT",), "settings": ("train.rounds=3",)},
    ]
    names = [table_folder("table1", planned("table1", seeds=1, **one)) for one in requests]
    assert len(set(names)) == len(names)
    other_order = planned("table1", seeds=1, rows=("Fed-RAM", "FedMPT"))
    assert table_folder("table1", other_order) == names[3]


def test_rows_and_columns_that_a_table_lacks_are_refused() -> None:
    with pytest.raises(UsageError, match=r"--row 'RAM': .* it has 'Fed-DualCoOp'"):
        planned("table1", rows=("RAM",))
    with pytest.raises(UsageError, match=r"--column 't=5%'"):
        planned("table1", columns=("t=5%",))
    with pytest.raises(UsageError, match="name two or more"):
        planned("table9", rows=(read_table("table9").rows[0].name,))


def test_latex_escapes_what_latex_reads(tmp_path: Path) -> None:
    text = bench("table1", tmp_path, data="voc2007", data_root="x", seeds=2).folder / "table.tex"
    body = [line for line in text.read_text().splitlines() if not line.startswith("%")]
    assert r"t=10\%" in "\n".join(body)
    assert r"$\pm$" in "\n".join(body)
    assert "±" not in "\n".join(body)
    tabulars = "\n".join(body).split(r"\begin{tabular}")[1:]
    assert len(tabulars) == 3
    for tabular in tabulars:
        width = tabular.partition("}")[0].count("r") + 1
        lines = [line for line in tabular.splitlines() if line.endswith(r"\\") and "&" in line]
        assert len(lines) == 13
        assert {line.replace(r"\&", "").count("&") + 1 for line in lines} == {width}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("title = 't'\nrows = []", "rows must be one or more"),
        ("title = 't'\nrows = [{name='a'}, {name='a'}]", "a name of its own"),
        ("title = 't'\nrows = [{name='a'}]\nspeed = 1", "not a table"),
        ("title = 't'\nrows = [{name='a', round=1}]\ncolumns=[{name='b', round=2}]", "a round"),
        ("title = 't'\nkind='cost'\nrows = [{name='a'}]\ncolumns=[{name='b'},{name='c'}]", "alone"),
        ("title = 't'\nkind='significance'\nrows = [{name='a'}]", "give two"),
        ("title = 't'\nrows = [{name='a', set={seed=1}}]\n[set]\nseed=2", "set for all cells"),
        ("title = ", "not valid TOML"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(UsageError, match=reason):
        read_table(str(tmp_path / "own.toml"))


def test_unknown_tables_settings_and_counts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such table; choose one of"):
        read_table("table11")
    with pytest.raises(UsageError, match="give a readable TOML file"):
        read_table(str(tmp_path / "nothing.toml"))
    with pytest.raises(UsageError, match="--seeds 0"):
        planned("table1", seeds=0)
    with pytest.raises(UsageError, match="preset"):
        planned("table1", preset="fast")


def test_unpublished_tables_are_compared_with_nothing(tmp_path: Path) -> None:
    definition = TableDefinition(title="t", rows=read_table("table13").rows)
    plan = plan_table(definition, Request(data="voc2007"))
    comparison = compare(plan, measure(plan, tmp_path))
    assert comparison.published_data is None
    assert {entry.measured for entry in comparison} == {None}


def test_the_command_writes_the_table_and_lists_what_there_is(
    fedmpt: Invoke, tmp_path: Path
) -> None:
    listed = fedmpt("bench")
    assert listed.exit_code == 0
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(table_names())
    bench("figure5b", tmp_path, seeds=1)
    out = ("--out", str(tmp_path), "--seeds", "1")
    done = fedmpt("bench", "figure5b", *out)
    assert done.exit_code == 0, done.output
    assert "every run of this table is finished" in done.stderr
    assert "fedmpt report" not in done.stderr  # which is for runs and sweeps
    assert done.stdout == (tmp_path / "figure5b" / "table.md").read_text()
    printed = json.loads(fedmpt("bench", "figure5b", *out, "--json").stdout)
    assert printed["schema"] == "fedmpt.table/1"
    assert {one["column"] for one in printed["figures"]} >= {"tau=1", "tau=20"}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("table99",), "no such table"),
        (("table1", "--beside", "mlrsnet"), "not in this table"),
        (("table1", "--set", "rounds"), "rounds"),
        (("table1", "--estimate", "--no-estimate"), "exclude each other"),
    ],
)
def test_the_command_refuses_what_it_cannot_do_before_it_runs_anything(
    fedmpt: Invoke, tmp_path: Path, arguments: tuple[str, ...], reason: str
) -> None:
    done = fedmpt("bench", *arguments, "--out", str(tmp_path / "none"))
    assert done.exit_code == 2
    assert reason in done.output + str(done.exception)
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_table_is_run_from_the_command_line(
    shared_checkpoint: Path, shared_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDMPT_CACHE", str(shared_cache))
    file = tmp_path / "own.toml"
    file.write_text(
        "title = 'Gate'\nkind = 'cost'\nseeds = 1\nrows = [{name='FedMPT'}, {name='no gate', "
        "set={'method.fedmpt.use_gate'=false}}]\n"
    )
    small = ("data.scenes.train_size=240", "data.scenes.test_size=60", "data.scenes.resolution=32")
    settings = [*small, "clients.count=4", "train.rounds=1", "device=cpu"]
    code = "from fedmpt.cli import main; main()"
    command = [sys.executable, "-c", code, "bench", str(file), "--jobs", "1"]
    command += ["--out", str(tmp_path / "out"), "--backbone", f"local-dir:{shared_checkpoint}"]
    command += [part for setting in settings for part in ("--set", setting)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 runs to do, about" in done.stderr
    assert "| no gate |" in done.stdout
    (table,) = (tmp_path / "out").glob("own-changed-*/table.csv")
    with table.open(newline="") as written:
        found = {
            (line["row"], line["metric"]): float(line["measured"])
            for line in csv.DictReader(written)
        }
    fewer = found["FedMPT", "tunable_parameters_M"] - found["no gate", "tunable_parameters_M"]
    assert 0 <= fewer < found["no gate", "total_parameters_M"]
    assert all(found[row, "ms_per_iteration"] > 0 for row in ("FedMPT", "no gate"))


def test_printed_data_sets_are_those_that_the_command_can_read() -> None:
    known = {"voc2007", "coco2014", "nuswide", "multiscene", "mlrsnet"}
    names = [read_table(name).published for name in table_names()]
    assert {d for name in names if name for d in read_published(name).datasets} == known
