"""One noised release of clipped per-example gradients over named blocks.

A step computes, with public weights w_b and one joint norm over all blocks,

    v_i  = (w_b * g_ib for every block b)           zero in all blocks if its norm is not finite
    r    = sum_i clip(v_i) + sigma * C * N(0, I)    the only thing that depends on data
    out  = r_b / (w_b * q * n_pub)                  public denominators only

Opacus' `DPOptimizer` runs the step (chunks, scaling, counting) with `grad_sample` set by hand.
`PrivacyEngine.make_private` is not used: its denominator is `int(n * q)`, which puts the private
size into the scale of the noise.

Neighbouring relation: add or remove one; unit: one example (one row of every block).
Source: Abadi et al., arXiv 1607.00133; Opacus, arXiv 2109.12298; normalised clipping, arXiv
2206.07136.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from opacus.accountants import PRVAccountant
from opacus.optimizers import DPOptimizer

from privacy.errors import GradientShapeError, StepError
from privacy.events import Event
from privacy.noise import NoiseSource
from privacy.plan import ClipMode, DPPlan

_NORMALISE_SHIFT = 0.01  # in units of C; keeps the factor finite at norm 0
_RUN = 256  # entries whose squares are added in float32

# Letters: b examples of a batch (0 or more), K blocks.


class SecretNoiseDPOptimizer(DPOptimizer):  # type: ignore[misc]  # opacus ships no types
    """Opacus' optimiser with block weights, an accurate clip, and noise from a `NoiseSource`.

    Opacus' own clip reads norms in float32, which can miss 6e-4 of the norm of one large entry among
    150,000 small ones, and so let an example exceed C by as much.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        weights: Sequence[float],
        noise: NoiseSource,
        clip: ClipMode,
        noise_multiplier: float,
        max_grad_norm: float,
        expected_batch_size: float,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=expected_batch_size,
            loss_reduction="mean",
        )
        self._weights = tuple(weights)
        self._noise = noise
        self._clip = clip

    def clip_and_accumulate(self) -> None:
        """Weights and clips each example jointly over all parameters; adds to `summed_grad`.

        Guarantee: with one row more or less, the sum changes by at most C in L2 norm (up to the
        rounding of float32 sums). A row whose norm is not finite adds nothing.
        """
        rows = self.grad_samples
        if any(hasattr(some, "_processed") for some in rows):
            raise StepError("these gradients were already used")
        norms = joint_norms(rows, self._weights)  # [b]
        finite = torch.isfinite(norms)  # [b]
        factors = torch.where(finite, bound_factors(norms, self.max_grad_norm, self._clip), 0.0)
        everything_finite = bool(finite.all())
        for parameter, some, weight in zip(self.params, rows, self._weights, strict=True):
            kept = some  # [b, *shape]
            if not everything_finite:  # 0 * NaN is NaN
                kept = torch.where(finite.view(-1, *(1,) * parameter.dim()), some, 0.0)
            added = torch.einsum("b,b...->...", (weight * factors).to(some.dtype), kept)
            before = parameter.summed_grad
            parameter.summed_grad = added if before is None else before + added
            parameter.grad_sample._processed = True

    def add_noise(self) -> None:
        """Adds secret noise of standard deviation `sigma * C`, once per sum."""
        for parameter in self.params:
            if getattr(parameter.summed_grad, "_processed", False):
                raise StepError("noise was already added to this sum")
            noise = torch.from_numpy(
                self._noise.gaussian(
                    parameter.numel(),
                    standard_deviation=self.noise_multiplier * self.max_grad_norm,
                )
            ).view_as(parameter)
            parameter.grad = parameter.summed_grad + noise.to(parameter.device)
            parameter.summed_grad._processed = True


