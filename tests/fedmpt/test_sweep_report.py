"""The report of a sweep: it says what results.json says, fetches nothing, and trusts no text."""

from __future__ import annotations

import base64
import json
import shutil
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest

from fedmpt.errors import UsageError
from fedmpt.sweep.cells import cells_of
from fedmpt.sweep.figure import curve_of
from fedmpt.sweep.files import read_results, write_results
from fedmpt.sweep.page import write_sweep_report
from fedmpt.sweep.results import gather
from fedmpt.sweep.run import run_cells
from fedmpt.sweep.table import to_markdown
from privacy import display_epsilon
from tests.fedmpt.conftest import Invoke
from tests.fedmpt.test_report import Page
from tests.fedmpt.test_sweep import Heard, charge, grid_of, stand_in

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished sweep with one failed cell, that no test changes."""
    folder = tmp_path_factory.mktemp("sweep")
    grid = replace(grid_of("dp.epsilon=1,4,8,inf", seeds=2), baselines=("centralised",))
    cells = cells_of(grid)
    (folder / "broken").touch()  # epsilon 1
    failures = run_cells(cells, folder, jobs=2, watcher=Heard(), command=stand_in)
    charge(folder / "cells" / "a", holding="scenes/client-000", rounds=1)
    results = gather(grid, cells, failures, folder)
    write_results(results, folder, table=to_markdown(results), curve=curve_of(results))
    assert read_results(folder) == results
    return folder


@pytest.fixture
def sweep(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished sweep."""
    return shutil.copytree(finished, tmp_path / "sweep")


def edit(folder: Path, **values: object) -> None:
    path = folder / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_it_shows_curve_figures_both_epsilons_and_failures(sweep: Path) -> None:
    page = Page(write_sweep_report(sweep).read_text())
    kept = json.loads((sweep / "results.json").read_text())
    by_label = {one["label"]: one for one in kept["conditions"]}
    final = by_label["dp.epsilon=8"]["final"]["mAP"]
    assert f"{final['mean']:.1f} ± {final['half_width']:.1f}" in page.text
    assert page.text.count("epsilon (log scale)") == 3
    assert "Difference in mAP to dp.epsilon=inf" in page.text
    (price,) = kept["privacy"]["prices"]
    assert display_epsilon(price["single"]) in page.text
    assert display_epsilon(price["composition"]) in page.text
    assert "the selection, against whoever sees this page" in page.text
    assert "2 cell(s) failed" in page.text
    assert "the disk is on fire" in page.text
    assert "gain kept" in page.text
    assert page.tags["svg"] == 2
    assert max(page.names.values()) == 1


def test_it_runs_nothing_and_links_to_its_runs_alone(sweep: Path) -> None:
    reported = next((sweep / "cells").glob("dp.epsilon=8*"))
    (reported / "report.html").write_text("")
    page = Page(write_sweep_report(sweep).read_text())
    assert page.tags["script"] == page.tags["link"] == page.tags["img"] == 0
    assert not [name for name in page.attributes if name.startswith("on")]
    runs = [unquote(link) for link in page.fetched]
    assert all(link.startswith("cells/") for link in runs)
    assert len(runs) == 8
    assert f"cells/{reported.name}/report.html" in runs


def test_figures_of_other_programs_are_shown_as_images_in_which_nothing_runs(sweep: Path) -> None:
    drawn = f"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script>{HOSTILE}</svg>"
    (sweep / "bias.svg").write_text(drawn)
    text = write_sweep_report(sweep).read_text()
    page = Page(text)
    assert (page.tags["img"], page.tags["script"]) == (1, 0)
    assert HOSTILE not in page.text
    source = text.partition('src="data:image/svg+xml;base64,')[2].partition('"')[0]
    assert base64.b64decode(source).decode() == drawn
    assert "bias.svg" in page.text


def test_texts_of_files_do_not_become_markup(sweep: Path) -> None:
    kept = json.loads((sweep / "results.json").read_text())
    for one in kept["conditions"]:
        one["label"] = f"{one['label']}{HOSTILE}"
        one["settings"] = {f"a{HOSTILE}": HOSTILE}
    kept["failed"][0]["reason"] = HOSTILE
    edit(sweep, conditions=kept["conditions"], failed=kept["failed"], axes=[f"a{HOSTILE}"])
    page = Page(write_sweep_report(sweep).read_text())
    assert page.tags["script"] == 0
    assert HOSTILE in page.text


def test_without_privacy_it_says_that_nothing_is_bounded(sweep: Path) -> None:
    kept = json.loads((sweep / "results.json").read_text())
    edit(sweep, privacy=kept["privacy"] | {"prices": []})
    assert (
        "nothing bounds what this folder reveals"
        in Page(write_sweep_report(sweep).read_text()).text
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"schema": "fedmpt.sweep/9"}, "fedmpt.sweep/9, this version of fedmpt reads"),
        ({"conditions": [{}]}, "KeyError"),
        ({"failed": [{"seed": "x"}]}, "ValidationError"),
    ],
)
def test_results_of_another_version_are_refused(
    sweep: Path, values: dict[str, object], words: str
) -> None:
    edit(sweep, **values)
    with pytest.raises(UsageError, match=words):
        write_sweep_report(sweep)
    assert not (sweep / "report.html").exists()


def test_the_command_knows_a_sweep_from_a_run(fedmpt: Invoke, sweep: Path, tmp_path: Path) -> None:
    done = fedmpt("report", sweep)
    assert (done.exit_code, done.stdout.strip()) == (0, str(sweep / "report.html"))
    refused = fedmpt("report", sweep, "--no-images")
    assert refused.exit_code == 2
    assert "report of a run" in refused.output
    assert fedmpt("report", tmp_path).exit_code == 2
