"""The audit of a run folder: clean runs pass, and every kind of cheat that is planted is found."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedmpt.audit.accounts import audit_client
from fedmpt.audit.findings import Kind
from fedmpt.audit.manifest import METRICS_SHAPE, SUMMARY_SHAPE, strangers
from fedmpt.audit.records import read_run
from fedmpt.audit.run import audit_run
from fedmpt.engine.listener import RoundRecord
from fedmpt.errors import UsageError
from fedmpt.report.parties import parties
from fedmpt.report.source import read_source
from privacy import AccountingError, BudgetExhausted, Ledger, PLDAccountant, read_ledger
from tests.fedmpt.forgery import Record, edit_json, edit_metrics, forge, ledger_of

SmallRun = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def private_run(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audited") / "run"
    small_run(folder)
    return folder


@pytest.fixture
def folder(private_run: Path, tmp_path: Path) -> Path:
    """A copy of a clean private run, to be tampered with."""
    return Path(shutil.copytree(private_run, tmp_path / "run"))


def kinds(folder: Path) -> set[Kind]:
    return {finding.kind for finding in audit_run(folder).findings}


def test_a_clean_private_run_has_no_findings_and_its_figures_are_recomputed(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    audit = audit_run(folder)
    assert audit.findings == ()
    assert len(audit.accounts) == 4
    for account, row in zip(audit.accounts, summary["privacy"]["clients"], strict=True):
        assert account.epsilon == pytest.approx(row["epsilon"], abs=1e-6)
        assert account.epsilon_check == pytest.approx(row["epsilon"], abs=0.05)
        assert account.replace_one > account.epsilon
        assert (account.rounds, account.rounds_refused, account.rounds_left) == (2, 0, 0)
    assert len(audit.manifest.uploads) == 4 * 2
    assert len({upload.sha256 for upload in audit.manifest.uploads}) == 8
    assert not any(item.kind == "unknown" for item in audit.manifest.items)
    assert json.loads(json.dumps(audit.as_dict(), allow_nan=False))["clean"] is True


def test_a_clean_run_without_privacy_has_no_findings_and_claims_nothing(
    small_run: SmallRun, tmp_path: Path
) -> None:
    small_run(tmp_path / "run", privacy__enabled=False)
    audit = audit_run(tmp_path / "run")
    assert audit.findings == ()
    assert not audit.private
    assert audit.accounts == ()
    assert "no differential privacy is claimed" in audit.notes[0]
    kinds_of = {item.name: item.kind for item in audit.manifest.items}
    assert kinds_of["model.safetensors"] == "unprotected"


def test_drop_outs_and_repeated_attempts_are_no_findings(
    small_run: SmallRun, tmp_path: Path
) -> None:
    summary = small_run(
        tmp_path / "run", secagg__dropout=0.15, clients__count=7, train__rounds=4, seed=3
    )
    assert summary["secagg"]["dropped"] > 0
    assert audit_run(tmp_path / "run").findings == ()


@pytest.mark.parametrize(
    "options",
    [
        {"privacy__noise": "shares"},
        {"privacy__noise": "shares", "privacy__unit": "client"},
        {"privacy__arithmetic": "integer"},
        {"secagg__mode": "none"},
        {"secagg__mode": "ckks"},
        {"method__name": "zero-shot"},
        {"method__name": "fedpgp"},
    ],
    ids=lambda options: "-".join(str(value) for value in options.values()),
)
def test_every_mode_of_a_run_is_clean(
    small_run: SmallRun, tmp_path: Path, options: dict[str, Any]
) -> None:
    small_run(tmp_path / "run", **options)
    audit = audit_run(tmp_path / "run")
    assert audit.findings == ()
    assert audit.private


def test_a_carried_ledger_stays_clean_after_later_runs_and_when_it_is_moved(
    small_run: SmallRun, tmp_path: Path
) -> None:
    ledger, options = tmp_path / "ledger", {"privacy__epsilon": 2.0, "privacy__lifetime": 4.0}
    small_run(tmp_path / "first", ledger, **options)
    small_run(tmp_path / "second", ledger, **options)
    first = audit_run(tmp_path / "first")
    assert first.findings == ()
    assert all(account.total > account.epsilon for account in first.accounts)
    moved = tmp_path / "moved"
    ledger.rename(moved)
    assert kinds(tmp_path / "first") == {Kind.LEDGER_MISSING}
    assert audit_run(tmp_path / "first", ledgers=moved).findings == ()


def test_an_interrupted_run_is_audited_and_its_unsent_charges_are_told(
    small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def power_cut(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedmpt.engine.sites.train_privately", power_cut)
    with pytest.raises(KeyboardInterrupt):
        small_run(tmp_path / "run")
    audit = audit_run(tmp_path / "run")
    assert audit.findings == ()
    assert audit.accounts[0].rounds_unsent == 1
    assert any("interrupted" in note for note in audit.notes)


def _edited_line(folder: Path) -> None:
    path = ledger_of(folder)
    cheaper = path.read_text().replace('"noise_multiplier":', '"noise_multiplier":9', 1)
    assert cheaper != path.read_text()
    path.write_text(cheaper)


def _removed_line(folder: Path) -> None:
    path = ledger_of(folder)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2] + lines[4:]))


def _spliced_foreign_chain(folder: Path) -> None:
    shutil.copy(ledger_of(folder, 2), ledger_of(folder, 1))


def _rebuilt_chain_with_a_round_less(folder: Path) -> None:
    def drop_a_round(records: list[Record]) -> None:
        records[4:6] = []

    forge(ledger_of(folder), drop_a_round)


def _rebuilt_chain_with_a_charge_without_its_release(folder: Path) -> None:
    forge(ledger_of(folder), lambda records: records.pop(3))


def _a_plan_without_its_run(folder: Path) -> None:
    forge(ledger_of(folder), lambda records: records[1].pop("run"))


def _a_plan_of_a_run_without_a_name(folder: Path) -> None:
    forge(ledger_of(folder), lambda records: records[1].update(run=[]))


def _a_release_without_its_digest(folder: Path) -> None:
    forge(ledger_of(folder), lambda records: records[3].pop("sha256"))


def _an_end_without_its_epsilon(folder: Path) -> None:
    forge(ledger_of(folder), lambda records: records[-1].pop("epsilon"))


def _an_end_whose_epsilon_is_text(folder: Path) -> None:
    forge(ledger_of(folder), lambda records: records[-1].update(epsilon="7.9"))


def _noise_that_no_accountant_answers_for(folder: Path) -> None:
    def lessen(records: list[Record]) -> None:
        plan = records[1]["plan"]
        plan["noise_multiplier"] = 0.005
        text = json.dumps(plan, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(text.encode()).hexdigest()
        for record in records:
            if record["kind"] in ("plan", "charge"):
                record["event"]["noise_multiplier"] = 0.005
                record["plan_hash"] = digest

    forge(ledger_of(folder), lessen)


def _torn_tail(folder: Path) -> None:
    path = ledger_of(folder)
    path.write_bytes(path.read_bytes()[:-20])


def _tail_cut_at_a_line(folder: Path) -> None:
    path = ledger_of(folder)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))


def _missing_ledger(folder: Path) -> None:
    ledger_of(folder).unlink()


def _missing_index(folder: Path) -> None:
    (folder / "ledger.json").unlink()


def _wrong_epsilon_in_the_summary(folder: Path) -> None:
    def claim_less(summary: Any) -> None:
        summary["privacy"]["clients"][1]["epsilon"] -= 0.01

    edit_json(folder / "summary.json", claim_less)


def _wrong_epsilon_in_the_metrics(folder: Path) -> None:
    edit_metrics(folder, -1, epsilon_max=1.0)


def _wrong_epsilon_in_the_closing_record(folder: Path) -> None:
    forge(ledger_of(folder), lambda records: records[-1].update(epsilon=1.0))


def _a_release_of_a_round_that_was_not_charged(folder: Path) -> None:
    forge(ledger_of(folder), lambda records: records.append({**records[3], "round": 9}))


def _an_update_in_a_sum_that_was_not_charged(folder: Path) -> None:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    extra = json.loads(lines[-1]) | {"round": 3}
    (folder / "metrics.jsonl").write_text("\n".join([*lines, json.dumps(extra)]) + "\n")


def _a_stranger_in_a_sum(folder: Path) -> None:
    edit_metrics(folder, 1, survivors=[0, 1, 2, 3, 4])


def _two_uploads_for_one_charge(folder: Path) -> None:
    forge(ledger_of(folder), lambda records: records.insert(4, {**records[3], "sha256": "0" * 64}))


def _a_cheap_lifetime(folder: Path) -> None:
    forge(ledger_of(folder), lambda records: records[0].update(lifetime_epsilon=2.0))


def _a_training_loss(folder: Path) -> None:
    edit_metrics(folder, 1, train_loss=3.2)


def _a_stricter_configuration_than_was_charged(folder: Path) -> None:
    path = folder / "config.toml"
    path.write_text(path.read_text().replace("epsilon = 8.0", "epsilon = 2.0"))


def _a_summary_without_a_client(folder: Path) -> None:
    edit_json(folder / "summary.json", lambda summary: summary["privacy"]["clients"].pop(1))


def _a_summary_of_fewer_rounds(folder: Path) -> None:
    edit_json(folder / "summary.json", lambda summary: summary.update(rounds=1))


def _a_summary_without_privacy(folder: Path) -> None:
    edit_json(folder / "summary.json", lambda summary: summary.pop("privacy"))


def _an_edited_transcript(folder: Path) -> None:
    path = folder / "transcripts" / "round-0001.bin"
    log = bytearray(path.read_bytes())
    log[-5] ^= 1
    path.write_bytes(log)


def _a_missing_transcript(folder: Path) -> None:
    (folder / "transcripts" / "round-0002.bin").unlink()


def _no_transcripts(folder: Path) -> None:
    shutil.rmtree(folder / "transcripts")


def _exchanged_transcripts(folder: Path) -> None:
    logs = folder / "transcripts"
    (logs / "round-0001.bin").rename(logs / "kept")
    (logs / "round-0002.bin").rename(logs / "round-0001.bin")
    (logs / "kept").rename(logs / "round-0002.bin")


def _a_survivor_who_did_not_sign(folder: Path) -> None:
    edit_metrics(folder, 1, survivors=[0, 1, 2])


PLANTED: list[tuple[Callable[[Path], None], Kind]] = [
    (_edited_line, Kind.LEDGER_BROKEN),
    (_removed_line, Kind.LEDGER_BROKEN),
    (_a_release_of_a_round_that_was_not_charged, Kind.LEDGER_BROKEN),
    (_a_plan_without_its_run, Kind.LEDGER_BROKEN),
    (_a_plan_of_a_run_without_a_name, Kind.LEDGER_BROKEN),
    (_a_release_without_its_digest, Kind.LEDGER_BROKEN),
    (_an_end_without_its_epsilon, Kind.LEDGER_BROKEN),
    (_an_end_whose_epsilon_is_text, Kind.LEDGER_BROKEN),
    (_noise_that_no_accountant_answers_for, Kind.LEDGER_BROKEN),
    (_spliced_foreign_chain, Kind.LEDGER_REPLACED),
    (_rebuilt_chain_with_a_round_less, Kind.UPLOAD_WITHOUT_CHARGE),
    (_rebuilt_chain_with_a_round_less, Kind.LEDGER_TRUNCATED),
    (_rebuilt_chain_with_a_charge_without_its_release, Kind.UPLOAD_WITHOUT_CHARGE),
    (_torn_tail, Kind.LEDGER_TRUNCATED),
    (_tail_cut_at_a_line, Kind.LEDGER_TRUNCATED),
    (_missing_ledger, Kind.LEDGER_MISSING),
    (_missing_index, Kind.LEDGER_MISSING),
    (_wrong_epsilon_in_the_summary, Kind.WRONG_FIGURE),
    (_wrong_epsilon_in_the_metrics, Kind.WRONG_FIGURE),
    (_wrong_epsilon_in_the_closing_record, Kind.WRONG_FIGURE),
    (_an_update_in_a_sum_that_was_not_charged, Kind.UPLOAD_WITHOUT_CHARGE),
    (_a_stranger_in_a_sum, Kind.UPLOAD_WITHOUT_CHARGE),
    (_two_uploads_for_one_charge, Kind.SECOND_UPLOAD),
    (_a_cheap_lifetime, Kind.OVER_BUDGET),
    (_a_training_loss, Kind.FORBIDDEN_VALUE),
    (_a_stricter_configuration_than_was_charged, Kind.CONTRADICTION),
    (_a_summary_without_a_client, Kind.CONTRADICTION),
    (_a_summary_of_fewer_rounds, Kind.CONTRADICTION),
    (_a_summary_without_privacy, Kind.UNREADABLE),
    (_an_edited_transcript, Kind.TRANSCRIPT),
    (_a_missing_transcript, Kind.TRANSCRIPT),
    (_no_transcripts, Kind.TRANSCRIPT),
    (_exchanged_transcripts, Kind.TRANSCRIPT),
    (_a_survivor_who_did_not_sign, Kind.TRANSCRIPT),
]


@pytest.mark.parametrize(
    ("plant", "kind"), PLANTED, ids=[f"{plant.__name__[1:]}-{kind}" for plant, kind in PLANTED]
)
def test_what_is_planted_is_found(folder: Path, plant: Callable[[Path], None], kind: Kind) -> None:
    plant(folder)
    assert kind in kinds(folder)


FORBIDDEN: list[tuple[str, object]] = [  # what docs/privacy.md says may not leave
    ("train_loss", 3.2),
    ("batch_sizes", [7, 3, 5]),
    ("grad_norm", 0.3),
    ("clip_fraction", 0.5),
    ("n_examples", 93),
]


@pytest.mark.parametrize(("key", "value"), FORBIDDEN)
def test_a_value_that_may_not_leave_is_found_by_line_and_key_in_the_metrics(
    folder: Path, key: str, value: object
) -> None:
    edit_metrics(folder, 1, **{key: value})
    (finding,) = audit_run(folder).findings
    assert (finding.kind, finding.where) == (Kind.FORBIDDEN_VALUE, "metrics.jsonl, line 2")
    assert finding.what.startswith(f"holds {key}: ")


def _beside_an_account(summary: Any) -> str:
    for account in summary["privacy"]["clients"]:
        account["batch_sizes"] = [7, 3]
    return "privacy.clients.batch_sizes"


def _in_an_object_under_a_known_key(summary: Any) -> str:
    summary["secagg"]["clipped_share"] = {"grad_norm": 0.3}
    return "secagg.clipped_share"


def _among_the_classes(summary: Any) -> str:
    scores = list(summary["final_AP"].items())
    summary["final_AP"] = dict([*scores[:2], ("n_examples", 93), *scores[2:]])
    return "final_AP.n_examples"


def _after_the_classes(summary: Any) -> str:
    summary["final_AP"]["clip_fraction"] = 0.5
    return "final_AP.clip_fraction"


def _under_a_name_that_a_terminal_would_obey(summary: Any) -> str:
    summary["secagg"]["[/red]\n"] = 1
    return "secagg.??red??"


@pytest.mark.parametrize(
    "plant",
    [
        _beside_an_account,
        _in_an_object_under_a_known_key,
        _among_the_classes,
        _after_the_classes,
        _under_a_name_that_a_terminal_would_obey,
    ],
)
def test_a_value_that_may_not_leave_is_found_wherever_it_is_in_the_summary(
    folder: Path, plant: Callable[[Any], str]
) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    key = plant(summary)
    (folder / "summary.json").write_text(json.dumps(summary))
    (finding,) = audit_run(folder).findings
    assert (finding.kind, finding.where) == (Kind.FORBIDDEN_VALUE, "summary.json")
    assert finding.what.startswith(f"holds {key}: ")


@pytest.mark.parametrize(
    ("key", "value", "path"),
    [
        ("clipped", [0.1, 0.2], "clipped"),  # of each client, and not of all
        ("seconds", {"train": [0.1, 0.3]}, "seconds.train"),  # of each step
        ("dropped", [{"client": 1, "stage": "upload", "loss": 3.2}], "dropped.loss"),
    ],
)
def test_a_known_key_that_holds_more_than_a_run_writes_there_is_found(
    folder: Path, key: str, value: object, path: str
) -> None:
    edit_metrics(folder, 1, **{key: value})
    (finding,) = [one for one in audit_run(folder).findings if one.kind is Kind.FORBIDDEN_VALUE]
    assert finding.what.startswith(f"holds {path}: ")


def test_a_run_without_privacy_may_hold_what_a_private_one_may_not(
    small_run: SmallRun, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    small_run(folder, privacy__enabled=False, train__rounds=1)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[1]["train_loss"] > 0
    edit_metrics(folder, 1, **dict(FORBIDDEN))
    edit_json(folder / "summary.json", lambda summary: summary.update(FORBIDDEN))
    assert audit_run(folder).findings == ()
    kinds_of = {item.name: item.kind for item in audit_run(folder).manifest.items}
    for name in ("metrics.jsonl", "summary.json", "state.safetensors"):
        assert kinds_of[name] == "unprotected"


def test_what_a_private_run_may_hold_is_what_it_writes_and_no_more(
    private_run: Path, sample_record: RoundRecord
) -> None:
    line = sample_record.as_dict()
    assert list(strangers(line, METRICS_SHAPE)) == ["train_loss"]
    assert isinstance(METRICS_SHAPE, dict)
    assert set(METRICS_SHAPE) == set(line)
    summary = json.loads((private_run / "summary.json").read_text())
    other = {path.partition(".")[0] for path in paths(SUMMARY_SHAPE) - paths(summary)}
    assert other == {
        "final_AP",
        "final_shared",
        "final_clients",
    }  # by name; of models of clients' own


def paths(value: object, path: str = "") -> set[str]:
    """Return the path of every key that holds no object."""
    if isinstance(value, list | tuple):
        return {found for one in value for found in paths(one, path)}
    if not isinstance(value, dict):
        return {path}
    return {found for key, one in value.items() for found in paths(one, f"{path}.{key}".strip("."))}


def test_files_that_hold_times_stay_and_are_said_to_in_the_manifest_and_in_the_notes(
    folder: Path,
) -> None:
    audit = audit_run(folder)
    items = {item.name: item for item in audit.manifest.items}
    for name in ("metrics.jsonl", "summary.json", "state.safetensors"):
        assert items[name].kind == "stays"
        assert "seconds" in items[name].why
        assert f"{name}: {items[name].why}" in audit.notes
    assert {item.kind for item in items.values()} == {"public", "dp", "stays"}


MISSING = object()
# nothing is computed from these, and each is null where there was no number
INFORMATIVE = {"prv", "rdp", "spent_epsilon", "epsilon_after"}


def test_a_record_of_any_kind_with_a_field_missing_or_of_a_wrong_type_is_a_broken_ledger(
    folder: Path,
) -> None:
    path, run = ledger_of(folder), json.loads((folder / "ledger.json").read_text())["run"]
    with path.open("a") as file:
        file.write("{")  # the next writer books a cut
    with Ledger(path, terms=read_ledger(path).terms) as ledger:
        refusal = BudgetExhausted(
            limit="target", limit_epsilon=8.0, spent_epsilon=7.9, epsilon_after=8.1
        )
        ledger.refuse(run=run, refusal=refusal)
    whole, read, accountant = path.read_text(), read_run(folder, None), PLDAccountant()
    assert audit_client(1, read, accountant).findings == ()

    def broken(number: int, outer: str, inner: str | None, value: object) -> None:
        def change(records: list[Record]) -> None:
            place = records[number] if inner is None else records[number][outer]
            name = inner or outer
            if value is MISSING:
                del place[name]
            else:
                place[name] = value

        path.write_text(whole)
        forge(path, change)
        audit = audit_client(1, read, accountant)
        kinds_found = [finding.kind for finding in audit.findings]
        assert kinds_found == [Kind.LEDGER_BROKEN], (number, outer, inner, value)
        assert f"line {number + 1}" in audit.findings[0].what
        assert (audit.account, audit.uploads) == (None, ())

    records = [json.loads(line)["record"] for line in whole.splitlines()]
    first = {record["kind"]: number for number, record in reversed(list(enumerate(records)))}
    assert set(first) == {"open", "plan", "charge", "release", "close", "recover", "refuse"}
    for number in first.values():
        for outer, found in records[number].items():
            inners = found if outer in ("plan", "event") and isinstance(found, dict) else ()
            for inner in (None, *inners):
                broken(number, outer, inner, MISSING)
                value = found if inner is None else found[inner]
                for wrong in (None, True, [7], 0.5, "text"):
                    informative = outer in INFORMATIVE and isinstance(wrong, float | None)
                    if type(wrong) is not type(value) and not informative:
                        broken(number, outer, inner, wrong)


@pytest.fixture(scope="session")
def ckks_run(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audited") / "run"
    small_run(folder, secagg__mode="ckks", secagg__ckks_verify=True, train__rounds=1)
    return folder


def _no_log_of_the_key(log: Path) -> None:
    log.unlink()


def _an_edited_log_of_the_key(log: Path) -> None:
    log.write_bytes(log.read_bytes()[:-1])


def _a_round_in_place_of_the_key(log: Path) -> None:
    log.write_bytes((log.parent / "round-0001.bin").read_bytes())


@pytest.mark.parametrize(
    "plant", [_no_log_of_the_key, _an_edited_log_of_the_key, _a_round_in_place_of_the_key]
)
def test_who_holds_the_key_of_ckks_rounds_must_be_on_record(
    ckks_run: Path, tmp_path: Path, plant: Callable[[Path], None]
) -> None:
    folder = Path(shutil.copytree(ckks_run, tmp_path / "run"))
    assert audit_run(folder).findings == ()
    plant(folder / "transcripts" / "key-setup.bin")
    assert kinds(folder) == {Kind.TRANSCRIPT}


def test_every_kind_of_finding_has_a_plant() -> None:
    assert {kind for _, kind in PLANTED} == set(Kind) - {Kind.ACCOUNTANTS_DISAGREE}  # below


def test_accountants_that_disagree_are_a_finding(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disagree(*arguments: object, **options: object) -> None:
        raise AccountingError("PRV reads 9.0, PLD 8.0")

    monkeypatch.setattr("privacy.recompute.cross_checked", disagree)
    audit = audit_run(folder)
    assert Kind.ACCOUNTANTS_DISAGREE in {finding.kind for finding in audit.findings}
    assert json.loads(json.dumps(audit.as_dict(), allow_nan=False))["clients"][0]["epsilon"] is None


def test_an_epsilon_for_a_run_without_privacy_is_a_finding(
    small_run: SmallRun, tmp_path: Path
) -> None:
    small_run(tmp_path / "run", privacy__enabled=False, train__rounds=1)

    def boast(summary: Any) -> None:
        summary["privacy"]["target_epsilon"] = 8.0

    edit_json(tmp_path / "run" / "summary.json", boast)
    assert kinds(tmp_path / "run") == {Kind.CONTRADICTION}


def test_a_file_nobody_vouches_for_is_told(folder: Path) -> None:
    (folder / "norms.csv").write_text("1,2,3")
    assert any("norms.csv" in note for note in audit_run(folder).notes)


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run folder"):
        audit_run(tmp_path)


def test_the_command_prints_one_object_and_its_exit_code_says_whether_there_are_findings(
    folder: Path,
) -> None:
    clean = _audit(folder, "--json")
    assert clean.returncode == 0, clean.stderr
    assert json.loads(clean.stdout)["clean"] is True
    assert "no findings" in clean.stderr
    _edited_line(folder)
    dirty = _audit(folder)
    assert dirty.returncode == 1
    assert "ledger-broken" in dirty.stdout
    assert "Traceback" not in dirty.stderr


def _audit(*arguments: object) -> subprocess.CompletedProcess[str]:
    code = "import sys; from fedmpt.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, "audit", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_four_sums_of_fedawa_are_one_charge_and_a_fifth_upload_is_found(
    small_run: SmallRun, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    small_run(folder, method__name="fedawa", method__head__offset="image-mean")
    audit = audit_run(folder)
    assert audit.findings == ()
    assert len(audit.manifest.uploads) == 4 * 2 * 4  # sums, rounds, clients
    assert "4 a round and client" in audit.manifest.items[0].why
    logs = sorted(path.name for path in (folder / "transcripts").glob("round-0001*"))
    assert logs == ["round-0001-1.bin", "round-0001-2.bin", "round-0001-3.bin", "round-0001.bin"]
    page = str(parties(read_source(folder)))
    assert "The public logs of 2 round(s) verify" in page
    assert "aborted or withheld" not in page
    (folder / "transcripts" / "round-0001-2.bin").unlink()
    assert kinds(folder) == {Kind.TRANSCRIPT}
    _two_uploads_for_one_charge(folder)
    assert Kind.SECOND_UPLOAD in kinds(folder)


@pytest.mark.parametrize("file", ["metrics.jsonl", "summary.json"])
def test_a_value_that_hides_behind_a_second_one_of_its_name_is_refused(
    private_run: Path, tmp_path: Path, file: str
) -> None:
    """Readers of JSON keep the last of two; the audit would not see the first."""
    folder = shutil.copytree(private_run, tmp_path / "run")
    path = folder / file
    path.write_text(path.read_text().replace('"schema":', '"schema": "x", "schema":', 1))
    with pytest.raises(UsageError, match="a key occurs twice"):
        audit_run(folder)
