"""The clients of the in-process engine: each with its own data, budget, ledger, identity key and session.

In a deployment a site is a machine; here all sites live in one process, one trained at a time. What a site keeps to
itself (data, ledger, secret coins, keys, updates) stays in its object; the server is handed bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from fedmpt.engine.adaptive_client import AdaptiveClient
from fedmpt.engine.declared import public_sizes
from fedmpt.engine.integer_terms import arithmetic_of, released_values
from fedmpt.engine.ledgers import head_record
from fedmpt.engine.local_blocks import LocalBlocks, split_blocks
from fedmpt.engine.prepare import Federation
from fedmpt.engine.probes import typical_norms
from fedmpt.engine.share_terms import (
    DELTA_BLOCK,
    common_plans,
    counted_on,
    equal_rates,
    honest_others,
)
from fedmpt.errors import RunError, UpdateError, UsageError
from fedmpt.learner import (
    make_space,
    query_privately,
    released_shapes,
    train,
    train_privately,
)
from fedmpt.methods.base import Parameters
from fedmpt.protect import LedgeredSession
from fedmpt.seeds import generator
from fedmpt.strategy.fedawa import start_score
from fedmpt.types import ClientId, FloatVector, GlobalState, Update
from privacy import (
    Arithmetic,
    Budget,
    CalibrationCache,
    CalibrationError,
    ClipMode,
    DPPlan,
    DPSpace,
    GaussianNoise,
    Ledger,
    LedgerHead,
    NoiseMode,
    PLDAccountant,
    PoissonSampler,
    PrivacyUnit,
    default_delta,
    least_noise_weights,
    make_plan,
)
from privacy.dpsgd import StepHistory
from privacy.grid import delta_of_plans
from privacy.integer import GridRelease, IntegerGradient
from privacy.sketch import Sketch

_SCORE: Final = "score"


def dp_plans(
    federation: Federation, *, cache_folder: Path, accountant: PLDAccountant
) -> list[DPPlan]:
    """Return the privacy plan of every client, calibrated to spend at most the target over its scheduled rounds.

    Raises:
        UsageError: delta is larger than 1 / (10 n) of some client, or no noise meets the target.
    """
    config = federation.config
    by_client = config.privacy.unit == "client"
    sizes = public_sizes(config, federation.partition)
    if by_client:
        sizes = [len(sizes)] * len(sizes)
    delta = config.privacy.delta or default_delta(max(sizes))
    largest = 1 / (10 * max(sizes))
    if delta > largest:
        raise UsageError(
            f"--dp-delta {delta:g}: must be at most 1/(10 n) = {largest:.3g} for the largest client of about "
            f"{max(sizes)} images; leave it out for {default_delta(max(sizes)):g}"
        )
    shares = config.privacy.noise == "shares"
    arithmetic = arithmetic_of(config.privacy)
    if arithmetic is Arithmetic.INTEGER:
        delta = delta_of_plans(delta)
    cache = CalibrationCache(cache_folder / "calibration.json")
    batches = [federation.local.batch_size] * len(sizes)
    if shares and not by_client:
        batches = equal_rates(sizes, federation.local.batch_size)
    weights = {} if by_client else _block_weights(federation)
    values = released_values(federation) if arithmetic is Arithmetic.INTEGER else None
    plans = []
    for index, (size, batch_size) in enumerate(zip(sizes, batches, strict=True)):
        rounds = max(1, federation.rounds_of(ClientId(index)))
        plans.append(
            _calibrated(
                n_pub=size,
                target_epsilon=config.privacy.epsilon,
                rounds=rounds,
                max_grad_norm=config.privacy.clip or 1.0,
                batch_size=batch_size,
                steps_per_round=1
                if shares
                else max(1, round(federation.local.epochs * size / batch_size)),
                delta=delta,
                block_weights=weights,
                space=DPSpace(config.privacy.space),
                clip=ClipMode(config.privacy.clip_mode),
                noise=NoiseMode(config.privacy.noise),
                arithmetic=arithmetic,
                released_values=values,
                honest=counted_on(len(federation.schedule[0])) if shares else 1,
                unit=PrivacyUnit(config.privacy.unit),
                accountant=accountant,
                cache=cache,
            )
        )
    return common_plans(plans) if shares else plans


def _calibrated(*, target_epsilon: float, rounds: int, **terms: Any) -> DPPlan:
    try:
        return make_plan(target_epsilon=target_epsilon, rounds=rounds, **terms)
    except CalibrationError as error:
        raise UsageError(
            f"--dp-epsilon {target_epsilon:g} over {rounds} round(s) of {terms['steps_per_round']} step(s): {error} "
            "(--dp-epsilon, --rounds), or use --no-dp where no privacy is meant"
        ) from error


def _block_weights(federation: Federation) -> dict[str, float]:
    """Return the public weight of every block in the joint norm: by configuration, else by least noise."""
    config = federation.config.privacy
    method, initial = federation.method, federation.initial
    sketch = federation.sketches.at(initial, round_number=0)
    norms = typical_norms(
        method,
        initial,
        space=DPSpace(config.space),
        sketch=sketch,
        backbone=federation.backbone,
    )
    space = make_space(DPSpace(config.space), method, sketch=sketch)
    shapes = released_shapes(method, space, initial)
    sizes = {name: math.prod(shapes[name]) for name in norms}
    weights = least_noise_weights(norms, sizes, max_grad_norm=config.clip or 1.0)
    for name, factor in (config.block_shares or {}).items():
        if name in weights:  # which blocks there are depends on the space
            weights[name] *= math.sqrt(factor)
    unknown = set(config.block_weights) - set(weights)
    if unknown:
        raise UsageError(
            f"privacy.block_weights: no block {', '.join(sorted(unknown))}; blocks are {', '.join(weights)}"
        )
    return weights | config.block_weights


@dataclass(slots=True)
class _Guard:
    """A site's private side: everything of it that must not leave."""

    plan: DPPlan
    ledger: Ledger
    budget: Budget
    sampler: PoissonSampler
    noise: GaussianNoise
    history: StepHistory
    charged_before: (
        int  # charges on the ledger when the history began, which knows only later steps
    )
    run_epsilon: float

    def require_charged(self) -> None:
        """Raise unless the noised steps made by this process are exactly those it charged."""
        charges = self.ledger.charges[self.charged_before :]
        self.history.require([charge.event for charge in charges])

    def write_off(self) -> None:
        """Count what is charged as spent although not all of its steps were made, and start a new history.

        Raises:
            RunError: more steps were made than charged.
        """
        charged = sum(charge.event.steps for charge in self.ledger.charges[self.charged_before :])
        if self.history.steps > charged:
            raise RunError(f"{self.history.steps} noised steps were made, {charged} are charged")
        self.history, self.charged_before = StepHistory(), len(self.ledger.charges)


