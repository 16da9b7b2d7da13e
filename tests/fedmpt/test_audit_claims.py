"""The audit of what a run claims: each false word, figure, plan or file that an honest run never writes is found."""

from __future__ import annotations

import copy
import functools
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from fedmpt.audit.findings import Finding, Kind
from fedmpt.audit.run import audit_run
from fedmpt.errors import UsageError
from privacy import PLDAccountant
from privacy.recompute import figures_of
from tests.fedmpt.forgery import (
    Record,
    change_plan,
    edit_json,
    edit_metrics,
    forge_all,
    replace_text,
)

SmallRun = Callable[..., dict[str, Any]]
SHARED: dict[str, Any] = {"privacy__noise": "shares"}


@pytest.fixture(scope="session")
def shared_run(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which half the clients, and so other colluders than of all, share the noise of a round."""
    folder = tmp_path_factory.mktemp("claims") / "shared"
    small_run(folder, clients__count=8, clients__participation=0.5, **SHARED)
    return folder


@pytest.fixture
def folder(private_run: Path, tmp_path: Path) -> Path:
    """A copy of a clean private run, to be tampered with."""
    return Path(shutil.copytree(private_run, tmp_path / "run"))


@pytest.fixture
def shared(shared_run: Path, tmp_path: Path) -> Path:
    """A copy of a clean run with shared noise, to be tampered with."""
    return Path(shutil.copytree(shared_run, tmp_path / "shared"))


def found(folder: Path, kind: Kind) -> list[Finding]:
    """Return the findings, all of which must be of one kind."""
    findings = audit_run(folder).findings
    assert {finding.kind for finding in findings} == {kind}, findings
    return list(findings)


def _a_second_upload(records: list[Record]) -> None:
    kinds = [record["kind"] for record in records]
    if "release" in kinds:
        first = kinds.index("release")
        records.insert(first + 1, records[first] | {"sha256": "0" * 64})


def _said_to_have_had_three_attempts(folder: Path) -> None:
    for number in (1, 2):
        edit_metrics(folder, number, attempts=3)


def test_a_share_of_noise_hides_one_upload_however_many_attempts_the_round_had(
    shared: Path,
) -> None:
    _said_to_have_had_three_attempts(shared)
    assert audit_run(shared).findings == ()
    forge_all(shared, _a_second_upload)
    assert len(found(shared, Kind.SECOND_UPLOAD)) == len(
        [
            path
            for path in (shared / "ledger").glob("*.jsonl")
            if '"kind":"release"' in path.read_text()
        ]
    )


def test_shares_of_noise_that_are_charged_anew_in_every_attempt_are_no_findings(
    small_run: SmallRun, tmp_path: Path
) -> None:
    options = {"secagg__dropout": 0.3, "clients__count": 7, "train__rounds": 4, "seed": 1}
    small_run(tmp_path / "run", **options, **SHARED)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(line)["attempts"] for line in lines) > 1
    assert audit_run(tmp_path / "run").findings == ()


def test_noise_of_ones_own_hides_an_upload_in_every_attempt_and_in_no_more_than_a_round_may_have(
    folder: Path,
) -> None:
    _said_to_have_had_three_attempts(folder)
    forge_all(folder, _a_second_upload)
    assert audit_run(folder).findings == ()
    for number in (1, 2):
        edit_metrics(folder, number, attempts=50)
    forge_all(folder, _a_second_upload)
    forge_all(folder, _a_second_upload)
    found(folder, Kind.SECOND_UPLOAD)


def _row(**values: object) -> Callable[[Any], None]:
    return lambda summary: summary["privacy"]["clients"][2].update(values)


def _claimed(**values: object) -> Callable[[Any], None]:
    return lambda summary: summary["privacy"].update(values)


def _a_row_twice(summary: Any) -> None:
    rows = summary["privacy"]["clients"]
    rows.append(rows[1] | {"epsilon": 0.5})


def _a_row_twice_to_the_letter(summary: Any) -> None:
    rows = summary["privacy"]["clients"]
    rows.append(copy.deepcopy(rows[1]))


def _a_row_of_a_client_that_took_no_part(summary: Any) -> None:
    rows = summary["privacy"]["clients"]
    rows.append(rows[1] | {"client": 9, "epsilon": 0.5})


FALSE_CLAIMS: dict[str, tuple[Callable[[Any], object], Kind]] = {
    "delta-0-of-a-client": (_row(delta=0), Kind.WRONG_FIGURE),
    "delta-1e-9-of-a-client": (_row(delta=1e-9), Kind.WRONG_FIGURE),
    "steps-of-a-client": (_row(steps=1), Kind.WRONG_FIGURE),
    "size-of-a-client": (_row(n_public=81), Kind.WRONG_FIGURE),
    "noise-of-a-client": (_row(noise_multiplier=0.84905), Kind.WRONG_FIGURE),
    "lifetime-spent-of-a-client": (_row(lifetime_spent=0.0), Kind.WRONG_FIGURE),
    "lifetime-of-a-client": (_row(lifetime_epsilon=100.0), Kind.WRONG_FIGURE),
    "a-row-twice": (_a_row_twice, Kind.CONTRADICTION),
    "the-same-row-twice": (_a_row_twice_to_the_letter, Kind.CONTRADICTION),
    "a-row-of-nobody": (_a_row_of_a_client_that_took_no_part, Kind.CONTRADICTION),
    "target": (_claimed(target_epsilon=1.0), Kind.WRONG_FIGURE),
    "no-target": (_claimed(target_epsilon=None), Kind.WRONG_FIGURE),
    "delta": (_claimed(delta=1e-12), Kind.WRONG_FIGURE),
    "no-delta": (_claimed(delta=None), Kind.WRONG_FIGURE),
    "unit": (_claimed(unit="client"), Kind.CONTRADICTION),
    "noise": (_claimed(noise="local and more"), Kind.CONTRADICTION),
    "relation": (_claimed(relation="replace_one"), Kind.CONTRADICTION),
    "protected": (_claimed(protected="everything a client contributes"), Kind.CONTRADICTION),
    "against": (_claimed(against="everyone, for ever"), Kind.CONTRADICTION),
    "run": (_claimed(run="another"), Kind.CONTRADICTION),
    "clients": (lambda summary: summary.update(clients=99), Kind.CONTRADICTION),
    "mode": (lambda summary: summary["secagg"].update(mode="ckks"), Kind.CONTRADICTION),
    "statement": (
        lambda summary: summary["secagg"].update(statement="Nobody learns anything."),
        Kind.CONTRADICTION,
    ),
}


@pytest.mark.parametrize("name", FALSE_CLAIMS)
def test_a_claim_of_the_summary_that_ledgers_and_configuration_do_not_give_is_found(
    folder: Path, name: str
) -> None:
    change, kind = FALSE_CLAIMS[name]
    edit_json(folder / "summary.json", change)
    assert kind in {finding.kind for finding in audit_run(folder).findings}
    if name != "a-row-twice":  # two rows, one of them with a wrong figure
        found(folder, kind)


def test_shared_noise_is_not_said_to_protect_against_everyone(shared: Path) -> None:
    assert audit_run(shared).findings == ()
    edit_json(shared / "summary.json", _claimed(against="everyone"))
    (finding,) = found(shared, Kind.CONTRADICTION)
    assert "up to 1 client(s), who see only sums over at least 2 others" in finding.what


def test_what_a_lifetime_holds_is_compared_as_of_the_end_of_the_run(
    small_run: SmallRun, tmp_path: Path
) -> None:
    ledger, options = tmp_path / "ledger", {"privacy__epsilon": 2.0, "privacy__lifetime": 4.0}
    for name in ("first", "second"):
        small_run(tmp_path / name, ledger, train__rounds=1, **options)
        assert audit_run(tmp_path / name).findings == ()
    own = json.loads((tmp_path / "second" / "summary.json").read_text())["privacy"]["clients"][2]
    assert own["lifetime_spent"] > own["epsilon"] + 0.1
    edit_json(tmp_path / "second" / "summary.json", _row(lifetime_spent=own["epsilon"]))
    found(tmp_path / "second", Kind.WRONG_FIGURE)


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("name", ["epsilon_min", "epsilon_max"])
def test_a_wrong_epsilon_is_found_in_every_line_of_the_metrics(
    folder: Path, name: str, number: int
) -> None:
    edit_metrics(folder, number, **{name: 0.25})
    (finding,) = found(folder, Kind.WRONG_FIGURE)
    assert finding.where == f"metrics.jsonl, round {number}"


def test_a_line_without_epsilon_or_twice_is_found(folder: Path) -> None:
    edit_metrics(folder, 1, epsilon_min=None, epsilon_max=None)
    assert len(found(folder, Kind.WRONG_FIGURE)) == 2


def test_a_round_that_the_metrics_have_twice_is_found(folder: Path) -> None:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], *lines[1:]]))
    assert Kind.CONTRADICTION in {finding.kind for finding in audit_run(folder).findings}


def test_an_epsilon_in_the_metrics_of_a_run_without_privacy_is_found(
    open_run: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(open_run, tmp_path / "run")
    edit_metrics(folder, 2, epsilon_min=1.0, epsilon_max=1.0)
    assert len(found(folder, Kind.WRONG_FIGURE)) == 2


def _on_card(**values: object) -> Callable[[Any], None]:
    return lambda card: card["privacy"].update(values)


def _cheaper_words(card: Any) -> None:
    card["privacy"]["guarantee"] = card["privacy"]["guarantee"].replace("epsilon 8.00", "epsilon 1")


FALSE_CARDS: dict[str, tuple[Callable[[Any], object], Kind]] = {
    "largest-epsilon": (_on_card(largest_epsilon=1.0), Kind.WRONG_FIGURE),
    "no-largest-epsilon": (_on_card(largest_epsilon=None), Kind.WRONG_FIGURE),
    "an-epsilon": (lambda card: card["privacy"]["epsilon"].update({"1": 1.0}), Kind.WRONG_FIGURE),
    "a-client-less": (lambda card: card["privacy"]["epsilon"].pop("1"), Kind.WRONG_FIGURE),
    "a-client-more": (
        lambda card: card["privacy"]["epsilon"].update({"9": 1.0}),
        Kind.WRONG_FIGURE,
    ),
    "delta": (_on_card(delta=1e-9), Kind.WRONG_FIGURE),
    "guarantee": (_cheaper_words, Kind.CONTRADICTION),
    "unit": (_on_card(unit="client"), Kind.CONTRADICTION),
    "no-guarantee": (_on_card(enabled=False), Kind.CONTRADICTION),
    "mode": (lambda card: card.update(secure_aggregation="ckks"), Kind.CONTRADICTION),
    "rounds": (lambda card: card.update(rounds=1), Kind.CONTRADICTION),
    "clients": (lambda card: card.update(clients=400), Kind.CONTRADICTION),
}


@pytest.mark.parametrize("name", FALSE_CARDS)
def test_a_model_s_card_promises_what_the_ledgers_give_and_nothing_else(
    folder: Path, name: str
) -> None:
    change, kind = FALSE_CARDS[name]
    edit_json(folder / "card.json", change)
    assert {finding.where for finding in found(folder, kind)} == {"card.json"}


@pytest.mark.parametrize(
    "change",
    [
        _on_card(enabled=True, guarantee="differential privacy"),
        _on_card(guarantee="nothing was tuned, so nothing of any image is in this model"),
        _on_card(largest_epsilon=1.0),
    ],
)
def test_the_card_of_a_run_without_privacy_promises_nothing(
    open_run: Path, tmp_path: Path, change: Callable[[Any], object]
) -> None:
    folder = shutil.copytree(open_run, tmp_path / "run")
    assert audit_run(folder).findings == ()
    edit_json(folder / "card.json", change)
    found(folder, Kind.CONTRADICTION)


def test_updates_in_the_clear_are_not_said_to_be_masked(
    small_run: SmallRun, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    small_run(folder, secagg__mode="none", train__rounds=1)
    masked = "Masking: the server learns the sum over the clients that finish and no single update"
    masked += ", also if it lies and a minority of clients helps it."
    replace_text(folder / "config.toml", 'mode = "none"', 'mode = "masking"')
    edit_json(
        folder / "summary.json",
        lambda summary: summary["secagg"].update(mode="masking", statement=masked),
    )
    edit_json(folder / "card.json", lambda card: card.update(secure_aggregation="masking"))
    (finding,) = found(folder, Kind.CONTRADICTION)
    assert finding.where == "round-0001.bin"
    assert "mode plain, config.toml says masking" in finding.what


def test_plans_that_count_on_more_honest_clients_than_a_cohort_has_are_found(shared: Path) -> None:
    forge_all(shared, change_plan(honest=50))
    findings = found(shared, Kind.CONTRADICTION)
    assert any("invites 4 clients" in finding.what for finding in findings)
    assert {finding.where for finding in findings} >= {"round-0001.bin", "round-0002.bin"}


def test_public_logs_must_promise_the_honest_clients_and_colluders_that_plans_count_on(
    shared: Path,
) -> None:
    """The configuration and the plans say eight clients a round; four were invited."""
    forge_all(shared, change_plan(honest=4, rounds=2))
    replace_text(shared / "config.toml", "participation = 0.5", "participation = 1.0")
    told = [f.what for f in audit_run(shared).findings if f.where == "round-0001.bin"]
    assert told == [
        "4 clients were invited, plans count on 8",
        "1 colluders are tolerated, plans count on 2",
        "a sum is sure to hold 2 shares of noise that no colluder knows, plans count on 4",
    ]


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ('arithmetic = "float"', 'arithmetic = "integer"', "arithmetic"),
        ('space = "sketch"', 'space = "text"', "space"),
        ('clip_mode = "normalise"', 'clip_mode = "flat"', "clip_mode"),
        ("clip = 1.0\nclip_mode", "clip = 0.5\nclip_mode", "clip"),
        ("batch_size = 128", "batch_size = 16", "batches of 16"),
        ("batch_size = 128\n", "", "no train.batch_size"),
        ("local_epochs = 1", "local_epochs = 5", "steps a round"),
        ("\nrounds = 2\n", "\nrounds = 3\n", "3 rounds"),
        ("\nrounds = 2\n", "\nrounds = 1\n", "1 rounds"),
        ("\nrounds = 2\n", "\n", "no train.rounds"),
        ("sketch_rank", "declared_sizes = [40, 70, 80, 31]\nsketch_rank", "a size of 31"),
        ("sketch_rank", "lifetime = 9.5\nsketch_rank", "lifetime limit of 9.5"),
        ("[privacy.block_shares]", "[privacy.block_weights]\ntext = 7.0\n[privacy.block_shares]", "weight of 7.0"),
    ],
)  # fmt: skip
def test_a_configuration_that_was_not_charged_is_found(
    folder: Path, old: str, new: str, word: str
) -> None:
    replace_text(folder / "config.toml", old, new)
    findings = found(folder, Kind.CONTRADICTION)
    assert any(word in finding.what for finding in findings), findings


def test_an_earlier_plan_of_the_run_must_be_as_configured_too(folder: Path) -> None:
    """Charges under it are as real as those under the last."""

    def charge_another_first(records: list[Record]) -> None:
        false = copy.deepcopy(records[1:4])
        change_plan(space="text")(false)
        records[1:4] = [*false, records[1]]

    forge_all(folder, charge_another_first)
    told = [f.what for f in audit_run(folder).findings if f.kind is Kind.CONTRADICTION]
    assert len(told) == 4
    assert set(told) == {"config.toml says space sketch, the charged plan has text"}


def test_shares_of_noise_in_one_sum_are_of_equal_plans_and_rates_of_the_sizes(
    shared: Path,
) -> None:
    replace_text(shared / "config.toml", "batch_size = 128", "batch_size = 16")
    assert any("on average" in finding.what for finding in found(shared, Kind.CONTRADICTION))
    replace_text(shared / "config.toml", "batch_size = 16", "batch_size = 128")
    assert audit_run(shared).findings == ()
    weak = iter([True])
    forge_all(
        shared,
        lambda records: change_plan(clip_steps=5000)(records) if next(weak, False) else None,
    )
    (finding,) = found(shared, Kind.CONTRADICTION)
    assert "go into one sum" in finding.what


def test_noise_on_a_grid_too_coarse_for_its_proof_is_a_broken_ledger(shared: Path) -> None:
    forge_all(shared, change_plan(clip_steps=1))
    for finding in found(shared, Kind.LEDGER_BROKEN):
        assert "too coarse" in finding.what


@pytest.fixture
def quick(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose audits cost next to nothing: figures are computed once, and logs are not read."""
    monkeypatch.setattr("fedmpt.audit.run.transcript_findings", lambda records, *, honest: [])
    accountant = PLDAccountant()

    @functools.cache
    def figures(events: Any, delta: float, run: str | None) -> Any:
        return figures_of(events, delta, accountant=accountant, run=run)

    monkeypatch.setattr("fedmpt.audit.run.PLDAccountant", lambda: accountant)
    monkeypatch.setattr(
        "fedmpt.audit.accounts.figures_of",
        lambda events, delta, *, accountant, run=None: figures(events, delta, run),
    )
    assert audit_run(folder).findings == ()
    yield folder
    assert audit_run(folder).findings == ()


DELETED = object()
WRONG = (DELETED, None, "text", ["text"], {"text": 1}, -1, 10**400, 1e999)
READ = {  # by an audit, which therefore must say when it cannot
    "summary.json": {
        *("rounds", "clients", "privacy", "secagg", "privacy.clients", "privacy.enabled"),
        *("privacy.unit", "privacy.noise", "privacy.protected", "privacy.against"),
        *("privacy.relation", "privacy.run", "secagg.mode", "secagg.statement"),
        *("privacy.clients.epsilon", "privacy.clients.delta", "privacy.clients.ledger_head"),
        *("privacy.clients.client", "privacy.clients.steps", "privacy.clients.lifetime_spent"),
    },
    "ledger.json": {"run", "folder", "clients", "clients.client", "clients.head"},
    "metrics.jsonl": {"round", "survivors", "attempts"},
    "card.json": {"privacy", "privacy.enabled", "privacy.guarantee", "secure_aggregation"},
}


def _places(value: Any) -> Iterator[tuple[str, Any, str]]:
    """Yield name, holder and key of every value at the first and the second level; of a list, of its first object."""
    for key, one in value.items():
        yield key, value, key
        inner = one[0] if isinstance(one, list) and one and isinstance(one[0], dict) else one
        if isinstance(inner, dict):
            yield from ((f"{key}.{name}", inner, name) for name in inner)
            for name, below in inner.items():
                rows = below if isinstance(below, list) else []
                if rows and isinstance(rows[0], dict):
                    yield from ((f"{key}.{name}.{field}", rows[0], field) for field in rows[0])


@pytest.mark.slow
@pytest.mark.parametrize("file", READ)
def test_no_value_of_a_file_brings_an_audit_down_and_what_it_cannot_read_is_a_finding(
    quick: Path, file: str
) -> None:
    path = quick / file
    whole = path.read_text()
    lines = whole.splitlines(keepends=True) if file == "metrics.jsonl" else [whole]
    seen = set()
    for number in {0, len(lines) - 1}:
        for name, _, _ in _places(json.loads(lines[number])):
            seen.add(name)
            for wrong in WRONG:
                content = json.loads(lines[number])
                holder, key = next((h, k) for n, h, k in _places(content) if n == name)
                if wrong is DELETED:
                    del holder[key]
                else:
                    holder[key] = wrong
                changed = [*lines[:number], json.dumps(content) + "\n", *lines[number + 1 :]]
                path.write_text("".join(changed))
                if name == "schema" and (file, wrong) != ("metrics.jsonl", DELETED):
                    with pytest.raises(UsageError) if file != "card.json" else nullcontext():
                        audit_run(quick)
                else:
                    assert audit_run(quick).findings or name not in READ[file], (name, wrong)
    assert seen >= READ[file]
    path.write_text(whole)


def test_a_file_that_is_not_as_a_run_writes_it_is_told_by_name_and_its_values_are_not(
    folder: Path,
) -> None:
    edit_json(folder / "summary.json", lambda summary: summary.update(rounds="secret"))
    edit_json(folder / "ledger.json", lambda index: index.pop("run"))
    edit_json(folder / "card.json", lambda card: card.update(privacy=["secret"]))
    edit_metrics(folder, 1, round="secret")
    told = found(folder, Kind.UNREADABLE)  # and nothing that only follows from it
    assert [finding.where for finding in told] == [
        *("ledger.json", "metrics.jsonl, line 2", "summary.json", "card.json")
    ]
    assert "missing required field `run`" in told[0].what
    assert not any("secret" in finding.what for finding in told)
    assert not any("no summary.json" in note for note in audit_run(folder).notes)


@pytest.mark.parametrize(
    ("file", "key"),
    [("summary.json", "privacy"), ("summary.json", "rounds"), ("ledger.json", "run")],
)
def test_the_command_tells_a_file_that_lacks_what_it_must_hold_by_exit_code(
    folder: Path, fedmpt: Callable[..., Result], file: str, key: str
) -> None:
    edit_json(folder / file, lambda content: content.pop(key))
    result = fedmpt("audit", folder)
    assert result.exit_code == 1
    assert f"unreadable: {file}: " in result.output


def test_a_number_of_clients_beyond_all_floats_is_found_where_no_index_contradicts_it(
    folder: Path,
) -> None:
    (folder / "ledger.json").unlink()
    edit_json(folder / "summary.json", lambda summary: summary.update(clients=10**400))
    assert Kind.UNREADABLE in {finding.kind for finding in audit_run(folder).findings}


def test_a_line_that_cannot_be_read_is_one_finding(folder: Path) -> None:
    edit_metrics(folder, 2, round=None)
    (finding,) = found(folder, Kind.UNREADABLE)
    assert finding.where == "metrics.jsonl, line 3"


@pytest.mark.parametrize("name", ["\0", "\ud800", "a\nb", ""])
def test_a_name_in_the_index_that_nobody_could_print_or_open_is_found(
    folder: Path, name: str
) -> None:
    edit_json(folder / "ledger.json", lambda index: index.update(folder=name))
    assert found(folder, Kind.UNREADABLE)[0].where == "ledger.json"


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.toml", "[privacy]\nenabled = 1\n"),
        ("config.toml", "[privacy]\nno_such_key = 1\n"),
        ("summary.json", "[" * 100_000),
        ("metrics.jsonl", "[" * 100_000 + "\n"),
        ("card.json", "{"),
    ],
)
def test_a_file_that_is_no_json_or_no_configuration_is_refused_by_name(
    folder: Path, file: str, text: str
) -> None:
    (folder / file).write_text(text)
    with pytest.raises(UsageError, match=rf"{file}: .*(cannot be read|not readable)"):
        audit_run(folder)
