"""The loop over rounds: training at the sites, the secure sum, the server's step, evaluation."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch

from fedmpt.engine.aggregation import ATTEMPTS, Aggregation, simulated_losses
from fedmpt.engine.checkpoint import Checkpoint
from fedmpt.engine.listener import Listener, RoundRecord
from fedmpt.engine.model_card import run_card
from fedmpt.engine.prepare import Federation
from fedmpt.engine.rounds import Rounds
from fedmpt.engine.sites import Site
from fedmpt.engine.summary import make_summary
from fedmpt.errors import RunError, StorageError
from fedmpt.inference.card import CARD_FILE, MODEL_FILE, TunedTensors, card_text, to_file
from fedmpt.learner import predict
from fedmpt.methods.base import Parameters
from fedmpt.metrics import Metrics, evaluate, mean_metrics
from fedmpt.protect import round_context
from fedmpt.runstore import STATE_FILE, SUMMARY_FILE, RunStore
from fedmpt.seeds import generator
from fedmpt.types import ClientId, RoundPlan
from privacy import BudgetExhausted, LedgerError
from privacy.sketch import Sketch, SketchSpace
from secagg import Aggregate, RoundAborted
from secagg import Update as SegmentValues
from secagg.errors import ThinRing, TooFewClients, TooFewReplies, TooFewSurvivors
from secagg.keys import KEY_BYTES

# Share of the way that text features went in a round. Runs on `scenes` drift by 0.1 to 0.7 and end no worse than with
# exact prompt gradients; where more was missed than went, the sketch was no picture of the encoder.
_MOST_DRIFT: Final = 1.0
_TOO_FEW: Final = (ThinRing, TooFewClients, TooFewReplies, TooFewSurvivors)


class Loop:
    """The loop over rounds and what it gathers.

    A round is over when its checkpoint is on disk: what is charged before is spent, what comes after is repeated.
    """

    def __init__(
        self,
        federation: Federation,
        store: RunStore,
        listener: Listener,
        *,
        start: Checkpoint,
        since: float,
    ) -> None:
        """Start after what is done.

        Args:
            federation: the prepared run.
            store: the run folder.
            listener: told what happens.
            start: what earlier processes left.
            since: when this process began the run, as `time.perf_counter` says.
        """
        self._federation = federation
        self._store = store
        self._listener = listener
        self._config = federation.config
        self._since = since
        self._before = start.progress
        self._records = list(start.progress.records)
        self._phase = dict(start.progress.phases)
        self._class_token = start.progress.class_token
        self.state = start.state

    def execute(self, aggregation: Aggregation, rounds: Rounds, sites: list[Site]) -> None:
        """Evaluate the frozen CLIP as round 0, then do every round of the schedule that is not done yet.

        A run whose clients have spent their budgets ends with fewer rounds.

        Raises:
            privacy.BudgetExhausted: not one round was possible.
            secagg.RoundAborted: a round could not be completed in several attempts.
            RunError: so many clients failed that a round could not be completed.
            StorageError: the disk is full or a folder cannot be written.
        """
        self._aggregation = aggregation
        self._rounds = rounds
        self._sites = sites
        if not self._records:
            self._commit()  # from here on the run can be resumed
            self._keep(self._frozen_record())
        schedule = self._federation.schedule
        for number, cohort in enumerate(schedule, start=1):
            if number <= self.state.round:
                continue
            try:
                self._round(RoundPlan(round=number, cohort=cohort, lr=self._learning_rate(number)))
            except BudgetExhausted as error:
                if self.state.round == 0:
                    raise
                self._listener.warning(
                    f"the run ends after {self.state.round} of {len(schedule)} rounds: {error}"
                )
                break
        self._evaluate_last()

    def evaluate_frozen(self) -> None:
        """Record the frozen CLIP as round 0, where that is all there is."""
        record = self._frozen_record()
        self._store.append_metrics(record.as_dict())
        self._listener.round_done(record)
        self._records.append(record)

    def finish(self, accounts: list[dict[str, object]], *, name: str | None) -> dict[str, Any]:
        """Write the tuned model with its card, if there is one, and the summary, and return the summary.

        Args:
            accounts: every client's privacy account.
            name: of the run on the clients' ledgers; None without privacy.
        """
        assert self._class_token is not None  # noqa: S101 -- round 0 sets it
        summary = make_summary(
            self._federation,
            self._records,
            class_token=self._class_token,
            phases=self._phase,
            accounts=accounts,
            name=name,
            folder=self._store.folder,
            seconds=self._seconds(),
        )
        if not self._federation.alone:
            self._write_model(summary)
        self._store.write_json(SUMMARY_FILE, summary)
        return summary

    def _write_model(self, summary: dict[str, Any]) -> None:
        """Write the tuned model with its card."""
        federation = self._federation
        tensors = TunedTensors(
            parameters=federation.spec.unflatten(self.state.vector),
            constants=federation.method.constants(),
        )
        data = to_file(tensors, method=federation.method.name)
        self._store.write_bytes(MODEL_FILE, data)
        self._store.write_text(CARD_FILE, card_text(run_card(federation, summary, tensors, data)))

    def _seconds(self) -> float:
        return self._before.seconds + time.perf_counter() - self._since

    def _round(self, plan: RoundPlan) -> None:
        before = dict(self._phase)
        sketch = self._sketch()
        aggregate, attempts = self._aggregate(plan, sketch)
        self._store.write_transcript(f"round-{plan.round:04d}", aggregate.transcript.log)
        self.state = self._rounds.advance(self.state, aggregate, lr=plan.lr, sketch=sketch)
        if sketch is not None and not self._config.privacy.one_step_rounds:
            self._watch_drift(sketch)
        for client in plan.cohort:
            self._sites[client].keep(plan.round)
        metrics, shared, by_client = (
            self._evaluate() if self._is_evaluated(plan.round) else (None, None, ())
        )
        spent = [site.epsilon for site in self._sites if site.epsilon]
        record = RoundRecord(
            round=plan.round,
            rounds=len(self._federation.schedule),
            metrics=metrics,
            shared=shared,
            by_client=by_client,
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
        """Return the round's sketch of the text encoder, where all clients clip gradients in one."""
        if self._federation.alone:
            return None
        started = time.perf_counter()
        federation, state = self._federation, self.state
        parameters = federation.spec.unflatten(state.vector, federation.backbone.device)
        sketch = federation.sketches.at(parameters, round_number=state.round)
        self._phase["train"] += time.perf_counter() - started
        return sketch

    def _watch_drift(self, sketch: Sketch) -> None:
        """Warn where a round went farther than its sketch can tell; from released values alone."""
        method, device = self._federation.method, self._federation.backbone.device
        released = self._federation.spec.unflatten(self.state.vector, device)
        prompts = {name: released[name] for name in method.prompt_blocks}
        drift = SketchSpace(sketch).drift(method.encode_text, prompts)
        if drift > _MOST_DRIFT:
            self._listener.warning(
                f"round {self.state.round}: {drift:.0%} of how text features moved was not in the sketch, so clients "
                "tuned a coarse picture of the encoder; use a smaller --lr, fewer --epochs or --dp-space text"
            )

    def _aggregate(self, plan: RoundPlan, sketch: Sketch | None) -> tuple[Aggregate, int]:
        """Let the cohort's clients work as their sessions ask for values, and sum what they send."""
        state, config, federation = self.state, self._config, self._federation
        context = round_context(state, lr=plan.lr, run_digest=federation.digest, sketch=sketch)
        training = 0.0
        further, log = 0, b""
        left_out: list[Exception] = []

        def contribute(client: ClientId) -> SegmentValues | None:
            """Return a site's values; None from one whose budget does not admit the round, or that fails."""
            nonlocal training
            started = time.perf_counter()
            try:
                site = self._sites[client]
                values = self._rounds.contribute(site, state, lr=plan.lr, sketch=sketch)
                return self._repeatable(values, client, plan.round, 0)
            except BudgetExhausted as error:
                self._listener.warning(f"client {client} leaves the run: {error}")
                left_out.append(error)
            except (OSError, StorageError, LedgerError):  # the disk is everybody's here
                raise
            except Exception as error:  # whatever a client trips over, the others go on without it
                self._listener.warning(
                    f"client {client} is left out of round {plan.round}: {type(error).__name__}: {error}"
                )
                self._sites[client].fail()
                left_out.append(error)
            finally:
                training += time.perf_counter() - started
            return None

        def more(
            clients: tuple[ClientId, ...],
            answer: Callable[[ClientId], SegmentValues],
            broadcast: bytes,
        ) -> Aggregate:
            """Make a further sum of the same round, after keeping the log of the one before."""
            nonlocal further, log
            further += 1
            bound = hashlib.sha256(context + broadcast).digest()
            self._store.write_transcript(f"round-{plan.round:04d}-{further}", log)
            aggregate, _ = self._aggregation.run(
                clients,
                lambda client: self._repeatable(answer(client), client, plan.round, further),
                resubmit=True,
                context=bound,
                lost=lambda _: {},
            )
            log = aggregate.transcript.log
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
            log = first.transcript.log
            result = self._rounds.complete(first, more)
        except RoundAborted as error:
            if not left_out:
                if isinstance(error, _TOO_FEW):
                    error.add_note(self._enough_clients(plan))
                raise
            cause = left_out[-1]  # the reason is not the protocol
            if isinstance(cause, BudgetExhausted):
                raise cause from error
            raise RunError(
                f"round {plan.round}: too few clients are left; the last to fail: {type(cause).__name__}: {cause}"
            ) from cause
        self._phase["train"] += training
        self._phase["secagg"] += time.perf_counter() - started - training
        return result, attempts

    def _enough_clients(self, plan: RoundPlan) -> str:
        """Return how many clients a round needs, and what to do where they are not there."""
        dropout = self._config.secagg.dropout
        remedy = f"go on with `fedmpt train --resume {self._store.folder}` once more of them answer, or add clients"
        if dropout > 0:
            remedy = (
                f"--dropout {dropout:g} draws who vanishes from the seed, so a resumed run loses the same; use a "
                "smaller --dropout, more --clients or another --seed"
            )
        return (
            f"round {plan.round} needs at least {self._aggregation.least} of its {len(plan.cohort)} clients to the end "
            f"and was tried {ATTEMPTS} times: {remedy}"
        )

    def _repeatable(
        self, values: SegmentValues, client: ClientId, number: int, further: int
    ) -> SegmentValues:
        """Fix the rounding of a run without privacy by the experiment seed, so that it can be repeated bit for bit."""
        if self._config.privacy.enabled:
            return values
        stream = generator(self._config.seed, "rounding", client, number, further)
        return replace(values, rounding_key=stream.bytes(KEY_BYTES))

    def _evaluate(self) -> tuple[Metrics, Metrics | None, tuple[tuple[float, float, float], ...]]:
        """Return the model's metrics on the test split.

        Where clients have blocks of their own, these are means over the clients' models; the second are those of the
        shared blocks alone (own blocks at zero), None where there are none; the third mAP, CF1 and OF1 by client.
        """
        started = time.perf_counter()
        federation = self._federation
        parameters = federation.spec.unflatten(self.state.vector, federation.backbone.device)

        def metrics_with(own: Parameters) -> Metrics:
            scores = predict(federation.scorer, parameters | own, federation.test_inputs)
            return evaluate(scores, federation.test_labels)

        shared = None
        by_client: tuple[tuple[float, float, float], ...] = ()
        if federation.method.local_blocks:
            own = [metrics_with(site.local) for site in self._sites]
            metrics = mean_metrics(own)
            by_client = tuple((one.mAP, one.CF1, one.OF1) for one in own)
            if federation.spec.size:
                zeros = {n: torch.zeros_like(v) for n, v in self._sites[0].local.items()}
                shared = metrics_with(zeros)
        else:
            metrics = metrics_with({})
        self._phase["evaluate"] += time.perf_counter() - started
        return metrics, shared, by_client

    def _is_evaluated(self, number: int) -> bool:
        every = self._config.evaluation.every
        return number % every == 0 or number == len(self._federation.schedule)

    def _evaluate_last(self) -> None:
        """Evaluate the round that the run ended with, if more were to come: a run ends with figures."""
        last = self._records[-1]
        if last.metrics is not None:
            return
        before = self._phase["evaluate"]
        metrics, shared, by_client = self._evaluate()
        seconds = dict(last.seconds) | {"evaluate": self._phase["evaluate"] - before}
        self._records[-1] = replace(
            last,
            metrics=metrics,
            shared=shared,
            by_client=by_client,
            seconds=tuple(seconds.items()),
        )
        self._commit()
        self._store.rewrite_metrics([record.as_dict() for record in self._records])
        self._listener.round_done(self._records[-1])

    def _frozen_record(self) -> RoundRecord:
        """Return the record of round 0, the frozen CLIP."""
        started = time.perf_counter()
        federation = self._federation
        labels = federation.test_labels
        bank, zero_shot = federation.test_bank, federation.zero_shot
        pooled = evaluate(zero_shot.patch_scores(bank).cpu().numpy(), labels)
        self._class_token = evaluate(zero_shot.class_token_scores(bank).cpu().numpy(), labels)
        self._phase["evaluate"] += time.perf_counter() - started
        return RoundRecord(round=0, rounds=len(federation.schedule), metrics=pooled)

    def _keep(self, record: RoundRecord) -> None:
        """Commit the round: with its checkpoint on disk it is done."""
        self._records.append(record)
        self._commit()
        self._store.append_metrics(record.as_dict())
        self._listener.round_done(record)

    def _commit(self) -> None:
        """Write what another process needs to go on from here."""
        progress = replace(
            self._before,
            round=self.state.round,
            records=tuple(self._records),
            class_token=self._class_token,
            phases=dict(self._phase),
            seconds=self._seconds(),
            heads=tuple(site.ledger_head for site in self._sites if site.ledger_head is not None),
        )
        checkpoint = Checkpoint(
            progress=progress, state=self.state, server=self._rounds.server_state()
        )
        self._store.write_bytes(STATE_FILE, checkpoint.to_bytes())

    def _learning_rate(self, number: int) -> float:
        """Cosine decay over rounds, from the global round number (clients are stateless)."""
        largest = self._config.train.lr or 0.0
        rounds = len(self._federation.schedule)
        return 0.5 * largest * (1 + math.cos(math.pi * (number - 1) / rounds))

    def _clipped(self, aggregate: Aggregate) -> float:
        clipped = sum(sum(counts) for counts in aggregate.clip_counts.values())
        return clipped / max(1, self._federation.spec.size * len(aggregate.survivors))
