"""Ledgers that outlive a run: what several runs on the same data add up to, and who is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedmpt.errors import BudgetSpent, UsageError
from privacy import LedgerCorrupt, PLDAccountant, read_ledger

SmallRun = Callable[..., dict[str, Any]]


def test_two_runs_on_one_ledger_spend_their_composition(
    small_run: SmallRun, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    options = {"privacy__epsilon": 2.0, "privacy__lifetime": 4.0}
    first = small_run(tmp_path / "first", ledger, **options)
    second = small_run(tmp_path / "second", ledger, **options)
    assert first["privacy"]["run"] != second["privacy"]["run"]
    for before, after in zip(
        first["privacy"]["clients"], second["privacy"]["clients"], strict=True
    ):
        history = read_ledger(ledger / f"client-{after['client']:03d}.jsonl")
        together = PLDAccountant().epsilon(
            [*history.events(first["privacy"]["run"]), *history.events(second["privacy"]["run"])],
            history.terms.delta,
        )
        assert after["lifetime_spent"] == pytest.approx(together, abs=1e-6)
        assert before["lifetime_spent"] == pytest.approx(before["epsilon"], abs=1e-6)
        assert after["epsilon"] < together < before["epsilon"] + after["epsilon"]
        assert after["rounds"] == 2
        assert after["ledger_head"]["count"] == len(history.records)


def test_a_run_that_would_overspend_is_refused_before_training_and_the_remedy_fits(
    small_run: SmallRun, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    small_run(tmp_path / "first", ledger, privacy__epsilon=2.0, privacy__lifetime=3.0)
    with pytest.raises(BudgetSpent, match=r"has spent epsilon 2\.00 of its lifetime 3") as refusal:
        small_run(tmp_path / "second", ledger, privacy__epsilon=2.5)
    assert refusal.value.exit_code == 3
    assert not (tmp_path / "second").exists()
    records = read_ledger(ledger / "client-000.jsonl").records
    assert records[-1]["kind"] == "refuse"
    assert sum(record["kind"] == "charge" for record in records) == 2
    affordable = float(str(refusal.value).split("at most --dp-epsilon ")[1].split(",")[0])
    assert affordable >= 1.0
    summary = small_run(tmp_path / "third", ledger, privacy__epsilon=affordable)
    assert all(row["lifetime_spent"] <= 3.0 for row in summary["privacy"]["clients"])


def test_an_interrupted_round_is_spent_when_the_next_run_asks(
    small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = tmp_path / "ledger"
    with monkeypatch.context() as patch:

        def power_cut(*arguments: object, **options: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("fedmpt.engine.sites.train_privately", power_cut)
        with pytest.raises(KeyboardInterrupt):
            small_run(tmp_path / "first", ledger, privacy__epsilon=4.0, privacy__lifetime=4.0)
    spent = [
        read_ledger(ledger / f"client-{client:03d}.jsonl").spent_epsilon(PLDAccountant())
        for client in range(4)
    ]
    assert sum(epsilon > 0 for epsilon in spent) == 1  # the first client was charged, then it died
    with pytest.raises(BudgetSpent, match="client-000"):
        small_run(tmp_path / "second", ledger, privacy__epsilon=4.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"privacy__delta": 1e-6}, "delta"),
        ({"privacy__lifetime": 50.0}, "lifetime_epsilon"),
        ({"data__scenes__train_size": 320}, "holding"),
        ({"seed": 1}, "holding"),
        ({"privacy__lifetime": 1.0}, "--dp-lifetime 1"),
    ],
)
def test_a_run_on_other_terms_or_other_data_is_refused_with_the_term(
    small_run: SmallRun,
    first_run: tuple[Path, Path],
    tmp_path: Path,
    changes: dict[str, Any],
    words: str,
) -> None:
    _, ledger = first_run
    before = (ledger / "client-000.jsonl").read_bytes()
    with pytest.raises(UsageError, match=words):
        small_run(tmp_path / "run", ledger, **({"privacy__epsilon": 2.0} | changes))
    assert not (tmp_path / "run").exists()
    assert (ledger / "client-000.jsonl").read_bytes() == before


def _declared(summary: dict[str, Any]) -> list[int]:
    return [row["n_public"] for row in summary["privacy"]["clients"]]


def test_a_changed_declared_size_is_refused_and_a_repeated_one_is_not(
    small_run: SmallRun, tmp_path: Path
) -> None:
    """Whatever the true sizes are: 250 to 259 images before, one more now, and 250 still."""
    sizes = [30, 50, 20, 40]
    options = {"privacy__lifetime": 4.0, "privacy__epsilon": 2.0}
    ledger = tmp_path / "ledger"
    first = small_run(tmp_path / "first", ledger, **options, privacy__declared_sizes=sizes)
    assert _declared(first) == sizes
    with pytest.raises(UsageError, match=r"n_pub.*declare it again.*declared_sizes"):
        small_run(tmp_path / "second", ledger, **options, privacy__declared_sizes=[30, 50, 20, 50])
    second = small_run(tmp_path / "second", ledger, **options, privacy__declared_sizes=sizes)
    assert _declared(second) == sizes


def test_everything_public_follows_the_declared_sizes_alone(
    small_run: SmallRun, tmp_path: Path
) -> None:
    """Rates, steps and noise are those of the declaration, and so differ from the ones of the true sizes."""
    plans = {}
    for name, sizes in (("declared", [60, 60, 60, 60]), ("true", None)):
        small_run(tmp_path / name, privacy__declared_sizes=sizes, secagg__mode="none")
        ledgers = sorted((tmp_path / name / "ledger").glob("*.jsonl"))
        records = [record for path in ledgers for record in read_ledger(path).records]
        plans[name] = [record["plan"] for record in records if record["kind"] == "plan"]
        assert len(plans[name]) == 4
    assert all(plan == plans["declared"][0] for plan in plans["declared"])
    assert any(plan != plans["true"][0] for plan in plans["true"])


def test_a_size_for_each_client_is_needed(small_run: SmallRun, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="3 sizes for 4 clients"):
        small_run(tmp_path / "run", privacy__declared_sizes=[30, 50, 20])


def test_a_run_of_integer_noise_on_a_ledger_of_another_delta_is_told_one_that_fits(
    small_run: SmallRun, tmp_path: Path
) -> None:
    """The delta to ask for is that of the claim, of which the ledger has a hundredth less."""
    ledger = tmp_path / "ledger"
    options = {"privacy__epsilon": 1.0, "privacy__lifetime": 4.0, "train__rounds": 1}
    options["privacy__arithmetic"] = "integer"
    first = small_run(tmp_path / "first", ledger, **options, privacy__delta=1e-6)
    with pytest.raises(UsageError, match="delta") as refusal:
        small_run(tmp_path / "second", ledger, **options, privacy__delta=2e-6)
    remedy = float(str(refusal.value).rsplit("--dp-delta ", 1)[1])
    second = small_run(tmp_path / "second", ledger, **options, privacy__delta=remedy)
    assert first["privacy"]["delta"] == second["privacy"]["delta"] == 1e-6


@pytest.mark.parametrize(
    ("partition", "changes"),
    [
        ("cluster", {"data__scenes__test_size": 50}),
        ("cluster", {"data__mask": 0.3, "clients__participation": 0.75}),
        ("site", {"seed": 5}),
    ],
)
def test_a_run_that_sees_the_same_images_again_adds_up(
    small_run: SmallRun, tmp_path: Path, partition: str, changes: dict[str, Any]
) -> None:
    options = {"privacy__epsilon": 2.0, "privacy__lifetime": 8.0, "train__rounds": 1}
    options |= {"clients__partition": partition, "data__scenes__sites": 4}
    small_run(tmp_path / "first", tmp_path / "ledger", **options)
    second = small_run(tmp_path / "second", tmp_path / "ledger", **(options | changes))
    spent = [row for row in second["privacy"]["clients"] if row["rounds"]]
    assert spent
    assert all(row["lifetime_spent"] > row["epsilon"] + 0.1 for row in spent)


@pytest.mark.parametrize(
    ("partition", "changes"),
    [
        ("cluster", {"seed": 5}),
        ("iid", {"seed": 5}),
        ("site", {"clients__count": 3, "data__scenes__sites": 3}),
    ],
)
def test_data_dealt_out_anew_is_refused_and_told_to_be_dealt_out_as_before(
    small_run: SmallRun, tmp_path: Path, partition: str, changes: dict[str, Any]
) -> None:
    options = {"privacy__epsilon": 2.0, "privacy__lifetime": 8.0, "train__rounds": 1}
    options |= {"clients__partition": partition, "data__scenes__sites": 4}
    small_run(tmp_path / "first", tmp_path / "ledger", **options)
    with pytest.raises(UsageError, match="Deal them out as before"):
        small_run(tmp_path / "second", tmp_path / "ledger", **(options | changes))


def test_a_broken_ledger_is_told_by_its_path(
    small_run: SmallRun, first_run: tuple[Path, Path], tmp_path: Path
) -> None:
    path = first_run[1] / "client-002.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"steps"', b'"stepz"', 1))
    with pytest.raises(LedgerCorrupt, match=r"client-002\.jsonl: .* put back the file"):
        small_run(tmp_path / "run", first_run[1], privacy__epsilon=0.5)


def test_another_unit_is_named_before_the_sizes_that_follow_from_it(
    small_run: SmallRun, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    shares = {"privacy__noise": "shares", "clients__count": 5, "train__rounds": 1}
    options = {**shares, "privacy__delta": 1e-4, "privacy__lifetime": 10.0}
    small_run(tmp_path / "client", ledger, **options, privacy__unit="client")
    with pytest.raises(UsageError, match="opened with unit client, this run has example"):
        small_run(tmp_path / "example", ledger, **options)


def test_a_ledger_must_be_a_folder_and_is_asked_for_before_anything_is_made(
    small_run: SmallRun, tmp_path: Path
) -> None:
    (tmp_path / "ledger").write_text("")
    with pytest.raises(UsageError, match="is a file; give the folder"):
        small_run(tmp_path / "run", tmp_path / "ledger")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"privacy__epsilon": 1e-7}, r"1e-07 over 2 round\(s\).* raise the target .*--rounds"),
        ({"privacy__epsilon": 1e5}, r"100000 over 2 round\(s\).* lower the target .*--no-dp"),
        (
            {"clients__count": 30, "clients__minimum_size": 2},
            r"client \d+ holds \d image.*--clients",
        ),
        ({"privacy__delta": 1e-13}, r"privacy\.delta"),
        ({"privacy__clip": 1e9}, r"privacy\.clip"),
    ],
)
def test_terms_that_no_plan_can_have_are_refused_with_value_and_remedy(
    small_run: SmallRun, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        small_run(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_ledger_that_vanished_is_not_started_anew(
    small_run: SmallRun, first_run: tuple[Path, Path], tmp_path: Path
) -> None:
    (first_run[1] / "client-002.jsonl").unlink()
    with pytest.raises(UsageError, match=r"client-002\.jsonl is missing"):
        small_run(tmp_path / "run", first_run[1], privacy__epsilon=0.5)


def test_the_run_folder_says_where_its_ledgers_are(first_run: tuple[Path, Path]) -> None:
    folder, ledger = first_run
    index = json.loads((folder / "ledger.json").read_text())
    assert index["folder"] == str(ledger.resolve())
    assert index["run"] == json.loads((folder / "summary.json").read_text())["privacy"]["run"]
    assert not (folder / "ledger").exists()


@pytest.fixture
def first_run(small_run: SmallRun, tmp_path: Path) -> tuple[Path, Path]:
    """A finished run on a ledger that has room for more: its folder and the ledger's."""
    small_run(
        tmp_path / "first",
        tmp_path / "ledger",
        privacy__epsilon=2.0,
        train__rounds=1,
        privacy__lifetime=5.0,
    )
    return tmp_path / "first", tmp_path / "ledger"
