"""The product's own private training as a step that `privacy.audit` can drive.

Everything between data and update runs as in a run: batches, per-example gradients of the method's own head,
clipping, noise, optimiser (`fedmpt.learner.train_privately`). One thing is taken out: the text tower, which no example
touches. In its place the text features are parameters themselves, so that the noised sum can be read off the update;
the tower comes after the noise and is post-processing (docs/privacy.md, late Jacobian).

Dimensions: ``n`` examples of the pool, ``M`` patches, ``D`` width, ``C`` classes.
"""

from __future__ import annotations

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
from fedmpt.types import FloatVector, GlobalState, ParameterSpec
from privacy import DPPlan, DPSpace, NoiseSource, PoissonSampler
from privacy.audit.step import claimed_steps, lay_out
from privacy.dpsgd import StepHistory
from privacy.jacobian import TEXT_BLOCK

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
        method: `Carried` or `CanaryMethod`.
        parameters: the state it starts from.
        pool: the examples.
        plan: the claim; clipped and noised in text space, which here is the space of the parameter.
    """

    def __init__(
        self, method: Method, parameters: Mapping[str, Tensor], pool: Pool, plan: DPPlan
    ) -> None:
        self._method = method
        self._spec = ParameterSpec.of(parameters)
        self._state = GlobalState(round=0, vector=self._spec.flatten(parameters))
        self._pool = pool
        blocks = [TEXT_BLOCK if name == _CARRIER else name for name, _ in self._spec.shapes]
        known = dict(plan.block_weights)
        self._plan = replace(
            plan,
            space=DPSpace.TEXT,
            block_weights=tuple((name, known.get(name, 1.0)) for name in blocks),
        )
        sizes = [int(np.prod(shape)) for _, shape in self._spec.shapes]
        self._blocks = lay_out(dict(zip(blocks, sizes, strict=True)))

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
        plan = claimed_steps(self._plan, steps=steps, unclipped=unclipped)
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
            plan=plan,
            sampler=sampler,
            noise=noise,
            history=StepHistory(),
        )
        return self._in_units_of_clip(update.delta / lr)

    def unprotected_sum(self, members: Sequence[int]) -> NDArray[np.float64]:
        """The sum of gradients as training without privacy sends it, in the same units: the control of attacks."""
        update = learner.train(
            self._method,
            self._spec,
            self._state,
            self._pool.hold(members),
            settings=_SGD,
            lr=_ONE_STEP_RATE,
            weight=1,
            device=_CPU,
            order=np.random.default_rng(0),
        )
        return self._in_units_of_clip(update.delta / _ONE_STEP_RATE)

    def gradient(self, patches: Tensor, labels: Tensor) -> Tensor:
        """Return one input's weighted gradient, flat and differentiable in ``patches`` ``[M, D]``."""
        leaves = {
            name: value.requires_grad_()
            for name, value in self._spec.unflatten(self._state.vector).items()
        }
        text = leaves[_CARRIER]
        loss = self._method.example_losses(
            leaves, text, patches.unsqueeze(0), labels.unsqueeze(0)
        ).sum()
        gradients = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        weights = [self._plan.weight(name) for name in self._blocks]
        parts = [w * g.reshape(-1) for w, g in zip(weights, gradients, strict=True)]
        return torch.cat(parts)

    def _in_units_of_clip(self, moved: FloatVector) -> NDArray[np.float64]:
        total = -moved.astype(np.float64) / self._plan.max_grad_norm
        for name, where in self._blocks.items():
            total[where] *= self._plan.weight(name)
        return total
