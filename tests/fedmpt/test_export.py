"""Bundles: what they hold, what they leave behind, and that they predict as the run does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from click.testing import Result
from safetensors.numpy import load_file

from fedmpt.clip.backbone import Backbone
from fedmpt.config import METHOD_NAMES, MethodConfig, load_config
from fedmpt.engine.defaults import resolve
from fedmpt.errors import UsageError
from fedmpt.inference.card import card_text, read_card, read_model, settings_of
from fedmpt.inference.export import export
from fedmpt.inference.model import load_tuned
from fedmpt.inference.predict import Prediction, predict_files
from fedmpt.methods.registry import build_method

Invoke = Callable[..., Result]


def test_a_bundle_predicts_as_its_run(
    fedmpt: Invoke, private_run: Path, photos: list[Path], tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    assert fedmpt("export", private_run, "--out", bundle).exit_code == 0
    scores = []
    for folder in (private_run, bundle):
        outcomes = predict_files(load_tuned(folder), photos)
        scores.append([o.scores for o in outcomes if isinstance(o, Prediction)])
    assert np.array_equal(*scores)


def test_a_bundle_holds_tensors_and_card_and_nothing_else(
    private_run: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    export(private_run, bundle)
    assert sorted(path.name for path in bundle.iterdir()) == ["card.json", "model.safetensors"]
    tensors = load_file(bundle / "model.safetensors")
    assert {
        "class_tokens",
        "condition_tokens",
        "adapter_core",
        "constant.adapter_down",
        "constant.adapter_out",
    } <= set(tensors)


def test_the_card_says_what_the_model_is_and_what_it_cost(private_run: Path) -> None:
    summary = json.loads((private_run / "summary.json").read_text())
    card = read_card(private_run)
    assert card.method.name == "fedmpt"
    assert card.method.fedmpt.adapter_rank is not None  # rules applied
    assert len(card.classes) == 20
    assert card.conditions == ("background", "position", "shape", "action")
    assert len(card.backbone.fingerprint) == 64
    assert card.backbone.preprocessing["resize_mode"] == "squash"
    assert card.metrics["tuned"] == summary["final"]
    assert card.parameters["class_tokens"] == (4, 32)
    spent = {str(c["client"]): c["epsilon"] for c in summary["privacy"]["clients"]}
    assert card.privacy.epsilon == spent
    assert card.privacy.largest_epsilon == max(spent.values()) <= 8
    for words in ("every image of every client", "against everyone", "epsilon", "delta"):
        assert words in card.privacy.guarantee


class _Watched:
    """A configuration that remembers which of its parts were read."""

    def __init__(self, config: MethodConfig) -> None:
        self._config = config
        self.read: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.read.add(name)
        return getattr(self._config, name)


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_the_card_keeps_every_setting_that_its_method_reads(name: str, backbone: Backbone) -> None:
    options = {"method.name": name, "method.ram.descriptors": None}
    config = resolve(load_config(options=options), data_name="scenes").method
    watched = _Watched(config)
    build_method(backbone, ("cat", "dog", "bus"), cast(Any, watched))
    assert watched.read
    assert watched.read <= set(settings_of(name))


def test_the_card_of_a_run_without_privacy_promises_nothing(open_run: Path) -> None:
    card = read_card(open_run)
    assert not card.privacy.enabled
    assert card.privacy.guarantee.startswith("none")
    assert card.privacy.epsilon == {}


def test_a_card_tells_nothing_of_sizes_or_places_of_data(private_run: Path) -> None:
    text = (private_run / "card.json").read_text()
    for word in ("n_public", "ledger", "partition", "sample_rate"):
        assert word not in text


def test_thresholds_tuned_on_public_data_are_those_with_the_highest_f1(
    fedmpt: Invoke, open_run: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    small = [
        part
        for setting in ("train_size=240", "test_size=60", "resolution=32")
        for part in ("--set", f"data.scenes.{setting}")
    ]
    done = fedmpt(
        *("export", open_run, "--out", bundle, "--public-data", "scenes", "--split", "test"), *small
    )
    assert done.exit_code == 0, done.output
    thresholds = read_card(bundle).thresholds
    assert thresholds is not None
    assert thresholds.images == 60
    assert len(thresholds.values) == 20
    assert len(set(thresholds.values)) > 3
    at = json.loads(fedmpt("evaluate", bundle, "--data", "scenes", *small, "--json").stdout)
    assert at["at_own_thresholds"]["CF1"] > at["tuned"]["CF1"]  # they were chosen on this split
    assert load_tuned(bundle).thresholds == tuple(thresholds.values)
    assert set(load_tuned(bundle).for_classes(("cat", "dog")).thresholds) == {0.5}


def test_an_existing_folder_is_not_overwritten(
    fedmpt: Invoke, private_run: Path, tmp_path: Path
) -> None:
    done = fedmpt("export", private_run, "--out", tmp_path)
    assert done.exit_code == 2
    assert "exists already" in done.output


@pytest.fixture
def bundle(private_run: Path, tmp_path: Path) -> Path:
    export(private_run, tmp_path / "bundle")
    return tmp_path / "bundle"


def test_a_changed_tensor_file_is_refused(bundle: Path) -> None:
    path = bundle / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UsageError, match="do not belong together"):
        read_model(bundle)


def test_a_card_of_another_schema_is_refused(bundle: Path) -> None:
    path = bundle / "card.json"
    path.write_text(path.read_text().replace("fedmpt.model/1", "fedmpt.model/9"))
    with pytest.raises(UsageError, match="another version"):
        read_card(bundle)


def test_tensors_that_are_not_the_methods_are_refused(bundle: Path) -> None:
    path = bundle / "card.json"
    card = read_card(bundle)
    method = msgspec.structs.replace(
        card.method, fedmpt=msgspec.structs.replace(card.method.fedmpt, class_tokens=5)
    )
    path.write_text(card_text(msgspec.structs.replace(card, method=method)))
    with pytest.raises(UsageError, match="are not those of fedmpt"):
        load_tuned(bundle)
