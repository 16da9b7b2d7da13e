"""The transport plan against its definition and a linear programme."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from fedmpt.methods.transport import transport_plan


def _problem(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    cost = torch.rand(*shape, generator=random)
    marginal = torch.rand(*shape[:-1], generator=random).softmax(-1)
    return cost, marginal


def test_columns_sum_to_one_over_classes_exactly_and_rows_to_the_marginal_closely() -> None:
    cost, marginal = _problem(3, 2, 49, 20)
    plan = transport_plan(cost, marginal, iterations=100)
    assert torch.allclose(plan.sum(-2), torch.full((3, 2, 20), 1 / 20), atol=1e-6)
    assert torch.allclose(plan.sum(-1), marginal, atol=1e-5)


def test_the_default_number_of_iterations_has_converged() -> None:
    from fedmpt.config import FedMPTConfig

    cost, marginal = _problem(4, 64, 20)
    few = transport_plan(cost, marginal, iterations=FedMPTConfig().transport_iterations)
    many = transport_plan(cost, marginal, iterations=1000)
    assert float((few - many).abs().sum(dim=(-1, -2)).max()) < 1e-3  # of a total mass of 1


def test_constant_cost_gives_the_product_of_marginals() -> None:
    _, marginal = _problem(5, 9, 4)
    plan = transport_plan(torch.full((5, 9, 4), 0.3), marginal)
    assert torch.allclose(plan, marginal.unsqueeze(-1) / 4, atol=1e-7)


def test_small_regularisation_approaches_the_linear_programme() -> None:
    cost, marginal = _problem(6, 4, seed=3)
    plan = transport_plan(cost, marginal, regularisation=0.002, iterations=20000)
    rows = np.kron(np.eye(6), np.ones(4))
    columns = np.kron(np.ones(6), np.eye(4))
    exact = linprog(
        cost.double().numpy().ravel(),
        A_eq=np.vstack([rows, columns]),
        b_eq=np.concatenate([marginal.double().numpy(), np.full(4, 0.25)]),
    )
    assert float((plan * cost).sum()) == pytest.approx(exact.fun, abs=2e-3)


def test_log_domain_and_plain_iteration_agree() -> None:
    cost, marginal = _problem(2, 30, 10)
    plain = transport_plan(cost, marginal, regularisation=0.021, iterations=200)
    logs = transport_plan(cost, marginal, regularisation=0.0199999, iterations=200)
    assert torch.allclose(plain, logs, atol=2e-3)


def test_a_plan_does_not_depend_on_other_examples() -> None:
    cost, marginal = _problem(5, 16, 6)
    together = transport_plan(cost, marginal)
    alone = torch.stack([transport_plan(c, a) for c, a in zip(cost, marginal, strict=True)])
    assert torch.allclose(together, alone, atol=1e-7)
