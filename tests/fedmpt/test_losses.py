"""The asymmetric loss at its edges and against binary cross-entropy."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from fedmpt.methods.losses import asymmetric_loss


def test_without_focusing_and_shift_it_is_binary_cross_entropy() -> None:
    p = torch.rand(8, 5) * 0.98 + 0.01
    y = torch.randint(0, 2, (8, 5))
    ours = asymmetric_loss(p, y, gamma_positive=0, gamma_negative=0, shift=0)
    assert torch.allclose(
        ours, functional.binary_cross_entropy(p, y.float(), reduction="none").sum(1), atol=1e-5
    )


def test_negatives_below_the_shift_have_neither_loss_nor_gradient() -> None:
    p = torch.tensor([[0.04, 0.01]], requires_grad=True)
    loss = asymmetric_loss(p, torch.zeros(1, 2), shift=0.05).sum()
    loss.backward()
    assert loss.item() == 0
    assert p.grad is not None
    assert not p.grad.any()


def test_unknown_labels_contribute_nothing() -> None:
    p = torch.tensor([[0.3, 0.9]], requires_grad=True)
    asymmetric_loss(p, torch.tensor([[1, -1]])).sum().backward()
    assert p.grad is not None
    assert p.grad[0, 1] == 0
    assert p.grad[0, 0] < 0


@given(
    st.lists(st.sampled_from([0.0, 1.0, 0.5, 1e-8, 1 - 1e-8]), min_size=1, max_size=6),
    st.integers(0, 2),
)
def test_it_is_finite_and_not_negative_at_the_edges(values: list[float], label: int) -> None:
    p = torch.tensor([values], requires_grad=True)
    loss = asymmetric_loss(p, torch.full((1, len(values)), label - 1))
    loss.sum().backward()
    assert p.grad is not None
    assert torch.isfinite(loss).all()
    assert torch.isfinite(p.grad).all()
    assert (loss >= 0).all()


def test_an_examples_loss_depends_on_its_own_row_only() -> None:
    p, y = torch.rand(4, 3), torch.randint(0, 2, (4, 3))
    whole = asymmetric_loss(p, y)
    assert torch.equal(
        whole, torch.cat([asymmetric_loss(p[i : i + 1], y[i : i + 1]) for i in range(4)])
    )
