"""Runs that are stopped: what is kept, how they go on, and that nothing charged is ever forgotten."""

from __future__ import annotations

import errno
import json
import os
import random
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedmpt import runstore
from fedmpt.audit.run import audit_run
from fedmpt.data.scenes import CLASSES
from fedmpt.engine import sites, train
from fedmpt.engine.listener import Preview, RoundRecord
from fedmpt.engine.loop import Loop
from fedmpt.errors import RunError, StorageError, UsageError
from fedmpt.report.parties import parties
from fedmpt.report.source import read_source
from fedmpt.runstore import RunStore
from fedmpt.types import Update
from privacy import Ledger, LedgerRolledBack, PLDAccountant, read_ledger
from secagg import Roster
from secagg.ckks_transcript import verify_key_setup

SmallRun = Callable[..., dict[str, Any]]
OPEN: dict[str, Any] = {"privacy__enabled": False, "train__rounds": 3}


class Watcher:
    """A listener that remembers, and that can stop the run after a round."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.rounds: list[int] = []
        self.warnings: list[str] = []

    def progress(self, label: str, done: int, total: int) -> None:
        del label, done, total

    def preview(self, preview: Preview) -> None:
        del preview

    def round_done(self, record: RoundRecord) -> None:
        self.rounds.append(record.round)
        if record.round == self.stop_after:
            raise KeyboardInterrupt

    def warning(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture(autouse=True)
def cache(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMPT_CACHE", str(shared_cache))


@pytest.fixture
def stopped(
    small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Makes a run that Ctrl-C stops in the middle of a round: once a client has trained."""

    def make(folder: Path = tmp_path / "stopped", *, in_round: int = 2, **options: Any) -> Path:
        def power_cut(site: Any, number: int) -> None:
            keep(site, number)
            if number == in_round and site.client == 1:
                raise KeyboardInterrupt

        keep = sites.Site.keep
        with monkeypatch.context() as patch:
            patch.setattr(sites.Site, "keep", power_cut)
            with pytest.raises(KeyboardInterrupt):
                small_run(folder, **options)
        return folder

    return make


def _metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("seconds")
    return lines


