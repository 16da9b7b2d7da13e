"""The step under audit, as an auditor can drive it.

An auditor chooses the examples, the coins and the noise, and reads the noised sum; how the sum is made is the program's
affair. `GradientStep` drives the package's own gradients; a trainer that contains them is driven through an adapter of
its own.

Where the clients share the noise, what is audited is the sum of as many contributions as the claim counts on: what an
adversary is left with when it has taken out all that it knows itself. Only the first holds examples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from privacy import dpsgd
from privacy.discrete import DiscreteGaussianNoise
from privacy.events import PrivacyUnit
from privacy.integer import GridRelease, IntegerGradient, LocalIntegerGradient
from privacy.noise import InsecureZeroNoise, IntegerNoise, NoiseSource
from privacy.plan import Arithmetic, ClipMode, DPPlan, NoiseMode
from privacy.randomness import ByteSource
from privacy.sampling import PoissonSampler

Vector = NDArray[np.float64]

_BEYOND_ALL = 1e5  # clip norm of a control


class StepUnderAudit(Protocol):
    """Private steps of one client on examples of the auditor's choice."""

    @property
    def plan(self) -> DPPlan:
        """The plan that is claimed; its rounds and steps a round are not used."""
        ...

    @property
    def blocks(self) -> Mapping[str, slice]:
        """Where each block lies in the noised sum."""
        ...

    @property
    def examples(self) -> Sequence[str]:
        """What the examples of the pool are, by index."""
        ...

    def noised_sum(
        self,
        members: Sequence[int],
        *,
        sampler: PoissonSampler,
        noise: NoiseSource,
        steps: int = 1,
        unclipped: bool = False,
    ) -> Vector:
        """The sum of `steps` noised sums, in weighted units of the claimed clip norm, float64 `[d]`.

        Args:
            members: Which examples of the pool the client holds.
            sampler: Draws its batches.
            noise: Where noise comes from.
            steps: Steps in a row.
            unclipped: The control: with a clip norm beyond all gradients.
        """
        ...


class RecordingSampler(PoissonSampler):
    """The plan's sampler, which also remembers what it drew.

    Attributes:
        draws: The indices of every draw so far.
    """

    def __init__(self, plan: DPPlan, source: ByteSource | None = None) -> None:
        super().__init__(plan, source)
        self.draws: list[NDArray[np.int64]] = []

    def draw(self, dataset_size: int) -> NDArray[np.int64]:
        """As `PoissonSampler.draw`."""
        self.draws.append(super().draw(dataset_size))
        return self.draws[-1]


def take_all(plan: DPPlan) -> PoissonSampler:
    """A sampler at rate 1: every example is in every batch."""
    return PoissonSampler(replace(plan, sample_rate=1.0))


