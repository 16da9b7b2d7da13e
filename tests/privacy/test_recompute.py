"""A third party's figures: from the file alone, by two accountants, and by a script of its own."""

import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy import (
    AccountingError,
    Arithmetic,
    Budget,
    BudgetExhausted,
    DPPlan,
    Ledger,
    LedgerConflict,
    LedgerCorrupt,
    LedgerTerms,
    PLDAccountant,
    read_ledger,
)
from privacy.grid import clip_steps_for, delta_of_plans
from privacy.recompute import main, recompute

PlanWith = Callable[..., DPPlan]
Record = dict[str, Any]
Place = tuple[int, tuple[str, ...]]  # a record's number, and the names down to a field
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


def test_a_total_above_the_lifetime_limit_is_told_in_the_text_and_one_below_is_not(
    ledger_path: Path, terms: LedgerTerms, plan_with: PlanWith, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, limit = plan_with(), replace(terms, lifetime_epsilon=0.5)
    with Ledger(ledger_path, terms=limit) as ledger:
        ledger.accept_plan("run-1", plan)
        assert main([str(ledger_path)]) == 0
        assert "OVER ITS LIMIT" not in capsys.readouterr().out
        ledger.charge(run="run-1", round_index=0, plan=plan)
    assert main([str(ledger_path)]) == 0  # the figures can be trusted
    told = [line for line in capsys.readouterr().out.splitlines() if "OVER ITS LIMIT" in line]
    assert len(told) == 1
    assert "all runs" in told[0]
    assert told[0].endswith("OVER ITS LIMIT of 0.5")


def test_integer_noise_and_the_delta_that_its_claim_has_are_told(
    ledger_path: Path, terms: LedgerTerms, plan_with: PlanWith, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = 1e-5
    kept = delta_of_plans(asked)
    assert kept == pytest.approx(0.99 * asked, rel=1e-9)
    fine = clip_steps_for(plan_with().noise_multiplier, 1)
    for arithmetic, steps, path in (
        (Arithmetic.FLOAT, None, ledger_path.with_suffix(".float")),
        (Arithmetic.INTEGER, fine, ledger_path),
    ):
        with Ledger(path, terms=replace(terms, delta=kept, lifetime_epsilon=8.0)) as ledger:
            whole = arithmetic is Arithmetic.INTEGER
            plan = plan_with(
                arithmetic=arithmetic,
                clip_steps=steps,
                released_values=1000 if whole else None,
                delta=kept,
            )
            ledger.accept_plan("run-1", plan)
        assert main(["--json", str(path)]) == 0
        (row,) = json.loads(capsys.readouterr().out)
        assert (row["integer_noise"], row["claimed_delta"]) == (whole, asked if whole else kept)
        assert main([str(path)]) == 0
        told = "INTEGER NOISE is counted as Gaussian, which leaves out at most"
        out = capsys.readouterr().out
        assert ("its claim is at delta 1e-05" in out) == whole
        assert (told in out) == whole


def test_a_torn_tail_is_told_in_the_text(
    two_runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(two_runs)])
    assert "TORN" not in capsys.readouterr().out
    with two_runs.open("a") as file:
        file.write('{"hash":')
    assert main([str(two_runs)]) == 0
    assert "TORN: the last 8 bytes" in capsys.readouterr().out


def test_a_plan_whose_grid_is_too_coarse_for_its_proof_is_refused(
    ledger_path: Path, plan_with: PlanWith, terms: LedgerTerms
) -> None:
    """Integer noise of one grid step has no Gaussian accountant; it would be charged as if it had."""
    fine = clip_steps_for(plan_with().noise_multiplier, 1)
    integers = {"arithmetic": Arithmetic.INTEGER, "released_values": 1000}
    coarse = plan_with(**integers, clip_steps=1)
    with Ledger(ledger_path, terms=replace(terms, lifetime_epsilon=8.0)) as ledger:
        with pytest.raises(LedgerConflict, match="too coarse"):
            ledger.accept_plan("run-1", coarse)
        ledger.accept_plan("run-1", plan_with(**integers, clip_steps=fine))
    records = [record_of(line) for line in ledger_path.read_text().splitlines()]
    records[1]["plan"]["clip_steps"] = 1
    write_chain(ledger_path, records)
    assert "too coarse" in refusal(ledger_path)


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


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def write_chain(path: Path, records: list[Record]) -> None:
    """Writes a valid chain over any records; charges follow a changed plan's hash, as a cheat would see to."""
    hashes = {}
    for record in records:
        if record.get("kind") == "plan" and isinstance(record.get("plan_hash"), str):
            renewed = hashlib.sha256(_canonical(record.get("plan")).encode()).hexdigest()
            hashes[record["plan_hash"]] = record["plan_hash"] = renewed
    previous = hashlib.sha256(b"privacy-ledger/1").digest()
    text = ""
    for record in records:
        if record.get("kind") == "charge" and isinstance(record.get("plan_hash"), str):
            record["plan_hash"] = hashes.get(record["plan_hash"], record["plan_hash"])
        body = _canonical(record)
        previous = hashlib.sha256(previous + body.encode()).digest()
        text += f'{{"hash":"{previous.hex()}","record":{body}}}\n'
    path.write_text(text)


@pytest.fixture(scope="module")
def all_kinds(
    tmp_path_factory: pytest.TempPathFactory, plan_with: PlanWith, accountant: PLDAccountant
) -> list[Record]:
    """Records of every kind, as this package wrote them."""
    path = tmp_path_factory.mktemp("written") / "ward-7.jsonl"
    terms = LedgerTerms(holding="ward-7", n_pub=250, delta=1e-5, lifetime_epsilon=20.0)
    one = accountant.epsilon([plan_with().round_event()], 1e-5)
    plan = plan_with(target_epsilon=1.01 * one, rounds=1, block_weights=(("text", 2.0),))
    with Ledger(path, terms=terms) as ledger:
        budget = Budget(ledger=ledger, run="run-1", plan=plan, accountant=accountant)
        charge, _ = budget.charge(0)
        ledger.release(charge, b"payload")
        with pytest.raises(BudgetExhausted):
            budget.charge(1)
    with path.open("a") as file:
        file.write('{"hash":')  # a write that never returned
    with Ledger(path, terms=terms) as ledger:
        Budget(ledger=ledger, run="run-1", plan=plan, accountant=accountant).close()
    records = [record_of(line) for line in path.read_text().splitlines()]
    kinds = ["open", "plan", "charge", "release", "refuse", "recover", "close"]
    assert [record["kind"] for record in records] == kinds
    return records


def record_of(line: str) -> Record:
    record: Record = json.loads(line)["record"]
    return record


def places(records: list[Record]) -> Iterator[tuple[Place, Any]]:
    """Every field with its value; inside a plan and an event as well."""
    for number, record in enumerate(records):
        for name, value in record.items():
            yield (number, (name,)), value
            if name in ("plan", "event") and isinstance(value, dict):
                for inner, inner_value in value.items():
                    yield (number, (name, inner)), inner_value


def holder(records: list[Record], place: Place) -> Record:
    """The object that holds a field."""
    number, names = place
    return records[number] if len(names) == 1 else records[number][names[0]]


def refused(path: Path, records: list[Record], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says of a chain over records that it must refuse."""
    write_chain(path, records)
    assert main([str(path)]) == 1, records
    out, err = capsys.readouterr()
    assert out == ""
    assert "line" in err
    return err


# Final figures, what was spent when a round was refused: each is null where there was no number,
# and nothing is computed from them.
INFORMATIVE = {
    ("close", "prv"),
    ("close", "rdp"),
    ("refuse", "spent_epsilon"),
    ("refuse", "epsilon_after"),
}


def test_a_record_without_one_of_its_fields_is_refused_by_name(
    all_kinds: list[Record], ledger_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place, _ in places(all_kinds):
        records = copy.deepcopy(all_kinds)
        name = place[1][-1]
        del holder(records, place)[name]
        assert name in refused(ledger_path, records, capsys)


def test_a_field_of_a_wrong_type_is_refused_by_name(
    all_kinds: list[Record], ledger_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accepted = set()
    for place, value in places(all_kinds):
        kind, name = all_kinds[place[0]]["kind"], place[1][-1]
        for wrong in (None, True, 7, 0.5, "7", [], [7], {}, {"a": []}):
            if type(wrong) is type(value) and not (wrong and isinstance(wrong, list | dict)):
                continue
            records = copy.deepcopy(all_kinds)
            holder(records, place)[name] = wrong
            if (kind, name) in INFORMATIVE and (wrong is None or isinstance(wrong, float)):
                write_chain(ledger_path, records)
                read_ledger(ledger_path)
                accepted.add((kind, name))
            else:
                assert name in refused(ledger_path, records, capsys)
    assert accepted == INFORMATIVE


def test_a_number_that_is_negative_or_none_is_refused(
    all_kinds: list[Record], ledger_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place, value in places(all_kinds):
        if isinstance(value, int | float):
            for wrong in (-1, -1.0, float("nan"), float("inf"), float("-inf"), 10**4000):
                records = copy.deepcopy(all_kinds)
                holder(records, place)[place[1][-1]] = wrong
                refused(ledger_path, records, capsys)


def test_a_field_that_the_format_does_not_have_is_refused_by_name(
    all_kinds: list[Record], ledger_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    holders = {(number, names[:-1]): (number, names) for (number, names), _ in places(all_kinds)}
    for place in holders.values():
        records = copy.deepcopy(all_kinds)
        holder(records, place)["surprise"] = 1
        assert "surprise" in refused(ledger_path, records, capsys)


def test_which_software_is_named_is_informative(all_kinds: list[Record], ledger_path: Path) -> None:
    records = copy.deepcopy(all_kinds)
    records[0]["software"] = {"a later library": "3"}
    write_chain(ledger_path, records)
    assert read_ledger(ledger_path).head.count == len(records)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def refusal(path: Path) -> str:
    """Why a ledger is refused; empty where it is not."""
    try:
        read_ledger(path)
    except LedgerCorrupt as error:
        return str(error)
    return ""


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_whatever_stands_in_a_field_is_read_or_refused_and_nothing_else(
    all_kinds: list[Record], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "drawn.jsonl"
    records = copy.deepcopy(all_kinds)
    place, _ = data.draw(st.sampled_from(list(places(all_kinds))))
    holder(records, place)[place[1][-1]] = data.draw(JSON_VALUES)
    write_chain(path, records)
    message = refusal(path)
    assert len(message.encode()) < 600  # a long value is not repeated whole


def _of_little_noise(records: list[Record]) -> None:
    for record in records:
        for inner in (record.get("plan"), record.get("event")):
            if isinstance(inner, dict):
                inner["noise_multiplier"] = 0.005


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r[1].pop("run"), "record 1 (line 2): plan.run is missing: must be a name"),
        (lambda r: r[1].update(run=[]), "plan.run=[]: must be a name"),
        (lambda r: r[3].pop("sha256"), "record 3 (line 4): release.sha256 is missing"),
        (lambda r: r[6].pop("epsilon"), "close.epsilon is missing: must be a finite float >= 0"),
        (lambda r: r[6].update(epsilon="0.7"), "close.epsilon='0.7': must be a finite float"),
        (_of_little_noise, "plan.plan.noise_multiplier=0.005: must be a float from 0.2 to 10000"),
        (lambda r: r[0].update(holding="\x1b[2J"), "open.holding='\\x1b[2J': must be a name"),
    ],
)
def test_a_refusal_says_where_what_and_what_was_expected(
    all_kinds: list[Record],
    ledger_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[list[Record]], object],
    words: str,
) -> None:
    records = copy.deepcopy(all_kinds)
    change(records)
    assert words in refused(ledger_path, records, capsys)


def test_prv_is_left_out_where_it_would_take_all_memory(
    ledger_path: Path, terms: LedgerTerms, plan_with: PlanWith
) -> None:
    plan = plan_with(noise_multiplier=0.2, sample_rate=1.0, steps_per_round=400, rounds=1)
    with Ledger(ledger_path, terms=terms) as ledger:
        ledger.accept_plan("run-1", plan)
        ledger.charge(run="run-1", round_index=0, plan=plan)
    figures = recompute(ledger_path).total.figures
    assert figures is not None
    assert figures.prv is None
    assert figures.cross_check == "unavailable: AccountingError"
    assert figures.rdp is not None
    assert figures.rdp > figures.epsilon > 5000


def test_a_figure_that_is_infinite_is_printed_as_none(
    two_runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("privacy.recompute.replace_one_epsilon", lambda *_, **__: float("inf"))
    assert main([str(two_runs)]) == 0
    assert "replace-one (another relation): none" in capsys.readouterr().out
    assert main(["--json", str(two_runs)]) == 0
    assert "Infinity" not in capsys.readouterr().out
