"""The step under audit, as an auditor can drive it.

An auditor chooses the examples, the coins and the noise, and reads the noised sum; how the sum is made is the program's
affair. `GradientStep` drives `PrivateGradient` itself; a trainer that contains it is driven through an adapter of its
own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from privacy import dpsgd
from privacy.noise import NoiseSource
from privacy.plan import ClipMode, DPPlan
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
    """`PrivateGradient` on given per-example gradients.

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
        private = dpsgd.PrivateGradient(
            plan=plan,
            shapes={name: tuple(rows.shape[1:]) for name, rows in self._rows.items()},
            noise=noise,
        )
        total = np.zeros(sum(rows[0].numel() for rows in self._rows.values()))
        for _ in range(steps):
            batch = held[torch.from_numpy(sampler.draw(len(held)))]
            released = private.release({name: rows[batch] for name, rows in self._rows.items()})
            for name, where in self.blocks.items():
                scale = plan.weight(name) * plan.expected_batch_size / self._plan.max_grad_norm
                total[where] += scale * released[name].double().numpy().reshape(-1)
        private.finish()
        return total


def claimed_steps(plan: DPPlan, *, steps: int, unclipped: bool) -> DPPlan:
    """The plan with so many steps a round; the control's has a clip norm beyond all gradients."""
    plan = replace(plan, steps_per_round=steps, rounds=1)
    if not unclipped:
        return plan
    return replace(plan, max_grad_norm=_BEYOND_ALL, clip=ClipMode.FLAT)


def lay_out(sizes: Mapping[str, int]) -> dict[str, slice]:
    """Consecutive places for blocks of these sizes."""
    places, start = {}, 0
    for name, size in sizes.items():
        places[name] = slice(start, start + size)
        start += size
    return places
