"""The product's own private training as a step that `privacy.audit` can drive.

Everything between data and update runs as in a run: batches, per-example gradients of the method's own head, clipping,
noise, optimiser (`fedmpt.learner.train_privately`); where clients share the noise, `fedmpt.learner.query_privately` of
as many contributors as the claim counts on. The noised sum is read off the update. In ``sketch`` and ``prompt`` space
the update gives it away as it is. In ``text`` space the text tower comes between; there the text features are made a
parameter of their own, in the tower's place. No example touches the tower, and what comes after the noise is
post-processing (docs/privacy.md, late Jacobian).

Dimensions: ``n`` examples, ``M`` patches, ``D`` width, ``C`` classes, ``d`` values of a noised sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpt import learner
from fedmpt.audit.stand_ins import CARRIER, Pool
from fedmpt.learner import LocalSettings
from fedmpt.methods.base import Method, Parameters
from fedmpt.types import FloatVector, GlobalState, ParameterSpec
from privacy import DPPlan, DPSpace, NoiseMode, NoiseSource, PoissonSampler
from privacy.audit.step import claimed_steps, grid_noise, lay_out, sum_of_shares, take_all
from privacy.dpsgd import StepHistory
from privacy.integer import GridRelease, IntegerGradient
from privacy.jacobian import TEXT_BLOCK, EncoderGraph
from privacy.noise import InsecureZeroNoise
from privacy.sketch import Sketch, SketchSpace

_ONE_STEP_RATE: Final = 1e4  # so large that rounding to the parameters' size does not blur the sum
_CPU: Final = torch.device("cpu")
_SGD: Final = LocalSettings(
    optimizer="sgd", momentum=0.0, weight_decay=0.0, batch_size=1 << 20, epochs=1
)


class TrainedStep:
    """`train_privately` as a step under audit.

    Args:
        method: `Carried` or `CanaryMethod` for ``text`` space, else the run's method, `Unpenalised`.
        parameters: the state it starts from.
        pool: the examples.
        plan: the claim.
        space: where examples are clipped and noised.
        sketch: of the text tower at the state, for ``sketch`` space.
        prompt_chunk: examples a backward pass, in ``prompt`` space.
    """

    def __init__(
        self,
        method: Method,
        parameters: Mapping[str, Tensor],
        pool: Pool,
        plan: DPPlan,
        *,
        space: DPSpace = DPSpace.TEXT,
        sketch: Sketch | None = None,
        prompt_chunk: int = 1,
    ) -> None:
        self.method = method
        self.spec = ParameterSpec.of(parameters)
        self.state = GlobalState(round=0, vector=self.spec.flatten(parameters))
        self.pool = pool
        self.sketch = sketch
        self.prompt_chunk = prompt_chunk
        self._graph: EncoderGraph | None = None
        where = learner.make_space(space, method, sketch=sketch, prompt_chunk=prompt_chunk)
        self._shapes = learner.released_shapes(method, where, dict(parameters))
        sizes = {name: math.prod(shape) for name, shape in self._shapes.items()}
        known = dict(plan.block_weights)
        self._plan = replace(
            plan,
            space=space,
            block_weights=tuple((name, known.get(name, 1.0)) for name in sizes),
        )
        self._blocks = lay_out(sizes)

    @property
    def plan(self) -> DPPlan:
        """The claim."""
        return self._plan

    @property
    def blocks(self) -> Mapping[str, slice]:
        """Where each block lies in the sum."""
        return self._blocks

    @property
    def examples(self) -> Sequence[str]:
        """What the examples of the pool are."""
        return self.pool.names

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the released blocks."""
        return dict(self._shapes)

    def noised_sum(
        self,
        members: Sequence[int],
        *,
        sampler: PoissonSampler,
        noise: NoiseSource,
        steps: int = 1,
        unclipped: bool = False,
    ) -> NDArray[np.float64]:
        """Train, and read the noised sum off the update; with shared noise every step starts from the same state."""
        plan = claimed_steps(self._plan, steps=steps, unclipped=unclipped)
        if plan.noise is NoiseMode.SHARES:
            return self._summed_shares(members, plan, sampler=sampler, noise=noise, steps=steps)
        lr = _ONE_STEP_RATE if steps == 1 else 1.0
        update = learner.train_privately(
            self.method,
            self.spec,
            self.state,
            self.pool.hold(members),
            settings=_SGD,
            lr=lr,
            weight=1,
            device=_CPU,
            plan=plan,
            sampler=sampler,
            noise=noise,
            history=StepHistory(),
            sketch=self.sketch,
            prompt_chunk=self.prompt_chunk,
            grid_noise=grid_noise(noise),
        )
        return self.read(-update.delta / np.float32(lr)).double().numpy()

    def contribution(
        self,
        members: Sequence[int],
        plan: DPPlan,
        gradient: IntegerGradient,
        *,
        state: GlobalState,
        sampler: PoissonSampler,
    ) -> GridRelease:
        """Return one client's part of a sum that holds the noise as a whole."""
        return learner.query_privately(
            self.method,
            self.spec,
            state,
            self.pool.hold(members),
            device=_CPU,
            plan=plan,
            sampler=sampler,
            gradient=gradient,
            honest=plan.honest,
            sketch=self.sketch,
            prompt_chunk=self.prompt_chunk,
        )

    def _summed_shares(
        self,
        members: Sequence[int],
        plan: DPPlan,
        *,
        sampler: PoissonSampler,
        noise: NoiseSource,
        steps: int,
    ) -> NDArray[np.float64]:
        own = PoissonSampler(plan)

        def contribute(gradient: IntegerGradient, first: bool) -> GridRelease:
            held, coins = (members, sampler) if first else ((), own)
            return self.contribution(held, plan, gradient, state=self.state, sampler=coins)

        summed = sum_of_shares(plan, self._shapes, contribute, noise=noise, steps=steps)
        return self.flat(summed).double().numpy()

    def unprotected_sum(self, members: Sequence[int]) -> NDArray[np.float64]:
        """The sum without clip, noise and coins, in the same units: the control of attacks."""
        return self.noised_sum(
            members, sampler=take_all(self._plan), noise=InsecureZeroNoise(), unclipped=True
        )

    def rows(self, members: Sequence[int], *, vector: FloatVector | None = None) -> Tensor:
        """Return examples' own weighted gradients, in units of C, unclipped: float32 ``[n, d]``.

        Args:
            members: examples of the pool.
            vector: the state; the step's own by default.
        """
        parameters = self.spec.unflatten(self.state.vector if vector is None else vector)
        space = learner.make_space(
            self._plan.space, self.method, sketch=self.sketch, prompt_chunk=self.prompt_chunk
        )
        prompts = {name: parameters.pop(name) for name in self.method.prompt_blocks}
        head = parameters | {TEXT_BLOCK: space.encode(prompts)}
        data, found = self.pool.hold(members), []
        for some in np.array_split(
            np.arange(len(members)), math.ceil(len(members) / self.method.examples_per_chunk)
        ):
            rows = learner.per_example_gradients(self.method, head, *data.take(some, _CPU))
            rows |= space.rows(rows.pop(TEXT_BLOCK))
            found.append(
                torch.cat([self._scaled(name, rows[name]) for name in self._blocks], dim=1)
            )
        return torch.cat(found)

    def losses(self, members: Sequence[int], *, vector: FloatVector) -> Tensor:
        """Return examples' losses at a state: ``[n]``."""
        parameters = self.spec.unflatten(vector)
        space = learner.make_space(self._plan.space, self.method, sketch=self.sketch)
        text = space.encode({name: parameters[name] for name in self.method.prompt_blocks})
        patches, labels = self.pool.hold(members).take(np.arange(len(members)), _CPU)
        with torch.no_grad():
            return self.method.example_losses(parameters, text, patches, labels)

    def gradient(self, patches: Tensor, labels: Tensor) -> Tensor:
        """Return one input's weighted gradient, flat, in units of C, differentiable in ``patches`` ``[M, D]``."""
        parameters = self.spec.unflatten(self.state.vector)
        prompts = {name: parameters.pop(name) for name in self.method.prompt_blocks}
        head = {name: value.requires_grad_() for name, value in parameters.items()}
        if self._graph is None:
            self._graph = EncoderGraph(self.method.encode_text, prompts)
        text = self._graph.text.detach().requires_grad_()
        losses = self.method.example_losses(head, text, patches[None], labels[None])
        *others, of_text = torch.autograd.grad(
            losses.sum(), [*head.values(), text], create_graph=True
        )
        released = dict(zip(head, others, strict=True))
        if self._plan.space is DPSpace.TEXT:
            return self.flat(released | {TEXT_BLOCK: of_text})
        if self.sketch is None:
            leaves = self._graph.leaves
            crossed = torch.autograd.grad(
                self._graph.text, list(leaves.values()), of_text, create_graph=True
            )
            return self.flat(released | dict(zip(leaves, crossed, strict=True)))
        for name, factor in self.sketch.factors.items():
            slices, entries, _ = factor.left.shape
            gradient = of_text.reshape(slices, entries)  # [G, t]
            released[name] = factor.singular * torch.einsum("gt,gtr->gr", gradient, factor.left)
        return self.flat(released)

    def read(self, moved: FloatVector) -> Tensor:
        """Return the weighted released blocks behind a step of the parameters, flat, in units of C: ``[d]``."""
        steps = self.spec.unflatten(moved)
        if self.sketch is not None:
            start = self.sketch.prompts
            prompts = {name: start[name] + steps[name] for name in self.sketch.factors}
            return self.flat(steps | SketchSpace(self.sketch).coordinates(prompts))
        return self.flat(
            {TEXT_BLOCK if name == CARRIER else name: value for name, value in steps.items()}
        )

    def flat(self, released: Parameters) -> Tensor:
        """Return blocks as one vector, in weighted units of C."""
        return torch.cat([self._scaled(name, released[name][None])[0] for name in self._blocks])

    def _scaled(self, name: str, rows: Tensor) -> Tensor:
        """Rows of a block ``[b, *shape]`` as weighted vectors in units of C: ``[b, size]``."""
        return self._plan.weight(name) / self._plan.max_grad_norm * rows.flatten(1)
