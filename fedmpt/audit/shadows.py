"""Simulated runs for attacks on membership: the run's own private training, over images that are in by a coin.

One simulated run starts where the real one did and takes all its rounds, with its plan, optimiser and learning rates.
The audited client holds about half of the targets. The other clients of a round add their noise and nothing else: an
attacker who knows their images would take them out. All but one of them are trained as one, whose noise has the
variance of theirs together; without data and with SGD that is the same. Where the clients share the noise, a sum is
over as many shares as the claim counts on.

In ``sketch`` space the sketch of the start serves all rounds; in ``text`` space the text features are parameters. Both
move the point at which gradients are taken, not what is clipped, noised and charged.

Letters: ``n`` targets, ``d`` values of a noised sum, ``G`` looks of the attacker at a run, ``V`` views.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from fedmpt import learner
from fedmpt.audit.trained import TrainedStep
from fedmpt.learner import LocalSettings
from fedmpt.types import FloatVector, GlobalState
from privacy import Arithmetic, DPPlan, GaussianNoise, NoiseMode, PoissonSampler
from privacy.audit.step import sum_of_shares
from privacy.dpsgd import StepHistory
from privacy.grid import clip_steps_for
from privacy.integer import GridRelease, IntegerGradient

_CPU: Final = torch.device("cpu")
LOOKS: Final = 5  # states of a run at which the attacker takes gradients


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What a simulated run showed.

    Attributes:
        members: bool ``[n]``, the coins.
        states: the global state at the start of each look, ``G`` vectors.
        sums: float32 ``[V, G, d]``, what each view saw until the next look, in weighted units of C: the audited
            client's own noised sums; with those of all others but one; with those of all. Two clients have two views,
            one client and shared noise have one.
        final: the released state.
    """

    members: NDArray[np.bool_]
    states: tuple[FloatVector, ...]
    sums: NDArray[np.float32]
    final: FloatVector