class GradientStep:
    """`PrivateGradient`, or its twin in integers that the plan asks for, on given per-example gradients.

    Args:
        plan: The claim.
        rows: Block -> float32 `[n, *shape]`, unweighted per-example gradients of the pool.
        examples: What the examples are.
    """

    def __init__(
        self, plan: DPPlan, rows: Mapping[str, torch.Tensor], examples: Sequence[str]
    ) -> None:
        self._plan = plan
        self._rows = dict(rows)
        self._examples = tuple(examples)

    @property
    def plan(self) -> DPPlan:
        """The claim."""
        return self._plan

    @property
    def blocks(self) -> Mapping[str, slice]:
        """Where each block lies."""
        return lay_out({name: rows[0].numel() for name, rows in self._rows.items()})

    @property
    def examples(self) -> Sequence[str]:
        """What the examples are."""
        return self._examples

    def noised_sum(
        self,
        members: Sequence[int],
        *,
        sampler: PoissonSampler,
        noise: NoiseSource,
        steps: int = 1,
        unclipped: bool = False,
    ) -> Vector:
        """As the protocol says."""
        plan = claimed_steps(self._plan, steps=steps, unclipped=unclipped)
        held = torch.tensor(list(members), dtype=torch.int64)
        shapes = {name: tuple(rows.shape[1:]) for name, rows in self._rows.items()}

        def drawn() -> dict[str, torch.Tensor]:
            batch = held[torch.from_numpy(sampler.draw(len(held)))]
            return {name: rows[batch] for name, rows in self._rows.items()}

        total = np.zeros(sum(rows[0].numel() for rows in self._rows.values()))
        if plan.noise is NoiseMode.SHARES:
            nobody = {name: rows[:0] for name, rows in self._rows.items()}

            def contribute(gradient: IntegerGradient, first: bool) -> GridRelease:
                return gradient.release(drawn() if first else nobody, honest=plan.honest)

            summed = sum_of_shares(plan, shapes, contribute, noise=noise, steps=steps)
            self._add(total, summed, 1 / self._plan.max_grad_norm)
            return total
        private: dpsgd.PrivateGradient | LocalIntegerGradient = (
            LocalIntegerGradient(plan=plan, shapes=shapes, noise=grid_noise(noise))
            if plan.arithmetic is Arithmetic.INTEGER
            else dpsgd.PrivateGradient(plan=plan, shapes=shapes, noise=noise)
        )
        for _ in range(steps):
            scale = plan.expected_batch_size / self._plan.max_grad_norm
            self._add(total, private.release(drawn()), scale)
        private.finish()
        return total

    def _add(self, total: Vector, released: Mapping[str, torch.Tensor], scale: float) -> None:
        """Adds released blocks to a sum, weighted."""
        for name, where in self.blocks.items():
            weighted = scale * self._plan.weight(name)
            total[where] += weighted * released[name].double().numpy().reshape(-1)


def grid_noise(noise: NoiseSource) -> IntegerNoise:
    """The source of integers in the place of a float one: none for none, else the operating system's."""
    return noise if isinstance(noise, InsecureZeroNoise) else DiscreteGaussianNoise()


def sum_of_shares(
    plan: DPPlan,
    shapes: Mapping[str, tuple[int, ...]],
    contribute: Callable[[IntegerGradient, bool], GridRelease],
    *,
    noise: NoiseSource,
    steps: int,
) -> dict[str, torch.Tensor]:
    """The sum of the contributions that a plan with shared noise counts on, over some steps.

    Args:
        plan: The claim.
        shapes: Block -> shape.
        contribute: Makes a contribution with the gradient of one round; told whether it is of the first
            contributor, who alone holds examples.
        noise: Where every share comes from.
        steps: Rounds of one step each.

    Returns:
        Block -> float32 `[*shape]`, unweighted.
    """
    reader = IntegerGradient(plan=plan, shapes=shapes)
    total = np.zeros(reader.dimension, dtype=np.int64)
    for contributor in [*range(plan.honest)] * steps:
        gradient = IntegerGradient(plan=plan, shapes=shapes, noise=grid_noise(noise))
        release = contribute(gradient, contributor == 0)
        total += release.query + release.noise
    return reader.gradient(total, examples=1.0)


def claimed_steps(plan: DPPlan, *, steps: int, unclipped: bool) -> DPPlan:
    """The plan with so many steps a round, or one where noise is shared.

    The control's has a clip norm beyond all gradients; it is in floats, for a grid has no room for any gradient.
    """
    if unclipped:
        plan = replace(
            plan,
            max_grad_norm=_BEYOND_ALL,
            clip=ClipMode.FLAT,
            noise=NoiseMode.LOCAL,
            arithmetic=Arithmetic.FLOAT,
            clip_steps=None,
            released_values=None,
            honest=1,
            unit=PrivacyUnit.EXAMPLE,
        )
    return replace(plan, steps_per_round=1 if plan.noise is NoiseMode.SHARES else steps, rounds=1)


def lay_out(sizes: Mapping[str, int]) -> dict[str, slice]:
    """Consecutive places for blocks of these sizes."""
    places, start = {}, 0
    for name, size in sizes.items():
        places[name] = slice(start, start + size)
        start += size
    return places
