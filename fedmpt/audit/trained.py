"""The product's own private training as a step that `privacy.audit` can drive.

Everything between data and update runs as in a run: batches, per-example gradients of the method's own head, clipping,
noise, optimiser (`fedmpt.learner.train_privately`). The noised sum is read off the update. In ``sketch`` space the
update gives it away as it is. In ``text`` space the text tower comes between; there the text features are made a
parameter of their own, in the tower's place. No example touches the tower, and what comes after the noise is
post-processing (docs/privacy.md, late Jacobian). ``prompt`` space is driven as ``text`` space.

Dimensions: ``n`` examples of the pool, ``M`` patches, ``D`` width, ``C`` classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpt import learner
from fedmpt.data.features import FeatureBank
from fedmpt.learner import ClientData, LocalSettings
from fedmpt.methods.base import Method, Parameters
from fedmpt.types import GlobalState, ParameterSpec
from privacy import DPPlan, DPSpace, NoiseSource, PoissonSampler
from privacy.audit.step import claimed_steps, lay_out, take_all
from privacy.dpsgd import StepHistory
from privacy.jacobian import TEXT_BLOCK
from privacy.noise import InsecureZeroNoise
from privacy.sketch import Sketch, SketchSpace

_CARRIER: Final = "text_carrier"  # the text features as a parameter
_ONE_STEP_RATE: Final = 1e4  # so large that rounding to the parameters' size does not blur the sum
_CPU: Final = torch.device("cpu")
_SGD: Final = LocalSettings(
    optimizer="sgd", momentum=0.0, weight_decay=0.0, batch_size=1 << 20, epochs=1
)


class Carried(Method):
    """A method whose text features are a parameter; scores and losses are the method's own."""

    def __init__(self, method: Method) -> None:
        self.name = method.name
        self.classes = method.classes
        self.prompt_blocks = (_CARRIER,)
        self.examples_per_chunk = method.examples_per_chunk
        self._method = method

    def initial_parameters(self, seed: int) -> Parameters:
        """Return the parameters at the method's own start."""
        return carried_parameters(self._method, self._method.initial_parameters(seed))

    def encode_text(self, parameters: Parameters) -> Tensor:
        """Return the parameter itself."""
        return parameters[_CARRIER]

    def score(self, parameters: Parameters, text: Tensor, patches: Tensor) -> Tensor:
        """As the method."""
        return self._method.score(parameters, text, patches)

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """As the method."""
        return self._method.loss(scores, labels)

    def example_losses(
        self, parameters: Parameters, text: Tensor, patches: Tensor, labels: Tensor
    ) -> Tensor:
        """As the method."""
        return self._method.example_losses(parameters, text, patches, labels)

    def for_classes(self, classes: tuple[str, ...]) -> Carried:
        """Return the same for other classes."""
        return Carried(self._method.for_classes(classes))


def carried_parameters(method: Method, parameters: Parameters) -> Parameters:
    """Return the method's parameters with the text features in the place of the prompts, on the CPU."""
    with torch.no_grad():
        text = method.encode_text(parameters)
    head = {name: v for name, v in parameters.items() if name not in method.prompt_blocks}
    return {name: value.detach().cpu() for name, value in (head | {_CARRIER: text}).items()}


