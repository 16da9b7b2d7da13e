"""One federated run: prepare, show what will happen, then round after round, then the summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedmpt.config import Config, load_config, to_toml
from fedmpt.data.features import cache_directory
from fedmpt.engine.adaptive import AdaptiveUpdates
from fedmpt.engine.aggregation import Aggregation
from fedmpt.engine.authors_code import compatibility_note
from fedmpt.engine.checkpoint import (
    Checkpoint,
    first_checkpoint,
    plan_digest,
    read_checkpoint,
)
from fedmpt.engine.ledgers import (
    INDEX_FILE,
    Ledgers,
    file_name,
    open_budgets,
    plan_ledgers,
    reopen_ledgers,
    require_room,
    require_room_in_delta,
)
from fedmpt.engine.listener import Listener, Several
from fedmpt.engine.loop import Loop
from fedmpt.engine.prepare import Federation, prepare
from fedmpt.engine.preview import make_preview
from fedmpt.engine.protocol import protocol_record
from fedmpt.engine.rounds import AveragedUpdates, Rounds
from fedmpt.engine.share_terms import drowning_note
from fedmpt.engine.shares import SharedNoise
from fedmpt.engine.sites import Site, dp_plans, make_guards
from fedmpt.engine.warning_log import WarningLog
from fedmpt.errors import StorageError, UsageError
from fedmpt.protect import Envelope
from fedmpt.runstore import LEDGER_FOLDER, STATE_FILE, RunStore, of_stretch
from fedmpt.strategy.fedawa import LARGEST_WEIGHT
from privacy import BudgetExhausted, DPPlan, LedgerRolledBack, NoiseMode, PLDAccountant


def train(
    config: Config, *, folder: Path | None, listener: Listener, ledger: Path | None = None
) -> dict[str, Any]:
    """Run a federation as configured and return its summary (the contents of ``summary.json``).

    Args:
        config: the configuration; rules that depend on the data are applied here.
        folder: the run folder to create; None for ``runs/TIME-HASH``.
        listener: told what happens.
        ledger: folder of privacy ledgers that runs on the same data share; None for one of this run alone.

    Raises:
        UsageError: something given cannot be used; no folder was created.
        BudgetSpent: the run would exceed what is left of a client's budget; no folder was created.
        privacy.BudgetExhausted: so many clients have spent their budget that not one round was possible.
        secagg.RoundAborted: a round could not be completed in several attempts.
        StorageError: the disk is full or a folder cannot be written; the run can be resumed.
    """
    since = time.perf_counter()
    if folder is not None and folder.exists():
        raise UsageError(
            f"--out {folder}: exists already; give another folder, a run is never overwritten"
        )
    if ledger is not None and not config.privacy.enabled:
        raise UsageError(
            f"--ledger {ledger}: a run without privacy (--no-dp, or privacy.enabled=false) books nothing on it, and "
            "what the ledger says of the data would no longer hold; leave --ledger out, or train with privacy"
        )
    federation = prepare(config, progress=listener)
    config, folder = federation.config, folder or _default_folder(federation)
    if not federation.schedule:
        return _evaluate_frozen(federation, folder, listener, since=since)
    place = ledger or folder / LEDGER_FOLDER
    ready = _make_ready(
        federation,
        lambda plans: plan_ledgers(federation, plans, place, carried=ledger is not None),
        start=first_checkpoint(federation),
        since=since,
    )
    require_room(ready.ledgers, ready.plans, ready.accountant)
    with RunStore(folder) as store:
        store.write_text("config.toml", to_toml(config))
        store.write_json("partition.json", _partition_record(federation))
        store.write_json("protocol.json", protocol_record(federation))
        return _execute(ready, store, listener)


def resume(folder: Path, *, listener: Listener) -> dict[str, Any]:
    """Go on with a run that was stopped, after its last completed round, and return its summary.

    The plan is that of ``config.toml``, and charges are booked under the same name: a round that was charged and not
    completed stays spent and is charged again. The aggregation has new keys and a roster of its own.

    Args:
        folder: the run folder.
        listener: told what happens.

    Raises:
        UsageError: there is nothing to go on with, another process works on the run, or data, frozen model or plan are
            no longer those it began with.
        privacy.LedgerRolledBack: a ledger lacks charges that the run remembers.
        privacy.BudgetExhausted: as for `train`, where no round was completed so far.
        secagg.RoundAborted: a round could not be completed in several attempts.
    """
    since = time.perf_counter()
    with RunStore.reopen(folder) as store:
        start = read_checkpoint(folder)
        federation = prepare(load_config(file=folder / "config.toml"), progress=listener)
        if plan_digest(federation) != start.progress.plan:
            raise UsageError(
                f"--resume {folder}: data, frozen model or settings are no longer those the run began with; restore "
                "them, or start another run"
            )
        ready = _make_ready(
            federation,
            lambda plans: (
                reopen_ledgers(federation, plans, folder)
                if plans
                else plan_ledgers(federation, plans, folder / LEDGER_FOLDER, carried=False)
            ),
            start=start,
            since=since,
        )
        store.rewrite_metrics([record.as_dict() for record in start.progress.records])
        return _execute(ready, store, listener)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ready:
    """A run, new or resumed, whose next round can begin.

    Attributes:
        federation: the prepared run.
        accountant: of record.
        plans: every client's privacy plan; none without privacy.
        rounds: how rounds work.
        ledgers: where ledgers are, and under which name charges are booked.
        start: what is done.
        since: when this process began, as `time.perf_counter` says.
    """

    federation: Federation
    accountant: PLDAccountant
    plans: list[DPPlan]
    rounds: Rounds
    ledgers: Ledgers
    start: Checkpoint
    since: float


def _make_ready(
    federation: Federation,
    ledgers_of: Callable[[list[DPPlan]], Ledgers],
    *,
    start: Checkpoint,
    since: float,
) -> _Ready:
    """Plan a run's privacy and rounds, and go on from what is done."""
    accountant = PLDAccountant()  # one for all: equal mechanisms are computed once
    plans = _plans(federation, accountant)
    rounds = _rounds(federation, plans)
    rounds.take_up(start.state, start.server)
    ledgers = ledgers_of(plans)
    require_room_in_delta(ledgers, plans)
    return _Ready(
        federation=federation,
        accountant=accountant,
        plans=plans,
        rounds=rounds,
        ledgers=ledgers,
        start=start,
        since=since,
    )


