"""One federated run: prepare, show what will happen, then round after round, then the summary."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from fedmpt.config import Config, to_toml
from fedmpt.data.features import cache_directory
from fedmpt.engine.adaptive import AdaptiveUpdates
from fedmpt.engine.aggregation import Aggregation, simulated_losses
from fedmpt.engine.ledgers import INDEX_FILE, open_budgets, plan_ledgers, require_room
from fedmpt.engine.listener import Listener, Preview, RoundRecord
from fedmpt.engine.model_card import run_card
from fedmpt.engine.prepare import Federation, prepare
from fedmpt.engine.protocol import data_line, protocol_record, top_k_figures
from fedmpt.engine.rounds import AveragedUpdates, Rounds
from fedmpt.engine.share_terms import claim
from fedmpt.engine.shares import SharedNoise
from fedmpt.engine.sites import Site, dp_plans, make_guards
from fedmpt.engine.spaces import round_sketch
from fedmpt.errors import UsageError
from fedmpt.inference.card import CARD_FILE, MODEL_FILE, TunedTensors, card_text, to_file
from fedmpt.learner import predict
from fedmpt.methods.base import Parameters
from fedmpt.metrics import Metrics, evaluate, mean_metrics
from fedmpt.protect import MODES, Envelope, round_context
from fedmpt.runstore import LEDGER_FOLDER, RunStore
from fedmpt.strategy.fedawa import LARGEST_WEIGHT
from fedmpt.types import ClientId, GlobalState, RoundPlan
from privacy import BudgetExhausted, DPPlan, NoiseMode, PLDAccountant
from privacy.sketch import Sketch
from secagg import Aggregate, Mode, RoundAborted, statement, threshold
from secagg import Update as SegmentValues
from secagg.cost import predict_bytes

SUMMARY_SCHEMA: Final = "fedmpt.summary/1"


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
        return _finish(_frozen(federation, folder, listener), [], name=None, started=started)
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
        if aggregation.key_epoch is not None:
            store.write_transcript("key-setup", aggregation.key_epoch.log)
        store.write_json("protocol.json", protocol_record(federation))
        planned = [budget.planned.epsilon for _, budget in opened]
        listener.preview(_preview(federation, aggregation, plans, planned, sums=rounds.sums))
        run = _Run(federation, store, listener)
        run.execute(aggregation, rounds, sites)
        accounts = [account for site in sites if (account := site.close()) is not None]
    return _finish(run, accounts, name=ledgers.run if private else None, started=started)


def _frozen(federation: Federation, folder: Path | None, listener: Listener) -> _Run:
    """Evaluate a method that has nothing to tune: round 0 is all there is, and no privacy is spent."""
    store = RunStore(folder or _default_folder(federation))
    store.write_text("config.toml", to_toml(federation.config))
    store.write_json("protocol.json", protocol_record(federation))
    run = _Run(federation, store, listener)
    run.evaluate_frozen()
    return run


def _finish(
    run: _Run, accounts: list[dict[str, object]], *, name: str | None, started: float
) -> dict[str, Any]:
    """Keep the tuned parameters and the summary, and return the summary.

    Args:
        run: the finished loop.
        accounts: every client's privacy account.
        name: of the run on the clients' ledgers; None without privacy.
        started: when the run began.
    """
    summary = run.summary(accounts, seconds=time.perf_counter() - started)
    summary["privacy"]["run"] = name
    run.keep_result(summary)
    return summary


class _Run:
    """The loop over rounds and what it gathers."""

    def __init__(self, federation: Federation, store: RunStore, listener: Listener) -> None:
        self._federation = federation
        self._store = store
        self._listener = listener
        self._config = federation.config
        self._records: list[RoundRecord] = []
        self._phase = {"train": 0.0, "secagg": 0.0, "evaluate": 0.0}
        self._zero_shot_global: Metrics | None = None
        self.state = GlobalState(round=0, vector=federation.spec.flatten(federation.initial))

    def execute(self, aggregation: Aggregation, rounds: Rounds, sites: list[Site]) -> None:
        """Evaluate the frozen CLIP as round 0, then do every round of the schedule."""
        self._aggregation = aggregation
        self._rounds = rounds
        self._sites = sites
        self.evaluate_frozen()
        for number, cohort in enumerate(self._federation.schedule, start=1):
            self._round(RoundPlan(round=number, cohort=cohort, lr=self._learning_rate(number)))

    def keep_result(self, summary: dict[str, Any]) -> None:
        """Write the tuned model with its card, and the summary."""
        federation = self._federation
        tensors = TunedTensors(
            parameters=federation.spec.unflatten(self.state.vector),
            constants=federation.method.constants(),
        )
        data = to_file(tensors, method=federation.method.name)
        self._store.write_bytes(MODEL_FILE, data)
        card = run_card(federation, summary, tensors, data)
        self._store.write_text(CARD_FILE, card_text(card))
        self._store.write_json("summary.json", summary)

    def _round(self, plan: RoundPlan) -> None:
        before = dict(self._phase)
        sketch = self._sketch()
        aggregate, attempts = self._aggregate(plan, sketch)
        self._store.write_transcript(f"round-{plan.round:04d}", aggregate.transcript.log)
        self.state = self._rounds.advance(self.state, aggregate, lr=plan.lr, sketch=sketch)
        metrics, shared = self._evaluate()
        spent = [site.epsilon for site in self._sites if site.epsilon]
        record = RoundRecord(
            round=plan.round,
            rounds=len(self._federation.schedule),
            metrics=metrics,
            shared=shared,
            survivors=aggregate.survivors,
            dropped=tuple((c, stage.name.lower()) for c, stage in aggregate.dropped.items()),
            attempts=attempts,
            epsilon=(min(spent), max(spent)) if spent else None,
            train_loss=self._rounds.loss(aggregate),
            clipped=self._clipped(aggregate),
            bytes_up=float(np.mean([aggregate.bytes_up[c] for c in aggregate.survivors])),
            seconds=tuple((phase, self._phase[phase] - before[phase]) for phase in before),
        )
        self._keep(record)

    def _sketch(self) -> Sketch | None:
        """Return the round's sketch of the text encoder, where gradients are clipped in one."""
        if not self._config.privacy.enabled:
            return None
        started = time.perf_counter()
        federation, state = self._federation, self.state
        parameters = federation.spec.unflatten(state.vector, federation.backbone.device)
        sketch = round_sketch(self._config, federation.method, parameters, round_number=state.round)
        self._phase["train"] += time.perf_counter() - started
        return sketch

    def _aggregate(self, plan: RoundPlan, sketch: Sketch | None) -> tuple[Aggregate, int]:
        """Let the cohort's clients work as their sessions ask for values, and sum what they send."""
        state, config, federation = self.state, self._config, self._federation
        context = round_context(state, lr=plan.lr, run_digest=federation.digest)
        training = 0.0
        refusals: list[BudgetExhausted] = []

        def contribute(client: ClientId) -> SegmentValues | None:
            """Return a site's values; None from a site whose budget does not admit the round."""
            nonlocal training
            started = time.perf_counter()
            try:
                site = self._sites[client]
                return self._rounds.contribute(site, state, lr=plan.lr, sketch=sketch)
            except BudgetExhausted as error:
                self._listener.warning(f"client {client} leaves the run: {error}")
                refusals.append(error)
                return None
            finally:
                training += time.perf_counter() - started

        def more(
            clients: tuple[ClientId, ...],
            answer: Callable[[ClientId], SegmentValues],
            broadcast: bytes,
        ) -> Aggregate:
            """Make a further sum of the same round."""
            bound = hashlib.sha256(context + broadcast).digest()
            aggregate, _ = self._aggregation.run(
                clients, answer, resubmit=True, context=bound, lost=lambda _: {}
            )
            return aggregate

        started = time.perf_counter()
        try:
            first, attempts = self._aggregation.run(
                plan.cohort,
                contribute,
                resubmit=self._rounds.resubmit,
                context=context,
                lost=lambda attempt: simulated_losses(
                    plan.cohort,
                    probability=config.secagg.dropout,
                    seed=config.seed,
                    round_number=plan.round,
                    attempt=attempt,
                ),
            )
            result = self._rounds.complete(first, more)
        except RoundAborted as error:
            if refusals:  # the reason is the budget, not the protocol
                raise refusals[-1] from error
            raise
        self._phase["train"] += training
        self._phase["secagg"] += time.perf_counter() - started - training
        return result, attempts

    def _evaluate(self) -> tuple[Metrics, Metrics | None]:
        """Return the model's metrics on the test split.

        Where clients have blocks of their own, these are means over the clients' models, and the second are those of
        the shared blocks alone (own blocks at zero); otherwise the second is None.
        """
        started = time.perf_counter()
        federation = self._federation
        parameters = federation.spec.unflatten(self.state.vector, federation.backbone.device)

        def metrics_with(own: Parameters) -> Metrics:
            scores = predict(federation.scorer, parameters | own, federation.test_inputs)
            return evaluate(scores, federation.test_labels)

        if federation.method.local_blocks:
            metrics = mean_metrics([metrics_with(site.local) for site in self._sites])
            zeros = {n: torch.zeros_like(v) for n, v in self._sites[0].local.items()}
            shared = metrics_with(zeros)
        else:
            metrics, shared = metrics_with({}), None
        self._phase["evaluate"] += time.perf_counter() - started
        return metrics, shared

    def evaluate_frozen(self) -> None:
        """Record the frozen CLIP as round 0."""
        started = time.perf_counter()
        federation = self._federation
        labels = federation.test_labels
        bank, zero_shot = federation.test_bank, federation.zero_shot
        pooled = evaluate(zero_shot.patch_scores(bank).cpu().numpy(), labels)
        self._zero_shot_global = evaluate(zero_shot.class_token_scores(bank).cpu().numpy(), labels)
        self._phase["evaluate"] += time.perf_counter() - started
        self._keep(RoundRecord(round=0, rounds=len(federation.schedule), metrics=pooled))

    def _keep(self, record: RoundRecord) -> None:
        self._records.append(record)
        self._store.append_metrics(record.as_dict())
        self._listener.round_done(record)

    def _learning_rate(self, number: int) -> float:
        """Cosine decay over rounds, from the global round number (clients are stateless)."""
        largest = self._config.train.lr or 0.0
        rounds = len(self._federation.schedule)
        return 0.5 * largest * (1 + math.cos(math.pi * (number - 1) / rounds))

    def _clipped(self, aggregate: Aggregate) -> float:
        clipped = sum(sum(counts) for counts in aggregate.clip_counts.values())
        return clipped / (self._federation.spec.size * len(aggregate.survivors))

    def summary(self, accounts: list[dict[str, object]], *, seconds: float) -> dict[str, Any]:
        """Return the contents of ``summary.json``."""
        config, federation = self._config, self._federation
        rounds = self._records[1:]
        first, last = self._records[0].metrics, self._records[-1].metrics
        sent = [record.bytes_up for record in rounds]
        cohort = len(federation.schedule[0]) if federation.schedule else 0
        protected, against = claim(config, cohort=max(1, cohort))
        return {
            "schema": SUMMARY_SCHEMA,
            "method": config.method.name,
            "data": config.data.name,
            "backbone": federation.backbone.name,
            "seed": config.seed,
            "rounds": len(rounds),
            "clients": len(federation.partition),
            "parameters": federation.spec.size,
            "folder": str(self._store.folder),
            "protocol": config.data.protocol,
            "protocol_digests": federation.protocol_digests,
            "zero_shot": _headline(first),
            "zero_shot_class_token": _headline(self._zero_shot_global or first),
            "final": _headline(last),
            "final_shared": _headline(self._records[-1].shared)
            if self._records[-1].shared
            else None,
            "final_top_k": top_k_figures(last),
            "final_AP": dict(zip(federation.dataset.scored, last.AP, strict=True)),
            "privacy": {
                "enabled": config.privacy.enabled,
                "target_epsilon": config.privacy.epsilon if config.privacy.enabled else None,
                "delta": accounts[0]["delta"] if accounts else None,
                "unit": config.privacy.unit,
                "noise": config.privacy.noise,
                "protected": protected,
                "against": against,
                "relation": "add_or_remove_one",
                "clients": accounts,
            },
            "secagg": {
                "mode": config.secagg.mode,
                "statement": statement(
                    MODES[config.secagg.mode], verify_sum=config.secagg.ckks_verify
                ),
                "bytes_up_per_client_round": float(np.mean(sent)) if sent else 0.0,
                "seconds": self._phase["secagg"],
                "dropped": sum(len(record.dropped) for record in rounds),
                "clipped_share": max((record.clipped for record in rounds), default=0.0),
            },
            "images_skipped": federation.dataset.train.skipped + federation.dataset.test.skipped,
            "partition_digest": federation.partition.digest,
            "seconds": seconds,
            "seconds_by_phase": dict(self._phase),
        }


