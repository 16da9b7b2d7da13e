"""Entropic optimal transport between patches and classes.

Dimensions: ``...`` any leading axes, ``M`` patches, ``C`` classes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def transport_plan(
    cost: Tensor,
    patch_marginal: Tensor,
    *,
    regularisation: float = 0.2,
    iterations: int = 10,
) -> Tensor:
    """Return the entropic transport plan from patches to classes with uniform class marginal.

    Guarantee: columns sum to ``1 / C`` to float32 rounding (the last half-step is the column's); rows sum to
    ``patch_marginal`` up to the convergence of Sinkhorn's iteration. The number of iterations is fixed, so one
    example's plan never depends on another example: a rule that stops by a batch mean would void a clipping bound.

    Args:
        cost: ``[..., M, C]``, in [0, 1].
        patch_marginal: ``[..., M]``, positive, summing to 1.
        regularisation: entropic weight ``lambda``, > 0. Below 0.02 the iteration runs on logarithms.
        iterations: number of Sinkhorn iterations, >= 1.

    Returns:
        ``[..., M, C]``, non-negative, total mass 1, without gradient.

    Source: FedMPT Eq. 9-10, with one plan per condition; Cuturi, arXiv 1306.0895.
    """
    with torch.no_grad():
        classes = cost.shape[-1]
        if regularisation < 0.02:  # exp(-1 / 0.02) is close to what float32 can hold
            return _log_domain(cost, patch_marginal, regularisation, iterations)
        kernel = torch.exp(-cost / regularisation)  # [..., M, C]
        a = patch_marginal.unsqueeze(-1)  # [..., M, 1]
        v = torch.ones_like(cost[..., :1, :]).transpose(-1, -2)  # [..., C, 1]
        kernel_t = kernel.transpose(-1, -2)
        u = a
        for _ in range(iterations):
            u = a / (kernel @ v)
            v = (1.0 / classes) / (kernel_t @ u)
        return u * kernel * v.transpose(-1, -2)


def _log_domain(cost: Tensor, marginal: Tensor, regularisation: float, iterations: int) -> Tensor:
    """Sinkhorn on logarithms, for small regularisation."""
    log_kernel = -cost / regularisation
    log_a = marginal.log().unsqueeze(-1)  # [..., M, 1]
    log_b = -torch.log(torch.tensor(float(cost.shape[-1])))
    log_v = torch.zeros_like(cost[..., :1, :])  # [..., 1, C]
    log_u = log_a
    for _ in range(iterations):
        log_u = log_a - torch.logsumexp(log_kernel + log_v, dim=-1, keepdim=True)
        log_v = log_b - torch.logsumexp(log_kernel + log_u, dim=-2, keepdim=True)
    return torch.exp(log_u + log_kernel + log_v)