class Site:
    """One client of a run."""

    def __init__(
        self,
        client: ClientId,
        federation: Federation,
        session: LedgeredSession,
        guard: _Guard | None,
        folder: Path,
    ) -> None:
        """Set up a client.

        Args:
            client: its id.
            federation: the run.
            session: its end of secure aggregation.
            guard: its privacy account; None without privacy.
            folder: where clients keep what is their own.
        """
        self.client = client
        self.adaptive = _adaptive_client(federation, client)
        _, own = split_blocks(federation.method, federation.initial)
        self._local = LocalBlocks(own, folder / f"client-{client:03d}.safetensors")
        score = {} if self.adaptive is None else {_SCORE: self.adaptive.score_tensor()}
        self._score = LocalBlocks(score, folder / f"client-{client:03d}.score.safetensors")
        self.session = session
        self._federation = federation
        self._data = federation.client_data(client)
        self._guard = guard
        weighted = federation.config.train.weighting == "size"
        size = guard.plan.n_pub if guard is not None else len(self._data)
        self.weight = size if weighted else 1

    @property
    def plan(self) -> DPPlan | None:
        """The privacy plan, if training is private."""
        return self._guard.plan if self._guard is not None else None

    @property
    def local(self) -> Parameters:
        """The client's own blocks; they are for its own evaluation and never sent."""
        return self._local.values

    @property
    def epsilon(self) -> float | None:
        """Epsilon spent so far, as of the last charge; None without privacy."""
        return self._guard.run_epsilon if self._guard is not None else None

    @property
    def ledger_head(self) -> LedgerHead | None:
        """What a peer remembers of its ledger; None without privacy."""
        return self._guard.ledger.head if self._guard is not None else None

    def train(self, state: GlobalState, *, lr: float, sketch: Sketch | None = None) -> Update:
        """Admit, charge, train.

        Args:
            state: the broadcast state.
            lr: the round's learning rate.
            sketch: of the encoder at ``state``, the same for all clients; for the space of that name. A client that
                trains alone makes its own, at its own blocks, which hold what is released to itself.

        Raises:
            privacy.BudgetExhausted: the round would spend more than the target; nothing was trained.
            UpdateError: the update is not finite; the client's own blocks are as they were.
        """
        before = dict(self._local.values)
        update = self._train(state, lr=lr, sketch=sketch)
        if not (np.isfinite(update.delta).all() and _finite(self._local.values)):
            self._local.values = before
            raise UpdateError("its update is not finite (lower --lr if that recurs)")
        return update

    def _train(self, state: GlobalState, *, lr: float, sketch: Sketch | None) -> Update:
        federation, number = self._federation, state.round + 1
        device = federation.backbone.device
        if self._guard is None:
            order = generator(federation.config.seed, "batches", self.client, number)
            return train(
                federation.method,
                federation.spec,
                state,
                self._data,
                settings=federation.local,
                lr=lr,
                weight=self.weight,
                device=device,
                order=order,
                local=self._local.values,
            )
        guard = self._guard
        charge, admission = guard.budget.charge(number)
        guard.run_epsilon = admission.run_epsilon
        self.session.charged(guard.ledger, charge)
        if federation.alone:
            sketch = federation.sketches.at(self._local.values, round_number=state.round)
        update = train_privately(
            federation.method,
            federation.spec,
            state,
            self._data,
            settings=federation.local,
            lr=lr,
            weight=self.weight,
            device=device,
            plan=guard.plan,
            sampler=guard.sampler,
            noise=guard.noise,
            history=guard.history,
            sketch=sketch,
            prompt_chunk=federation.config.privacy.prompt_chunk,
            local=self._local.values,
        )
        guard.require_charged()
        return update

    def fail(self) -> None:
        """Leave the running round: what was charged for it stays spent, and nothing of it is sent.

        Raises:
            RunError: more steps were made than charged.
        """
        if self._guard is not None:
            self._guard.write_off()

    def keep(self, number: int) -> None:
        """Keep what is this client's own, as of round ``number``, before the server commits the round.

        Raises:
            StorageError: the disk is full or the folder cannot be written.
        """
        self._local.keep(number)
        if self.adaptive is not None:
            self._score.values[_SCORE] = self.adaptive.score_tensor()
            self._score.keep(number)

    def take_up(self, done: int) -> None:
        """Go on from what this client kept in rounds up to ``done``."""
        self._local.take_up(done)
        if self.adaptive is not None:
            self._score.take_up(done)
            self.adaptive.score = float(self._score.values[_SCORE])

    def contribute(
        self,
        state: GlobalState,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        lr: float,
        sketch: Sketch | None,
    ) -> GridRelease:
        """Admit, charge, and make this client's part of a sum that holds the noise as a whole.

        Every call is a new release with new noise, charged on its own: the same query under two shares of noise would
        give away what one share hides.

        Args:
            state: the broadcast state.
            shapes: of the released blocks.
            lr: the round's learning rate, of local training where a client is the unit.
            sketch: of the encoder at ``state``; for the space of that name.

        Raises:
            privacy.BudgetExhausted: the round would spend more than the target; nothing was computed.
            RunError: the round's sum may hold fewer honest shares than the plan counts on; nothing was charged.
        """
        federation, guard = self._federation, self._guard
        if guard is None:
            raise RunError("noise shares need a privacy plan")
        honest = honest_others(self.session.guaranteed_honest, self.session.colluders)
        if honest < guard.plan.honest:  # the session's policy refuses such a round before
            raise RunError(
                f"a sum that is sure to hold {honest} honest shares of noise: the plan counts on {guard.plan.honest}"
            )
        charge, admission = guard.budget.charge(state.round + 1)
        guard.run_epsilon = admission.run_epsilon
        self.session.charged(guard.ledger, charge)
        gradient = IntegerGradient(plan=guard.plan, shapes=shapes, history=guard.history)
        if guard.plan.unit is PrivacyUnit.CLIENT:
            rows = {DELTA_BLOCK: torch.from_numpy(self._change(state, lr=lr))[None]}
            release = gradient.release(rows, honest=honest)
            gradient.finish()
        else:
            release = query_privately(
                federation.method,
                federation.spec,
                state,
                self._data,
                device=federation.backbone.device,
                plan=guard.plan,
                sampler=guard.sampler,
                gradient=gradient,
                honest=honest,
                sketch=sketch,
                prompt_chunk=federation.config.privacy.prompt_chunk,
            )
        guard.require_charged()
        return release

    def _change(self, state: GlobalState, *, lr: float) -> FloatVector:
        """Train without noise; the result must not leave the client as it is.

        A change that is not finite is returned all the same: it counts as no change where it is clipped. To stay away
        from the round would show, without any noise, what the data did.
        """
        federation = self._federation
        return train(
            federation.method,
            federation.spec,
            state,
            self._data,
            settings=federation.local,
            lr=lr,
            weight=self.weight,
            device=federation.backbone.device,
            order=generator(federation.config.seed, "batches", self.client, state.round + 1),
        ).delta

    def close(self) -> dict[str, object] | None:
        """Check the steps made against those charged, record the final figures, and return this client's account.

        Raises:
            RunError: steps were made that were not charged.
        """
        if self._guard is None:
            return None
        guard = self._guard
        guard.require_charged()
        events = guard.ledger.events(guard.budget.run)
        epsilon = guard.budget.close().epsilon if events else 0.0
        if epsilon > guard.plan.target_epsilon:
            raise RunError(
                f"client {self.client} spent epsilon {epsilon} of {guard.plan.target_epsilon}"
            )
        return {
            "client": self.client,
            "n_public": guard.plan.n_pub,
            "epsilon": epsilon,
            "delta": guard.plan.delta,
            "noise_multiplier": guard.plan.noise_multiplier,
            "sample_rate": guard.plan.sample_rate,
            "steps": sum(event.steps for event in events),
            "rounds": len(events),
            "lifetime_spent": guard.budget.total_epsilon,
            "lifetime_epsilon": guard.ledger.terms.lifetime_epsilon,
            "ledger_head": head_record(guard.ledger),
        }


def _adaptive_client(federation: Federation, client: ClientId) -> AdaptiveClient | None:
    """Return a client's side of adaptive weights, started from declared sizes; None with another aggregation."""
    if federation.method.aggregation != "fedawa":
        return None
    config = federation.config
    settings, sizes = config.method.fedawa, public_sizes(config, federation.partition)
    score = start_score(sizes[client], sum(sizes), logarithmic=settings.start == "log-share")
    return AdaptiveClient(score, lr=settings.server_lr, reports_loss=not config.privacy.enabled)


def _finite(blocks: Parameters) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in blocks.values())


def make_guards(plans: list[DPPlan], opened: list[tuple[Ledger, Budget]]) -> list[_Guard]:
    """Return the private side of every site, on ledgers and budgets that are open."""
    return [
        _Guard(
            plan=plan,
            ledger=ledger,
            budget=budget,
            sampler=PoissonSampler(plan),
            noise=GaussianNoise(),
            history=StepHistory(),
            charged_before=len(ledger.charges),
            run_epsilon=budget.run_epsilon,
        )
        for plan, (ledger, budget) in zip(plans, opened, strict=True)
    ]
