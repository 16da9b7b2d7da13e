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


def test_native_settings_are_the_methods_own() -> None:
    filled = preset(TrainConfig(preset="native"), method="poscoop", data_name="scenes")
    assert filled.lr == NATIVE["poscoop"].lr
    assert filled.lr_multipliers == {"context": 0.01}
    assert (
        preset(TrainConfig(preset="native"), method="tcp", data_name="scenes").optimizer == "adam"
    )
    assert (
        preset(TrainConfig(preset="native"), method="fedpgp", data_name="voc2007").local_epochs == 2
    )
    assert set(NATIVE) <= set(METHOD_NAMES)


def test_without_a_preset_nothing_changes() -> None:
    train = TrainConfig()
    assert preset(train, method="tcp", data_name="scenes") is train


def test_a_resolved_configuration_resolves_to_itself() -> None:
    once = resolve(load_config(options={"train.preset": "native"}), data_name="scenes")
    assert msgspec.to_builtins(resolve(once, data_name="scenes")) == msgspec.to_builtins(once)
