"""Learning rates in units of a block's own size: every block moves by the same share of itself."""

from __future__ import annotations

import pytest
import torch

from fedmpt.config import load_config
from fedmpt.engine.block_rates import AT_ZERO, block_rates
from fedmpt.engine.defaults import BLOCK_RATE, resolve
from fedmpt.learner import LocalSettings, make_optimizer


def test_a_rate_is_the_root_mean_square_times_the_multiplier_and_zeros_have_the_size_of_tokens() -> (
    None
):
    blocks = {
        "layer": torch.tensor([3.0, -4.0, 0.0, 0.0]),
        "norm": torch.ones(5),
        "bias": torch.zeros(7),
    }
    rates = block_rates(blocks, {"norm": 0.5})
    assert rates == {"layer": 2.5, "norm": 0.5, "bias": AT_ZERO}


def test_a_step_of_adam_moves_every_block_by_the_same_share_however_large_its_gradient() -> None:
    random = torch.Generator().manual_seed(0)
    sizes = {"tokens": 0.02, "layer": 0.05, "norm": 1.0}
    blocks = {n: s * torch.randn(50, generator=random) for n, s in sizes.items()}
    leaves = {n: v.clone().requires_grad_() for n, v in blocks.items()}
    settings = LocalSettings(
        optimizer="adam",
        momentum=0.9,
        weight_decay=0.0,
        batch_size=1,
        epochs=1,
        lr_multipliers=block_rates(blocks, {}),
    )
    optimizer = make_optimizer(leaves, settings, 0.1)
    for gradient, value in zip((1e-3, 1.0, 1e3), leaves.values(), strict=True):
        value.grad = gradient * torch.randn(50, generator=random)
    optimizer.step()
    for name, before in blocks.items():
        moved = (leaves[name].detach() - before).norm() / before.norm()
        assert float(moved) == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("name", ["coop", "scpnet", "ram"])
def test_every_other_method_trains_by_one_rule_with_and_without_privacy(
    name: str, private: bool
) -> None:
    options = {"method.name": name, "privacy.enabled": private}
    train = resolve(load_config(options=options), data_name="scenes").train
    assert (train.optimizer, train.lr, train.lr_unit) == ("adam", BLOCK_RATE, "block")


@pytest.mark.parametrize(
    "options",
    [
        {"method.name": "fedmpt"},
        {"method.name": "coop", "train.preset": "paper"},
        {"method.name": "tcp", "train.preset": "native"},
        {"method.name": "coop", "train.optimizer": "sgd"},
        {"method.name": "coop", "train.lr_unit": "one"},
    ],
)
def test_fedmpt_presets_and_sgd_take_the_rate_as_it_is(options: dict[str, object]) -> None:
    train = resolve(load_config(options=options), data_name="scenes").train
    assert train.lr_unit == "one"
    assert train.lr != BLOCK_RATE
