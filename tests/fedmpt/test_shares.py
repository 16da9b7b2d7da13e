"""Runs whose noise the clients share: what is refused, what is charged, and what the sum holds."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedmpt.engine.shares
from fedmpt.audit.run import audit_run
from fedmpt.config import SecAggConfig, load_config
from fedmpt.engine.aggregation import Aggregation
from fedmpt.engine.share_terms import (
    LEAST_HONEST,
    check_shares,
    claim,
    counted_on,
    drowning_note,
    equal_rates,
    honest_others,
)
from fedmpt.engine.sites import Site
from fedmpt.errors import RunError, UsageError
from fedmpt.inference.card import read_card
from fedmpt.protect import GridEnvelope
from fedmpt.types import ClientId
from privacy import (
    Arithmetic,
    BudgetExhausted,
    DPPlan,
    NoiseMode,
    PrivacyUnit,
    make_plan,
    read_ledger,
)
from privacy.integer import GridRelease, IntegerGradient
from secagg import RoundAborted
from secagg import Update as SegmentValues
from secagg.policy import Policy
from secagg.threshold import default_colluders, threshold


def settings(**options: Any) -> Any:
    return load_config(
        options={"privacy.noise": "shares"}
        | {name.replace("__", "."): value for name, value in options.items()}
    )


@pytest.mark.parametrize("mode", ["none", "ckks"])
def test_shares_are_refused_where_a_single_contribution_can_be_opened(mode: str) -> None:
    config = settings(secagg__mode=mode)
    with pytest.raises(UsageError, match="masking"):
        check_shares(config, cohort=12)


def test_a_client_as_the_unit_needs_shares() -> None:
    config = settings(privacy__noise="local", privacy__unit="client")
    with pytest.raises(UsageError, match="shares"):
        check_shares(config, cohort=12)


@pytest.mark.parametrize("cohort", range(3, 60))
def test_the_shares_counted_on_are_those_the_adversary_lacks(cohort: int) -> None:
    colluders = default_colluders(cohort)
    smallest_sum = max(threshold(cohort, colluders), 3)
    known_to_adversary = max(1, colluders)  # a client knows at least its own share
    assert counted_on(cohort) == smallest_sum - known_to_adversary
    assert counted_on(cohort) >= LEAST_HONEST
    check_shares(settings(), cohort=cohort)


def test_a_cohort_without_assumed_colluders_still_counts_its_reader_as_one() -> None:
    assert honest_others(3, 0) == 2
    assert honest_others(3, 1) == 3


def test_expected_batches_are_in_proportion_to_declared_sizes() -> None:
    batches = equal_rates([200, 400, 600], 40)
    assert batches == [20, 40, 60]


def test_the_claim_names_who_is_kept_out() -> None:
    assert claim(settings(privacy__noise="local"), cohort=12)[1] == "everyone"
    protected, against = claim(settings(privacy__unit="client"), cohort=12)
    assert "client contributes" in protected
    assert "3 client(s)" in against


@pytest.fixture
def shared(small_run: Any, tmp_path: Path) -> Any:
    def start(
        *, name: str = "run", ledger: Path | None = None, **options: Any
    ) -> tuple[dict[str, Any], Path]:
        known = {"clients__count": 5, "privacy__noise": "shares"}
        return small_run(tmp_path / name, ledger, **{**known, **options}), tmp_path / name

    return start


def test_a_run_with_shared_noise_stays_within_its_budget(shared: Any) -> None:
    summary, folder = shared()
    clients = summary["privacy"]["clients"]
    assert [client["rounds"] for client in clients] == [2] * 5
    assert all(client["steps"] == client["rounds"] for client in clients)
    assert len({client["noise_multiplier"] for client in clients}) == 1
    assert 0 < max(client["epsilon"] for client in clients) <= 8
    assert summary["privacy"]["noise"] == "shares"
    plan = next(
        record["plan"]
        for record in read_ledger(folder / "ledger/client-000.jsonl").records
        if record["kind"] == "plan"
    )
    assert (plan["noise"], plan["arithmetic"], plan["honest"]) == ("shares", "integer", 3)


@pytest.mark.parametrize(("lost", "stage"), [(0, ""), (1, "upload"), (1, "advertise")])
def test_an_opened_sum_holds_the_noise_of_its_survivors_and_enough_without_what_colluders_know(
    shared: Any, monkeypatch: pytest.MonkeyPatch, lost: int, stage: str
) -> None:
    """With queries of zero, the sum that the server opens is noise alone; each round loses ``lost`` clients."""
    totals: list[np.ndarray] = []
    plans: list[Any] = []
    known: list[
        np.ndarray
    ] = []  # the shares of two colluders, client after client, round after round
    real = IntegerGradient.release

    def silent(self: IntegerGradient, rows: Any, *, honest: int) -> GridRelease:
        made = real(self, rows, honest=honest)
        plans.append(self._plan)
        known.append(made.noise)
        return GridRelease(query=np.zeros_like(made.query), noise=made.noise)

    monkeypatch.setattr(IntegerGradient, "release", silent)
    monkeypatch.setattr(
        "fedmpt.engine.loop.simulated_losses", lambda *_, **__: dict.fromkeys(range(lost), stage)
    )
    advance = fedmpt.engine.shares.SharedNoise.advance
    survivors = set()

    def reading(self: Any, state: Any, aggregate: Any, **options: Any) -> Any:
        totals.append(aggregate.sums["gradient"])
        survivors.add(len(aggregate.survivors))
        return advance(self, state, aggregate, **options)

    monkeypatch.setattr(fedmpt.engine.shares.SharedNoise, "advance", reading)
    shared(train__rounds=3)
    assert survivors == {5 - lost}
    values = np.concatenate(totals).astype(np.float64)
    plan = plans[0]
    claimed = plan.noise_multiplier * plan.grid_steps
    realised = values.std() / claimed
    # three contributors are counted on, whoever drops out
    within = 5 / (2 * values.size) ** 0.5  # five standard errors, 3%; one share more or less is 15%
    assert realised == pytest.approx(((5 - lost) / plan.honest) ** 0.5, rel=within)
    # The last client of each round survives; an adversary takes out what it knows of the sum.
    a_round = len(known) // len(totals)
    colluders = default_colluders(5)
    told = [
        sum(known[start + a_round - colluders : start + a_round])
        for start in range(0, len(known), a_round)
    ]
    unknown = (values - np.concatenate(told)).std() / claimed
    assert unknown == pytest.approx(((5 - lost - colluders) / plan.honest) ** 0.5, rel=within)
    assert unknown > 1 - within


@pytest.mark.parametrize("guarded", [True, False])
def test_a_server_that_invites_a_victim_and_its_own_helpers_alone_gets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guarded: bool
) -> None:
    """Among four invited, one helper is assumed and two shares suffice; the plan of twelve counts on five.

    The control is the policy that counts those invited: three helpers then know all but two shares of the noise.
    """
    if not guarded:
        by_invitation = Policy.masking
        monkeypatch.setattr(
            "fedmpt.engine.aggregation.Policy.masking",
            lambda layout, *, cohort, allow_sensitive: by_invitation(layout),
        )
    envelope = GridEnvelope.of(dimension=3, noise_bound=10)
    aggregation = Aggregation(
        config=SecAggConfig(),
        clients=12,
        layout=envelope.layout,
        private=True,
        marks=tmp_path / "marks",
        cohort=12,
    )
    said = replace(aggregation._policy, colluders=None, survivors_min=3)  # by the server
    aggregation._policy = said
    honest = []

    def contribute(client: ClientId) -> SegmentValues:
        session = aggregation.sessions[client]
        honest.append(honest_others(session.guaranteed_honest, session.colluders))
        nothing = np.zeros(3, dtype=np.int64)
        return envelope.seal(GridRelease(query=nothing, noise=nothing))

    def lie() -> None:
        few = tuple(ClientId(client) for client in range(4))
        aggregation.run(few, contribute, resubmit=False, context=bytes(32), lost=lambda _: {})

    if guarded:
        with pytest.raises(RoundAborted):
            lie()
        assert honest == []
    else:
        lie()
        assert honest == [2] * 4
        assert counted_on(12) == 5


def test_a_client_gives_no_share_to_a_sum_with_fewer_than_planned(
    shared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the session let through; nothing is charged for it."""
    monkeypatch.setattr("fedmpt.engine.sites.honest_others", lambda *_: LEAST_HONEST - 1)
    with pytest.raises(RunError, match="the plan counts on 3"):
        shared()
    ledgers = sorted((tmp_path / "run" / "ledger").glob("*.jsonl"))
    assert len(ledgers) == 5
    for path in ledgers:
        kinds = {record["kind"] for record in read_ledger(path).records}
        assert "charge" not in kinds


