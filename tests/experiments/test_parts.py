"""A tuned FedMPT taken apart: what its conditions say alone, and what the gate makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.parts import main, take_apart
from tests.fedmpt.conftest import SmallRun
from tests.fedmpt.test_report import Silence


def test_the_gate_and_equal_weights_are_those_of_the_run(
    small_run: SmallRun, tmp_path: Path
) -> None:
    gated = small_run(tmp_path / "gated", privacy__enabled=False)
    found = take_apart(tmp_path / "gated", Silence())
    assert found.gated == pytest.approx(gated["final"]["mAP"], abs=1e-6)
    assert sum(one.weight for one in found.conditions) == pytest.approx(1)
    assert all(one.spread > 0 and one.weight_spread > 0 for one in found.conditions)

    equal = small_run(tmp_path / "equal", privacy__enabled=False, method__fedmpt__use_gate=False)
    found = take_apart(tmp_path / "equal", Silence())
    assert found.equal == pytest.approx(equal["final"]["mAP"], abs=1e-6)
    assert found.gated == pytest.approx(found.equal)
    assert {one.weight_spread for one in found.conditions} == {0.0}


def test_a_single_condition_is_the_whole_prediction(small_run: SmallRun, tmp_path: Path) -> None:
    small_run(tmp_path / "run", privacy__enabled=False, method__fedmpt__use_conditions=False)
    (one,) = take_apart(tmp_path / "run", Silence()).conditions
    assert (one.name, one.weight) == ("", 1.0)
    assert one.alone == pytest.approx(take_apart(tmp_path / "run", Silence()).gated)


def test_the_command_prints_a_table_and_refuses_other_methods(
    small_run: SmallRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_run(tmp_path / "own", privacy__enabled=False)
    small_run(tmp_path / "other", privacy__enabled=False, method__name="coop")
    assert main([str(tmp_path / "own")]) == 0
    assert "| background |" in capsys.readouterr().out
    assert main([]) == 2
    assert main([str(tmp_path / "other")]) == 2
    assert "only FedMPT has conditions" in capsys.readouterr().err
