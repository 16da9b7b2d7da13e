"""Evaluating a tuned model: the run's own figures again, other data, other classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from fedmpt.data.scenes import CLASSES
from tests.fedmpt.trees import write_table

Invoke = Callable[..., Result]


def test_a_run_on_its_own_data_gives_the_figures_of_its_summary(
    fedmpt: Invoke, private_run: Path
) -> None:
    summary = json.loads((private_run / "summary.json").read_text())
    done = fedmpt("evaluate", private_run, "--json")
    assert done.exit_code == 0, done.output
    record = json.loads(done.stdout)
    for ours, theirs in (
        ("tuned", "final"),
        ("zero_shot", "zero_shot"),
        ("zero_shot_class_token", "zero_shot_class_token"),
    ):
        for metric in ("mAP", "CF1", "OF1"):
            assert record[ours][metric] == pytest.approx(summary[theirs][metric], abs=1e-4)
    found = [value for value in record["tuned"]["AP"].values() if value is not None]
    expected = [value for value in summary["final_AP"].values() if value is not None]
    assert found == pytest.approx(expected, abs=1e-4)
    assert not record["own_classes"]


@pytest.mark.parametrize("offset", ["public", "image-mean"])
def test_the_frozen_reference_has_the_head_of_the_methods_it_is_compared_with(
    fedmpt: Invoke, small_run: Callable[..., dict[str, Any]], tmp_path: Path, offset: str
) -> None:
    """So CF1 and OF1 tell what tuning gave, not what another scale or offset gave."""
    options = {"method__name": "zero-shot", "method__head__offset": offset}
    summary = small_run(tmp_path / "run", privacy__enabled=False, **options)
    record = json.loads(fedmpt("evaluate", tmp_path / "run", "--json").stdout)
    for metric in ("mAP", "CF1", "OF1"):
        expected = pytest.approx(record["tuned"][metric], abs=1e-4)
        assert summary["final"][metric] == expected
        assert summary["zero_shot"][metric] == expected
        assert record["zero_shot"][metric] == expected


def test_the_data_sets_own_classes_are_scored(
    fedmpt: Invoke, private_run: Path, photos: list[Path]
) -> None:
    root = write_table(photos[0].parent, ("forklift", "pallet", "crate"), photos)
    arguments = ("evaluate", private_run, "--data", "table", "--data-root", root)
    record = json.loads(fedmpt(*arguments, "--json").stdout)
    assert record["own_classes"]
    assert list(record["tuned"]["AP"]) == ["forklift", "pallet", "crate"]
    assert record["images"] == 4
    shown = fedmpt(*arguments).stdout
    assert "zero-shot, pooled patches" in shown
    assert "other classes than it was tuned on" in shown


def test_a_bundle_needs_the_name_of_a_data_set(
    fedmpt: Invoke, private_run: Path, tmp_path: Path
) -> None:
    assert fedmpt("export", private_run, "--out", tmp_path / "bundle").exit_code == 0
    done = fedmpt("evaluate", tmp_path / "bundle")
    assert done.exit_code == 2
    assert "--data NAME" in done.output


@pytest.mark.slow
@pytest.mark.parametrize("method", ["maple", "ram", "fedpgp", "dpfpl"])
def test_methods_on_pixels_or_with_blocks_of_clients_give_their_figures_again(
    method: str,
    fedmpt: Invoke,
    small_run: Callable[..., dict[str, Any]],
    photos: list[Path],
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    summary = small_run(run, method__name=method, privacy__enabled=False, train__rounds=1)
    record = json.loads(fedmpt("evaluate", run, "--json").stdout)
    expected = summary["final_shared"] or summary["final"]
    assert record["tuned"]["mAP"] == pytest.approx(expected["mAP"], abs=1e-3)
    done = fedmpt("predict", run, *photos, "--json")
    assert done.exit_code == 0, done.output
    assert ("shared part alone" in done.stderr) == (method in ("fedpgp", "dpfpl"))
    if method in ("fedpgp", "dpfpl"):
        (own, *_) = sorted((run / "local").iterdir())
        mine = fedmpt("predict", run, *photos, "--json", "--local", own)
        assert mine.stderr == ""
        scores = [
            [entry["scores"] for entry in json.loads(result.stdout)["images"]]
            for result in (done, mine)
        ]
        assert scores[0] != scores[1]


def test_a_model_tuned_with_descriptions_of_its_own_needs_their_file_for_other_classes_only(
    fedmpt: Invoke, small_run: Callable[..., dict[str, Any]], photos: list[Path], tmp_path: Path
) -> None:
    words, run = tmp_path / "words.json", tmp_path / "run"
    words.write_text(json.dumps({name: ["four legs", "a long tail"] for name in CLASSES}))
    options = {"method__name": "fedmvp", "method__fedmvp__descriptors": str(words)}
    summary = small_run(run, privacy__enabled=False, train__rounds=1, **options)
    words.unlink()
    assert fedmpt("export", run, "--out", tmp_path / "bundle").exit_code == 0
    assert fedmpt("predict", tmp_path / "bundle", *photos, "--json").exit_code == 0
    record = json.loads(fedmpt("evaluate", run, "--json").stdout)
    assert record["tuned"]["mAP"] == pytest.approx(summary["final"]["mAP"], abs=1e-3)
    refused = fedmpt("predict", tmp_path / "bundle", *photos, "--classes", "forklift,crate")
    assert refused.exit_code == 2
    assert "words.json" in str(refused.exception)


def test_blocks_of_a_client_are_refused_where_clients_keep_none(
    fedmpt: Invoke, private_run: Path, photos: list[Path]
) -> None:
    done = fedmpt("predict", private_run, *photos, "--local", private_run / "model.safetensors")
    assert done.exit_code == 2
    assert "keep no blocks" in str(done.exception)
