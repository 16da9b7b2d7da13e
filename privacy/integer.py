"""Query and noise in integers: the hardened step, and shares of noise that add up in a sum.

Each example's weighted gradient is clipped, put on a grid of `K = C / gamma` steps for the clip norm
C, and *then* bounded again in integers, so no rounding error of a float enters the proof:

    z_i = round(K/C * clip(v_i, C'))      C' = C (1 - sqrt(d) / (2 K)), so that |z_i| <= K
    q   = sum_i z_i                        int64 [d]; one example more or less moves it by at most K
    r   = q + discrete Gaussian

With noise shares each of at least h honest contributors to one sum adds the variance
`ceil(((sigma K)^2 + 1/12) / h)`; only the sum over all contributors is ever opened, and its noise,
without that of the colluders, is at least that of one release of noise multiplier sigma.

The grid and the amount of noise are public numbers (`privacy.grid`).

Source: Kairouz, Liu and Steinke, arXiv 2102.06387 (distributed discrete Gaussian; rounding before
summing); Canonne, Kamath and Steinke, arXiv 2004.00010.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from privacy.discrete import DiscreteGaussianNoise
from privacy.dpsgd import StepHistory, bound_factors, check_rows, joint_norms
from privacy.errors import ConfigurationError, StepError
from privacy.grid import noise_bound, share_variance
from privacy.noise import IntegerNoise
from privacy.plan import DPPlan

LARGEST_SUM: Final = (1 << 23) - 1  # of a coordinate: 24 bits with its sign

Integers = NDArray[np.int64]

# Letters: b examples of a chunk (0 or more), d coordinates over all blocks, K grid steps of C.


@dataclass(frozen=True, slots=True, kw_only=True)
class GridRelease:
    """One step's contribution, before anything is added to anything.

    Attributes:
        query: int64 `[d]`, the data-dependent sum. It must never leave without `noise`.
        noise: int64 `[d]`, to be added before anybody else sees it.
    """

    query: Integers
    noise: Integers


class IntegerGradient:
    """The steps of one charged round, in integers.

    Guarantee: as `privacy.dpsgd.PrivateGradient`, for the sum of `query` and noise of the variance
    that `privacy.grid.share_variance` gives for h, whenever at least h such contributions of clients outside
    the adversary's control are in any sum that is opened, and nothing smaller is.

    Args:
        plan: The accepted plan, with integer arithmetic.
        shapes: Block name -> shape of its parameters.
        noise: Where noise comes from; the operating system by default.
        largest: Public bound of a coordinate of `query`; sums are clipped to it, which cannot
            increase sensitivity.
        history: Counts steps over rounds; a new one by default.

    Raises:
        ConfigurationError: The grid is too coarse for so many coordinates, they are more than the plan accounts for,
            or a block has no weight.
    """

    def __init__(
        self,
        *,
        plan: DPPlan,
        shapes: Mapping[str, tuple[int, ...]],
        noise: IntegerNoise | None = None,
        largest: int = LARGEST_SUM,
        history: StepHistory | None = None,
    ) -> None:
        self._plan = plan
        self._shapes = dict(shapes)
        self._weights = {name: plan.weight(name) for name in shapes}
        self._noise: IntegerNoise = DiscreteGaussianNoise() if noise is None else noise
        self._largest = largest
        self._history = StepHistory() if history is None else history
        self._bound = plan.grid_steps
        self._reach = self._bound - math.sqrt(self.dimension) / 2  # C' in grid steps
        if self._reach < self._bound / 2:
            raise ConfigurationError(
                f"{self.dimension} coordinates on a grid of {self._bound} steps: rounding would "
                "take more than half of the clip norm; use a smaller space or more contributors"
            )
        if self.dimension > (plan.released_values or 0):
            raise ConfigurationError(
                f"{self.dimension} values a step, where the plan accounts for the integer noise of "
                f"{plan.released_values}"
            )
        self._sum = np.zeros(self.dimension, dtype=np.int64)
        self._steps = 0

    @property
    def dimension(self) -> int:
        """Number of coordinates d."""
        return sum(math.prod(shape) for shape in self._shapes.values())

    def accumulate(self, grad_samples: Mapping[str, torch.Tensor]) -> None:
        """Adds a chunk of the step's batch.

        Args:
            grad_samples: Block -> float32 `[b, *shape]`, unweighted; the same b >= 0 for all.

        Raises:
            GradientShapeError: Blocks, shapes or dtypes are not those announced.
            StepError: All steps of the round are done.
        """
        if self._steps >= self._plan.steps_per_round:
            raise StepError(f"all {self._plan.steps_per_round} charged steps of the round are done")
        check_rows(grad_samples, self._shapes)
        self._sum += self._on_grid(grad_samples).sum(0)

    def release(self, grad_samples: Mapping[str, torch.Tensor], *, honest: int) -> GridRelease:
        """Adds the last chunk, ends the step and draws its noise.

        Args:
            grad_samples: As for `accumulate`.
            honest: Contributors counted on in the sum this goes into; 1 for all noise.
        """
        variance = share_variance(self._plan.noise_multiplier, self._bound, honest)
        self.accumulate(grad_samples)
        query = np.clip(self._sum, -self._largest, self._largest)
        noise = self._draw(variance)
        self._history.record(self._plan.sample_rate, self._plan.noise_multiplier)
        self._steps += 1
        self._sum = np.zeros(self.dimension, dtype=np.int64)
        return GridRelease(query=query, noise=noise)

    def finish(self) -> None:
        """Raises `StepError` unless exactly the charged steps were made."""
        if self._steps != self._plan.steps_per_round:
            raise StepError(
                f"{self._steps} of {self._plan.steps_per_round} charged steps were made; "
                "an empty batch is a step too"
            )

    def gradient(self, total: Integers, *, examples: float) -> dict[str, torch.Tensor]:
        """The mean gradient of a released sum: post-processing.

        Args:
            total: int64 `[d]`, query plus noise, possibly of several clients.
            examples: Public denominator, for one client `q * n_pub`.

        Returns:
            Block -> float32 `[*shape]`.
        """
        unit = self._plan.max_grad_norm / self._bound / examples
        values = torch.from_numpy((total * unit).astype(np.float32))
        result: dict[str, torch.Tensor] = {}
        start = 0
        for name in sorted(self._shapes):
            shape = self._shapes[name]
            stop = start + math.prod(shape)
            result[name] = values[start:stop].reshape(shape) / self._weights[name]
            start = stop
        return result

    def _on_grid(self, grad_samples: Mapping[str, torch.Tensor]) -> Integers:
        """The chunk's contributions, int64 `[b, d]`, each of norm at most K."""
        names = sorted(self._shapes)
        rows = [grad_samples[name].detach().cpu() for name in names]
        weights = [self._weights[name] for name in names]
        norms = joint_norms(rows, weights)  # float64 [b]
        finite = torch.isfinite(norms)  # [b]
        clip = self._plan.max_grad_norm
        factors = torch.where(finite, bound_factors(norms, clip, self._plan.clip), 0.0)
        flat = torch.cat(
            [
                weight * row.reshape(len(row), math.prod(row.shape[1:])).double()
                for row, weight in zip(rows, weights, strict=True)
            ],
            dim=1,
        )  # [b, d]
        flat = torch.where(finite[:, None], flat, 0.0) * (factors * self._reach / clip)[:, None]
        grid: Integers = torch.round(flat).to(torch.int64).numpy()
        outside = np.flatnonzero((grid * grid).sum(1) > self._bound**2)
        while len(outside):  # only rounding errors of floats could bring a row here
            grid[outside] //= 2
            outside = outside[(grid[outside] * grid[outside]).sum(1) > self._bound**2]
        return grid

    def _draw(self, variance: int) -> Integers:
        bound = noise_bound(variance)
        values = self._noise.integers(self.dimension, variance=variance)
        beyond = np.flatnonzero(np.abs(values) > bound)
        while len(beyond):
            values[beyond] = self._noise.integers(len(beyond), variance=variance)
            beyond = beyond[np.abs(values[beyond]) > bound]
        return values


class LocalIntegerGradient:
    """`privacy.dpsgd.PrivateGradient` in integers: one client adds all the noise itself.

    Args:
        plan: The accepted plan, with integer arithmetic and local noise.
        shapes: Block name -> shape of its parameters.
        noise: Where noise comes from; the operating system by default.
        history: Counts steps over rounds; a new one by default.
    """

    def __init__(
        self,
        *,
        plan: DPPlan,
        shapes: Mapping[str, tuple[int, ...]],
        noise: IntegerNoise | None = None,
        history: StepHistory | None = None,
    ) -> None:
        self._examples = plan.expected_batch_size
        self._steps = IntegerGradient(plan=plan, shapes=shapes, noise=noise, history=history)

    def accumulate(self, grad_samples: Mapping[str, torch.Tensor]) -> None:
        """Adds a chunk of the step's batch."""
        self._steps.accumulate(grad_samples)

    def release(self, grad_samples: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Adds the last chunk and noises the step: block -> noised mean gradient."""
        step = self._steps.release(grad_samples, honest=1)
        return self._steps.gradient(step.query + step.noise, examples=self._examples)

    def finish(self) -> None:
        """Raises `StepError` unless exactly the charged steps were made."""
        self._steps.finish()
