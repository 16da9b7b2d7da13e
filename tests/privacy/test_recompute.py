"""A third party's figures: from the file alone, by two accountants, and by a script of its own."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from privacy import AccountingError, DPPlan, Ledger, LedgerTerms, PLDAccountant
from privacy.recompute import main, recompute

PlanWith = Callable[..., DPPlan]
DOCUMENT = Path(__file__).parents[2] / "docs" / "privacy.md"


@pytest.fixture
def two_runs(ledger_path: Path, terms: LedgerTerms, plan_with: PlanWith) -> Path:
    with Ledger(ledger_path, terms=terms) as ledger:
        for run, plan in (("run-1", plan_with()), ("run-2", plan_with(noise_multiplier=3.0))):
            ledger.accept_plan(run, plan)
            for index in range(3):
                ledger.charge(run=run, round_index=index, plan=plan)
    return ledger_path


def test_every_run_and_their_composition_are_recomputed_by_two_accountants(
    two_runs: Path, plan_with: PlanWith
) -> None:
    result = recompute(two_runs)
    first, second = plan_with().event(24), plan_with(noise_multiplier=3.0).event(24)
    expected = [
        PLDAccountant().epsilon(events, 1e-5) for events in ([first], [second], [first, second])
    ]
    parts = [*result.runs, result.total]
    assert [part.epsilon for part in parts] == pytest.approx(expected, abs=1e-6)
    assert [part.run for part in parts] == ["run-1", "run-2", None]
    for part in parts:
        assert part.figures is not None
        assert part.figures.prv == pytest.approx(part.epsilon, abs=0.05)
        assert len(part.figures.accountants) == 2
    assert result.replace_one > result.total.epsilon


def test_the_script_in_the_documentation_needs_nothing_of_this_package_and_agrees(
    two_runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    script = text.split("```py\n# recompute without this package")[1].split("```")[0]
    assert "from privacy" not in script
    assert "import privacy" not in script
    monkeypatch.setattr("sys.argv", ["script", str(two_runs)])
    exec(compile("#" + script, "docs/privacy.md", "exec"), {})  # noqa: S102 (our own documentation)
    assert float(capsys.readouterr().out.split()[-1]) == pytest.approx(
        recompute(two_runs).total.epsilon, abs=1e-6
    )


def test_the_command_prints_figures_and_its_exit_code_tells_a_broken_ledger(
    two_runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(two_runs)]) == 0
    assert "cross-check agrees" in capsys.readouterr().out
    assert main(["--json", str(two_runs)]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["total"]["rounds"] == 6
    two_runs.write_text(two_runs.read_text().replace('"steps":8', '"steps":1', 1))
    assert main(["--json", str(two_runs), "/nowhere"]) == 1
    out, err = capsys.readouterr()
    assert [set(row) for row in json.loads(out)] == [{"ledger", "error"}] * 2
    assert "record 1" in err


def test_accountants_that_disagree_are_told_and_no_figure_is_given(
    two_runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def disagree(*arguments: object, **options: object) -> None:
        raise AccountingError("further apart than 0.05")

    monkeypatch.setattr("privacy.recompute.cross_checked", disagree)
    result = recompute(two_runs)
    assert result.total.figures is None
    assert result.total.epsilon == float("inf")
    assert main([str(two_runs)]) == 1
    assert "further apart" in capsys.readouterr().out
