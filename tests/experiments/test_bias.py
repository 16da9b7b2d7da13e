"""What bias measures mean, on arrays whose answer is known; and the whole way on a small run."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from experiments.bias.__main__ import column_names, figures, main, require_distinct, table
from experiments.bias.crosstalk import crosstalk
from experiments.bias.figure import bias_svg
from experiments.bias.maps import gradient_maps
from experiments.bias.measure import parts_taken_out
from experiments.bias.measures import MapLift, class_areas, company_tables, false_alarms
from fedmpt.cli.train import OPTIONS
from fedmpt.config import load_config
from fedmpt.data.partners import pairing
from fedmpt.errors import UsageError
from fedmpt.inference.model import TunedModel, load_tuned
from fedmpt.methods.fedmpt import FedMPT
from fedmpt.sweep.cells import cells_of
from fedmpt.sweep.grid import read_grid
from tests.fedmpt.conftest import SmallRun

GRID = Path(__file__).parents[2] / "experiments" / "grids" / "bias.toml"
C = 6


@pytest.mark.parametrize("pairings", [1, 2, 9])
def test_a_class_has_as_many_decoys_as_partners_and_nobody_is_both(pairings: int) -> None:
    partners, decoys = company_tables(pairings, 20)
    for found in (partners, decoys):
        np.testing.assert_array_equal(found, found.T)
        np.testing.assert_array_equal(found.sum(axis=1), pairings)
        assert not found.diagonal().any()
    assert not (partners & decoys).any()


def test_more_pairings_than_leave_decoys_are_refused() -> None:
    with pytest.raises(UsageError, match="pairing"):
        company_tables(10, 20)


def random_labels(n: int = 4000) -> np.ndarray[tuple[int, ...], np.dtype[np.int8]]:
    return (np.random.default_rng(0).random((n, C)) < 0.3).astype(np.int8)


def test_a_scorer_that_reports_partners_gives_false_alarms_beside_them_only() -> None:
    labels = random_labels()
    partners, decoys = company_tables(1, C)
    scores = 0.9 * labels[:, pairing(0, C)].astype(np.float32)
    found = false_alarms(scores, labels, partners, decoys)
    assert (found.beside_partner, found.beside_decoy, found.matched) == (100, 0, 100)
    by_hand = sum(
        (
            (labels[:, c] == 0)
            & (labels[:, pairing(0, C)[c]] == 1)
            & (labels[:, pairing(1, C)[c]] == 0)
        ).sum()
        for c in range(C)
    )
    assert found.images == by_hand


def test_a_scorer_that_knows_nothing_of_company_alarms_alike_whatever_its_scale() -> None:
    labels = random_labels()
    tables = company_tables(1, C)
    noise = np.random.default_rng(1).random(labels.shape, dtype=np.float32)
    found = false_alarms(noise, labels, *tables)
    # some 590 images a class and kind: a standard error over six classes is 0.9 for a rate of 50, 0.5 for one of 10
    assert abs(found.beside_partner - 50) < 4
    assert abs(found.beside_decoy - 50) < 4
    assert abs(found.matched - 10) < 3
    squeezed = false_alarms(noise / 4, labels, *tables)
    assert squeezed.beside_partner == 0
    assert squeezed.matched == pytest.approx(found.matched)


def test_images_of_one_kind_alone_are_refused() -> None:
    labels = np.ones((5, C), dtype=np.int8)
    with pytest.raises(ValueError, match="absent both"):
        false_alarms(labels.astype(np.float32), labels, *company_tables(1, C))


def test_areas_are_shares_of_each_patch() -> None:
    owners = np.zeros((4, 4), dtype=np.uint8)
    owners[:2, :2] = 1  # all of the first patch
    owners[3, 3] = 2  # a quarter of the last
    owners[0, 2] = 3  # of no class
    areas = class_areas(owners, [4, 1, -1], classes=C, grid=(2, 2))
    expected = np.zeros((4, C))
    expected[0, 4], expected[3, 1] = 1, 0.25
    np.testing.assert_array_equal(areas, expected)


def test_the_lift_is_the_mass_on_an_object_over_its_share_of_the_image() -> None:
    partners, decoys = company_tables(1, C)
    friend, decoy = int(pairing(0, C)[0]), int(pairing(1, C)[0])
    areas = np.zeros((4, C))
    areas[0, 0] = areas[1, friend] = areas[2, decoy] = 1
    lift = MapLift(partners, decoys)
    assert lift.result() == {"own": None, "partner": None, "decoy": None}
    lift.add(0, np.zeros(4, dtype=np.float32), areas)  # nothing lights up: no map
    assert lift.result()["own"] is None
    lift.add(0, np.array([5, 3, 0, 2], dtype=np.float32), areas)
    assert lift.result() == {"own": 2.0, "partner": pytest.approx(1.2), "decoy": 0.0}
    even = MapLift(partners, decoys)
    even.add(0, np.ones(4, dtype=np.float32), areas)
    assert even.result() == {"own": 1.0, "partner": 1.0, "decoy": 1.0}


def record(method: str, company: float, seed: int, partner: float) -> dict[str, object]:
    return {
        "method": method,
        "without": [],
        "seed": seed,
        "company": company,
        "pairings": 2,
        "final": {"mAP": 50.0 - 10 * company + seed},
        "false_alarms": {"beside_partner": partner, "beside_decoy": 5.0, "matched": partner - 3},
        "map_lift": {"own": 7.0, "partner": 1.5, "decoy": None},
        "crosstalk": {"partner": 12.0, "decoy": None},
    }


RECORDS = [
    record(method, company, seed, 5 + 10 * company)
    for method in ("coop", "fedmpt", "zero-shot")
    for company in (0.0, 0.5, 1.0)
    for seed in (0, 1)
]


def test_the_figure_has_a_line_for_every_method_and_measure_and_draws_means() -> None:
    svg = ElementTree.fromstring(bias_svg(RECORDS, columns=column_names(RECORDS), title="a < b"))  # noqa: S314 -- made here
    space = "{http://www.w3.org/2000/svg}"
    heads = [t.text for t in svg.iter(f"{space}text") if t.get("class") == "head"]
    assert heads == ["fedmpt", "coop"]  # in the order of methods; the frozen model is a line across
    lines = [line.get("points", "").split() for line in svg.iter(f"{space}polyline")]
    assert [len(points) for points in lines if points] == [3] * (2 * 3)
    notes = [t.text for t in svg.iter(f"{space}title")]
    assert notes[0] == "a < b"
    assert "fedmpt, company 0.5, partner: 45.5" in notes
    assert "coop, company 1, partner: 12.0" in notes
    assert "prefers-color-scheme: dark" in "".join(s.text or "" for s in svg.iter(f"{space}style"))


def test_the_table_has_a_row_a_setting_with_intervals_over_seeds() -> None:
    lines = table(RECORDS).splitlines()
    assert len(lines) == 2 + 9
    assert lines[2].startswith("| fedmpt | 2 | 0 | 2 | 50.50 ± 6.35 | 5.00 ± 0.00 |")
    assert lines[2].endswith("| 1.50 ± 0.00 | - | 12.00 ± 0.00 | - |")


def test_a_method_without_a_part_is_a_column_of_its_own() -> None:
    bare = [row | {"without": ["adapters"]} for row in RECORDS if row["method"] == "fedmpt"]
    rows = [*bare, *RECORDS]
    assert column_names(rows) == ["fedmpt", "no adapters", "coop", "zero-shot"]
    require_distinct(rows)
    assert "| no adapters | 2 | 0.5 | 2 |" in table(rows)
    assert "no adapters, company 0.5, partner: 45.5" in bias_svg(
        rows, columns=column_names(rows), title="parts"
    )


def test_each_number_of_pairings_has_a_figure_and_runs_that_differ_otherwise_are_refused() -> None:
    assert figures(RECORDS) == {"bias.svg": RECORDS}
    others = [row | {"pairings": 1} for row in RECORDS]
    assert figures([*RECORDS, *others]) == {
        "bias-pairings-1.svg": others,
        "bias-pairings-2.svg": RECORDS,
    }
    bare = [row | {"without": ["gate"]} for row in RECORDS if row["method"] == "fedmpt"]
    drawn = figures([*RECORDS, *bare])
    assert drawn["bias.svg"] == RECORDS
    assert column_names(drawn["bias-parts.svg"]) == ["fedmpt", "no gate", "zero-shot"]
    require_distinct([*RECORDS, *others])
    with pytest.raises(UsageError, match="two runs of coop with company 0 and seed 0"):
        require_distinct([*RECORDS, RECORDS[0]])


def test_the_grid_is_valid_and_every_client_is_a_site() -> None:
    cells = cells_of(read_grid(GRID, OPTIONS))
    assert len({cell.condition.label for cell in cells}) == 28
    modules = cells_of(read_grid(GRID.with_name("bias_modules.toml"), OPTIONS))
    assert len({cell.condition.label for cell in modules}) == 10
    assert len({cell.digest for cell in modules} & {cell.digest for cell in cells}) == 2 * 3
    assert [len(parts_taken_out(cell.config)) for cell in modules[:10]] == [0, 0] + 8 * [1]
    for cell in cells:
        config = cell.config
        assert config.clients.partition == "site"
        assert not config.privacy.enabled
        assert config.data.scenes.bias == 0
        assert config.data.scenes.sites == 12


def test_a_sweeps_models_are_measured_once_and_drawn(
    small_run: SmallRun,
    shared_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FEDMPT_CACHE", str(shared_cache))
    (tmp_path / "cells").mkdir()
    for method in ("fedmpt", "coop", "zero-shot"):
        small_run(
            tmp_path / "cells" / method,
            privacy__enabled=False,
            method__name=method,
            clients__partition="site",
            data__scenes__sites=4,
            data__scenes__company=1.0,
        )
    assert main([str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert printed.out == (tmp_path / "bias.md").read_text()
    assert printed.err.count("measuring") == 3
    runs = json.loads((tmp_path / "bias.json").read_text())["runs"]
    for name, run in runs.items():
        assert (run["method"], run["without"]) == (name, [])
        assert run["company"] == 1
        assert 0 <= run["false_alarms"]["beside_partner"] <= 100
        assert run["map_lift"]["own"] > 0
        assert (run["crosstalk"]["partner"] is not None) is (name == "fedmpt")
    ElementTree.fromstring((tmp_path / "bias.svg").read_text())  # noqa: S314 -- made here
    assert main([str(tmp_path)]) == 0
    assert "measuring" not in capsys.readouterr().err

    model = load_tuned(tmp_path / "cells" / "coop")
    inputs = torch.nn.functional.normalize(torch.randn(3, 16, model.backbone.width), dim=-1)
    classes = torch.tensor([0, 3, 5])
    order = torch.randperm(16)
    torch.testing.assert_close(
        gradient_maps(model, inputs, classes)[:, order],
        gradient_maps(model, inputs[:, order], classes),
        rtol=1e-3,
        atol=1e-5,
    )


@pytest.mark.parametrize("projections", ["trained", "text"])
def test_crosstalk_is_what_an_adapter_adds_to_a_class_along_others(
    small_run: SmallRun, tmp_path: Path, projections: str
) -> None:
    small_run(
        tmp_path / "run",
        privacy__enabled=False,
        method__fedmpt__adapter_projections=projections,
    )
    model = load_tuned(tmp_path / "run")
    method, parameters = model.method, dict(model.parameters)
    assert isinstance(method, FedMPT)
    partners, decoys = company_tables(1, len(model.classes))
    names = ("adapter_up",) if projections == "trained" else ("adapter_common", "adapter_core")

    def with_changed(**changed: torch.Tensor) -> TunedModel:
        return TunedModel(model.card, model.backbone, method, parameters | changed)

    silent = with_changed(**{name: 0 * parameters[name] for name in names})
    assert crosstalk(silent, partners, decoys) == {"partner": 0, "decoy": 0}

    # An adapter that sends each class along its partner: t_c W t_p is large for partners alone.
    text = method.encode_text(parameters).reshape(len(method.conditions), len(model.classes), -1)
    centred = text - text.mean(dim=1, keepdim=True)
    swap = torch.from_numpy(partners).float()
    wanted = centred.mT @ swap @ centred  # [N, D, D]
    left, strengths, right = torch.linalg.svd(wanted)
    rank = len(model.classes)
    taught = {
        "adapter_down": left[..., :rank] * strengths[:, None, :rank],
        "adapter_up": right[:, :rank],
    }
    if projections == "trained":
        found = crosstalk(with_changed(**taught), partners, decoys)
        assert found["partner"] is not None
        assert found["decoy"] is not None
        assert found["partner"] > 3 * abs(found["decoy"])


def test_folders_without_finished_runs_of_scenes_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([]) == 2
    assert main([str(tmp_path)]) == 2
    assert "holds no finished cell" in capsys.readouterr().err
    assert load_config().data.scenes.company == 0
