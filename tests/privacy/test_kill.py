"""A tiny private run is killed with SIGKILL, at random moments and at every system call of its ledger.

After each death the ledger is read anew: it must hold at least what was done to the data. What was done is told by a
second file, written at the moment noise is drawn, by code that knows nothing of the ledger.
"""

import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from privacy import PLDAccountant, SampledGaussian, read_ledger

# One process imports the libraries; every run is a fork of it, so that a hundred deaths take seconds.
NURSERY = """
import json, os, signal, sys, tempfile, time
from pathlib import Path
import numpy as np
import torch
import privacy.ledger
from privacy import (Budget, DPPlan, GaussianNoise, Ledger, LedgerTerms, PLDAccountant, PoissonSampler,
                     PrivateGradient, StepHistory)

torch.set_num_threads(1)
SIZE, LONGEST = 6, 20
plan = DPPlan(n_pub=250, target_epsilon=8.0, delta=1e-5, sample_rate=0.128, noise_multiplier=2.317,
              max_grad_norm=1.0, steps_per_round=3, rounds=LONGEST)
terms = LedgerTerms(holding="ward-7", n_pub=250, delta=1e-5, lifetime_epsilon=20.0)
features = torch.randn(250, SIZE)
accountant = PLDAccountant()
for rounds in range(1, LONGEST + 6):  # what the forks will ask for
    accountant.epsilon([plan.event(3 * rounds)], 1e-5)

class ToldNoise(GaussianNoise):
    # Tells what is drawn before it is drawn, round and step, in a file of its own.
    def __init__(self, told, run):
        super().__init__()
        self.told, self.run, self.round, self.step = told, run, 0, 0
    def gaussian(self, size, *, standard_deviation):
        line = json.dumps([self.run, self.round, self.step, standard_deviation])
        os.write(self.told, (line + "\\n").encode())
        return super().gaussian(size, standard_deviation=standard_deviation)

def train(path, run, bug, rounds=3):
    told = os.open(path.with_suffix(".told"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    noise, history, charged = ToldNoise(told, run), StepHistory(), []
    sampler = PoissonSampler(plan)
    with Ledger(path, terms=terms) as ledger:
        budget = Budget.__new__(Budget)  # without the cross-check at the start, which takes half a second
        budget._ledger, budget._run, budget._plan, budget._accountant = ledger, run, plan, accountant
        ledger.accept_plan(run, plan)
        done = {r["round"] for r in ledger._story.records if r["kind"] == "release" and r["run"] == run}
        for index in range(rounds):
            if index in done:
                continue
            if bug == "charge after":
                noise.round = index
                noise.gaussian(SIZE, standard_deviation=plan.noise_standard_deviation)
            charge, _ = budget.charge(index)
            private = PrivateGradient(plan=plan, shapes={"text": (SIZE,)}, noise=noise, history=history)
            weights = torch.zeros(SIZE)
            for step in range(plan.steps_per_round):
                noise.round, noise.step = index, step
                rows = features[torch.from_numpy(sampler.draw(len(features)))]
                weights -= private.release({"text": rows})["text"]
            private.finish()
            charged.append(charge.event)
            history.require(charged)
            ledger.release(charge, weights.numpy().tobytes())

def dying_at(count, half):
    # Kills this process at the count-th system call of the ledger; a write may be half done.
    calls = iter(range(10**9))
    def wrap(name):
        real = getattr(os, name)
        def call(*arguments, **options):
            if name == "write" and arguments[0] == told_descriptor():
                return real(*arguments, **options)
            if next(calls) == count:
                if name == "write" and half:
                    real(arguments[0], arguments[1][: len(arguments[1]) // 2])
                elif half:
                    real(*arguments, **options)  # done, but nobody hears of it
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)
        return call
    opened = {}
    real_open = os.open
    def remembering_open(path, *arguments, **options):
        descriptor = real_open(path, *arguments, **options)
        opened[descriptor] = str(path)
        return descriptor
    def told_descriptor():
        return next((d for d, p in opened.items() if p.endswith(".told")), -1)
    for name in ("write", "fsync", "replace", "ftruncate"):
        setattr(os, name, wrap(name))
    os.open = remembering_open

def fork(path, *, run="run-1", die_at=None, half=False, moment=None, bug="", rounds=3):
    child = os.fork()
    if child == 0:
        try:
            if die_at is not None:
                dying_at(die_at, half)
            train(path, run, bug, rounds)
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\\n".encode())
            os._exit(1)
    if moment is not None:
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return "killed" if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)

with tempfile.TemporaryDirectory() as folder:
    train(Path(folder) / "warm.jsonl", "warm", "")  # what is imported late is imported before the first fork

for line in sys.stdin:
    order = json.loads(line)
    print(json.dumps(fork(Path(order.pop("path")), **order)), flush=True)
"""