def _headline(metrics: Metrics) -> dict[str, float]:
    return {"mAP": metrics.mAP, "CF1": metrics.CF1, "OF1": metrics.OF1}


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


def _preview(
    federation: Federation,
    aggregation: Aggregation,
    plans: list[DPPlan],
    planned: list[float],
    *,
    sums: int,
) -> Preview:
    config, local = federation.config, federation.local
    cohort = len(federation.schedule[0])
    masked = aggregation.mode is Mode.MASKING
    params = aggregation.parameters(federation.schedule[0], bytes(32), 1)
    predicted = predict_bytes(params)
    protected, against = claim(config, cohort=cohort)
    return Preview(
        method=config.method.name,
        data=data_line(federation),
        protocol_digests=federation.protocol_digests,
        backbone=federation.backbone.name,
        parameters=federation.spec.size,
        sizes=tuple(plan.n_pub for plan in plans)
        or tuple(len(rows) for rows in federation.partition.clients),
        rounds=len(federation.schedule),
        cohort=cohort,
        local=f"{local.optimizer}, learning rate {config.train.lr:g}, "
        f"{'expected ' if plans else ''}batch {local.batch_size}, {local.epochs} local epoch(s)",
        target_epsilon=config.privacy.epsilon if plans else None,
        delta=plans[0].delta if plans else None,
        protected=protected,
        against=against,
        noise_multipliers=_range([plan.noise_multiplier for plan in plans]),
        sample_rates=_range([plan.sample_rate for plan in plans]),
        steps=(
            min(plan.steps_per_round * plan.rounds for plan in plans),
            max(plan.steps_per_round * plan.rounds for plan in plans),
        )
        if plans
        else None,
        planned_epsilons=_range(planned),
        space=f"{config.privacy.space} space ({federation.space_reason})" if plans else None,
        secagg=config.secagg.mode,
        statement=aggregation.statement,
        tolerated=(threshold(cohort, params.colluders), params.colluders) if masked else None,
        bytes_up=sums * predicted.mean_up(),
        bytes_down=sums * predicted.mean_down(),
        setup_bytes=_setup_bytes(aggregation),
    )


def _setup_bytes(aggregation: Aggregation) -> tuple[int, int] | None:
    epoch = aggregation.key_epoch
    if epoch is None:
        return None
    return max(epoch.bytes_up.values()), max(epoch.bytes_down.values())


def _range(values: list[float]) -> tuple[float, float] | None:
    return (min(values), max(values)) if values else None
