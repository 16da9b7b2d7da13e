"""Predicting on files: the order, the broken ones, own classes, maps, and nothing that trains."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image

from fedmpt.data.class_list import read_classes
from fedmpt.data.folder import open_rgb
from fedmpt.errors import UsageError, WeightsError
from fedmpt.inference.files import find_images
from fedmpt.inference.maps import class_maps, seen_part
from fedmpt.inference.model import TunedModel, load_tuned
from fedmpt.inference.predict import Failure, Prediction, Rule, predict_files

Invoke = Callable[..., Result]


def _scores(model: TunedModel, paths: list[Path], **options: Any) -> np.ndarray[Any, Any]:
    outcomes = list(predict_files(model, paths, **options))
    return np.stack([o.scores for o in outcomes if isinstance(o, Prediction)])


def test_scores_are_the_methods_own_on_the_images_in_order(
    private_run: Path, photos: list[Path]
) -> None:
    model = load_tuned(private_run)
    with torch.no_grad():
        patches, _ = model.backbone.encode_images([open_rgb(path) for path in photos])
        text = model.method.encode_text(model.parameters)
        expected = model.method.score(model.parameters, text, patches).numpy()
    assert np.allclose(_scores(model, photos), expected, atol=1e-6)


def test_batches_and_their_size_change_nothing(private_run: Path, photos: list[Path]) -> None:
    model = load_tuned(private_run)
    assert np.allclose(
        _scores(model, photos, batch_size=2), _scores(model, photos, batch_size=5), atol=1e-6
    )


def test_only_one_image_in_full_size_is_in_memory(
    private_run: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[int] = []

    class Counted(Image.Image):
        def __del__(self) -> None:
            alive.append(-1)

    def counted(path: Path) -> Image.Image:
        image = open_rgb(path)
        image.__class__ = Counted
        alive.append(1)
        assert sum(alive) <= 1
        return image

    monkeypatch.setattr("fedmpt.inference.predict.open_rgb", counted)
    assert len(_scores(load_tuned(private_run), photos)) == len(photos)
    assert alive.count(1) == len(photos)


def test_a_broken_image_is_a_failure_and_the_others_are_done(
    private_run: Path, photos: list[Path]
) -> None:
    whole = _scores(load_tuned(private_run), photos)
    photos[1].write_bytes(photos[1].read_bytes()[:200])
    photos[3].write_text("no image")
    outcomes = list(predict_files(load_tuned(private_run), photos, batch_size=2))
    assert [isinstance(outcome, Failure) for outcome in outcomes] == [0, 1, 0, 1, 0]
    assert [outcome.path for outcome in outcomes] == photos
    rest = [o.scores for o in outcomes if isinstance(o, Prediction)]
    assert np.allclose(rest, whole[[0, 2, 4]], atol=1e-6)


def test_the_command_counts_broken_images_and_exits_with_1(
    fedmpt: Invoke, private_run: Path, photos: list[Path]
) -> None:
    done = fedmpt("predict", private_run, photos[0].parent)
    assert done.exit_code == 0, done.output
    assert all(str(path)[-20:] in done.stdout for path in photos)
    photos[2].write_bytes(b"")
    for form in ([], ["--json"], ["--csv"]):
        done = fedmpt("predict", private_run, photos[0].parent, *form)
        assert done.exit_code == 1
        assert "1 of 5 images could not be read" in done.stderr
        assert "not an image, or damaged" in done.stdout


def test_json_and_csv_say_the_same(fedmpt: Invoke, private_run: Path, photos: list[Path]) -> None:
    arguments = ("predict", private_run, *photos, "--top-k", 3)
    record = json.loads(fedmpt(*arguments, "--json").stdout)
    rows = list(csv.DictReader(io.StringIO(fedmpt(*arguments, "--csv").stdout)))
    assert record["schema"] == "fedmpt.predictions/1"
    assert record["failed"] == 0
    assert [entry["image"] for entry in record["images"]] == [str(path) for path in photos]
    for entry, row in zip(record["images"], rows, strict=True):
        assert row["image"] == entry["image"]
        assert row["labels"].split(";") == [label["class"] for label in entry["labels"]]
        scores = [float(row[name]) for name in record["classes"]]
        assert scores == pytest.approx(entry["scores"], abs=1e-6)
        best = sorted(entry["scores"], reverse=True)[:3]
        assert [label["score"] for label in entry["labels"]] == best
        assert sum(entry["gate"]) == pytest.approx(1)
        assert len(entry["gate"]) == len(record["conditions"]) == 4


def test_the_threshold_decides_what_is_present(
    fedmpt: Invoke, private_run: Path, photos: list[Path]
) -> None:
    def labels(threshold: float) -> list[int]:
        done = fedmpt("predict", private_run, *photos, "--json", "--threshold", threshold)
        return [len(entry["labels"]) for entry in json.loads(done.stdout)["images"]]

    assert labels(0.0) == [20] * 5
    assert labels(1.0) == [0] * 5


def test_own_classes_are_scored_with_the_tuned_prompts(
    fedmpt: Invoke, private_run: Path, photos: list[Path], tmp_path: Path
) -> None:
    names = "forklift, pallet ,fire_extinguisher"
    arguments = ("predict", private_run, *photos, "--json", "--classes")
    record = json.loads(fedmpt(*arguments, names).stdout)
    assert record["classes"] == ["forklift", "pallet", "fire extinguisher"]
    file = tmp_path / "classes.txt"
    file.write_text("# of the warehouse\nforklift\npallet\n\nfire_extinguisher\n")
    assert json.loads(fedmpt(*arguments, file).stdout) == record
    model = load_tuned(private_run).for_classes(tuple(record["classes"]))
    expected = _scores(model, photos)
    assert np.allclose([entry["scores"] for entry in record["images"]], expected, atol=1e-6)


def test_own_classes_keep_the_projections_that_the_model_was_tuned_beside(
    private_run: Path, photos: list[Path]
) -> None:
    tuned = load_tuned(private_run)
    own = ("forklift", "pallet", "crate")
    right = _scores(tuned.for_classes(own), photos)
    assert tuned.method.constants()
    for name, value in tuned.for_classes(own).method.constants().items():
        assert torch.equal(value, tuned.method.constants()[name])
    # The positive control: with the projections turned round, scores are others.
    turned = {name: -value for name, value in tuned.method.constants().items()}
    turned["adapter_out"] = -turned["adapter_out"]
    method = tuned.method.with_constants(turned)
    wrong = TunedModel(tuned.card, tuned.backbone, method, tuned.parameters).for_classes(own)
    assert not np.allclose(right, _scores(wrong, photos), atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--classes", "forklift"], "at least 2"),
        (["--classes", " , "], "names no class"),
        (["--classes", "cat,cat"], "twice"),
        (["--classes", "nowhere.txt"], "no such file"),
        (["--top-k", "3", "--threshold", "0.5"], "exclude"),
        (["--json", "--csv"], "exclude"),
        (["--backbone", "tiny"], "fingerprint"),
    ],
)
def test_what_cannot_be_used_is_refused_with_2(
    arguments: list[str], words: str, fedmpt: Invoke, private_run: Path, photos: list[Path]
) -> None:
    done = fedmpt("predict", private_run, photos[0], *arguments)
    assert done.exit_code == 2
    assert words in done.output + str(done.exception)


def test_paths_that_hold_nothing_are_refused_before_anything_is_loaded(
    fedmpt: Invoke, private_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for path, words in ((tmp_path / "nowhere", "no such"), (tmp_path / "empty", "no image")):
        done = fedmpt("predict", private_run, path)
        assert done.exit_code == 2
        assert words in str(done.exception)


def test_an_image_in_the_models_place_is_refused_with_the_order(
    fedmpt: Invoke, private_run: Path, photos: list[Path]
) -> None:
    done = fedmpt("predict", photos[0], private_run)
    assert done.exit_code == 2
    assert "give a run folder or a bundle first, then images" in done.output


def test_another_backbone_is_refused_with_both_fingerprints(
    private_run: Path, shared_checkpoint: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(shared_checkpoint, other)
    config = json.loads((other / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["mean"] = [0.4] * 3
    (other / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError) as caught:
        load_tuned(private_run, backbone=f"local-dir:{other}")
    model = load_tuned(private_run)
    assert model.card.backbone.fingerprint in str(caught.value)
    assert str(caught.value).count("fingerprint") >= 2
    # the same backbone elsewhere is welcome
    moved = tmp_path / "moved"
    shutil.copytree(shared_checkpoint, moved)
    assert load_tuned(private_run, backbone=f"local-dir:{moved}").classes == model.classes


def test_folders_are_listed_by_name_and_what_is_no_image_is_passed_over(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/1.JPG", "b/notes.txt", "a.png", "b/.hidden/3.png", "b/c/0.webp"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = find_images([tmp_path / "b", tmp_path / "a.png", tmp_path / "b" / "2.png"])
    names = [str(path.relative_to(tmp_path)) for path in found.images]
    assert names == ["b/1.JPG", "b/2.png", "b/c/0.webp", "a.png"]
    assert found.passed_over == 1


def test_of_equal_scores_the_earlier_class_comes_first() -> None:
    scores = np.array([0.2, 0.9, 0.2, 0.9], dtype=np.float32)
    assert Rule(thresholds=(0.5,) * 4, top_k=3).present(scores) == [1, 3, 0]
    assert Rule(thresholds=(0.1, 0.95, 0.2, 0.5)).present(scores) == [3, 0]


def test_evidence_adds_up_to_the_conditions_predictions(
    private_run: Path, photos: list[Path]
) -> None:
    model = load_tuned(private_run)
    for outcome in predict_files(model, photos, evidence=True):
        assert isinstance(outcome, Prediction)
        assert outcome.evidence is not None
        psi = outcome.evidence.sum(dim=1).numpy()  # [N, C]
        mixed = (outcome.gate[:, None] * psi).sum(axis=0)  # [C]
        prior = np.log(2 / (len(model.classes) - 2))
        odds = np.log(mixed / (1 - mixed)) - prior
        assert np.allclose(1 / (1 + np.exp(-odds)), outcome.scores, atol=1e-4)


def test_maps_are_written_for_each_present_class_of_each_image(
    fedmpt: Invoke, private_run: Path, photos: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "maps"
    done = fedmpt("predict", private_run, *photos, "--json", "--top-k", 2, "--maps", folder)
    assert done.exit_code == 0, done.output
    entries = json.loads(done.stdout)["images"]
    named = [Path(file) for entry in entries for file in entry["maps"]]
    assert sorted(named) == sorted(folder.iterdir())
    assert len(named) == 10
    with Image.open(named[0]) as sheet:
        assert sheet.width > 5 * sheet.height  # image, all conditions, four conditions


def test_maps_lie_where_the_evidence_is_and_conditions_share_a_scale() -> None:
    evidence = np.zeros((2, 12), dtype=np.float32)
    evidence[0, 5] = 0.4  # row 1, column 1 of a grid of 3 x 4
    evidence[1, 11] = 0.8
    maps = class_maps(evidence, np.array([0.25, 0.75], dtype=np.float32), (3, 4))
    assert maps.shape == (3, 3, 4)
    assert maps[1, 1, 1] == pytest.approx(0.5**0.5)
    assert maps[2, 2, 3] == 1
    assert maps[0, 1, 1] == pytest.approx((0.25 * 0.4 / (0.75 * 0.8)) ** 0.5)
    assert maps[0, 2, 3] == 1
    assert np.count_nonzero(maps) == 4


@pytest.mark.parametrize(
    ("mode", "size", "corner"),
    [
        ("squash", (60, 40), (0, 0)),
        ("shortest", (40, 40), (10, 0)),
        ("longest", (60, 60), (0, -10)),
    ],
)
def test_maps_are_laid_over_what_the_backbone_saw(
    mode: str, size: tuple[int, int], corner: tuple[int, int]
) -> None:
    columns = np.arange(60, dtype=np.uint8) + np.zeros((40, 1), dtype=np.uint8)
    rows = np.arange(40, dtype=np.uint8)[:, None] + np.zeros((1, 60), dtype=np.uint8)
    image = Image.fromarray(np.stack([columns, rows, columns], axis=-1))
    seen = seen_part(image, mode)
    assert seen.size == size
    inside = (max(0, -corner[0]) + 3, max(0, -corner[1]) + 3)
    red, green, _ = seen.getpixel(inside)  # type: ignore[misc]
    assert (red, green) == (inside[0] + corner[0], inside[1] + corner[1])


@pytest.mark.slow
def test_maps_of_a_method_without_conditions_are_refused(
    fedmpt: Invoke,
    small_run: Callable[..., dict[str, Any]],
    photos: list[Path],
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    small_run(run, method__name="coop", privacy__enabled=False, train__rounds=1)
    done = fedmpt("predict", run, *photos, "--maps", tmp_path / "maps")
    assert done.exit_code == 2
    assert "FedMPT" in done.output
    record = json.loads(fedmpt("predict", run, *photos, "--json").stdout)
    assert record["conditions"] == []
    assert "gate" not in record["images"][0]


def test_a_run_without_tuned_values_predicts_as_the_frozen_clip(
    small_run: Callable[..., dict[str, Any]], photos: list[Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    small_run(run, method__name="zero-shot")
    model = load_tuned(run)
    assert model.parameters == {}
    assert _scores(model, photos).shape == (5, 20)


def test_a_folder_without_a_model_is_refused_with_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fedmpt export --out"):
        load_tuned(tmp_path)
    (tmp_path / "config.toml").touch()
    with pytest.raises(UsageError, match="did not end"):
        load_tuned(tmp_path)


def test_classes_are_read_with_blanks_and_underscores_made_plain() -> None:
    assert read_classes(" traffic_light,  stop   sign ,") == ("traffic light", "stop sign")


@pytest.mark.slow
def test_predicting_imports_nothing_that_trains_protects_or_accounts(
    private_run: Path, photos: list[Path], shared_cache: Path
) -> None:
    code = (
        "import sys; from fedmpt.cli import cli\n"
        f"cli.main(['predict', {str(private_run)!r}, {str(photos[0])!r}], standalone_mode=False)\n"
        "parts = ('fedmpt.engine', 'fedmpt.learner', 'fedmpt.protect', 'fedmpt.strategy', 'privacy', 'secagg',"
        " 'opacus', 'dp_accounting', 'sklearn')\n"
        "bad = [m for m in sys.modules if any(m == p or m.startswith(p + '.') for p in parts)]\n"
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FEDMPT_CACHE": str(shared_cache)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert photos[0].name in done.stdout
