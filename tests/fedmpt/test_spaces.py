"""Which space a run takes, and the sketch its clients share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedmpt.clip.backbone import Backbone
from fedmpt.config import load_config
from fedmpt.engine import spaces
from fedmpt.engine.defaults import resolve
from fedmpt.engine.spaces import RoundSketches, choose_space, round_sketch
from fedmpt.errors import UsageError
from fedmpt.methods.fedmpt import FedMPT
from fedmpt.methods.registry import METHODS, build_method
from privacy.sketch import SketchSpace, find_sliced
from tests.fedmpt.conftest import SmallRun

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


def test_rounds_of_one_step_take_a_sketch_with_any_optimiser_when_asked(backbone: Backbone) -> None:
    shares = {"privacy__noise": "shares", "train__optimizer": "adam"}
    assert _choose(backbone, MANY, **shares, privacy__space="sketch") == ("sketch", "as asked for")
    space, reason = _choose(backbone, MANY, **shares)
    assert space == "text"
    assert "a round is one step" in reason
    with pytest.raises(UsageError, match="linear"):  # a client as the unit trains many steps
        _choose(backbone, MANY, **shares, privacy__space="sketch", privacy__unit="client")


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


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often a sketch was built, and its slices looked for."""
    counts = {"build_sketch": 0, "find_sliced": 0}

    def count(name: str) -> None:
        real: Callable[..., Any] = getattr(spaces, name)

        def counting(*arguments: Any, **options: Any) -> Any:
            counts[name] += 1
            return real(*arguments, **options)

        monkeypatch.setattr(spaces, name, counting)

    for name in counts:
        count(name)
    return counts


@pytest.mark.parametrize("noise", ["local", "shares"])
def test_a_run_builds_one_sketch_a_round_and_looks_for_its_slices_once(
    small_run: Callable[..., dict[str, Any]], tmp_path: Path, counted: dict[str, int], noise: str
) -> None:
    small_run(
        tmp_path / "run",
        clients__count=5,
        privacy__noise=noise,
        privacy__space="sketch",
        privacy__sketch_rank=1,
    )
    assert counted == {"build_sketch": 2, "find_sliced": 1}  # of two rounds


def test_a_sketch_is_built_anew_for_other_parameters_or_another_round(backbone: Backbone) -> None:
    options = {"privacy.space": "sketch", "privacy.sketch_rank": 1}
    config = resolve(load_config(options=options), data_name="scenes")
    method = FedMPT(backbone, MANY[:3], config.method.fedmpt)
    start = method.initial_parameters(0)
    sketches = RoundSketches(config, method)
    first = sketches.at(start, round_number=0)
    equal = {name: value.clone() for name, value in start.items()}
    assert sketches.at(equal, round_number=0) is first
    moved = start | {name: start[name] + 0.1 for name in method.prompt_blocks}
    for parameters, number in ((moved, 0), (start, 1), (start, 0)):
        sketch = sketches.at(parameters, round_number=number)
        fresh = round_sketch(config, method, parameters, round_number=number)
        assert sketch is not None
        assert fresh is not None
        assert sketch.digest == fresh.digest


@pytest.mark.parametrize(
    "options",
    [
        {"enabled": False, "space": "sketch"},
        {"space": "text"},
        {"space": "sketch", "unit": "client"},
    ],
)
def test_nothing_is_sketched_where_no_gradient_is_clipped_in_a_sketch(
    backbone: Backbone, counted: dict[str, int], options: dict[str, object]
) -> None:
    given = {f"privacy.{name}": value for name, value in options.items()}
    config = resolve(load_config(options=given), data_name="scenes")
    method = FedMPT(backbone, MANY[:3], config.method.fedmpt)
    assert RoundSketches(config, method).at(method.initial_parameters(0), round_number=0) is None
    assert counted["build_sketch"] == 0


@pytest.mark.parametrize("name", [name for name in METHODS if name != "zero-shot"])
def test_the_slices_of_a_method_are_the_same_wherever_its_parameters_are(
    backbone: Backbone, name: str
) -> None:
    config = load_config(options={"method.name": name})
    config = resolve(config, data_name="scenes")
    method = build_method(backbone, MANY[:3], config.method)
    start = method.initial_parameters(0)
    random = torch.Generator().manual_seed(1)
    moved = {
        name: value + 0.1 * torch.randn(value.shape, generator=random)
        for name, value in start.items()
        if name in method.prompt_blocks
    }
    at_start = find_sliced(method.encode_text, {name: start[name] for name in moved})
    assert at_start == find_sliced(method.encode_text, moved)


@pytest.mark.parametrize(("drift", "warned"), [(0.99, False), (1.01, True)])
def test_a_round_that_went_farther_than_its_sketch_tells_is_warned_of(
    small_run: SmallRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    drift: float,
    warned: bool,
) -> None:
    # How far a run drifts is left to noise from the operating system; that drift is measured rightly, test_sketch sees.
    monkeypatch.setattr(SketchSpace, "drift", lambda *_: drift)
    small_run(tmp_path / "run", privacy__space="sketch", train__rounds=1, secagg__mode="none")
    log = tmp_path / "run" / "warnings.jsonl"
    said = log.read_text() if log.exists() else ""
    assert ("was not in the sketch" in said) == warned