@pytest.mark.parametrize(("resubmit", "calls"), [(True, 1), (False, 2)])
def test_only_values_that_may_be_sent_again_are_kept_for_a_second_attempt(
    tmp_path: Path, resubmit: bool, calls: int
) -> None:
    envelope = GridEnvelope.of(dimension=3, noise_bound=10)
    aggregation = Aggregation(
        config=SecAggConfig(),
        clients=5,
        layout=envelope.layout,
        private=True,
        marks=tmp_path / "marks",
        cohort=5,
    )
    asked: Counter[int] = Counter()

    def contribute(client: ClientId) -> SegmentValues:
        asked[client] += 1
        query = np.full(3, client, dtype=np.int64)
        noise = np.full(3, asked[client], dtype=np.int64)
        return envelope.seal(GridRelease(query=query, noise=noise))

    losses = {1: {0: "reveal", 1: "reveal"}, 2: {}}
    aggregate, attempts = aggregation.run(
        tuple(ClientId(client) for client in range(5)),
        contribute,
        resubmit=resubmit,
        context=bytes(32),
        lost=lambda attempt: losses[attempt],
    )
    assert attempts == 2
    assert set(asked.values()) == {calls}
    assert envelope.open_sum(aggregate).tolist() == [10 + 5 * calls] * 3