class PrivateRounds:
    """Rounds of the run's private training over the examples of a step's pool.

    Args:
        step: the step, at the state that runs start from.
        settings: the run's local optimiser.
        lr: its largest learning rate.
        cohort: clients of a round.
    """

    def __init__(
        self, step: TrainedStep, *, settings: LocalSettings, lr: float, cohort: int
    ) -> None:
        self._step = step
        self._cohort = cohort
        self._others: list[DPPlan] = []
        if step.plan.noise is not NoiseMode.SHARES:
            self._others += [_crowd(step.plan, cohort - 2)] if cohort > 2 else []
            self._others += [step.plan] if cohort > 1 else []
        self._settings = settings
        self._lr = lr
        self._shared: torch.optim.Optimizer | None = None

    @property
    def clients_in_view(self) -> tuple[int, ...]:
        """How many clients' noise is in each view of a round; shared noise counts as one."""
        if self._step.plan.noise is NoiseMode.SHARES:
            return (1,)
        return tuple(sorted({1, max(1, self._cohort - 1), self._cohort}))

    def round(
        self, vector: FloatVector, held: Sequence[int], number: int
    ) -> tuple[NDArray[np.float32], FloatVector]:
        """Make one round.

        Args:
            vector: the broadcast state.
            held: examples that the audited client holds.
            number: rounds done before.

        Returns:
            What each view sees, float32 ``[V, d]``, and the next state.
        """
        plan, step = self._step.plan, self._step
        lr = 0.5 * self._lr * (1 + math.cos(math.pi * number / plan.rounds))
        if plan.noise is NoiseMode.SHARES:
            return self._shared_round(vector, held, lr, first=number == 0)
        seen, total = [], np.zeros_like(vector)
        for members, own in ((held, plan), *(((), other) for other in self._others)):
            delta = learner.train_privately(
                step.method,
                step.spec,
                GlobalState(round=number, vector=vector),
                step.pool.hold(members),
                settings=self._settings,
                lr=lr,
                weight=1,
                device=_CPU,
                plan=own,
                sampler=PoissonSampler(own),
                noise=GaussianNoise(),
                history=StepHistory(),
                sketch=step.sketch,
                prompt_chunk=step.prompt_chunk,
            ).delta
            total += delta
            seen.append(step.read(-self._unscaled(total, lr)).numpy())
        return np.stack(seen), vector + total / np.float32(self._cohort)

    def run(self, targets: Sequence[int], coins: np.random.Generator) -> Seen:
        """Make a whole run in which each target is in with probability 1/2."""
        members = coins.random(len(targets)) < 0.5
        held = [target for target, into in zip(targets, members, strict=True) if into]
        rounds = self._step.plan.rounds
        starts = np.unique(np.linspace(0, rounds, LOOKS, endpoint=False).astype(int))
        vector = self._step.state.vector
        states, sums = [], []
        for number in range(rounds):
            seen, following = self.round(vector, held, number)
            if number in starts:
                states.append(vector)
                sums.append(np.zeros_like(seen))
            sums[-1] += seen
            vector = following
        return Seen(
            members=members, states=tuple(states), sums=np.stack(sums, axis=1), final=vector
        )

    def _unscaled(self, delta: FloatVector, lr: float) -> FloatVector:
        """An update as if all blocks had the learning rate 1."""
        blocks = self._step.spec.unflatten(delta)
        rates = self._settings.lr_multipliers
        return self._step.spec.flatten(
            {name: value / (lr * rates.get(name, 1.0)) for name, value in blocks.items()}
        )

    def _shared_round(
        self, vector: FloatVector, held: Sequence[int], lr: float, *, first: bool
    ) -> tuple[NDArray[np.float32], FloatVector]:
        """One step on the sum over contributors, made by the server; its optimiser lasts for the run."""
        step, plan = self._step, self._step.plan
        state = GlobalState(round=0, vector=vector)

        def contribute(gradient: IntegerGradient, own: bool) -> GridRelease:
            return step.contribution(
                held if own else (), plan, gradient, state=state, sampler=PoissonSampler(plan)
            )

        released = sum_of_shares(plan, step.shapes, contribute, noise=GaussianNoise(), steps=1)
        seen = step.flat(released).numpy()[None]
        parameters = step.spec.unflatten(vector)
        space = learner.make_space(plan.space, step.method, sketch=step.sketch)
        space.encode({name: parameters[name] for name in step.method.prompt_blocks})
        released |= space.to_prompt_gradient(released)
        if first or self._shared is None:
            self._parameters = {n: v.requires_grad_() for n, v in parameters.items()}
            self._shared = learner.make_optimizer(self._parameters, self._settings, lr=1.0)
            self._rates = [float(group["lr"]) for group in self._shared.param_groups]
        for group, rate in zip(self._shared.param_groups, self._rates, strict=True):
            group["lr"] = rate * lr
        scale = self._settings.batch_size / (plan.honest * plan.expected_batch_size)
        for name, value in self._parameters.items():
            value.grad = scale * released[name]
        self._shared.step()
        return seen, step.spec.flatten(self._parameters)


def _crowd(plan: DPPlan, clients: int) -> DPPlan:
    """The plan of so many clients together, as far as their noise goes."""
    noise_multiplier = plan.noise_multiplier * math.sqrt(clients)
    in_integers = plan.arithmetic is Arithmetic.INTEGER
    return replace(
        plan,
        noise_multiplier=noise_multiplier,
        clip_steps=clip_steps_for(noise_multiplier, 1) if in_integers else None,
    )


def train_openly(
    step: TrainedStep,
    targets: Sequence[int],
    coins: np.random.Generator,
    *,
    settings: LocalSettings,
    lr: float,
) -> tuple[NDArray[np.bool_], FloatVector]:
    """Train a client without privacy on targets that are in by a coin each: the control.

    Returns:
        bool ``[n]``, the coins, and the state in the end.
    """
    members = coins.random(len(targets)) < 0.5
    held = [target for target, into in zip(targets, members, strict=True) if into]
    update = learner.train(
        step.method,
        step.spec,
        step.state,
        step.pool.hold(held),
        settings=settings,
        lr=lr,
        weight=1,
        device=_CPU,
        order=coins,
    )
    return members, step.state.vector + update.delta