class StepHistory:
    """Counts the noised steps that really happened, through Opacus' own accounting hook.

    One object serves one stretch of a ledger: from its creation, over all rounds, to the end of the
    process. It is evidence, not the account: the account is the ledger.
    """

    def __init__(self) -> None:
        self._accountant: Any = PRVAccountant()

    @property
    def steps(self) -> int:
        """All steps so far."""
        return sum(steps for _, _, steps in self._accountant.history)

    def require(self, events: Sequence[Event]) -> None:
        """Raises `StepError` unless the steps taken are exactly those of the charged events.

        Args:
            events: Everything that was charged since this object was created.
        """
        taken: Counter[tuple[float, float]] = Counter()
        for noise_multiplier, sample_rate, steps in self._accountant.history:
            taken[sample_rate, noise_multiplier] += steps
        charged: Counter[tuple[float, float]] = Counter()
        for event in events:
            charged[event.sample_rate, event.noise_multiplier] += event.steps
        if taken != charged:
            raise StepError(
                f"steps taken {sorted(taken.items())} are not the steps charged "
                f"{sorted(charged.items())}; nothing of this round may be released"
            )

    def record(self, sample_rate: float, noise_multiplier: float) -> None:
        """Counts a noised step that did not run through Opacus' optimiser."""
        self._accountant.step(noise_multiplier=noise_multiplier, sample_rate=sample_rate)

    def _attach(self, optimizer: SecretNoiseDPOptimizer, sample_rate: float) -> None:
        optimizer.attach_step_hook(self._accountant.get_optimizer_hook_fn(sample_rate=sample_rate))