def _model(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"secagg__mode": "ckks"}, marks=pytest.mark.slow),
        {"method__name": "fedpgp"},
        pytest.param(
            {"method__name": "fedawa", "secagg__dropout": 0.1, "clients__count": 5},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_without_privacy_a_run_that_was_stopped_ends_as_one_that_was_not_bit_for_bit(
    small_run: SmallRun, stopped: Callable[..., Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    whole = small_run(tmp_path / "whole", **OPEN, **options)
    folder = stopped(**OPEN, **options)
    assert [line["round"] for line in _metrics(folder)] == [0, 1]
    assert not (folder / "summary.json").exists()
    watcher = Watcher()
    summary = train.resume(folder, listener=watcher)
    assert watcher.rounds == [2, 3]
    assert _model(folder) == _model(tmp_path / "whole")
    assert _metrics(folder) == _metrics(tmp_path / "whole")
    assert summary["final"] == whole["final"]
    assert summary["zero_shot_class_token"] == whole["zero_shot_class_token"]
    audit = audit_run(folder)
    assert audit.findings == ()
    assert not [item for item in audit.manifest.items if item.kind == "unknown"]
    ((first, before), (second, after)) = read_source(folder).logs  # each with its own roster
    sums = 4 if options.get("method__name") == "fedawa" else 1
    assert (first, len(before.rounds), second, len(after.rounds)) == (1, sums, 2, 2 * sums)
    assert before.rounds[0].run_id != after.rounds[0].run_id


def test_a_report_verifies_the_logs_of_every_stretch_of_a_resumed_run(
    stopped: Callable[..., Path],
) -> None:
    folder = stopped(**OPEN)
    train.resume(folder, listener=Watcher())
    told = parties(read_source(folder))
    assert "Round 1, with keys of their own. The public logs of 1 round(s) verify" in told
    assert "Rounds 2 to 3, with keys of their own. The public logs of 2 round(s) verify" in told
    assert all(f"Round {number}: sequence" in told for number in (1, 2, 3))
    log = folder / "transcripts" / "round-0003.bin"
    log.write_bytes((folder / "transcripts" / "round-0001.bin").read_bytes())
    assert "do not verify" in parties(read_source(folder))
    log.unlink()
    assert "There is no public log of round(s) 3." in parties(read_source(folder))


@pytest.mark.slow
def test_a_resumed_run_with_ckks_agrees_on_a_new_key_and_both_must_be_on_record(
    stopped: Callable[..., Path],
) -> None:
    folder = stopped(privacy__enabled=False, secagg__mode="ckks")
    train.resume(folder, listener=Watcher())
    setups = [
        verify_key_setup(
            (folder / "transcripts" / f"key-setup{stretch}.bin").read_bytes(),
            Roster.from_json((folder / f"roster{stretch}.json").read_bytes()),
        )
        for stretch in ("", "-0002")
    ]
    assert setups[0].key.preset == setups[1].key.preset
    assert setups[0].key.fingerprint != setups[1].key.fingerprint
    assert setups[0].run_id != setups[1].run_id
    assert audit_run(folder).findings == ()
    second = folder / "transcripts" / "key-setup-0002.bin"
    second.write_bytes((folder / "transcripts" / "key-setup.bin").read_bytes())
    assert "key-setup-0002.bin" in {finding.where for finding in audit_run(folder).findings}
    second.unlink()
    (finding,) = audit_run(folder).findings
    assert finding.where == "round-0002.bin"
    assert "key-setup-0002.bin is missing" in finding.what


def test_two_runs_without_privacy_give_the_same_model_and_another_seed_another(
    small_run: SmallRun, tmp_path: Path
) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        small_run(tmp_path / name, **OPEN, seed=seed)
    assert _model(tmp_path / "a") == _model(tmp_path / "b") != _model(tmp_path / "c")


def _spent(folder: Path) -> dict[int, float]:
    accountant = PLDAccountant()
    return {
        int(path.stem[-3:]): read_ledger(path).spent_epsilon(accountant)
        for path in sorted((folder / "ledger").glob("client-*.jsonl"))
    }


def _charges(folder: Path) -> list[tuple[str, int, int]]:
    ledger = read_ledger(folder / "ledger" / "client-000.jsonl")
    return [(charge.run, charge.round, charge.attempt) for charge in ledger.charges]


@pytest.mark.slow
@pytest.mark.parametrize("in_round", [1, 2])
def test_a_round_that_was_charged_and_not_completed_stays_charged_and_is_charged_again(
    stopped: Callable[..., Path], in_round: int
) -> None:
    folder = stopped(in_round=in_round, privacy__epsilon=2.0)
    before = _spent(folder)
    watcher = Watcher()
    summary = train.resume(folder, listener=watcher)
    run = summary["privacy"]["run"]
    repeated = {1: [(1, 0), (1, 1)], 2: [(1, 0), (2, 0)]}[in_round]
    assert _charges(folder) == [(run, number, attempt) for number, attempt in repeated]
    # the budget of two rounds was spent on one and a stopped one: no third charge fits
    assert summary["rounds"] == 1
    assert "the run ends after 1 of 2 rounds" in watcher.warnings[-1]
    for client, epsilon in _spent(folder).items():
        assert before[client] <= epsilon <= 2.0
        assert summary["privacy"]["clients"][client]["epsilon"] == pytest.approx(epsilon)
    assert audit_run(folder).findings == ()


@pytest.mark.slow
def test_with_shares_the_servers_optimiser_goes_on_where_it_was(
    stopped: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moments that a resumed run starts from are those after the committed round, to the bit."""
    from fedmpt.engine.shares import SharedNoise

    seen: list[dict[str, Any]] = []

    def advance(self: SharedNoise, *arguments: Any, **options: Any) -> Any:
        before = {name: value.clone() for name, value in self.server_state().items()}
        seen.append(before)
        return step(self, *arguments, **options)

    step = SharedNoise.advance
    monkeypatch.setattr(SharedNoise, "advance", advance)
    folder = stopped(
        privacy__noise="shares", train__rounds=3, clients__count=6, train__optimizer="adam"
    )
    train.resume(folder, listener=Watcher())
    assert len(seen) >= 3
    assert seen[0] == {}
    assert set(seen[1]) == set(seen[2])
    assert any(name.endswith("exp_avg_sq") for name in seen[1])
    assert all(np.array_equal(seen[1][name], seen[2][name]) for name in seen[1])


@pytest.mark.slow
def test_a_ledger_that_lost_charges_is_refused(
    stopped: Callable[..., Path], tmp_path: Path
) -> None:
    folder = stopped(privacy__epsilon=2.0)
    path = folder / "ledger" / "client-000.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))  # open, plan
    with pytest.raises(LedgerRolledBack):
        train.resume(folder, listener=Watcher())
    path.unlink()
    with pytest.raises(UsageError, match=r"client-000\.jsonl is missing"):
        train.resume(folder, listener=Watcher())


@pytest.mark.parametrize("missing", [False, True])
def test_a_torn_line_of_metrics_is_cut_and_a_missing_one_is_written(
    stopped: Callable[..., Path], missing: bool
) -> None:
    folder = stopped(**OPEN)
    path = folder / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole[: whole.index("\n") + 1] if missing else whole + '{"round": 2, "mA')
    assert audit_run(folder).findings == ()
    with pytest.raises(KeyboardInterrupt):
        train.resume(folder, listener=Watcher(stop_after=2))
    assert [line["round"] for line in _metrics(folder)] == [0, 1, 2]
    assert path.read_text().startswith(whole)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "config.toml").unlink(), r"no config\.toml"),
        (lambda folder: (folder / "state.safetensors").unlink(), "start it anew"),
        (lambda folder: (folder / "summary.json").write_text("{}"), "is finished"),
        (
            lambda folder: (folder / "config.toml").write_text(
                (folder / "config.toml").read_text().replace("rounds = 3", "rounds = 4")
            ),
            "no longer those the run began with",
        ),
    ],
)
def test_what_cannot_be_resumed_is_refused_with_the_reason_and_left_as_it_is(
    stopped: Callable[..., Path], spoil: Callable[[Path], object], words: str
) -> None:
    folder = stopped(**OPEN)
    spoil(folder)
    before = {path.name for path in folder.iterdir()}
    with pytest.raises(UsageError, match=words):
        train.resume(folder, listener=Watcher())
    assert {path.name for path in folder.iterdir()} == before


def test_descriptions_that_changed_since_a_run_began_are_refused(
    stopped: Callable[..., Path], tmp_path: Path
) -> None:
    """A file is named in the configuration; what it says is part of the plan."""
    words = tmp_path / "words.json"
    words.write_text(json.dumps({name: ["a shape"] for name in CLASSES}))
    folder = stopped(**OPEN | {"method__name": "fedmvp", "method__fedmvp__descriptors": str(words)})
    words.write_text(json.dumps({name: ["a colour"] for name in CLASSES}))
    with pytest.raises(UsageError, match="no longer those the run began with"):
        train.resume(folder, listener=Watcher())


def test_a_second_process_on_a_run_folder_is_refused(
    stopped: Callable[..., Path], tmp_path: Path
) -> None:
    folder = stopped(**OPEN)
    with RunStore.reopen(folder), pytest.raises(UsageError, match="another process works on"):
        train.resume(folder, listener=Watcher())
    with RunStore(tmp_path / "new") as store:
        store.write_text("config.toml", "")
        with pytest.raises(UsageError, match="another process works on"):
            RunStore.reopen(tmp_path / "new")
    RunStore.reopen(tmp_path / "new").close()  # and is let in once the first is gone


def test_a_folder_that_cannot_be_written_is_refused(
    stopped: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stopped(**OPEN)

    def read_only(*_: Any) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(runstore.os, "open", read_only)
    with pytest.raises(UsageError, match="cannot be written \\(Read-only file system\\)"):
        train.resume(folder, listener=Watcher())


@pytest.mark.parametrize("private", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_full_disk_ends_the_run_with_a_message_and_the_run_goes_on_once_there_is_room(
    small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, private: bool
) -> None:
    folder = tmp_path / "run"
    written = []

    def full(target: Path, data: bytes) -> None:
        written.append(target.name)
        if written.count("state.safetensors") == 3:  # the start, round 0, round 1
            with runstore.storing(target):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(target, data)

    write = runstore.write_whole
    options = {"privacy__enabled": private, "train__rounds": 3}
    with monkeypatch.context() as patch:
        patch.setattr(runstore, "write_whole", full)
        with pytest.raises(StorageError, match="No space left") as end:
            small_run(folder, **options)
    assert end.value.exit_code == 1
    assert "free space" in str(end.value)
    assert audit_run(folder).findings == ()
    summary = train.resume(folder, listener=Watcher())
    assert summary["rounds"] == (2 if private else 3)
    assert audit_run(folder).findings == ()


def test_a_disk_that_fills_while_a_ledger_is_written_ends_the_run_before_coins_are_drawn(
    small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def full(ledger: Ledger, **_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Ledger, "charge", full)
    monkeypatch.setattr(sites, "train_privately", lambda *_, **__: drawn.append(1))
    with pytest.raises(StorageError, match="No space left"):
        small_run(tmp_path / "run")
    assert not drawn


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "file"
    runstore.write_whole(target, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(runstore.os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        runstore.write_whole(target, b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_folders_and_files_are_on_disk_under_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss of power takes back what was created in a folder that was not synchronised since."""
    real = os.fsync
    synchronised: list[tuple[int, tuple[str, ...]]] = []  # a folder and what it then held

    def fsync(descriptor: int) -> None:
        real(descriptor)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            held = tuple(sorted(os.listdir(descriptor)))
            synchronised.append((os.fstat(descriptor).st_ino, held))

    monkeypatch.setattr(runstore.os, "fsync", fsync)
    folder = tmp_path / "a" / "b" / "run"
    runstore.new_folder(folder)
    runstore.write_whole(folder / "file", b"words")
    runstore.make_folders(folder / "ledger")
    for name in ("a", "a/b", "a/b/run", "a/b/run/file", "a/b/run/ledger"):
        made = tmp_path / name
        assert any(
            inode == made.parent.stat().st_ino and made.name in held for inode, held in synchronised
        )
    before = len(synchronised)
    runstore.make_folders(folder / "ledger")
    assert len(synchronised) == before


def test_a_ledger_folder_that_cannot_be_made_is_told_by_name(
    tmp_path: Path, small_run: SmallRun
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/ledgers: cannot be written \(Not a directory\)"):
        small_run(tmp_path / "run", tmp_path / "file" / "ledgers")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets clients' training fail: with a number that is none, or with an exception."""

    def make(clients: set[int], how: str, rounds: tuple[int, ...] = (1, 2, 3)) -> None:
        train_one = sites.Site._train

        def fail(site: sites.Site, state: Any, **options: Any) -> Update:
            if site.client not in clients or state.round + 1 not in rounds:
                return train_one(site, state, **options)
            if how == "crash":
                if site.plan is not None:
                    site._guard.budget.charge(state.round + 1)  # type: ignore[union-attr]
                raise ValueError("a broken image")
            update = train_one(site, state, **options)
            delta = update.delta.copy()
            delta[3] = np.nan if how == "nan" else np.inf
            return Update(
                delta=delta,
                weight=update.weight,
                loss_sum=update.loss_sum,
                examples=update.examples,
            )

        monkeypatch.setattr(sites.Site, "_train", fail)

    return make


def _hearing(begin: Callable[..., None], warnings: list[str]) -> Callable[..., None]:
    def with_ears(self: Loop, *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **options)
        self._listener = watcher

    watcher = Watcher()
    watcher.warnings = warnings
    return with_ears


@pytest.mark.parametrize("how", ["nan", "infinity", "crash"])
@pytest.mark.parametrize("private", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_client_that_fails_is_left_out_of_the_round_with_a_warning_and_the_run_goes_on(
    failing: Callable[..., None],
    small_run: SmallRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    private: bool,
) -> None:
    failing({2}, how, rounds=(1, 2))
    warnings: list[str] = []
    monkeypatch.setattr(Loop, "__init__", _hearing(Loop.__init__, warnings))
    folder = tmp_path / "run"
    summary = small_run(folder, privacy__enabled=private, clients__count=5, train__rounds=3)
    assert [line["survivors"] for line in _metrics(folder)[1:]] == [
        [0, 1, 3, 4],
        [0, 1, 3, 4],
        [0, 1, 2, 3, 4],
    ]
    assert [[one["client"] for one in line["dropped"]] for line in _metrics(folder)[1:]] == [
        *([2], [2], [])
    ]
    assert len(warnings) == 2
    assert "client 2 is left out of round 1" in warnings[0]
    assert ("broken image" if how == "crash" else "not finite") in warnings[0]
    assert all(
        np.isfinite(values).all() for values in load_file(folder / "model.safetensors").values()
    )
    if private:
        assert summary["privacy"]["clients"][2]["rounds"] == 3  # charged is spent
    assert audit_run(folder).findings == ()


def test_a_client_that_always_fails_is_in_no_sum_and_every_round_says_so(
    failing: Callable[..., None], small_run: SmallRun, tmp_path: Path
) -> None:
    failing({2}, "crash")
    folder = tmp_path / "run"
    summary = small_run(folder, clients__count=4, method__name="coop", **OPEN)
    assert summary["rounds"] == 3
    for line in _metrics(folder)[1:]:
        assert line["survivors"] == [0, 1, 3]
        assert [one["client"] for one in line["dropped"]] == [2]
    assert audit_run(folder).findings == ()


def test_a_run_of_which_too_few_clients_are_left_says_what_they_tripped_over(
    failing: Callable[..., None], small_run: SmallRun, tmp_path: Path
) -> None:
    failing({0, 1, 2}, "crash")
    with pytest.raises(RunError, match=r"too few clients are left.*a broken image"):
        small_run(tmp_path / "run", **OPEN)


_COINS = """
import os, sys
from fedmpt.engine import sites
from fedmpt.cli import main

draw = sites.train_privately

def drawing(*arguments, **options):  # what a client did with secret coins, as somebody else saw it
    descriptor = os.open(os.environ["COINS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, f"{options['plan'].n_pub} {len(arguments[3])}\\n".encode())
    os.close(descriptor)
    return draw(*arguments, **options)

sites.train_privately = drawing
main()
"""


@pytest.mark.slow
def test_without_privacy_a_run_killed_at_random_moments_ends_as_one_that_was_not(
    shared_checkpoint: Path, tmp_path: Path
) -> None:
    """Up to four kills -9, wherever in a round they fall; bytes of the model and figures of every round are equal."""
    moments = random.Random(int(os.environ.get("KILL_SEED", "0")))  # noqa: S311 -- moments of kills
    settings = [
        *("--no-dp", "--method", "coop", "--backbone", f"local-dir:{shared_checkpoint}"),
        *("--clients", "3", "--rounds", "12", "--device", "cpu"),
        *("--set", "data.scenes.train_size=90", "--set", "data.scenes.test_size=30"),
        *("--set", "data.scenes.resolution=32"),
    ]

    def run(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
        code = "from fedmpt.cli import main; main()"
        return subprocess.Popen(
            [sys.executable, "-c", code, "train", *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    def lines(folder: Path) -> int:
        path = folder / "metrics.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    whole, folder = tmp_path / "whole", tmp_path / "killed"
    assert run(whole, "--out", str(whole), *settings).wait() == 0
    kills = 0
    while not (folder / "summary.json").exists():
        begun = (folder / "state.safetensors").exists()
        seen = lines(folder)
        arguments = ["--resume", str(folder)] if begun else ["--out", str(folder), *settings]
        with run(folder, *arguments) as process:
            while kills < 4 and process.poll() is None:
                if lines(folder) > seen:
                    time.sleep(moments.uniform(0, 0.2))
                    process.kill()
                    kills += 1
                    break
                time.sleep(0.005)
            process.wait()
    assert kills >= 2
    assert _model(folder) == _model(whole)
    assert _metrics(folder) == _metrics(whole)
    assert audit_run(folder).findings == ()


@pytest.mark.slow
def test_no_epsilon_is_under_counted_however_often_and_whenever_a_run_is_killed(
    shared_checkpoint: Path, tmp_path: Path
) -> None:
    """Trainings are counted outside of the ledgers; ten kills, at random moments."""
    folder, coins = tmp_path / "run", tmp_path / "coins"
    moments = random.Random(int(os.environ.get("KILL_SEED", "0")))  # noqa: S311 -- moments of kills
    command = [
        *("--out", str(folder), "--backbone", f"local-dir:{shared_checkpoint}"),
        *("--clients", "3", "--rounds", "40", "--device", "cpu"),
        *("--set", "data.scenes.train_size=90", "--set", "data.scenes.test_size=30"),
        *("--set", "data.scenes.resolution=32"),
    ]
    kills, code = 0, None
    while kills < 10 and code is None and not (folder / "summary.json").exists():
        begun = (folder / "state.safetensors").exists()
        if begun:
            command = ["--resume", str(folder)]
        seen = coins.stat().st_size if coins.exists() else 0
        with subprocess.Popen(
            [sys.executable, "-c", _COINS, "train", *command],
            env={**os.environ, "COINS": str(coins), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        ) as process:
            while (
                process.poll() is None and (coins.stat().st_size if coins.exists() else 0) <= seen
            ):
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 0.5))
            if process.poll() is None:
                process.kill()
                kills += 1
            else:
                code = process.returncode
                assert process.stderr is not None
                # 3: kills took the budget of every round before one was completed
                assert code in (0, 3), process.stderr.read().decode()
        drawn = len(coins.read_text().splitlines())
        charged = sum(
            len(read_ledger(path).charges) for path in (folder / "ledger").glob("*.jsonl")
        )
        assert charged >= drawn > 0
    assert kills >= 3
    if code is None and not (folder / "summary.json").exists():
        train.resume(folder, listener=Watcher())
    spent = _spent(folder)
    assert all(0 < epsilon <= 8 for epsilon in spent.values())
    if code != 3:
        summary = json.loads((folder / "summary.json").read_text())
        claimed = {row["client"]: row["epsilon"] for row in summary["privacy"]["clients"]}
        assert claimed == pytest.approx(spent, abs=1e-6)
    assert audit_run(folder).findings == ()