def _execute(ready: _Ready, store: RunStore, listener: Listener) -> dict[str, Any]:
    """Do the rounds that are left, and what ends a run."""
    listener = Several(listener, WarningLog(store, done=ready.start.state.round))
    note = compatibility_note(ready.federation.config)
    if note is not None:
        listener.warning(note)
    federation, plans, rounds, ledgers = (
        ready.federation,
        ready.plans,
        ready.rounds,
        ready.ledgers,
    )
    if plans:
        drowning = drowning_note(
            plans[0], values=federation.spec.size, cohort=len(federation.schedule[0])
        )
        if drowning is not None:
            listener.warning(drowning)
    loop = Loop(federation, store, listener, start=ready.start, since=ready.since)
    config, done = federation.config, ready.start.state.round
    with ExitStack() as stack, _telling_how_to_go_on(loop, store, listener):
        aggregation = Aggregation(
            config=config.secagg,
            clients=len(federation.partition),
            layout=rounds.layout,
            private=config.privacy.enabled,
            marks=store.folder / "marks",
            cohort=min(len(cohort) for cohort in federation.schedule),
        )
        opened = (
            open_budgets(ledgers, plans, stack=stack, accountant=ready.accountant) if plans else []
        )
        for client, ((book, _), head) in enumerate(
            zip(opened, ready.start.progress.heads, strict=False)
        ):
            try:
                book.require_head(head)
            except LedgerRolledBack as error:
                path = ledgers.folder / file_name(client)
                raise LedgerRolledBack(
                    f"{path}, of which the run's checkpoint tells: {error}"
                ) from error
        guards = make_guards(plans, opened) if plans else None
        sites = [
            Site(
                client,
                federation,
                session,
                guards[client] if guards is not None else None,
                store.folder / "local",
            )
            for client, session in aggregation.sessions.items()
        ]
        for site in sites:
            site.take_up(done)
        if plans and not (store.folder / INDEX_FILE).exists():
            store.write_json(INDEX_FILE, ledgers.index([book for book, _ in opened]))
        roster_name = of_stretch("roster", done + 1) + ".json"
        store.write_bytes(roster_name, aggregation.roster.to_json())
        if aggregation.key_epoch is not None:
            store.write_transcript(of_stretch("key-setup", done + 1), aggregation.key_epoch.log)
        planned = [budget.planned.epsilon for _, budget in opened]
        listener.preview(
            make_preview(
                federation, aggregation, plans, planned, sums=rounds.sums, folder=store.folder
            )
        )
        loop.execute(aggregation, rounds, sites)
        accounts = [account for site in sites if (account := site.close()) is not None]
        return loop.finish(accounts, name=ledgers.run if plans else None)


