"""Runs whose noise the clients share: plans, envelope, and the server's part of a round.

One step a round: each client sends the noised sum of its batch's clipped gradients inside a masked vector, and the
server, which learns only the sum over clients, makes the optimiser's step. Everything after the sum is post-processing,
so the text tower is crossed once a round and the optimiser keeps its moments.

With a client as the unit, what is clipped and summed is the change that a client's local training made.
"""

from __future__ import annotations

import torch

from fedmpt.engine.integer_terms import step_shapes
from fedmpt.engine.prepare import Federation
from fedmpt.engine.rounds import OneSum
from fedmpt.engine.share_terms import DELTA_BLOCK, LEAST_HONEST
from fedmpt.engine.sites import Site
from fedmpt.errors import RunError
from fedmpt.learner import make_optimizer, make_space
from fedmpt.methods.base import Parameters
from fedmpt.protect import GridEnvelope
from fedmpt.types import GlobalState
from privacy import DPPlan, PrivacyUnit
from privacy.grid import noise_bound, share_variance
from privacy.integer import IntegerGradient
from privacy.sketch import Sketch
from secagg import Aggregate, Layout
from secagg import Update as SegmentValues


class SharedNoise(OneSum):
    """Rounds of such a run; see `fedmpt.engine.rounds.Rounds`.

    Args:
        federation: the prepared run.
        plans: the clients' plans, alike but for their sizes.
    """

    def __init__(self, federation: Federation, plans: list[DPPlan]) -> None:
        self._federation = federation
        self._plans = plans
        self._parameters = {
            name: value.detach().clone().requires_grad_()
            for name, value in federation.initial.items()
        }
        self._optimizer = make_optimizer(self._parameters, federation.local, lr=1.0)
        self._rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        self._by_client = plans[0].unit is PrivacyUnit.CLIENT
        self.shapes = step_shapes(federation)
        self._reader = IntegerGradient(plan=plans[0], shapes=self.shapes)
        self._envelope = GridEnvelope.of(
            dimension=self._reader.dimension, noise_bound=self._noise_bound()
        )

    @property
    def layout(self) -> Layout:
        """What is summed."""
        return self._envelope.layout

    @property
    def resubmit(self) -> bool:
        """False: the same query under two shares of noise would give away what one share hides."""
        return False

    def contribute(
        self, site: Site, state: GlobalState, *, lr: float, sketch: Sketch | None
    ) -> SegmentValues:
        """Return a client's noised query of this round, charged."""
        return self._envelope.seal(site.contribute(state, self.shapes, lr=lr, sketch=sketch))

    def loss(self, aggregate: Aggregate) -> None:
        """None: no loss leaves a client."""

    def advance(
        self, state: GlobalState, aggregate: Aggregate, *, lr: float, sketch: Sketch | None
    ) -> GlobalState:
        """Return the state after a round: the optimiser's step on the survivors' noised sum.

        Raises:
            RunError: the result holds a value that is not finite.
        """
        total, survivors = self._envelope.open_sum(aggregate), aggregate.survivors
        federation = self._federation
        if self._by_client:
            mean = self._reader.gradient(total, examples=len(survivors))
            vector = state.vector + mean[DELTA_BLOCK].numpy()
        else:
            examples = sum(self._plans[client].expected_batch_size for client in survivors)
            released = self._reader.gradient(total, examples=examples)
            space = make_space(self._plans[0].space, federation.method, sketch=sketch)
            space.encode({n: self._parameters[n].detach() for n in federation.method.prompt_blocks})
            released |= space.to_prompt_gradient(released)
            for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate * lr
            for name, value in self._parameters.items():
                # losses are summed over a batch, as in the learner
                value.grad = released[name].to(value) * federation.local.batch_size
            method = federation.method
            if method.has_penalty:  # touches no data
                text = method.encode_text(self._parameters)
                method.penalty(self._parameters, text).backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            vector = federation.spec.flatten(self._parameters)
        if not torch.isfinite(torch.from_numpy(vector)).all():
            raise RunError(f"round {state.round + 1}: the state is not finite; lower --lr")
        return GlobalState(round=state.round + 1, vector=vector)

    def server_state(self) -> Parameters:
        """Return the optimiser's moments, as ``INDEX/NAME``: functions of released sums."""
        moments = self._optimizer.state_dict()["state"]
        return {
            f"{index}/{name}": value
            for index, values in moments.items()
            for name, value in values.items()
            if isinstance(value, torch.Tensor)
        }

    def take_up(self, state: GlobalState, server: Parameters) -> None:
        """Go on from the model and the optimiser's moments of an earlier process."""
        released = self._federation.spec.unflatten(state.vector)
        with torch.no_grad():
            for name, value in self._parameters.items():
                value.copy_(released[name])
        moments: dict[int, Parameters] = {}
        for path, value in server.items():
            index, _, name = path.partition("/")
            moments.setdefault(int(index), {})[name] = value
        self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": moments})

    def _noise_bound(self) -> int:
        plan = self._plans[0]
        # fewer counted on, more noise each: the bound covers the fewest that are allowed
        return noise_bound(share_variance(plan.noise_multiplier, plan.grid_steps, LEAST_HONEST))