class Nursery:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", NURSERY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )

    def run(self, path: Path, **order: object) -> object:
        """Forks a run, which may die; returns its exit code, or "killed"."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"path": str(path), **order}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    opened = Nursery()
    yield opened
    opened.close()


def told(path: Path) -> list[tuple[str, int, int, float]]:
    file = path.with_suffix(".told")
    return [tuple(json.loads(line)) for line in file.read_text().splitlines()]


def under_counts(path: Path, accountant: PLDAccountant) -> bool:
    """Whether the ledger holds less than what noise was drawn for."""
    drawn = told(path) if path.with_suffix(".told").exists() else []
    history = read_ledger(path) if path.exists() else None
    charges = Counter(charge.round for charge in history.charges) if history else Counter()
    # Each time a round's first step drew noise it was begun anew, and needed a charge of its own.
    begun = Counter(index for _, index, step, _ in drawn if step == 0)
    if any(charges[index] < count for index, count in begun.items()):
        return True
    one = SampledGaussian(sample_rate=0.128, noise_multiplier=2.317, steps=1)
    released = accountant.epsilon([one] * len(drawn), 1e-5)
    spent = history.spent_epsilon(accountant) if history else 0.0
    return spent < released - 1e-6


def test_a_run_that_nobody_kills_charges_exactly_what_it_draws(
    nursery: Nursery, ledger_path: Path, accountant: PLDAccountant
) -> None:
    assert nursery.run(ledger_path) == 0
    assert len(told(ledger_path)) == 3 * 3
    one = SampledGaussian(sample_rate=0.128, noise_multiplier=2.317, steps=9)
    assert read_ledger(ledger_path).spent_epsilon(accountant) == pytest.approx(
        accountant.epsilon([one], 1e-5), abs=1e-6
    )
    assert not under_counts(ledger_path, accountant)


@pytest.mark.slow
def test_a_hundred_kills_at_random_moments_never_under_count(
    nursery: Nursery, tmp_path: Path, accountant: PLDAccountant
) -> None:
    typical_s = []
    for number in range(5):
        started = time.perf_counter()
        assert nursery.run(tmp_path / f"uninterrupted-{number}.jsonl", rounds=20) == 0
        typical_s.append(time.perf_counter() - started)
    moments = random.Random(1)  # noqa: S311 (a moment to kill at is no secret)
    kills = kills_after_a_charge = attempts = 0
    while kills < 100:  # a run that was faster than its killer does not count
        path = tmp_path / f"ledger-{attempts // 2}.jsonl"  # two attempts in a row on each ledger
        attempts += 1
        assert attempts < 500
        moment = moments.uniform(0.2, 1) * min(typical_s)
        if nursery.run(path, moment=moment, rounds=20) == "killed":
            kills += 1
            kills_after_a_charge += path.exists() and len(read_ledger(path).charges) > 0
        assert not under_counts(path, accountant), attempts
    for number in range(0, attempts // 2, 5):
        path = tmp_path / f"ledger-{number}.jsonl"
        assert nursery.run(path, rounds=20) == 0  # the lock died with its holder: the run goes on
        assert not under_counts(path, accountant)
    assert kills_after_a_charge >= 10


@pytest.mark.slow
def test_a_kill_at_every_system_call_of_the_ledger_never_under_counts(
    nursery: Nursery, tmp_path: Path, accountant: PLDAccountant
) -> None:
    deaths = 0
    for half in (False, True):
        for count in range(1000):
            path = tmp_path / f"ledger-{half}-{count}.jsonl"
            if nursery.run(path, die_at=count, half=half) == 0:
                break  # the run has fewer calls than this
            deaths += 1
            assert not under_counts(path, accountant), (half, count)
            assert nursery.run(path) == 0
            assert not under_counts(path, accountant), (half, count)
    assert deaths >= 2 * 2 * (1 + 1 + 2 * 3)  # write and fsync of terms, plan, charges, releases


def test_a_second_run_after_a_kill_adds_to_what_the_first_one_charged(
    nursery: Nursery, ledger_path: Path, accountant: PLDAccountant
) -> None:
    assert nursery.run(ledger_path, die_at=9) == "killed"
    before = len(read_ledger(ledger_path).charges)
    assert before > 0
    assert nursery.run(ledger_path, run="run-2") == 0
    assert len(read_ledger(ledger_path).charges) == before + 3
    assert not under_counts(ledger_path, accountant)


def test_a_run_that_draws_before_it_charges_is_found(
    nursery: Nursery, tmp_path: Path, accountant: PLDAccountant
) -> None:
    found = 0
    for count in range(12):
        path = tmp_path / f"ledger-{count}.jsonl"
        nursery.run(path, die_at=count, bug="charge after")
        found += under_counts(path, accountant)
    assert found > 0