@contextmanager
def _telling_how_to_go_on(loop: Loop, store: RunStore, listener: Listener) -> Iterator[None]:
    """Say, of a run that is stopped by Ctrl-C or an error, what is kept of it and how to go on."""
    try:
        yield
    except BaseException as error:
        told = getattr(
            error, "__notes__", []
        )  # the error itself says how to go on, or that it is no use
        if (store.folder / STATE_FILE).exists() and not (
            told or isinstance(error, BudgetExhausted | LedgerRolledBack)
        ):
            listener.warning(
                f"stopped after round {loop.state.round}; go on with: fedmpt train --resume {store.folder}"
            )
        if isinstance(error, OSError):
            raise StorageError(
                f"{store.folder}: {error.strerror or error}; what was written before is whole: free space or mend "
                "permissions"
            ) from error
        raise


def _evaluate_frozen(
    federation: Federation, folder: Path, listener: Listener, *, since: float
) -> dict[str, Any]:
    """Evaluate a method that has nothing to tune: round 0 is all there is, and no privacy is spent."""
    with RunStore(folder) as store:
        store.write_text("config.toml", to_toml(federation.config))
        store.write_json("protocol.json", protocol_record(federation))
        start = first_checkpoint(federation)
        loop = Loop(federation, store, listener, start=start, since=since)
        loop.evaluate_frozen()
        return loop.finish([], name=None)


def _plans(federation: Federation, accountant: PLDAccountant) -> list[DPPlan]:
    """Return every client's privacy plan; none without privacy."""
    if not federation.config.privacy.enabled:
        return []
    return dp_plans(federation, cache_folder=cache_directory(), accountant=accountant)


def _rounds(federation: Federation, plans: list[DPPlan]) -> Rounds:
    """Return how this run's rounds work."""
    if plans and plans[0].noise is NoiseMode.SHARES:
        return SharedNoise(federation, plans)
    envelope = _envelope(federation, plans)
    adaptive = federation.method.aggregation == "fedawa"
    return AdaptiveUpdates(envelope) if adaptive else AveragedUpdates(envelope)


def _envelope(federation: Federation, plans: list[DPPlan]) -> Envelope:
    config = federation.config
    sizes = [plan.n_pub for plan in plans] or [len(rows) for rows in federation.partition.clients]
    largest_weight = max(sizes) if config.train.weighting == "size" else 1
    if federation.method.aggregation == "fedawa":
        largest_weight = LARGEST_WEIGHT
    return Envelope.of(
        size=federation.spec.size,
        config=config.secagg,
        private=config.privacy.enabled,
        largest_weight=largest_weight,
        largest_examples=max(sizes) * federation.local.epochs,
    )


def _default_folder(federation: Federation) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{stamp}-{federation.digest.hex()[:8]}"


def _partition_record(federation: Federation) -> dict[str, Any]:
    """Who holds what; of the simulation's whole data, so a run on private data keeps it to itself."""
    return {
        "method": federation.partition.method,
        "digest": federation.partition.digest,
        **federation.partition.description.as_dict(),
        "assignment": federation.partition.assignment().tolist(),
    }
