import base64
import hashlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from privacy import (
    AccountingError,
    BudgetExhausted,
    ConfigurationError,
    DPPlan,
    EpsilonFigures,
    Ledger,
    LedgerConflict,
    LedgerCorrupt,
    LedgerError,
    LedgerHead,
    LedgerLocked,
    LedgerRolledBack,
    LedgerTerms,
    NeighbouringRelation,
    PLDAccountant,
    SampledGaussian,
    calibrate,
    read_ledger,
)
from privacy.events import MOST_DIVERGENCE, NOISE_MULTIPLIERS, divergence
from privacy.history import Charge
from privacy.ledger import software_versions

PlanWith = Callable[..., DPPlan]


class KeyPair:
    """An identity key as the client would inject it."""

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()
        self.public: Ed25519PublicKey = self._key.public_key()

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)

    def verify(self, message: bytes, signature: bytes) -> None:
        self.public.verify(signature, message)


def rounds(ledger: Ledger, plan: DPPlan, count: int, run: str = "run-1") -> list[Charge]:
    """Charges and releases `count` rounds."""
    ledger.accept_plan(run, plan)
    charges = []
    for index in range(count):
        charges.append(ledger.charge(run=run, round_index=index, plan=plan))
        ledger.release(charges[-1], b"payload %d" % index)
    return charges


