"""What is left open becomes what the rules say, and only that."""

from __future__ import annotations

from typing import Any

import pytest

from fedmpt.config import Config, load_config
from fedmpt.engine.defaults import OPEN, OPEN_IMAGES, resolve, resolve_scale
from fedmpt.methods.fedmpt import TEMPERATURE, TRANSPORT_WEIGHT


def _resolved(**options: object) -> Config:
    given = {name.replace("__", "."): value for name, value in options.items()}
    return resolve(load_config(options=given), data_name="scenes")


def test_without_privacy_the_method_is_the_papers() -> None:
    config = _resolved(privacy__enabled=False)
    method = config.method.fedmpt
    assert (method.temperature, method.transport_weight) == (TEMPERATURE, TRANSPORT_WEIGHT)
    assert method.adapter_projections == "trained"
    assert config.train.lr_multipliers == {}


def test_few_images_take_shorter_steps_without_privacy_and_many_the_same() -> None:
    def rate(images: int, **options: object) -> float | None:
        given = {name.replace("__", "."): value for name, value in options.items()}
        return resolve(load_config(options=given), data_name="scenes", images=images).train.lr

    assert rate(OPEN_IMAGES, privacy__enabled=False) == OPEN.lr  # to the last bit
    assert rate(82_081, privacy__enabled=False) == OPEN.lr
    assert rate(OPEN_IMAGES // 4, privacy__enabled=False) == pytest.approx(OPEN.lr / 2)
    assert rate(10, privacy__enabled=False, train__lr=0.5) == 0.5
    assert rate(10) == rate(OPEN_IMAGES)  # under privacy the number of images decides nothing


def test_privacy_tunes_few_values_and_what_is_given_stays() -> None:
    config = _resolved(method__fedmpt__temperature=4.0, train__lr_multipliers={"adapter_core": 2.0})
    assert config.method.fedmpt.adapter_projections == "text"
    assert config.method.fedmpt.temperature == 4.0
    assert config.train.lr_multipliers["adapter_core"] == 2.0
    assert config.train.lr_multipliers["class_tokens"] < 1


def test_a_preset_and_other_methods_keep_their_own_learning_rates() -> None:
    assert _resolved(train__preset="paper").train.lr_multipliers == {}
    config = _resolved(method__name="coop")
    assert config.train.lr_multipliers == {}
    assert config.privacy.block_shares == {}


def test_bundled_descriptors_serve_their_data_set_on_a_clip_that_knows_the_words() -> None:
    def descriptors(data_name: str, **options: Any) -> str | None:
        given = {name.replace("__", "."): value for name, value in options.items()}
        return resolve(load_config(options=given), data_name=data_name).method.fedmvp.descriptors

    assert descriptors("voc2007", backbone__name="ViT-B-16") == "voc2007"
    assert descriptors("coco2014", backbone__name="ViT-B-16") is None
    assert descriptors("voc2007") is None  # the bundled CLIP
    own = {"method__fedmvp__descriptors": "own.json"}
    assert descriptors("voc2007", backbone__name="ViT-B-16", **own) == "own.json"


def test_the_frozen_reference_and_the_method_follow_the_cosines_of_the_backbone() -> None:
    for method in ("fedmpt", "coop"):
        config = resolve_scale(_resolved(method__name=method), logit_scale=100.0, pooling=50.0)
        assert config.method.head.pooling == 50.0
        own = config.method.fedmpt.similarity_scale
        assert own == (250.0 if method == "fedmpt" else None)


def test_dualcoops_native_rate_is_that_of_the_data_set() -> None:
    def rate(data_name: str, preset: str) -> float | None:
        given = load_config(options={"method.name": "dualcoop", "train.preset": preset})
        return resolve(given, data_name=data_name).train.lr

    assert rate("voc2007", "native") == 0.001
    assert rate("coco2014", "native") == 0.002
    assert rate("coco2014", "paper") == 0.001


def test_shared_noise_makes_many_rounds_of_one_step_each_with_adam() -> None:
    shared = _resolved(privacy__noise="shares").train
    local = _resolved().train
    assert shared.optimizer == "adam"
    assert local.optimizer == "sgd"
    assert shared.rounds == 150
    assert local.rounds == 20
    assert shared.lr_multipliers["class_tokens"] < 1
    assert "adapter_core" not in shared.lr_multipliers  # Adam's step has no unit to make up for


def test_what_cores_have_in_common_moves_less_than_how_they_differ() -> None:
    local = _resolved().train.lr_multipliers
    assert (local["adapter_common"], local["adapter_core"]) == (0.03, 0.1)
    shared = _resolved(privacy__noise="shares").train.lr_multipliers
    assert (shared["adapter_common"], shared.get("adapter_core", 1.0)) == (0.3, 1.0)


def test_a_client_as_the_unit_trains_locally_as_ever() -> None:
    by_client = _resolved(privacy__noise="shares", privacy__unit="client").train
    assert by_client.optimizer == "sgd"
    assert by_client.rounds == 20


def test_local_steps_are_shorter_where_budgets_are_small() -> None:
    rates = {
        epsilon: _resolved(privacy__epsilon=epsilon).train.lr for epsilon in (1.0, 2.0, 4.0, 8.0)
    }
    assert rates[8.0] == rates[4.0] == 2 * rates[2.0] == 4 * rates[1.0]
    shared = [
        _resolved(privacy__noise="shares", privacy__epsilon=epsilon).train.lr
        for epsilon in (1.0, 8.0)
    ]
    assert shared[0] == shared[1]
    assert _resolved(privacy__epsilon=1.0, train__lr=0.05).train.lr == 0.05