def test_a_second_attempt_is_charged_as_a_second_release(
    shared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan pays for one release a round, so the last round has none left for another attempt."""
    lost = iter([{0: "reveal", 1: "reveal"}])
    monkeypatch.setattr("fedmpt.engine.loop.simulated_losses", lambda *_, **__: next(lost, {}))
    with pytest.raises(BudgetExhausted):
        shared(train__rounds=1)
    history = read_ledger(tmp_path / "run/ledger/client-000.jsonl")
    assert len(history.charges) == 1
    assert any(record["kind"] == "refuse" for record in history.records)


def test_noise_that_is_longer_than_any_sum_of_changes_is_told_before_training() -> None:
    plan = make_plan(
        n_pub=400,
        target_epsilon=8.0,
        rounds=1,
        batch_size=400,
        steps_per_round=1,
        max_grad_norm=1.0,
        noise=NoiseMode.SHARES,
        arithmetic=Arithmetic.INTEGER,
        released_values=4072,
        honest=5,
        unit=PrivacyUnit.CLIENT,
    )
    values = 4072
    noise = np.random.default_rng(0).normal(0, plan.noise_multiplier, values)
    for cohort, told in ((12, True), (400, False)):
        note = drowning_note(plan, values=values, cohort=cohort)
        assert (note is not None) == told == (np.linalg.norm(noise) > cohort)
        if note is not None:
            times = float(note.split(" times as long")[0].split()[-1])
            assert times == pytest.approx(np.linalg.norm(noise) / cohort, rel=0.1)
    by_image = replace(plan, unit=PrivacyUnit.EXAMPLE)
    assert drowning_note(by_image, values=values, cohort=12) is None


def test_a_client_may_be_the_unit(shared: Any) -> None:
    summary, folder = shared(privacy__unit="client", privacy__delta=1e-3)
    assert summary["privacy"]["unit"] == "client"
    history = read_ledger(folder / "ledger/client-000.jsonl")
    assert history.terms.unit.value == "client"
    assert all(charge.event.sample_rate == 1.0 for charge in history.charges)


@pytest.mark.parametrize(
    "options",
    [
        {"privacy__noise": "local", "privacy__arithmetic": "integer", "privacy__epsilon": 20.0},
        {"privacy__epsilon": 28.0},
        {"privacy__epsilon": 1.0, "privacy__lifetime": 28.0},
    ],
)
def test_integer_noise_is_refused_where_it_would_take_more_of_delta_than_is_set_aside(
    shared: Any, tmp_path: Path, options: dict[str, Any]
) -> None:
    """e^epsilon multiplies how far it is from Gaussian noise; on a ledger, e^lifetime does."""
    with pytest.raises(UsageError, match=r"would take .* of delta .* set aside"):
        shared(**options)
    assert not (tmp_path / "run" / "ledger").exists()


@pytest.mark.parametrize("options", [{}, {"noise": "local", "arithmetic": "integer"}])
def test_plans_of_integer_noise_keep_a_hundredth_of_delta_for_being_discrete(
    shared: Any, options: dict[str, str]
) -> None:
    given = {f"privacy__{name}": value for name, value in options.items()}
    summary, folder = shared(**given, privacy__delta=1e-6, train__rounds=1)
    terms = read_ledger(folder / "ledger" / "client-000.jsonl").terms
    assert terms.delta == pytest.approx(0.99e-6, rel=1e-12)
    assert {row["delta"] for row in summary["privacy"]["clients"]} == {terms.delta}
    # what is proven, and what people are told, is the delta asked for
    assert summary["privacy"]["delta"] == 1e-6
    card = read_card(folder)
    assert card.privacy.delta == 1e-6
    assert "at delta 1e-06 in this run" in card.privacy.guarantee
    (account, *_) = audit_run(folder).accounts
    assert (account.delta, account.claimed_delta) == (terms.delta, 1e-6)
    assert audit_run(folder).findings == ()


def test_what_earlier_runs_on_a_ledger_took_of_the_part_for_integers_counts(
    shared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs of 0.6 of it do not fit, whatever part of the lifetime their epsilons are."""
    room = 0.01 * 0.99e-6
    monkeypatch.setattr(DPPlan, "discretisation", lambda _, steps, **__: 0.6 * room * steps)
    ledger = tmp_path / "ledgers"
    given = {"privacy__lifetime": 20.0, "privacy__delta": 1e-6, "privacy__epsilon": 2.0}
    with pytest.raises(UsageError, match=r"would take 1.2e-08 of delta .* set aside"):
        shared(ledger=ledger, **given, train__rounds=2)
    assert not ledger.exists()
    shared(ledger=ledger, **given, train__rounds=1)
    with pytest.raises(UsageError, match=r"earlier runs on the ledger took 5\.9e-09"):
        shared(ledger=ledger, **given, train__rounds=1, name="second")


@pytest.mark.parametrize("integers_first", [True, False])
def test_integers_and_real_numbers_do_not_share_ledgers_and_the_remedy_is_told(
    shared: Any, tmp_path: Path, integers_first: bool
) -> None:
    ledger, shares = tmp_path / "ledgers", {"privacy__noise": "shares"}
    given = {"privacy__lifetime": 12.0, "privacy__delta": 1e-6, "train__rounds": 1}
    local = {"privacy__noise": "local"}
    first, second = (shares, local) if integers_first else (local, shares)
    shared(ledger=ledger, **given, **first, privacy__epsilon=2.0)
    before = (ledger / "client-000.jsonl").read_bytes()
    remedy = "add --dp-arithmetic integer" if integers_first else "use --dp-noise local"
    with pytest.raises(UsageError, match=remedy):
        shared(ledger=ledger, **given, **second, privacy__epsilon=2.0, name="second")
    assert (ledger / "client-000.jsonl").read_bytes() == before
    if integers_first:
        summary, folder = shared(
            ledger=ledger,
            **given,
            privacy__noise="local",
            privacy__arithmetic="integer",
            privacy__epsilon=2.0,
            name="second",
        )
        account = summary["privacy"]["clients"][0]
        assert account["epsilon"] < account["lifetime_spent"]
        assert summary["privacy"]["delta"] == 1e-6
        assert audit_run(folder).findings == ()
        assert audit_run(tmp_path / "run").findings == ()


def test_a_client_whose_change_is_not_finite_takes_part_with_noise_alone(
    shared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To stay away from the round would show without any noise what its data did."""
    change = Site._change

    def diverging(self: Site, state: Any, *, lr: float) -> Any:
        found = change(self, state, lr=lr)
        return np.full_like(found, np.nan) if self.client == 0 else found

    monkeypatch.setattr(Site, "_change", diverging)
    summary, folder = shared(privacy__unit="client", privacy__delta=1e-3, train__rounds=2)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["survivors"] for line in lines[1:]] == [[0, 1, 2, 3, 4]] * 2
    assert [client["rounds"] for client in summary["privacy"]["clients"]] == [2] * 5


def test_local_noise_may_be_integers(shared: Any) -> None:
    summary, folder = shared(privacy__noise="local", privacy__arithmetic="integer")
    assert max(client["epsilon"] for client in summary["privacy"]["clients"]) <= 8
    plan = next(
        record["plan"]
        for record in read_ledger(folder / "ledger/client-000.jsonl").records
        if record["kind"] == "plan"
    )
    assert (plan["noise"], plan["arithmetic"], plan["honest"]) == ("local", "integer", 1)