def lines_of(path: Path) -> list[dict[str, dict[str, object]]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def forge(path: Path, change: Callable[[list[dict[str, object]]], None]) -> None:
    """Changes records and rebuilds a valid chain over them, as a cheat without a key could."""
    records = [line["record"] for line in lines_of(path)]
    change(records)
    previous = hashlib.sha256(b"privacy-ledger/1").digest()
    text = ""
    for record in records:
        body = json.dumps(record, sort_keys=True, separators=(",", ":"))
        previous = hashlib.sha256(previous + body.encode()).digest()
        text += f'{{"hash":"{previous.hex()}","record":{body}}}\n'
    path.write_text(text)


def test_events_survive_reopening_and_epsilon_is_recomputed_from_them(
    ledger_path: Path, terms: LedgerTerms, plan_with: PlanWith, accountant: PLDAccountant
) -> None:
    plan = plan_with()
    for run in ("run-1", "run-2"):
        for _ in range(2):  # a second process of the same run
            with Ledger(ledger_path, terms=terms) as ledger:
                ledger.accept_plan(run, plan)
                for index in range(3):
                    ledger.charge(run=run, round_index=index, plan=plan)
    history = read_ledger(ledger_path)
    at_once = PLDAccountant().epsilon([plan.event(12 * 8)], terms.delta)
    assert history.spent_epsilon(accountant) == pytest.approx(at_once, abs=1e-6)
    of_run = PLDAccountant().epsilon([plan.event(6 * 8)], terms.delta)
    assert history.spent_epsilon(accountant, "run-1") == pytest.approx(of_run, abs=1e-6)
    assert history.runs == ("run-1", "run-2")
    assert [c.attempt for c in history.charges] == [0, 0, 0, 1, 1, 1] * 2
    with Ledger(ledger_path, terms=terms) as ledger:
        assert ledger.spent_epsilon(accountant) == history.spent_epsilon(accountant)
        assert ledger.charges == history.charges
        assert ledger.head == history.head
        assert ledger.terms == history.terms == terms


def test_a_plan_is_recorded_once_and_again_when_it_changes(
    ledger: Ledger, ledger_path: Path, plan_with: PlanWith
) -> None:
    ledger.accept_plan("run-1", plan_with())
    ledger.accept_plan("run-1", plan_with())
    ledger.accept_plan("run-1", plan_with(noise_multiplier=3.0))
    ledger.accept_plan("run-1", plan_with())
    kinds = [line["record"]["kind"] for line in lines_of(ledger_path)]
    assert kinds == ["open", "plan", "plan", "plan"]


def test_a_charge_is_on_disk_before_charge_returns(
    ledger: Ledger, ledger_path: Path, plan_with: PlanWith, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        synced.append(ledger_path.stat().st_size)

    monkeypatch.setattr("os.fsync", fsync)
    ledger.accept_plan("run-1", plan_with())
    ledger.charge(run="run-1", round_index=0, plan=plan_with())
    assert synced[-1] == ledger_path.stat().st_size
    assert lines_of(ledger_path)[-1]["record"]["kind"] == "charge"


def test_creation_is_durable_and_whole(ledger_path: Path, terms: LedgerTerms) -> None:
    with Ledger(ledger_path, terms=terms):
        pass
    history = read_ledger(ledger_path)
    assert history.terms == terms
    assert history.head.count == 1
    assert ledger_path.stat().st_mode & 0o077 == 0
    assert not ledger_path.with_name(ledger_path.name + ".new").exists()


def test_fields_are_public_numbers_and_names_only(
    ledger: Ledger, ledger_path: Path, plan_with: PlanWith
) -> None:
    rounds(ledger, plan_with(), 1)
    allowed = {
        "open": "kind format holding n_pub delta lifetime_epsilon relation unit software",
        "plan": "kind run plan plan_hash event software",
        "charge": "kind run round attempt event plan_hash",
        "release": "kind run round attempt sha256",
    }
    for line in lines_of(ledger_path):
        record = line["record"]
        assert set(record) == set(allowed[str(record["kind"])].split())


def test_a_release_names_its_charge_and_the_hash_of_what_was_sent(
    ledger: Ledger, ledger_path: Path, plan_with: PlanWith
) -> None:
    (charge,) = rounds(ledger, plan_with(), 1)
    ledger.release(charge, b"the same noise under fresh masks")
    record = lines_of(ledger_path)[-1]["record"]
    assert record["sha256"] == hashlib.sha256(b"the same noise under fresh masks").hexdigest()
    assert len(ledger.charges) == 1
    other = Charge(run="run-1", round=9, attempt=0, event=charge.event, plan_hash="")
    with pytest.raises(LedgerConflict, match="without its charge"):
        ledger.release(other, b"")


def test_a_charge_needs_the_runs_current_plan(ledger: Ledger, plan_with: PlanWith) -> None:
    with pytest.raises(LedgerConflict):
        ledger.charge(run="run-1", round_index=0, plan=plan_with())
    ledger.accept_plan("run-1", plan_with())
    weaker = plan_with(noise_multiplier=0.5)
    with pytest.raises(LedgerConflict):
        ledger.charge(run="run-1", round_index=0, plan=weaker)
    ledger.accept_plan("run-1", weaker)
    with pytest.raises(LedgerConflict):
        ledger.charge(run="run-1", round_index=0, plan=plan_with())
    with pytest.raises(LedgerConflict):
        ledger.charge(run="run-1", round_index=-1, plan=weaker)
    assert ledger.charges == ()


@pytest.mark.parametrize("changes", [{"n_pub": 260}, {"delta": 1e-6}])
def test_a_plan_on_other_terms_is_refused(
    ledger: Ledger, plan_with: PlanWith, changes: dict[str, object]
) -> None:
    with pytest.raises(LedgerConflict, match=next(iter(changes))):
        ledger.accept_plan("run-1", plan_with(**changes))


def test_terms_are_fixed_for_life(ledger_path: Path, terms: LedgerTerms) -> None:
    with Ledger(ledger_path, terms=terms):
        pass
    raised = LedgerTerms(holding="ward-7", n_pub=250, delta=1e-5, lifetime_epsilon=1000.0)
    with pytest.raises(LedgerConflict, match="fixed"):
        Ledger(ledger_path, terms=raised)
    with Ledger(ledger_path, terms=terms):  # the failed attempt has given its lock back
        pass


def test_terms_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigurationError):
        LedgerTerms(holding="", n_pub=250, delta=1e-5, lifetime_epsilon=8.0)
    with pytest.raises(ConfigurationError, match="control"):
        LedgerTerms(holding="ward\n7", n_pub=250, delta=1e-5, lifetime_epsilon=8.0)
    with pytest.raises(ConfigurationError):
        LedgerTerms(holding="ward-7", n_pub=250, delta=1e-3, lifetime_epsilon=8.0)
    with pytest.raises(ConfigurationError):
        LedgerTerms(holding="ward-7", n_pub=250, delta=1e-5, lifetime_epsilon=float("inf"))


def test_refusals_and_final_figures_are_recorded(
    ledger: Ledger, ledger_path: Path, plan_with: PlanWith
) -> None:
    rounds(ledger, plan_with(), 1)
    refusal = BudgetExhausted(
        limit="target", limit_epsilon=8.0, spent_epsilon=7.9, epsilon_after=8.1
    )
    ledger.refuse(run="run-1", refusal=refusal)
    figures = EpsilonFigures(
        epsilon=0.75,
        delta=1e-5,
        prv=0.76,
        rdp=None,
        cross_check="agrees",
        accountants=("PLD", "PRV"),
    )
    ledger.close_run("run-1", figures)
    refused, closed = (line["record"] for line in lines_of(ledger_path)[-2:])
    assert (refused["limit"], refused["epsilon_after"]) == ("target", 8.1)
    assert (closed["epsilon"], closed["accountants"]) == (0.75, ["PLD", "PRV"])
    assert len(read_ledger(ledger_path).charges) == 1


def test_a_second_writer_is_locked_out(
    ledger: Ledger, ledger_path: Path, terms: LedgerTerms
) -> None:
    with pytest.raises(LedgerLocked, match=r"ward-7\.jsonl: another process .* wait until"):
        Ledger(ledger_path, terms=terms)
    read_ledger(ledger_path)  # reading needs no lock
    ledger.close()
    with Ledger(ledger_path, terms=terms):
        pass


def test_removing_the_lock_file_lets_no_second_writer_in(
    ledger: Ledger, ledger_path: Path, terms: LedgerTerms
) -> None:
    ledger_path.with_name(ledger_path.name + ".lock").unlink()
    with pytest.raises(LedgerLocked):
        Ledger(ledger_path, terms=terms)


def test_another_process_is_locked_out_until_the_first_one_dies(
    ledger_path: Path, terms: LedgerTerms
) -> None:
    child = start_child(ledger_path, count=10**6)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        with pytest.raises(LedgerLocked):
            Ledger(ledger_path, terms=terms)
    finally:
        child.kill()
        child.communicate()
    with Ledger(ledger_path, terms=terms):
        pass


def test_a_closed_ledger_takes_nothing(ledger: Ledger, plan_with: PlanWith) -> None:
    ledger.close()
    with pytest.raises(LedgerError, match="closed"):
        ledger.accept_plan("run-1", plan_with())
    ledger.close()


def test_after_a_failed_write_only_a_fresh_read_may_continue(
    ledger_path: Path,
    terms: LedgerTerms,
    plan_with: PlanWith,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ledger = Ledger(ledger_path, terms=terms)
    rounds(ledger, plan_with(), 1)

    def no_space(descriptor: int, data: bytes) -> None:
        os.write(descriptor, data[: len(data) // 2])
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("privacy.ledger._write_all", no_space)
        with pytest.raises(OSError, match="no space"):
            ledger.charge(run="run-1", round_index=1, plan=plan_with())
    with pytest.raises(LedgerError, match="closed"):
        ledger.charge(run="run-1", round_index=1, plan=plan_with())
    with Ledger(ledger_path, terms=terms) as again:
        assert len(again.charges) == 1
        assert lines_of(ledger_path)[-1]["record"]["kind"] == "recover"


def test_a_last_line_torn_at_any_byte_is_cut_and_the_cut_is_recorded(
    ledger_path: Path, terms: LedgerTerms, plan_with: PlanWith
) -> None:
    with Ledger(ledger_path, terms=terms) as ledger:
        rounds(ledger, plan_with(), 2)
        ledger.charge(run="run-1", round_index=2, plan=plan_with())
    whole = ledger_path.read_bytes()
    start = whole.rstrip(b"\n").rindex(b"\n") + 1
    for end in [*range(start + 1, len(whole), 23), len(whole) - 1]:
        ledger_path.write_bytes(whole[:end])
        assert read_ledger(ledger_path).torn_bytes == end - start
        with Ledger(ledger_path, terms=terms) as ledger:
            assert len(ledger.charges) == 2
            ledger.charge(run="run-1", round_index=2, plan=plan_with())
        history = read_ledger(ledger_path)
        assert len(history.charges) == 3
        recovered = [r for r in history.records if r["kind"] == "recover"]
        assert recovered == [{"kind": "recover", "cut_at_byte": start, "cut_bytes": end - start}]
    ledger_path.write_bytes(whole)
    assert len(read_ledger(ledger_path).charges) == 3


def test_any_changed_byte_is_noticed(
    ledger_path: Path, terms: LedgerTerms, plan_with: PlanWith
) -> None:
    with Ledger(ledger_path, terms=terms) as ledger:
        rounds(ledger, plan_with(), 1)
    whole = ledger_path.read_bytes()
    shuffler = random.Random(5)  # noqa: S311 (which bytes to damage is no secret)
    for position in shuffler.sample(range(len(whole) - 1), 150):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << shuffler.randrange(7)
        ledger_path.write_bytes(damaged)
        with pytest.raises(LedgerCorrupt):
            read_ledger(ledger_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: lines[:1] + lines[2:],  # a plan removed
        lambda lines: lines[:2] + lines[3:],  # a charge removed
        lambda lines: [lines[1], lines[0], *lines[2:]],  # order changed
        lambda lines: [*lines, lines[-1]],  # a line repeated
        lambda lines: [*lines[:2], "", *lines[2:]],  # an empty line
        lambda lines: [*lines[:-1], lines[-1].replace(":", ": ", 1)],  # not canonical
        lambda lines: [*lines[:-1], '{"record": 1}'],
        lambda lines: [*lines[:-1], "[]"],
        lambda lines: lines[1:],
    ],
)
def test_bad_files_are_refused(
    ledger_path: Path,
    terms: LedgerTerms,
    plan_with: PlanWith,
    damage: Callable[[list[str]], list[str]],
) -> None:
    with Ledger(ledger_path, terms=terms) as ledger:
        rounds(ledger, plan_with(), 2)
    lines = ledger_path.read_text().splitlines()
    ledger_path.write_text("\n".join(damage(lines)) + "\n")
    for read in (lambda: read_ledger(ledger_path), lambda: Ledger(ledger_path, terms=terms)):
        with pytest.raises(LedgerCorrupt):
            read()


@pytest.mark.parametrize("content", [b"", b"not a ledger", b"\0" * 100])
def test_a_file_that_never_was_a_ledger_is_refused_not_overwritten(
    ledger_path: Path, terms: LedgerTerms, content: bytes
) -> None:
    ledger_path.write_bytes(content)
    with pytest.raises(LedgerCorrupt):
        Ledger(ledger_path, terms=terms)
    assert ledger_path.read_bytes() == content


def set_in(record: int, *keys: str, to: object) -> Callable[[list[dict[str, object]]], None]:
    def change(records: list[dict[str, object]]) -> None:
        place = records[record]
        for key in keys[:-1]:
            inner = place[key]
            assert isinstance(inner, dict)
            place = inner
        place[keys[-1]] = to

    return change


CLOSE: dict[str, object] = {
    "kind": "close",
    "run": "run-1",
    "epsilon": 0.75,
    "delta": 1e-5,
    "prv": 0.76,
    "rdp": None,
    "cross_check": "agrees",
    "accountants": ["PLD", "PRV"],
}


@pytest.mark.parametrize(
    "change",
    [
        set_in(2, "event", "noise_multiplier", to=100.0),  # a charge made cheap
        set_in(2, "event", "steps", to=1),
        set_in(2, "event", "kind", to="free_lunch"),
        set_in(2, "attempt", to=1),
        set_in(2, "plan_hash", to="0" * 64),
        set_in(2, "round", to="0"),
        set_in(2, "kind", to="note"),
        set_in(1, "event", "steps", to=1),  # a plan whose event is not its own
        set_in(1, "plan", "noise_multiplier", to=100.0),
        set_in(3, "round", to=5),  # a release of nothing
        set_in(0, "format", to="privacy-ledger/0"),
        set_in(0, "delta", to=0.5),
        set_in(0, "unit", to="client"),
        set_in(0, "holding", to=7),
        set_in(0, "delta", to=1e-300),  # below what any accountant resolves
        set_in(1, "plan", "expected_batch_size", to=1.0),  # not its rate times its size
        set_in(1, "run", to=[]),
        set_in(3, "kind", to=[]),
        lambda records: records[1].pop("run"),
        lambda records: records[2].pop("event"),
        lambda records: records[3].pop("sha256"),
        lambda records: records.pop(1),  # charges without a plan
        lambda records: records.insert(2, records[0]),  # terms twice
        lambda records: records.append({**CLOSE, "run": "run-2"}),  # the end of no run
        lambda records: records.append({**CLOSE, "delta": 1e-6}),  # figures of another delta
        lambda records: records.append({**CLOSE, "epsilon": "0.75"}),
        lambda records: records.append({k: v for k, v in CLOSE.items() if k != "epsilon"}),
    ],
)
def test_a_consistent_chain_over_an_inconsistent_story_is_refused(
    ledger_path: Path,
    terms: LedgerTerms,
    plan_with: PlanWith,
    change: Callable[[list[dict[str, object]]], None],
) -> None:
    with Ledger(ledger_path, terms=terms) as ledger:
        rounds(ledger, plan_with(), 2)
    whole = ledger_path.read_bytes()
    forge(ledger_path, lambda records: records.append(CLOSE))
    read_ledger(ledger_path)  # the forger's tools work
    ledger_path.write_bytes(whole)
    forge(ledger_path, change)
    with pytest.raises(LedgerCorrupt, match="line"):
        read_ledger(ledger_path)


def test_json_nested_without_end_is_refused(ledger: Ledger, ledger_path: Path) -> None:
    with ledger_path.open("a") as file:
        file.write("[" * 100_000 + "]" * 100_000 + "\n")
    with pytest.raises(LedgerCorrupt, match="not JSON"):
        read_ledger(ledger_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_multiplier": 0.005},  # PLD would take minutes, PRV all memory
        {"noise_multiplier": 2e4},
        {"sample_rate": 5e-324},
        {"steps_per_round": 10**7 + 1},
        {"rounds": 10**9},
        {"noise_multiplier": 0.2, "sample_rate": 1.0, "steps_per_round": 10**6},
    ],
)
def test_a_plan_that_accountants_cannot_answer_for_is_not_booked(
    ledger: Ledger, ledger_path: Path, plan_with: PlanWith, changes: dict[str, float]
) -> None:
    with pytest.raises(LedgerConflict, match=r"accountants|an integer from 1 to 10000000"):
        ledger.accept_plan("run-1", plan_with(**changes))
    assert len(read_ledger(ledger_path).records) == 1


def test_charges_add_up_to_at_most_what_accountants_can_answer_for(
    ledger: Ledger, plan_with: PlanWith
) -> None:
    plan = plan_with(steps_per_round=4 * 10**6, rounds=2)
    ledger.accept_plan("run-1", plan)
    for index in range(2):
        ledger.charge(run="run-1", round_index=index, plan=plan)
    with pytest.raises(LedgerConflict, match="the ledger's charges are 12000000 steps"):
        ledger.charge(run="run-1", round_index=2, plan=plan)


def test_whatever_calibration_gives_may_be_booked() -> None:
    assert (calibrate._SMALLEST, calibrate._LARGEST) == NOISE_MULTIPLIERS
    worst = SampledGaussian(sample_rate=1e-4, noise_multiplier=0.25, steps=10**6)  # epsilon 200
    assert divergence(worst) < MOST_DIVERGENCE


def test_divergence_is_that_of_the_sampled_gaussian() -> None:
    event = SampledGaussian(sample_rate=1.0, noise_multiplier=2.0, steps=3)
    assert divergence(event) == pytest.approx(3 * 2 / (2 * 2.0**2))  # alpha / (2 sigma^2)
    sampled = SampledGaussian(sample_rate=0.1, noise_multiplier=2.0, steps=3)
    x = np.linspace(-40, 40, 200_001)
    without, with_one = (np.exp(-((x - m) ** 2) / 8) / np.sqrt(8 * np.pi) for m in (0.0, 1.0))
    mixed = 0.9 * without + 0.1 * with_one
    order_two = np.log(np.sum(np.divide(mixed**2, without)) * (x[1] - x[0]))
    assert divergence(sampled) == pytest.approx(3 * order_two, rel=1e-6)


def test_a_file_on_terms_that_no_accountant_can_answer_for_is_not_created(
    ledger_path: Path,
) -> None:
    terms = LedgerTerms(holding="ward-7", n_pub=250, delta=1e-300, lifetime_epsilon=8.0)
    with pytest.raises(LedgerConflict, match="delta"):
        Ledger(ledger_path, terms=terms)
    assert not ledger_path.exists()


def test_a_forged_chain_does_not_pass_the_signatures(
    ledger_path: Path, terms: LedgerTerms, plan_with: PlanWith
) -> None:
    key = KeyPair()
    with Ledger(ledger_path, terms=terms, signer=key) as ledger:
        rounds(ledger, plan_with(), 2)
    with Ledger(ledger_path, terms=terms, signer=key, verifier=key) as ledger:
        rounds(ledger, plan_with(), 1)
    assert len(read_ledger(ledger_path, verifier=key).charges) == 3
    with pytest.raises(LedgerCorrupt, match="signature"):
        read_ledger(ledger_path, verifier=KeyPair())
    forge(ledger_path, lambda records: records.pop())  # a release is dropped, the chain rebuilt
    read_ledger(ledger_path)
    with pytest.raises(LedgerCorrupt, match="not signed"):
        read_ledger(ledger_path, verifier=key)


@pytest.mark.parametrize("signature", ["zz", base64.b16encode(bytes(64)).decode().lower(), 7])
def test_a_signature_that_is_none_is_refused(
    ledger_path: Path, terms: LedgerTerms, signature: object
) -> None:
    key = KeyPair()
    with Ledger(ledger_path, terms=terms, signer=key):
        pass
    line = json.loads(ledger_path.read_text())
    line["signature"] = signature
    ledger_path.write_text(json.dumps(line, sort_keys=True, separators=(",", ":")) + "\n")
    with pytest.raises(LedgerCorrupt):
        read_ledger(ledger_path, verifier=key)


def test_a_rollback_is_invisible_to_the_chain_and_visible_to_who_remembers_the_head(
    ledger_path: Path, terms: LedgerTerms, plan_with: PlanWith
) -> None:
    with Ledger(ledger_path, terms=terms) as ledger:
        rounds(ledger, plan_with(), 2)
        backup = ledger_path.read_bytes()
        remembered_then = ledger.head
        ledger.charge(run="run-1", round_index=2, plan=plan_with())
        remembered = ledger.head
        ledger.require_head(remembered_then)
        ledger.require_head(remembered)
    ledger_path.write_bytes(backup)
    history = read_ledger(ledger_path)  # verifies: a chain cannot see its own truncation
    with pytest.raises(LedgerRolledBack, match="person must decide"):
        history.require_head(remembered)
    with Ledger(ledger_path, terms=terms) as ledger:
        with pytest.raises(LedgerRolledBack):
            ledger.require_head(remembered)
        rounds(ledger, plan_with(), 4)  # grown again, but another story
        with pytest.raises(LedgerRolledBack):
            ledger.require_head(remembered)
        ledger.require_head(remembered_then)
    with pytest.raises(LedgerRolledBack):
        history.require_head(LedgerHead(0, ""))


def test_software_is_named_by_version_and_source_hash() -> None:
    versions = software_versions()
    assert {"python", "torch", "opacus", "dp-accounting", "privacy"} <= set(versions)
    assert len(versions["privacy"]) == 64


def test_an_accountant_that_returns_nonsense_is_not_believed(
    ledger: Ledger, plan_with: PlanWith, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds(ledger, plan_with(), 1)
    accountant = PLDAccountant()

    class Nonsense:
        def get_epsilon_for_delta(self, delta: float) -> float:
            return float("nan")

    monkeypatch.setattr(accountant, "_distribution", lambda relation, composition: Nonsense())
    with pytest.raises(AccountingError):
        ledger.spent_epsilon(accountant)


def test_relations_on_a_ledger_are_one(ledger: Ledger, plan_with: PlanWith) -> None:
    assert ledger.terms.relation is NeighbouringRelation.ADD_OR_REMOVE_ONE
    rounds(ledger, plan_with(), 1)
    assert {event.relation for event in ledger.events()} == {ledger.terms.relation}


# A client that charges, then draws, then releases, and says what it drew in a second file. It can
# be told a point of its first round at which it kills itself.
CHILD = """
import json, os, signal, sys
from pathlib import Path
import privacy.ledger
from privacy import DPPlan, Ledger, LedgerTerms

path, count, die_at = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
plan = DPPlan(n_pub=250, target_epsilon=8.0, delta=1e-5, sample_rate=0.128, noise_multiplier=2.317,
              max_grad_norm=1.0, steps_per_round=8, rounds=100)
terms = LedgerTerms(holding="ward-7", n_pub=250, delta=1e-5, lifetime_epsilon=20.0)
drawn = os.open(path.with_suffix(".drawn"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
write_all, fsync = privacy.ledger._write_all, os.fsync

def here(point):
    if point == die_at:
        os.kill(os.getpid(), signal.SIGKILL)

def dying_write(descriptor, data):
    kind = json.loads(data)["record"]["kind"]
    if die_at == "half a " + kind:
        os.write(descriptor, data[:len(data) // 2])
        here(die_at)
    write_all(descriptor, data)
    here("an unsynced " + kind)

privacy.ledger._write_all = dying_write
with Ledger(path, terms=terms) as ledger:
    ledger.accept_plan("run-1", plan)
    done = {r["round"] for r in ledger._story.records if r["kind"] == "release"}
    print("ready", flush=True)
    for index in range(count):
        if index in done:
            continue
        if die_at == "drawn before the charge":  # the bug that the harness must find
            os.write(drawn, b"%d\\n" % index)
            here(die_at)
        here("before the charge")
        charge = ledger.charge(run="run-1", round_index=index, plan=plan)
        here("after the charge")
        os.write(drawn, b"%d\\n" % index)  # from here on, noise is drawn
        here("after the noise")
        ledger.release(charge, os.urandom(8))
        here("after the release")
"""

DEATHS = [
    "half a open",
    "an unsynced open",
    "half a plan",
    "an unsynced plan",
    "before the charge",
    "half a charge",
    "an unsynced charge",
    "after the charge",
    "after the noise",
    "half a release",
    "an unsynced release",
    "after the release",
]


def start_child(path: Path, count: int, die_at: str = "") -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), str(count), die_at],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def draws_of(path: Path) -> list[int]:
    return [int(index) for index in path.with_suffix(".drawn").read_text().split()]


def assert_every_draw_was_charged(path: Path) -> None:
    charges = read_ledger(path).charges if path.exists() else ()
    drawn = draws_of(path)
    for index in set(drawn):
        assert sum(charge.round == index for charge in charges) >= drawn.count(index)


def finish(path: Path, count: int) -> None:
    """Lets a client finish; checks what it leaves against an uninterrupted run."""
    _, stderr = (child := start_child(path, count)).communicate(timeout=60)
    assert child.returncode == 0, stderr
    assert_every_draw_was_charged(path)
    history = read_ledger(path)
    released = {r["round"] for r in history.records if r["kind"] == "release"}
    assert released == set(range(count))
    accountant = PLDAccountant()
    event = history.charges[0].event
    uninterrupted = accountant.epsilon([event] * count, history.terms.delta)
    assert history.spent_epsilon(accountant) >= uninterrupted - 1e-6


@pytest.mark.parametrize("die_at", DEATHS)
def test_a_kill_at_every_kind_of_moment_loses_no_charge(ledger_path: Path, die_at: str) -> None:
    child = start_child(ledger_path, 2, die_at)
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    assert_every_draw_was_charged(ledger_path)
    finish(ledger_path, 2)
    attempts = [c.attempt for c in read_ledger(ledger_path).charges if c.round == 0]
    charged_before = die_at in {
        "an unsynced charge",
        "after the charge",
        "after the noise",
        "half a release",
    }
    assert attempts == ([0, 1] if charged_before else [0])


def test_a_client_that_draws_before_it_charges_is_found(ledger_path: Path) -> None:
    start_child(ledger_path, 2, "drawn before the charge").communicate(timeout=60)
    with pytest.raises(AssertionError):
        assert_every_draw_was_charged(ledger_path)


def test_kills_of_one_run_again_and_again_lose_no_charge(ledger_path: Path) -> None:
    """A hundred kills of whole training steps are in ``test_kill.py``; here one ledger outlives several."""
    moments = random.Random(1)  # noqa: S311 (a moment to kill at is no secret)
    for _ in range(5):
        child = start_child(ledger_path, 60)
        assert child.stdout is not None
        select.select([child.stdout], [], [], 30)
        time.sleep(moments.uniform(0, 0.03))
        child.kill()
        child.communicate()
        assert_every_draw_was_charged(ledger_path)
    finish(ledger_path, 60)
