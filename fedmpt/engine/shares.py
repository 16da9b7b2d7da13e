"""Runs whose noise the clients share: plans, envelope, and the server's part of a round.

One step a round: each client sends the noised sum of its batch's clipped gradients inside a masked vector, and the
server, which learns only the sum over clients, makes the optimiser's step. Everything after the sum is post-processing,
so the text tower is crossed once a round and the optimiser keeps its moments.

With a client as the unit, what is clipped and summed is the change that a client's local training made.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch

from fedmpt.engine.prepare import Federation
from fedmpt.errors import RunError, UsageError
from fedmpt.learner import make_space, released_shapes
from fedmpt.protect import GridEnvelope
from fedmpt.types import ClientId, GlobalState
from privacy import DPPlan, NoiseMode, PrivacyUnit
from privacy.grid import clip_steps_for, discretisation_delta, noise_bound, share_variance
from privacy.integer import Integers, IntegerGradient
from privacy.sketch import Sketch
from secagg.policy import MIN_MASKED_CLIENTS
from secagg.threshold import default_colluders, guaranteed_honest

LEAST_HONEST: Final = 2  # a client knows its own share, so one other must add noise too
SET_ASIDE: Final = 0.01  # of delta, for noise being discrete
DELTA_BLOCK: Final = "delta"  # the one block where a client is the unit


def counted_on(cohort: int) -> int:
    """Return how many shares of noise an adversary lacks in any sum that a cohort of this size opens.

    A client knows its own share, so at least one client counts as a colluder.
    """
    colluders = default_colluders(cohort)
    return honest_others(guaranteed_honest(cohort, colluders, MIN_MASKED_CLIENTS), colluders)


def honest_others(guaranteed: int, colluders: int) -> int:
    """Return the shares counted on, given the honest clients of any sum and the colluders assumed."""
    return guaranteed if colluders > 0 else guaranteed - 1


def check_shares(federation: Federation) -> None:
    """Raise a `UsageError` unless the proof for shared noise holds in this run."""
    config = federation.config
    privacy = config.privacy
    if privacy.noise != "shares":
        if privacy.unit == "client":
            raise UsageError("--dp-unit client: needs --dp-noise shares")
        return
    if config.secagg.mode != "masking":
        raise UsageError(
            f"--dp-noise shares with --secagg {config.secagg.mode}: a single client's contribution carries a share of "
            "the noise only, and this mode can open it; use --secagg masking or --dp-noise local"
        )
    cohort = len(federation.schedule[0])
    if counted_on(cohort) < LEAST_HONEST:
        raise UsageError(f"--dp-noise shares: {cohort} clients in a round are too few; use more")


def common_plans(plans: list[DPPlan]) -> list[DPPlan]:
    """Return the plans with the largest noise multiplier among them: all shares go into the same sum."""
    noise_multiplier = max(plan.noise_multiplier for plan in plans)
    steps = clip_steps_for(noise_multiplier, plans[0].honest)
    return [
        replace(plan, noise_multiplier=noise_multiplier, clip_steps=steps)
        for plan in plans
    ]


class ShareServer:
    """The server of such a run: from the sum of a round to the next state.

    Args:
        federation: the prepared run.
        plans: the clients' plans, alike but for their sizes.
        sketch: at the initial state; for the space of that name.

    Raises:
        UsageError: discrete noise would cost more than what is set aside from delta.
    """

    def __init__(self, federation: Federation, plans: list[DPPlan], sketch: Sketch | None) -> None:
        self._federation = federation
        self._plans = plans
        device = federation.backbone.device
        state = GlobalState(round=0, vector=federation.spec.flatten(federation.initial))
        self._parameters = {
            name: value.requires_grad_()
            for name, value in federation.spec.unflatten(state.vector, device).items()
        }
        self._optimizer = _optimizer(list(self._parameters.values()), federation)
        self._by_client = plans[0].unit is PrivacyUnit.CLIENT
        self.shapes = self._shapes(sketch)
        self.envelope = GridEnvelope.of(
            dimension=self.gradient().dimension, noise_bound=self._noise_bound()
        )
        self._check_delta()

    def gradient(self) -> IntegerGradient:
        """Return what clips and rounds a step of this run, for a client or to read a sum."""
        return IntegerGradient(plan=self._plans[0], shapes=self.shapes)

    def step(
        self,
        state: GlobalState,
        total: Integers,
        survivors: tuple[ClientId, ...],
        *,
        lr: float,
        sketch: Sketch | None,
    ) -> GlobalState:
        """Return the state after a round.

        Args:
            state: the broadcast state.
            total: int64 ``[dimension]``, the survivors' noised sum.
            survivors: whose contributions are in it.
            lr: the round's learning rate.
            sketch: of the round.

        Raises:
            RunError: the result holds a value that is not finite.
        """
        federation = self._federation
        if self._by_client:
            mean = self.gradient().gradient(total, examples=len(survivors))
            vector = state.vector + mean[DELTA_BLOCK].numpy()
        else:
            examples = sum(self._plans[client].expected_batch_size for client in survivors)
            released = self.gradient().gradient(total, examples=examples)
            space = make_space(self._plans[0].space, federation.method, sketch=sketch)
            space.encode({n: self._parameters[n].detach() for n in federation.method.prompt_blocks})
            released |= space.to_prompt_gradient(released)
            for group in self._optimizer.param_groups:
                group["lr"] = lr
            for name, value in self._parameters.items():
                # losses are summed over a batch, as in the learner
                value.grad = released[name].to(value) * federation.local.batch_size
            self._optimizer.step()
            vector = federation.spec.flatten(self._parameters)
        if not torch.isfinite(torch.from_numpy(vector)).all():
            raise RunError(f"round {state.round + 1}: the state is not finite; lower --lr")
        return GlobalState(round=state.round + 1, vector=vector)

    def _shapes(self, sketch: Sketch | None) -> dict[str, tuple[int, ...]]:
        if self._by_client:
            return {DELTA_BLOCK: (self._federation.spec.size,)}
        method = self._federation.method
        space = make_space(self._plans[0].space, method, sketch=sketch)
        return released_shapes(method, space, self._federation.initial)

    def _noise_bound(self) -> int:
        plan = self._plans[0]
        assert plan.noise is NoiseMode.SHARES and plan.clip_steps is not None
        # fewer counted on, more noise each: the bound covers the fewest that are allowed
        return noise_bound(share_variance(plan.noise_multiplier, plan.clip_steps, LEAST_HONEST))

    def _check_delta(self) -> None:
        plan = self._plans[0]
        assert plan.clip_steps is not None
        spent = discretisation_delta(
            noise_multiplier=plan.noise_multiplier,
            clip_steps=plan.clip_steps,
            target_epsilon=plan.target_epsilon,
            values=self.gradient().dimension * max(plan.rounds for plan in self._plans),
        )
        if spent > SET_ASIDE * plan.delta:
            raise UsageError(
                f"--dp-noise shares: discrete noise would take {spent:.2g} of delta {plan.delta:.2g}, more than the "
                f"{SET_ASIDE:.0%} set aside; use fewer rounds or a smaller space"
            )


def _optimizer(values: list[torch.Tensor], federation: Federation) -> torch.optim.Optimizer:
    local = federation.local
    if local.optimizer == "adam":
        return torch.optim.Adam(values, weight_decay=local.weight_decay)
    return torch.optim.SGD(values, lr=0.0, momentum=local.momentum, weight_decay=local.weight_decay)
