"""The preset of the authors' code does what that code does, nothing unless asked, and says so everywhere."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmpt.config import Config, load_config
from fedmpt.data.masking import mask_test_labels
from fedmpt.engine.authors_code import as_released, compatibility_note
from fedmpt.engine.defaults import resolve
from fedmpt.errors import UsageError
from fedmpt.inference.card import CARD_FILE
from fedmpt.report.write import Choices, write_report
from tests.fedmpt.test_masking import dataset


class Silence:
    """Hears nothing."""

    def progress(self, label: str, done: int, total: int) -> None:
        del label, done, total


def released(name: str, **options: Any) -> Config:
    given = {key.replace("__", "."): value for key, value in options.items()}
    return as_released(
        load_config(options={"train.preset": "authors-code", "data.name": name} | given)
    )


@pytest.mark.parametrize(
    ("name", "fewest"),
    [("coco2014", 5), ("nuswide", 5), ("mlrsnet", 7), ("voc2007", 0), ("scenes", 0)],
)
def test_images_with_few_labels_are_left_out_of_training_and_test(name: str, fewest: int) -> None:
    config = released(name)
    assert config.data.min_labels_train == (fewest or None)
    assert config.data.min_labels_test == fewest
    assert config.clients.partition == "label"
    assert (config.data.mlrsnet.split == "categories") == (name == "mlrsnet")


@pytest.mark.parametrize("name", ["coco2014", "nuswide", "multiscene", "mlrsnet", "voc2007"])
def test_test_labels_are_masked_with_the_training_labels_but_for_voc(name: str) -> None:
    assert released(name, data__mask=0.3).data.mask_test == (name != "voc2007")
    assert not released(name).data.mask_test


def test_nothing_happens_without_the_preset_and_nothing_more_the_second_time() -> None:
    for preset in (None, "paper", "native"):
        config = load_config(options={"train.preset": preset, "data.name": "coco2014"})
        assert as_released(config) is config
        assert compatibility_note(config) is None
    once = released("mlrsnet", data__mask=0.5)
    assert as_released(once) == once


@pytest.mark.parametrize(
    ("key", "value"),
    [("clients.partition", "iid"), ("data.min_labels_train", 2), ("data.min_labels_test", 3)],
)
def test_a_setting_that_the_preset_decides_is_refused(key: str, value: object) -> None:
    with pytest.raises(UsageError, match=rf"--preset authors-code decides {key}"):
        released("coco2014", **{key: value})


def test_training_is_the_papers_loop() -> None:
    ours, paper = (
        resolve(load_config(options={"train.preset": name}), data_name="nuswide").train
        for name in ("authors-code", "paper")
    )
    assert (ours.lr, ours.optimizer, ours.rounds) == (paper.lr, paper.optimizer, paper.rounds)


def test_masked_test_labels_lose_positives_alone_and_training_is_untouched() -> None:
    before = dataset()
    after = mask_test_labels(before, probability=0.4, seed=3)
    assert after.train is before.train
    changed = before.test.labels != after.test.labels
    assert (before.test.labels[changed] == 1).all()
    assert changed.sum() / before.test.labels.sum() == pytest.approx(0.4, abs=0.03)
    unchanged = mask_test_labels(before, probability=0.0, seed=3)
    assert np.array_equal(unchanged.test.labels, before.test.labels)


def test_single_departures_are_labelled_without_the_preset_too() -> None:
    options = {"data.mask_test": True, "data.mask": 0.5}
    note = compatibility_note(load_config(options=options))
    assert note == "NOT THE BENCHMARK: test labels masked as well"
    assert compatibility_note(load_config(options={"data.mask_test": True})) is None


def test_a_run_is_labelled_in_its_summary_card_and_report(small_run: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    summary = small_run(run, train__preset="authors-code", train__rounds=1, privacy__enabled=False)
    note = summary["compatibility"]
    assert note.startswith("AUTHORS-CODE, NOT THE BENCHMARK: clients by labels")
    assert summary["preset"] == "authors-code"
    assert json.loads((run / "partition.json").read_text())["method"] == "label"
    assert json.loads((run / CARD_FILE).read_text())["compatibility"] == note
    best = summary["final_oracle"]
    assert best["OF1_oracle_optimistic"] >= summary["final"]["OF1"] - 1e-9
    assert best["CF1_oracle_optimistic"] >= summary["final"]["CF1"] - 1e-9
    page = write_report(run, Choices(images=False), progress=Silence()).read_text()
    assert note in html.unescape(page)
    plain = small_run(tmp_path / "plain", train__rounds=1, privacy__enabled=False)
    assert (plain["compatibility"], plain["preset"]) == (None, None)
    assert plain["backbone_parameters"] > plain["parameters"]
    assert plain["peak_memory_bytes"] > 50e6