class PrivateGradient:
    """The private steps of one client in one charged round.

    Guarantee: given its past, each `release` is one Gaussian mechanism of noise multiplier
    `plan.noise_multiplier` on the rows it is given: adding or removing one row changes the sum
    before noise by at most C, jointly over blocks. With rows drawn by `PoissonSampler(plan)` all
    releases of a round are `plan.round_event()`. This holds for any rows, whatever produced them,
    as long as each row depends on one example and on released values only, and an example has one
    row in a step.

    | case | result |
    |---|---|
    | no rows | noise alone, and a step like any other |
    | a row whose joint norm is not finite | counted as zero in all blocks |
    | more steps than `plan.steps_per_round` | `StepError`, before anything is drawn |
    | a step that failed half-way (the noise source raised) | `StepError` from then on |

    Args:
        plan: The accepted plan.
        shapes: Block name -> shape of its parameters (without the batch dimension).
        noise: Where noise comes from; `GaussianNoise()` outside tests.
        history: Counts steps over rounds; a new one by default.
        device: Where sums and results live.

    Raises:
        ConfigurationError: The plan has weights, but not for every block.
        GradientShapeError: There are no blocks.
    """

    def __init__(
        self,
        *,
        plan: DPPlan,
        shapes: Mapping[str, tuple[int, ...]],
        noise: NoiseSource,
        history: StepHistory | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if not shapes:
            raise GradientShapeError("there must be at least one block")
        self._plan = plan
        self._shapes = dict(shapes)
        self._weights = {name: plan.weight(name) for name in shapes}
        self._parameters = {
            name: torch.nn.Parameter(torch.zeros(shape, dtype=torch.float32, device=device))
            for name, shape in shapes.items()
        }
        self._history = StepHistory() if history is None else history
        self._optimizer = SecretNoiseDPOptimizer(
            torch.optim.SGD(list(self._parameters.values()), lr=0.0),
            weights=list(self._weights.values()),
            noise=noise,
            clip=plan.clip,
            noise_multiplier=plan.noise_multiplier,
            max_grad_norm=plan.max_grad_norm,
            expected_batch_size=plan.expected_batch_size,
        )
        self._history._attach(self._optimizer, plan.sample_rate)
        self._steps = 0
        self._sound = True

    @property
    def history(self) -> StepHistory:
        """The counter of steps."""
        return self._history

    @property
    def steps_left(self) -> int:
        """Steps of the charged round that are still to be made."""
        return self._plan.steps_per_round - self._steps

    def accumulate(self, grad_samples: Mapping[str, torch.Tensor]) -> None:
        """Clips and adds a chunk of the step's batch, without noise; `release` ends the step.

        Args:
            grad_samples: As for `release`.
        """
        self._require_step_left()
        check_rows(grad_samples, self._shapes)
        self._sound = False
        self._load(grad_samples)
        self._optimizer.signal_skip_step(do_skip=True)
        self._optimizer.pre_step()
        self._optimizer.zero_grad()
        self._sound = True

    def release(self, grad_samples: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Clips, sums and noises the (rest of the) step's batch.

        Args:
            grad_samples: Block -> float32 `[b, *shape]`, unweighted per-example gradients; the same
                b >= 0 for all.

        Returns:
            Block -> float32 `[*shape]`: noised sum divided by `w_b * q * n_pub`.

        Raises:
            GradientShapeError: Blocks, shapes or dtypes are not those announced. Nothing was drawn.
            StepError: All steps of the round are done.
        """
        self._require_step_left()
        check_rows(grad_samples, self._shapes)
        self._sound = False
        self._load(grad_samples)
        self._optimizer.pre_step()
        released = {
            name: parameter.grad.detach() / self._weights[name]
            for name, parameter in self._parameters.items()
            if parameter.grad is not None
        }
        self._optimizer.zero_grad(set_to_none=True)
        self._steps += 1
        self._sound = True
        return released

    def finish(self) -> None:
        """Raises `StepError` unless exactly the charged steps were made; call it before sending."""
        if self.steps_left:
            raise StepError(
                f"{self._steps} of {self._plan.steps_per_round} charged steps were made; "
                "an empty batch is a step too"
            )

    def _require_step_left(self) -> None:
        if not self._sound:
            raise StepError("an earlier step failed half-way; a repeated round is charged again")
        if self.steps_left <= 0:
            raise StepError(f"all {self._plan.steps_per_round} charged steps of the round are done")

    def _load(self, grad_samples: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self._parameters.items():
            # A new tensor object: Opacus' convention marks it as used, and the caller's is not ours.
            rows = grad_samples[name].detach().to(parameter.device)
            parameter.grad_sample = rows  # type: ignore[attr-defined]


def check_rows(
    grad_samples: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Raises `GradientShapeError` unless every block has float32 rows of its shape, equally many."""
    if set(grad_samples) != set(shapes):
        raise GradientShapeError(
            f"blocks {sorted(grad_samples)} are not the announced {sorted(shapes)}"
        )
    sizes = set()
    for name, shape in shapes.items():
        rows = grad_samples[name]
        if rows.dtype is not torch.float32:
            raise GradientShapeError(f"block {name!r}: dtype {rows.dtype}, must be float32")
        if rows.dim() == 0 or tuple(rows.shape[1:]) != tuple(shape):
            raise GradientShapeError(
                f"block {name!r}: rows of shape {tuple(rows.shape[1:])}, must be {tuple(shape)}"
            )
        sizes.add(rows.shape[0])
    if len(sizes) != 1:
        raise GradientShapeError("the blocks do not have the same number of rows")


def bound_factors(norms: torch.Tensor, bound: float, clip: ClipMode) -> torch.Tensor:
    """What each vector of these norms is multiplied by so that none is longer than `bound`."""
    if clip is ClipMode.NORMALISE:
        return bound / (norms + _NORMALISE_SHIFT * bound)
    return (bound / norms).clamp(max=1.0)  # 1 at norm 0


def joint_norms(rows: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Weighted L2 norm of each example over all blocks, to a relative error of about 1e-6.

    Args:
        rows: K tensors `[b, *shape]`.
        weights: K weights.

    Returns:
        float64 `[b]`; not finite where an entry is not, or exceeds 1e19.
    """
    squares = [
        weight**2 * _squared_norms(block.reshape(len(block), math.prod(block.shape[1:])))
        for block, weight in zip(rows, weights, strict=True)
    ]
    total: torch.Tensor = torch.stack(squares).sum(0)
    return total.sqrt()  # [b]


def _squared_norms(flat: torch.Tensor) -> torch.Tensor:
    """Squared norm of each row of `[b, d]`, float64 `[b]`.

    Short runs in float32, their sum in float64: as fast as float32, and nothing small is lost in a
    long sum beside something large.
    """
    b, d = flat.shape
    whole = d - d % _RUN
    runs: torch.Tensor = torch.linalg.vector_norm(
        flat[:, :whole].reshape(b, whole // _RUN, _RUN), dim=2
    )  # [b, runs]
    rest: torch.Tensor = torch.linalg.vector_norm(flat[:, whole:], dim=1)  # [b]
    return runs.double().square().sum(1) + rest.double().square()  # [b]
