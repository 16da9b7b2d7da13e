"""What leaves a client follows from what it declared and charged; anything else ends there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedmpt.engine import sites
from fedmpt.errors import RunError
from fedmpt.protect import Envelope, LedgeredSession
from fedmpt.types import Update
from privacy import Budget, Charge, EpsilonFigures, Ledger, StepError, read_ledger
from privacy.dpsgd import StepHistory
from secagg import Update as SegmentValues
from tests.fedmpt.conftest import SmallRun

LIAR = 1  # the client whose steps are not those it charged


@pytest.mark.parametrize("declared", [[30, 200, 20, 40], None])
def test_a_private_clients_weight_is_the_size_it_declared_and_never_the_true_one(
    small_run: SmallRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    declared: list[int] | None,
) -> None:
    sent, bounds, seal = [], set(), Envelope.seal

    def listening(self: Envelope, update: Update) -> SegmentValues:
        sent.append(update.weight)
        bounds.add(self.largest_weight)
        return seal(self, update)

    monkeypatch.setattr(Envelope, "seal", listening)
    summary = small_run(
        tmp_path / "run",
        train__weighting="size",
        train__rounds=1,
        privacy__declared_sizes=declared,
    )
    public = [row["n_public"] for row in summary["privacy"]["clients"]]
    holders = json.loads((tmp_path / "run" / "partition.json").read_text())["assignment"]
    true = [holders.count(client) for client in range(4)]
    assert sorted(public) != sorted(true)  # or this shows nothing
    assert sorted(sent) == sorted(public)
    assert bounds == {max(public)}


@pytest.fixture
def one_step_more(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets a client make one noised step more in a round than it charges."""

    def make(number: int) -> None:
        guards: list[Any] = []
        make_guards, charged = sites.make_guards, LedgeredSession.charged

        def kept(*arguments: Any) -> list[Any]:
            guards.extend(make_guards(*arguments))
            return guards

        def busy(self: LedgeredSession, ledger: Ledger, charge: Charge) -> None:
            charged(self, ledger, charge)
            guard = guards[LIAR]
            if ledger is guard.ledger and charge.round == number:
                guard.history.record(guard.plan.sample_rate, guard.plan.noise_multiplier)

        monkeypatch.setattr("fedmpt.engine.train.make_guards", kept)
        monkeypatch.setattr(LedgeredSession, "charged", busy)

    return make


def _rounds(folder: Path, kind: str) -> list[int]:
    """Rounds of the liar's records of a kind."""
    records = read_ledger(folder / "ledger" / f"client-{LIAR:03d}.jsonl").records
    return [record["round"] for record in records if record["kind"] == kind]


@pytest.mark.parametrize("noise", ["local", "shares"])
def test_a_client_that_made_more_steps_than_it_charged_sends_nothing_and_the_run_ends(
    small_run: SmallRun, tmp_path: Path, one_step_more: Callable[[int], None], noise: str
) -> None:
    one_step_more(2)
    with pytest.raises(RunError, match=r"noised steps were made, \d+ are charged"):
        small_run(tmp_path / "run", privacy__noise=noise, clients__count=5, train__rounds=3)
    assert _rounds(tmp_path / "run", "charge") == [1, 2]
    assert _rounds(tmp_path / "run", "release") == [1]


def test_a_client_that_made_fewer_steps_than_it_charged_sends_nothing_and_has_spent_them(
    small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise that the history does not count may be no noise at all."""
    train_privately = sites.train_privately
    calls = []

    def uncounted(*arguments: Any, **options: Any) -> Update:
        calls.append(None)
        if len(calls) == LIAR + 1:
            options["history"] = StepHistory()
        return train_privately(*arguments, **options)

    monkeypatch.setattr(sites, "train_privately", uncounted)
    summary = small_run(tmp_path / "run", clients__count=5)
    assert _rounds(tmp_path / "run", "charge") == [1, 2]
    assert _rounds(tmp_path / "run", "release") == [2]
    assert summary["privacy"]["clients"][LIAR]["rounds"] == 2


def test_steps_that_were_made_after_the_last_round_end_the_run_without_a_summary(
    small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = sites.Site.keep

    def busy(self: sites.Site, number: int) -> None:
        keep(self, number)
        guard = self._guard
        if self.client == LIAR and number == 2:
            assert guard is not None
            guard.history.record(guard.plan.sample_rate, guard.plan.noise_multiplier)

    monkeypatch.setattr(sites.Site, "keep", busy)
    with pytest.raises(StepError, match="not the steps charged"):
        small_run(tmp_path / "run")
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_client_that_spent_more_than_its_target_ends_the_run_without_a_summary(
    small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = Budget.close

    def beyond(self: Budget) -> EpsilonFigures:
        return replace(close(self), epsilon=8.25)

    monkeypatch.setattr(Budget, "close", beyond)
    with pytest.raises(RunError, match=r"client 0 spent epsilon 8\.25 of 8"):
        small_run(tmp_path / "run")
    assert not (tmp_path / "run" / "summary.json").exists()
