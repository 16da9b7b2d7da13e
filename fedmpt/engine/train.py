"""One federated run: prepare, show what will happen, then round after round, then the summary."""

from __future__ import annotations

import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedmpt.config import Config, to_toml
from fedmpt.data.features import cache_directory
from fedmpt.engine.adaptive import AdaptiveUpdates
from fedmpt.engine.aggregation import Aggregation
from fedmpt.engine.ledgers import INDEX_FILE, open_budgets, plan_ledgers, require_room
from fedmpt.engine.listener import Listener
from fedmpt.engine.loop import Loop
from fedmpt.engine.prepare import Federation, prepare
from fedmpt.engine.preview import make_preview
from fedmpt.engine.protocol import protocol_record
from fedmpt.engine.rounds import AveragedUpdates, Rounds
from fedmpt.engine.shares import SharedNoise
from fedmpt.engine.sites import Site, dp_plans, make_guards
from fedmpt.engine.spaces import round_sketch
from fedmpt.errors import UsageError
from fedmpt.protect import Envelope
from fedmpt.runstore import LEDGER_FOLDER, RunStore
from fedmpt.strategy.fedawa import LARGEST_WEIGHT
from privacy import DPPlan, NoiseMode, PLDAccountant

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
        privacy.BudgetExhausted: so many clients have spent their budget that no round is possible.
        secagg.RoundAborted: a round could not be completed in several attempts.
    """
    started = time.perf_counter()
    if folder is not None and folder.exists():
        raise UsageError(
            f"--out {folder}: exists already; give another folder, a run is never overwritten"
        )
    federation = prepare(config, progress=listener)
    config = federation.config
    if not federation.schedule:  # nothing to tune
        return _frozen(federation, folder, listener).finish([], name=None, started=started)
    private = config.privacy.enabled
    accountant = PLDAccountant()  # one for all: equal mechanisms are computed once
    plans = (
        dp_plans(federation, cache_folder=cache_directory(), accountant=accountant)
        if private
        else []
    )
    rounds = _rounds(federation, plans)
    folder = folder or _default_folder(federation)
    ledgers = plan_ledgers(
        federation, plans, ledger or folder / LEDGER_FOLDER, carried=ledger is not None
    )
    require_room(ledgers, plans, accountant)
    store = RunStore(folder)
    with ExitStack() as stack:
        aggregation = Aggregation(
            config=config.secagg,
            clients=len(federation.partition),
            layout=rounds.layout,
            private=private,
            marks=store.folder / "marks",
        )
        opened = open_budgets(ledgers, plans, stack=stack, accountant=accountant) if private else []
        guards = make_guards(plans, opened) if private else None
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
        store.write_text("config.toml", to_toml(config))
        if private:
            store.write_json(INDEX_FILE, ledgers.index([book for book, _ in opened]))
        store.write_json("partition.json", _partition_record(federation))
        store.write_bytes("roster.json", aggregation.roster.to_json())
        store.write_json("protocol.json", protocol_record(federation))
        planned = [budget.planned.epsilon for _, budget in opened]
        listener.preview(make_preview(federation, aggregation, plans, planned, sums=rounds.sums))
        loop = Loop(federation, store, listener)
        loop.execute(aggregation, rounds, sites)
        accounts = [account for site in sites if (account := site.close()) is not None]
    return loop.finish(accounts, name=ledgers.run if private else None, started=started)


def _frozen(federation: Federation, folder: Path | None, listener: Listener) -> Loop:
    """Evaluate a method that has nothing to tune: round 0 is all there is, and no privacy is spent."""
    store = RunStore(folder or _default_folder(federation))
    store.write_text("config.toml", to_toml(federation.config))
    store.write_json("protocol.json", protocol_record(federation))
    loop = Loop(federation, store, listener)
    loop.evaluate_frozen()
    return loop


def _rounds(federation: Federation, plans: list[DPPlan]) -> Rounds:
    """Return how this run's rounds work."""
    if plans and plans[0].noise is NoiseMode.SHARES:
        sketch = round_sketch(
            federation.config, federation.method, federation.initial, round_number=0
        )
        return SharedNoise(federation, plans, sketch)
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
        largest_examples=max(sizes) * config.train.local_epochs,
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
