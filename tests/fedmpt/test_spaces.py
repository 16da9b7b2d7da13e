"""Which space a run takes, and the sketch its clients share."""

from __future__ import annotations

import inspect

import pytest
import torch

from fedmpt.clip.backbone import Backbone
from fedmpt.config import load_config
from fedmpt.engine.defaults import resolve
from fedmpt.engine.spaces import choose_space, round_sketch
from fedmpt.errors import UsageError
from fedmpt.methods.fedmpt import FedMPT

MANY = ("cat", "dog", "bus", "sheep", "tree", "car", "boat", "horse", "bird", "cow")


def _choose(backbone: Backbone, classes: tuple[str, ...], **options: object) -> tuple[str, str]:
    given = {name.replace("__", "."): value for name, value in options.items()}
    config = resolve(load_config(options=given), data_name="scenes")
    method = FedMPT(backbone, classes, config.method.fedmpt)
    config, reason = choose_space(config, method, method.initial_parameters(0))
    return config.privacy.space, reason


def test_auto_takes_the_space_with_fewer_coordinates_and_says_so(backbone: Backbone) -> None:
    space, reason = _choose(backbone, MANY)
    assert space == "sketch"
    assert "960 values, prompts 640" in reason  # 4 conditions x 10 classes x 24; 5 x 4 tokens x 32
    space, reason = _choose(backbone, MANY[:3])
    assert space == "text"
    assert "288 values, prompts 640" in reason


def test_a_space_asked_for_is_taken(backbone: Backbone) -> None:
    for space in ("text", "prompt", "sketch"):
        assert _choose(backbone, MANY, privacy__space=space) == (space, "as asked for")


def test_the_sketch_refuses_an_optimiser_that_leaves_its_directions(backbone: Backbone) -> None:
    with pytest.raises(UsageError, match=r"train.optimizer=sgd or --dp-space text"):
        _choose(backbone, MANY, privacy__space="sketch", train__optimizer="adam")
    space, reason = _choose(backbone, MANY, train__optimizer="adam")
    assert space == "text"
    assert "adam is not linear" in reason


def test_all_clients_of_a_round_get_one_sketch_that_no_data_touches(backbone: Backbone) -> None:
    names = {"config", "method", "parameters", "round_number"}
    assert set(inspect.signature(round_sketch).parameters) == names  # no data among them
    config = resolve(
        load_config(options={"privacy.space": "sketch", "privacy.sketch_rank": 3}),
        data_name="scenes",
    )
    method = FedMPT(backbone, MANY, config.method.fedmpt)
    parameters = method.initial_parameters(0)
    torch.manual_seed(1)
    first = round_sketch(config, method, parameters, round_number=0)
    torch.manual_seed(2)
    again = round_sketch(config, method, parameters, round_number=0)
    other = round_sketch(config, method, parameters, round_number=1)
    assert first is not None
    assert again is not None
    assert other is not None
    assert first.digest == again.digest
    assert first.digest != other.digest
    shapes = {name: tuple(factor.singular.shape) for name, factor in first.factors.items()}
    assert shapes == {"condition_tokens": (4, 3), "class_tokens": (1, 3)}