class CanaryMethod(Method):
    """A method of which every example's gradient is its own first patch, whatever the state; linear."""

    def __init__(self, size: int) -> None:
        self.name = "canaries"
        self.classes = ("canary",)
        self.prompt_blocks = (_CARRIER,)
        self._size = size

    def initial_parameters(self, seed: int) -> Parameters:
        """Return zeros."""
        del seed
        return {_CARRIER: torch.zeros(self._size)}

    def encode_text(self, parameters: Parameters) -> Tensor:
        """Return the parameter itself."""
        return parameters[_CARRIER]

    def score(self, parameters: Parameters, text: Tensor, patches: Tensor) -> Tensor:
        """Return the inner product with the first patch: ``[B, 1]``."""
        del parameters
        return (patches[:, 0] @ text).unsqueeze(-1)

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return the score: ``[B]``."""
        del labels
        return scores.sum(-1)

    def for_classes(self, classes: tuple[str, ...]) -> CanaryMethod:
        """Return itself: canaries have no classes."""
        del classes
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """Examples an auditor trains on.

    Attributes:
        names: what they are.
        patches: float16 ``[n, M, D]``.
        labels: int8 ``[n, C]``.
    """

    names: tuple[str, ...]
    patches: NDArray[np.float16]
    labels: NDArray[np.int8]

    def hold(self, members: Sequence[int]) -> ClientData:
        """Return a client that holds some of them."""
        rows = np.asarray(members, dtype=np.int64)
        bank = FeatureBank(
            key="audit", stored_patches=self.patches, stored_globals=self.patches[:, 0]
        )
        return ClientData(bank=bank, rows=rows, labels=self.labels[rows])


class TrainedStep:
    """`train_privately` as a step under audit.

    Args:
        method: `Carried` or `CanaryMethod`; with a sketch, the method itself.
        parameters: the state it starts from.
        pool: the examples.
        plan: the claim.
        sketch: of the text tower at the state, for a plan in ``sketch`` space; without one, the step clips and noises
            in text space, which then is the space of a parameter.
    """

    def __init__(
        self,
        method: Method,
        parameters: Mapping[str, Tensor],
        pool: Pool,
        plan: DPPlan,
        *,
        sketch: Sketch | None = None,
    ) -> None:
        self._method = method
        self._spec = ParameterSpec.of(parameters)
        self._state = GlobalState(round=0, vector=self._spec.flatten(parameters))
        self._pool = pool
        self._sketch = sketch
        factors = sketch.factors if sketch is not None else {}
        sizes = {
            TEXT_BLOCK if name == _CARRIER else name: factors[name].singular.numel()
            if name in factors
            else math.prod(shape)
            for name, shape in self._spec.shapes
        }
        known = dict(plan.block_weights)
        self._plan = replace(
            plan,
            space=DPSpace.TEXT if sketch is None else DPSpace.SKETCH,
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
        return self._pool.names

    def noised_sum(
        self,
        members: Sequence[int],
        *,
        sampler: PoissonSampler,
        noise: NoiseSource,
        steps: int = 1,
        unclipped: bool = False,
    ) -> NDArray[np.float64]:
        """Train, and read the noised sum off the update."""
        lr = _ONE_STEP_RATE if steps == 1 else 1.0
        update = learner.train_privately(
            self._method,
            self._spec,
            self._state,
            self._pool.hold(members),
            settings=_SGD,
            lr=lr,
            weight=1,
            device=_CPU,
            plan=claimed_steps(self._plan, steps=steps, unclipped=unclipped),
            sampler=sampler,
            noise=noise,
            history=StepHistory(),
            sketch=self._sketch,
        )
        moved = self._spec.unflatten(-update.delta / np.float32(lr))
        return self._flat(self._released(moved)).double().numpy()

    def unprotected_sum(self, members: Sequence[int]) -> NDArray[np.float64]:
        """The sum without clip, noise and coins, in the same units: the control of attacks."""
        return self.noised_sum(
            members, sampler=take_all(self._plan), noise=InsecureZeroNoise(), unclipped=True
        )

    def gradient(self, patches: Tensor, labels: Tensor) -> Tensor:
        """Return one input's weighted gradient, flat, in units of C, differentiable in ``patches`` ``[M, D]``."""
        head = {
            name: value.requires_grad_()
            for name, value in self._spec.unflatten(self._state.vector).items()
            if self._sketch is None or name not in self._sketch.factors
        }
        sketch = self._sketch
        text = head.pop(_CARRIER) if sketch is None else sketch.text.clone().requires_grad_()
        losses = self._method.example_losses(head, text, patches[None], labels[None])
        *others, of_text = torch.autograd.grad(
            losses.sum(), [*head.values(), text], create_graph=True
        )
        released = dict(zip(head, others, strict=True))
        if self._sketch is None:
            return self._flat(released | {TEXT_BLOCK: of_text})
        for name, factor in self._sketch.factors.items():
            slices, entries, _ = factor.left.shape
            gradient = of_text.reshape(slices, entries)  # [G, t]
            released[name] = factor.singular * torch.einsum("gt,gtr->gr", gradient, factor.left)
        return self._flat(released)

    def _released(self, moved: Parameters) -> Parameters:
        """The released blocks behind a step of the parameters."""
        if self._sketch is None:
            return {TEXT_BLOCK if name == _CARRIER else name: v for name, v in moved.items()}
        start = self._sketch.prompts
        prompts = {name: start[name] + moved[name] for name in self._sketch.factors}
        return moved | SketchSpace(self._sketch).coordinates(prompts)

    def _flat(self, released: Parameters) -> Tensor:
        """Blocks as one vector, in weighted units of C."""
        norm = self._plan.max_grad_norm
        parts = [self._plan.weight(n) / norm * released[n].reshape(-1) for n in self._blocks]
        return torch.cat(parts)
