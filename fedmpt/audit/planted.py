"""A server that lies: it sends parameters made so that one image, if it is there, shows in the next update.

Planted parameters fit the images that the server guesses a client to hold, and not the target: these images' gradients
shrink and the target's grows. The server then looks along the target's gradient, less the part that the others' have.

Source: PromptMIA, arXiv 2601.06641, which plants prompts that only the target selects; where a method selects no
prompts, what can be planted is the whole broadcast state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpt.audit.trained import TrainedStep
from fedmpt.methods.base import Parameters
from privacy import DPSpace

_ITERATIONS: Final = 60
_RATE: Final = 0.01
_EVEN: Final = 1e-3  # of the others' mean square, so that what they span can be taken out


def planted_state(step: TrainedStep, *, target: int, others: Sequence[int]) -> Parameters:
    """Return parameters at which ``others`` are fitted and ``target`` is not.

    Args:
        step: where the server starts from.
        target: example of the step's pool.
        others: examples like those that the client holds.
    """
    parameters = {
        name: value.requires_grad_()
        for name, value in step.spec.unflatten(step.state.vector).items()
    }
    optimizer = torch.optim.Adam(list(parameters.values()), lr=_RATE)
    patches, labels = step.pool.hold([target, *others]).take(
        np.arange(1 + len(others)), torch.device("cpu")
    )
    best, planted = -np.inf, parameters
    for _ in range(_ITERATIONS):
        losses = step.method.example_losses(parameters, _text(step, parameters), patches, labels)
        contrast = losses[0].log() - losses[1:].mean().log()
        if contrast.item() > best:
            best = contrast.item()
            planted = {name: value.detach().clone() for name, value in parameters.items()}
        optimizer.zero_grad()
        (-contrast).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return planted


def telling_direction(
    step: TrainedStep, *, target: int, others: Sequence[int]
) -> NDArray[np.float64]:
    """Return the unit direction in which the target shows best beside the others' gradients: float64 ``[d]``."""
    rows = _unit(step.rows([target, *others]).double())  # [1 + n, d], as clipping leaves them
    own, rest = rows[0], rows[1:]
    inner = rest @ rest.T  # [n, n]
    even = _EVEN * inner.diagonal().mean() * torch.eye(len(rest), dtype=torch.float64)
    left = own - rest.T @ torch.linalg.solve(inner + even, rest @ own)
    direction: NDArray[np.float64] = (left / left.norm().clamp_min(1e-12)).numpy()
    return direction


def _unit(rows: Tensor) -> Tensor:
    lengths: Tensor = rows.norm(dim=1, keepdim=True)  # [n, 1]
    return rows / lengths.clamp_min(1e-12)


def _text(step: TrainedStep, parameters: Parameters) -> Tensor:
    """The text features as the step has them, differentiable in the prompts."""
    if step.plan.space is not DPSpace.SKETCH or step.sketch is None:
        return step.method.encode_text(parameters)
    text = step.sketch.text
    for name, factor in step.sketch.factors.items():
        moved = (parameters[name] - step.sketch.prompts[name]).reshape(len(factor.right), -1)
        z = torch.einsum("gkr,gk->gr", factor.right, moved)  # [G, R]
        part = torch.einsum("gtr,gr->gt", factor.left, factor.singular * z)
        text = text + part.reshape(text.shape)
    return text
