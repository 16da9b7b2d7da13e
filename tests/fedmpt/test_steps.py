"""Private steps are as long on a steep backbone as on the one their rates were chosen on."""

from __future__ import annotations

import pytest

from fedmpt.clip.backbone import Backbone, load_backbone
from fedmpt.config import Config, load_config
from fedmpt.data.class_names import VOC_CLASSES
from fedmpt.engine import steps
from fedmpt.engine.defaults import PRIVATE, SHARED, resolve
from fedmpt.engine.probes import typical_norms
from fedmpt.engine.steps import (
    LOCAL_RATE,
    MANY_IMAGES,
    USUAL_NORMS,
    hold_back_local,
    match_steps,
    slow_few,
)
from fedmpt.methods.base import Method
from fedmpt.methods.registry import build_method
from privacy import DPSpace

STEEP = 4000.0  # a multiplier of cosines 40 times the usual one


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return load_backbone("tiny")


def _built(backbone: Backbone, **options: object) -> tuple[Config, Method]:
    given = {name.replace("__", "."): value for name, value in options.items()}
    config = resolve(load_config(options=given), data_name="scenes")
    return config, build_method(backbone, VOC_CLASSES, config.method)


def _matched(
    backbone: Backbone, *, kept: frozenset[str] = frozenset(), **options: object
) -> dict[str, float]:
    config, method = _built(backbone, **options)
    start = method.initial_parameters(0)
    return match_steps(config, method, start, given=kept).train.lr_multipliers


def test_the_bundled_backbone_keeps_its_rates_to_the_last_bit(tiny: Backbone) -> None:
    assert _matched(tiny) == dict(PRIVATE.lr_multipliers)
    _, method = _built(tiny)
    norms = typical_norms(method, method.initial_parameters(0), space=DPSpace.PROMPT)
    assert norms == pytest.approx(USUAL_NORMS, rel=0.25)  # what the rule says is usual


def _held_back(
    backbone: Backbone, *, given: frozenset[str] = frozenset(), **options: object
) -> dict[str, float]:
    config, method = _built(backbone, **options)
    start = method.initial_parameters(0)
    return hold_back_local(config, method, start, given=given).train.lr_multipliers


def test_private_steps_of_blocks_that_stay_on_a_client_are_a_tenth(tiny: Backbone) -> None:
    assert _held_back(tiny, method__name="fedpgp") == {"left": LOCAL_RATE, "right": LOCAL_RATE}
    assert _held_back(tiny, method__name="fedpgp", privacy__enabled=False) == {}
    own = {"train__lr_multipliers__left": 0.5}
    found = _held_back(tiny, given=frozenset({"left"}), method__name="fedpgp", **own)
    assert found == {"left": 0.5, "right": LOCAL_RATE}


@pytest.mark.parametrize("name", ["coop", "tcp", "fedmpt"])
def test_blocks_that_all_clients_share_keep_their_steps(tiny: Backbone, name: str) -> None:
    config, method = _built(tiny, method__name=name)
    start = method.initial_parameters(0)
    assert hold_back_local(config, method, start, given=frozenset()) == config
    method.local_blocks = tuple(start)  # every client trains alone: nothing is shared
    assert hold_back_local(config, method, start, given=frozenset()) == config


def test_steps_of_a_steep_model_are_as_long_as_usual_in_units_of_its_gradients(
    tiny: Backbone,
) -> None:
    rates = _matched(tiny, method__fedmpt__similarity_scale=STEEP)
    _, method = _built(tiny, method__fedmpt__similarity_scale=STEEP)
    norms = typical_norms(method, method.initial_parameters(0), space=DPSpace.PROMPT)
    assert norms["adapter_core"] > 5 * USUAL_NORMS["adapter_core"]  # or this shows nothing
    core = rates["adapter_core"] * norms["adapter_core"]
    assert core == pytest.approx(
        PRIVATE.lr_multipliers["adapter_core"] * USUAL_NORMS["adapter_core"]
    )


def test_prompts_of_an_encoder_ten_times_as_steep_move_a_hundredth(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    steep = {name: 10 * usual for name, usual in USUAL_NORMS.items()}
    monkeypatch.setattr(steps, "typical_norms", lambda *_, **__: steep)
    rates, usual = _matched(tiny), PRIVATE.lr_multipliers
    assert rates["class_tokens"] == pytest.approx(usual["class_tokens"] / 100)
    assert rates["adapter_core"] == pytest.approx(usual["adapter_core"] / 10)
    assert rates["adapter_common"] == pytest.approx(usual["adapter_common"] / 10)
    assert rates["gate_up"] == pytest.approx(1 / 10)  # whose multiplier is 1


def test_a_rate_that_was_given_stays_and_so_do_other_runs(tiny: Backbone) -> None:
    steep = {"method__fedmpt__similarity_scale": STEEP}
    kept = frozenset({"adapter_core"})
    rates = _matched(tiny, kept=kept, train__lr_multipliers={"adapter_core": 0.5}, **steep)
    assert rates["adapter_core"] == 0.5
    assert _matched(tiny, privacy__enabled=False, **steep) == {}
    assert _matched(tiny, train__preset="paper", **steep) == {}


def _shared_rate(declared: int, *, asked: bool = False, **options: object) -> float:
    given = {name.replace("__", "."): value for name, value in options.items()}
    config = resolve(load_config(options=given), data_name="scenes")
    rate = slow_few(config, declared=declared, asked=asked).train.lr
    assert rate is not None
    return rate


def test_the_rate_of_shared_noise_falls_with_the_images_of_all_clients() -> None:
    shares = {"privacy__noise": "shares"}
    assert _shared_rate(MANY_IMAGES, **shares) == SHARED.lr  # as by default, to the last bit
    assert _shared_rate(6000, **shares) == SHARED.lr
    assert _shared_rate(MANY_IMAGES // 4, **shares) == pytest.approx(SHARED.lr / 4)


def test_a_rate_that_was_asked_for_and_rounds_of_many_steps_keep_theirs() -> None:
    assert _shared_rate(50, asked=True, privacy__noise="shares") == SHARED.lr
    assert _shared_rate(50) == PRIVATE.lr
    many_steps = {"privacy__noise": "shares", "privacy__unit": "client"}
    assert _shared_rate(50, **many_steps) == _shared_rate(6000, **many_steps)
