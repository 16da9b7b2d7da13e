"""Presets fill what is open, leave what is given, and are one loop for all or each method's own."""

from __future__ import annotations

import msgspec
import pytest

from fedmpt.config import METHOD_NAMES, TrainConfig, load_config
from fedmpt.engine.defaults import resolve
from fedmpt.engine.presets import NATIVE, preset


@pytest.mark.parametrize("name", METHOD_NAMES)
@pytest.mark.parametrize("private", [False, True])
def test_the_papers_preset_is_one_loop_for_all_methods(name: str, private: bool) -> None:
    options = {"train.preset": "paper", "method.name": name, "privacy.enabled": private}
    train = resolve(load_config(options=options), data_name="voc2007").train
    assert (train.optimizer, train.lr, train.momentum, train.weight_decay) == (
        "sgd",
        0.001,
        0.9,
        1e-5,
    )
    assert (train.batch_size, train.local_epochs, train.rounds) == (32, 1, 100)


@pytest.mark.parametrize(("data", "rounds"), [("coco2014", 200), ("nuswide", 200), ("scenes", 100)])
def test_larger_data_sets_take_more_rounds(data: str, rounds: int) -> None:
    train = preset(TrainConfig(preset="paper"), method="coop", data_name=data)
    assert train.rounds == rounds


@pytest.mark.parametrize("name", ["paper", "native"])
def test_what_is_given_stays(name: str) -> None:
    given = TrainConfig(preset=name, lr=0.7, rounds=3, weight_decay=0.1, momentum=0.5)  # type: ignore[arg-type]
    filled = preset(given, method="tcp", data_name="scenes")
    assert (filled.lr, filled.rounds, filled.weight_decay, filled.momentum) == (0.7, 3, 0.1, 0.5)


@pytest.mark.parametrize(
    ("name", "optimizer", "lr", "momentum", "weight_decay", "batch_size", "local_epochs"),
    [  # the optimiser of each publication; where it names none of these, the paper's common setting
        ("dualcoop", "sgd", 0.001, 0.9, 1e-5, 32, 1),
        ("poscoop", "sgd", 0.5, 0.9, 0.0, 32, 1),
        ("scpnet", "adam", 0.00004, 0.9, 1e-5, 32, 1),
        ("tcp", "adam", 0.002, 0.9, 1e-5, 32, 1),
        ("fedtpg", "sgd", 0.003, 0.9, 1e-5, 200, 1),
        ("fedpgp", "sgd", 0.001, 0.9, 1e-5, 32, 2),
        ("maple", "sgd", 0.0035, 0.9, 1e-5, 4, 1),
        ("ram", "adamw", 0.000005, 0.9, 1e-5, 32, 1),
        ("fedmvp", "sgd", 0.003, 0.9, 1e-5, 128, 1),
        ("fedmpt", "sgd", 0.001, 0.9, 1e-5, 32, 1),
        ("dpfpl", "sgd", 0.001, 0.9, 1e-5, 32, 1),
        ("fedawa", "sgd", 0.001, 0.9, 1e-5, 32, 1),
        ("coop", "sgd", 0.001, 0.9, 1e-5, 32, 1),
        ("promptfl", "sgd", 0.001, 0.9, 1e-5, 32, 1),
    ],
)
def test_native_settings_are_the_methods_own(
    name: str,
    optimizer: str,
    lr: float,
    momentum: float,
    weight_decay: float,
    batch_size: int,
    local_epochs: int,
) -> None:
    filled = preset(TrainConfig(preset="native"), method=name, data_name="voc2007")
    assert filled.optimizer == optimizer
    assert filled.lr == lr
    assert filled.momentum == momentum
    assert filled.weight_decay == weight_decay
    assert filled.batch_size == batch_size
    assert filled.local_epochs == local_epochs
    assert filled.rounds == 100
    # PositiveCoOp's context learns at a hundredth of what its free vectors do.
    assert filled.lr_multipliers == ({"context": 0.01} if name == "poscoop" else {})


@pytest.mark.parametrize(("name", "lr"), [("dualcoop", 0.002), ("tcp", 0.002), ("fedtpg", 0.003)])
def test_native_rates_on_coco(name: str, lr: float) -> None:
    """DualCoOp's is another than on VOC."""
    filled = preset(TrainConfig(preset="native"), method=name, data_name="coco2014")
    assert (filled.lr, filled.rounds) == (lr, 200)


def test_native_settings_are_of_methods_there_are() -> None:
    own = {"dualcoop", "poscoop", "scpnet", "tcp", "fedtpg", "fedpgp", "maple", "ram", "fedmvp"}
    assert set(NATIVE) == own
    assert own <= set(METHOD_NAMES)


def test_without_a_preset_nothing_changes() -> None:
    train = TrainConfig()
    assert preset(train, method="tcp", data_name="scenes") is train


def test_a_resolved_configuration_resolves_to_itself() -> None:
    once = resolve(load_config(options={"train.preset": "native"}), data_name="scenes")
    assert msgspec.to_builtins(resolve(once, data_name="scenes")) == msgspec.to_builtins(once)
