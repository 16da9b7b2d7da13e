"""The report of a run: it says what the files say, needs nothing beside it, and trusts no text."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from fedmpt.audit.run import audit_run
from fedmpt.cli import cli
from fedmpt.cli.console import Console
from fedmpt.config import load_config
from fedmpt.engine.prepare import prepare
from fedmpt.errors import UsageError
from fedmpt.inference.maps import class_maps
from fedmpt.learner import predict
from fedmpt.report import source as source_module
from fedmpt.report.examples import ConditionMap, Example, read_examples
from fedmpt.report.pictures import pictures
from fedmpt.report.source import read_source
from fedmpt.report.write import Choices, write_report
from privacy import display_epsilon

SmallRun = Callable[..., dict[str, Any]]
FIGURES_ONLY = Choices(images=False)
HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</style><b>&amp;")


class Silence:
    """Progress that nobody hears."""

    def progress(self, label: str, done: int, total: int) -> None:
        del label, done, total


class Page(HTMLParser):
    """What a parser of its own finds in a report."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.names: Counter[str] = Counter()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.text = ""
        self._inside: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        if tag not in ("img", "meta"):  # without an end tag
            self._inside.append(tag)
        for name, value in attrs:
            self.attributes.add(name)
            if name == "id":
                self.names[value or ""] += 1
            if name in ("href", "src", "srcset", "action", "xlink:href", "data", "poster"):
                self.links.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self._inside.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self._inside[-1:] != ["style"]:
            self.text += data

    @property
    def fetched(self) -> list[str]:
        """Whatever a browser would look for outside the file."""
        return [link for link in self.links if not link.startswith(("#", "data:image/"))]


@pytest.fixture(scope="module")
def private_run(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reported") / "private"
    small_run(folder)
    write_report(folder, Choices(), progress=Silence())
    return folder


@pytest.fixture(scope="module")
def open_run(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reported") / "open"
    small_run(folder, privacy__enabled=False, secagg__mode="none", method__name="coop")
    write_report(folder, Choices(), progress=Silence())
    return folder


@pytest.fixture
def folder(private_run: Path, tmp_path: Path) -> Path:
    """A copy of a private run, to be changed."""
    return Path(shutil.copytree(private_run, tmp_path / "run"))


def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text())


def summary(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return loaded


def test_the_headline_is_the_summary_and_epsilon_is_rounded_up(private_run: Path) -> None:
    text, result = page(private_run).text, summary(private_run)
    for name in ("mAP", "CF1", "OF1"):
        assert f"{result['final'][name]:.1f}" in text
        assert f"zero-shot {result['zero_shot'][name]:.1f}" in text
    spent = max(client["epsilon"] for client in result["privacy"]["clients"])
    assert f"{display_epsilon(spent)} of 8" in text
    for line in (private_run / "metrics.jsonl").read_text().splitlines()[1:]:
        assert display_epsilon(json.loads(line)["epsilon_max"], 3) in text
    assert "any one training image" in text
    assert result["secagg"]["statement"] in text


def test_the_headline_tells_the_delta_of_the_claim_with_what_integer_noise_takes(
    small_run: SmallRun, tmp_path: Path
) -> None:
    options = {"privacy__arithmetic": "integer", "privacy__epsilon": 1.0, "privacy__delta": 1e-5}
    small_run(tmp_path / "run", **options, train__rounds=1)
    (account, *_) = read_source(tmp_path / "run").audit.accounts
    assert account.delta < 0.995e-5  # or this shows nothing
    write_report(tmp_path / "run", FIGURES_ONLY, progress=Silence())
    text = page(tmp_path / "run").text
    assert "at delta 1e-05" in text
    assert "but for a chance of 1e-05" in text
    assert f"{account.delta:g}" not in text


def test_every_section_is_there_and_every_link_inside_leads_somewhere(private_run: Path) -> None:
    found = page(private_run)
    anchors = {link[1:] for link in found.links if link.startswith("#")}
    assert {"curves", "classes", "privacy", "parties", "costs", "audit", "config"} <= anchors
    assert anchors <= set(found.names)
    assert set(found.names.values()) == {1}


@pytest.mark.parametrize("run", ["private_run", "open_run"])
def test_nothing_is_fetched_and_nothing_runs(run: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(run)
    text = (folder / "report.html").read_text()
    found = page(folder)
    assert found.links
    assert not found.fetched
    assert "://" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert not found.tags.keys() & {"script", "iframe", "object", "embed", "link", "base", "form"}
    assert not {name for name in found.attributes if name.startswith("on")}
    assert "default-src 'none'" in unescape(text)
    assert len(text.encode()) < 1_000_000


def test_the_check_for_fetched_things_finds_them() -> None:
    assert Page('<img src="x.png"><a href="//host">a</a>').fetched == ["x.png", "//host"]


def test_every_class_and_client_has_its_bar_and_its_figures(private_run: Path) -> None:
    text, result = page(private_run).text, summary(private_run)
    before = json.loads((private_run / "metrics.jsonl").read_text().splitlines()[0])["AP"]
    for (name, after), frozen in zip(result["final_AP"].items(), before, strict=True):
        assert f"{name}: {after:.1f} | {frozen:.1f}" in text
    for client in result["privacy"]["clients"]:
        assert f"client {client['client']}: {display_epsilon(client['epsilon'])} of 8" in text


def test_bytes_by_stage_add_up_to_what_clients_sent(private_run: Path) -> None:
    text, result = page(private_run).text, summary(private_run)
    assert f"{result['secagg']['bytes_up_per_client_round']:,.0f}" in text
    for stage in ("advertise", "share", "upload", "confirm", "reveal"):
        assert stage in text
    assert "The public logs of 2 round(s) verify" in text


def test_a_run_without_privacy_says_so_loudly_and_has_no_budget(open_run: Path) -> None:
    text = page(open_run).text
    assert "NO DIFFERENTIAL PRIVACY" in text
    assert "NO SECURE AGGREGATION" in text
    assert "there is no budget" in text
    assert "every client's update" in text
    assert "Epsilon spent" not in text


def test_a_private_run_carries_no_warning(private_run: Path) -> None:
    text = page(private_run).text
    assert "NO DIFFERENTIAL PRIVACY" not in text
    assert "BROKEN PROMISE" not in text
    assert "No findings" in text


def test_a_method_that_tunes_nothing_spent_nothing_and_breaks_no_promise(
    small_run: SmallRun, tmp_path: Path
) -> None:
    small_run(tmp_path / "run", method__name="zero-shot")
    write_report(tmp_path / "run", Choices(), progress=Silence())
    text = page(tmp_path / "run").text
    assert "nothing was spent" in text
    assert "BROKEN PROMISE" not in text


def test_findings_of_the_audit_are_told_first_and_in_full(folder: Path) -> None:
    ledger = folder / "ledger" / "client-001.jsonl"
    ledger.write_text(ledger.read_text().replace('"round":1', '"round":7', 1))
    findings = audit_run(folder).findings
    assert findings
    write_report(folder, FIGURES_ONLY, progress=Silence())
    text = page(folder).text
    assert "BROKEN PROMISE" in text
    assert all(finding.kind in text and finding.what in text for finding in findings)


def test_a_public_log_that_does_not_verify_is_told(folder: Path) -> None:
    log = folder / "transcripts" / "round-0001.bin"
    log.write_bytes(log.read_bytes()[:-1])
    write_report(folder, FIGURES_ONLY, progress=Silence())
    assert "do not verify" in page(folder).text


def test_hostile_names_are_shown_and_add_no_element(folder: Path) -> None:
    write_report(folder, FIGURES_ONLY, progress=Silence())
    benign = page(folder)
    changed = summary(folder)
    names = [*HOSTILE, *list(changed["final_AP"])[len(HOSTILE) :]]
    changed["final_AP"] = dict(zip(names, changed["final_AP"].values(), strict=True))
    changed["data"] = changed["method"] = changed["backbone"] = HOSTILE[0]
    (folder / "summary.json").write_text(json.dumps(changed))
    (folder / HOSTILE[0].replace("/", "_")).touch()  # a file's name, in the manifest
    config = folder / "config.toml"
    config.write_text(config.read_text() + f"# {HOSTILE[2]}\n")
    write_report(folder, FIGURES_ONLY, progress=Silence())
    hostile = page(folder)
    assert all(name in hostile.text for name in HOSTILE)
    expected = benign.tags + Counter({"tr": 1, "th": 1, "td": 2, "li": 1})  # of the new file
    assert hostile.tags == expected
    assert hostile.attributes == benign.attributes


def _example(*, label: str, condition: str) -> Example:
    return Example(
        index=0,
        picture=Image.new("RGB", (8, 8)),
        present=frozenset({label}),
        scores=((label, 0.75), ("cat", 0.25)),
        maps=(
            ConditionMap(
                condition=condition,
                gate=1.0,
                score=0.5,
                evidence=np.ones((2, 2), np.float32),
            ),
        ),
    )


def test_hostile_labels_and_conditions_of_examples_add_no_element() -> None:
    benign = pictures([_example(label="dog", condition="shape")], data="voc", threshold=0.5)
    example = _example(label=HOSTILE[0], condition=HOSTILE[1])
    hostile = pictures([example], data=HOSTILE[2], threshold=0.5)
    assert Page(hostile).tags == Page(benign).tags
    assert Page(hostile).attributes == Page(benign).attributes
    assert all(name in Page(hostile).text for name in HOSTILE)
    assert "with --no-images" in Page(hostile).text  # not the embedded data set
    assert "no photograph" in Page(pictures([], data="scenes", threshold=0.5)).text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"secagg__mode": "ckks"},
            ["Key: sequence 1, ckks key set-up", "which two of them decrypt"],
        ),
        ({"method__name": "fedpgp"}, ["without the blocks that are each client's own"]),
        ({"method__name": "maple"}, ["maple on scenes"]),
    ],
    ids=["ckks", "own-blocks", "pixels"],
)
@pytest.mark.slow
def test_other_modes_and_kinds_of_methods_have_a_report(
    small_run: SmallRun,
    deep_checkpoint: Path,
    tmp_path: Path,
    options: dict[str, str],
    words: list[str],
) -> None:
    small_run(
        tmp_path / "run",
        privacy__enabled=False,
        backbone__name=f"local-dir:{deep_checkpoint}",
        **options,
    )
    write_report(tmp_path / "run", Choices(), progress=Silence())
    found = page(tmp_path / "run")
    assert all(word in found.text for word in words)
    assert "BROKEN PROMISE" not in found.text
    assert summary(tmp_path / "run")["secagg"]["statement"] in found.text
    assert not found.fetched


def test_examples_are_the_first_test_images_with_the_scores_of_the_evaluation(
    private_run: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDMPT_CACHE", str(shared_cache))
    examples = read_examples(private_run, progress=Silence())
    federation = prepare(load_config(file=private_run / "config.toml"), progress=Silence())
    from safetensors.torch import load_file

    tuned = load_file(private_run / "model.safetensors")
    scores = predict(federation.method, tuned, federation.test_bank)
    frozen = predict(federation.method, federation.initial, federation.test_bank)
    assert len(examples) == 6
    for example in examples:
        named = dict(example.scores)
        shown = np.array([named[name] for name in federation.dataset.classes])
        assert np.abs(shown - scores[example.index]).max() < 2e-3  # the bank holds halves
        labels = federation.test_labels[example.index]
        present = {n for n, v in zip(federation.dataset.classes, labels, strict=True) if v == 1}
        assert example.present == present
        assert [score for _, score in example.scores] == sorted(named.values(), reverse=True)
    assert np.abs(scores[:6] - frozen[:6]).max() > 2e-3  # another model would be noticed


def test_the_maps_of_an_example_are_its_conditions_predictions_patch_by_patch(
    private_run: Path,
) -> None:
    for example in read_examples(private_run, progress=Silence()):
        gates = [one.gate for one in example.maps]
        assert [one.condition for one in example.maps] == [
            *("background", "position", "shape", "action")
        ]
        assert sum(gates) == pytest.approx(1, abs=1e-5)
        for one in example.maps:
            assert one.evidence.shape == (4, 4)
            assert one.evidence.min() >= 0
            assert one.evidence.sum() == pytest.approx(one.score, abs=1e-5)
        mixed = sum(one.gate * one.score for one in example.maps)
        odds = mixed / (1 - mixed) * 18 / 2  # the head: 0.5 at twice the share of chance, C = 20
        assert odds / (1 + odds) == pytest.approx(example.scores[0][1], abs=1e-3)


def test_the_maps_of_a_page_are_scaled_as_those_of_predict(private_run: Path) -> None:
    """Decoded from the page: the mixture first, then the conditions on one scale."""
    (example, *_) = read_examples(private_run, progress=Silence())
    text = pictures([example], data="scenes", threshold=0.5)
    shades = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(code))))[..., 3]
        for code in re.findall(r'href="data:image/png;base64,([^"]+)"[^>]*class="map"', text)
    ]
    evidence = np.stack([one.evidence.reshape(-1) for one in example.maps])
    gate = np.array([one.gate for one in example.maps], np.float32)
    expected = class_maps(evidence, gate, (4, 4))
    assert len(shades) == len(expected) == 1 + len(example.maps)
    for shade, strength in zip(shades, expected, strict=True):
        np.testing.assert_allclose(shade, 255 * 0.8 * (1 - strength), atol=1)


def test_a_report_without_images_shows_none_and_reads_neither_data_nor_model(folder: Path) -> None:
    assert "data:image" in (folder / "report.html").read_text()
    (folder / "model.safetensors").unlink()
    write_report(folder, FIGURES_ONLY, progress=Silence())
    assert "data:image" not in (folder / "report.html").read_text()
    assert "Left out (--no-images)" in page(folder).text


@pytest.mark.parametrize(
    "name", ["config.toml", "metrics.jsonl", "summary.json", "model.safetensors"]
)
def test_a_missing_file_is_named_and_the_earlier_report_stays(folder: Path, name: str) -> None:
    before = (folder / "report.html").read_bytes()
    (folder / name).unlink()
    with pytest.raises(UsageError, match=name):
        write_report(folder, Choices(), progress=Silence())
    assert (folder / "report.html").read_bytes() == before


def test_a_model_of_another_method_is_refused_with_a_way_out(folder: Path, open_run: Path) -> None:
    shutil.copy(open_run / "model.safetensors", folder)
    with pytest.raises(UsageError, match=r"model\.safetensors.*--no-images"):
        write_report(folder, Choices(), progress=Silence())


def test_a_summary_of_another_version_is_refused_by_what_it_lacks(folder: Path) -> None:
    changed = summary(folder)
    del changed["secagg"]["statement"]
    (folder / "summary.json").write_text(json.dumps(changed))
    with pytest.raises(UsageError, match=r"summary\.json.*secagg\.statement"):
        read_source(folder)


def test_files_of_different_runs_are_refused(folder: Path) -> None:
    changed = summary(folder)
    changed["final_AP"].popitem()
    (folder / "summary.json").write_text(json.dumps(changed))
    with pytest.raises(UsageError, match="one run"):
        read_source(folder)


WRONG = (None, "text", ["text"], {"text": 1}, -1)


def _changed(value: Any, depth: int = 2) -> Iterator[Any]:
    """Yield an object with one field gone or wrong, in every place down to a depth."""
    for name in value:
        rest = {key: kept for key, kept in value.items() if key != name}
        yield rest
        yield from (rest | {name: wrong} for wrong in WRONG)
        if depth > 1 and isinstance(value[name], dict):
            yield from (rest | {name: inner} for inner in _changed(value[name], depth - 1))


WARNING = {"schema": "fedmpt.warning/1", "round": 1, "text": "a client left"}


@pytest.mark.parametrize(
    ("place", "least"), [("summary", 31), ("first", 31), ("last", 31), ("warning", 17)]
)
def test_no_value_of_a_file_brings_a_report_down(
    folder: Path, monkeypatch: pytest.MonkeyPatch, place: str, least: int
) -> None:
    """It is written all the same, or refused as something a user can mend."""
    told = read_source(folder)
    monkeypatch.setattr(source_module, "audit_run", lambda *_, **__: told.audit)
    monkeypatch.setattr(source_module, "_verified_logs", lambda *_, **__: (told.logs, ""))
    names = {"summary": "summary.json", "warning": "warnings.jsonl"}
    path = folder / names.get(place, "metrics.jsonl")
    whole = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    whole = {"summary": [told.summary], "warning": [WARNING]}.get(place, whole)
    at = 0 if place == "first" else len(whole) - 1
    refused = 0
    for false in _changed(whole[at]):
        lines = [*whole[:at], false, *whole[at + 1 :]]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        try:
            write_report(folder, FIGURES_ONLY, progress=Silence())
        except UsageError:
            refused += 1
    assert refused >= least


def test_a_report_is_the_same_each_time_and_the_audit_knows_it(folder: Path) -> None:
    first = write_report(folder, Choices(), progress=Silence()).read_bytes()
    assert write_report(folder, Choices(), progress=Silence()).read_bytes() == first
    items = {item.name: item.kind for item in audit_run(folder).manifest.items}
    assert items["report.html"] == "stays"


def test_many_classes_are_drawn_in_part_and_listed_in_full(folder: Path) -> None:
    source = read_source(folder)
    from fedmpt.report.curves import by_class

    many: dict[str, float | None] = {f"class {i}": i / 2 for i in range(99)} | {"none": None}
    zero = [*source.metrics]
    zero[0] = zero[0] | {"AP": [1.0] * len(many)}
    drawn = by_class(replace(source, metrics=zero, summary=source.summary | {"final_AP": many}))
    found = Page(drawn)
    assert found.tags["rect"] <= 2 * 60 + 8
    assert all(name in found.text for name in many)
    assert "30 best and the 30 worst of 100" in found.text


def test_the_command_prints_where_the_report_lies(folder: Path) -> None:
    done = CliRunner().invoke(cli, ["report", str(folder), "--no-images"])
    assert done.output == f"{folder / 'report.html'}\n"


def test_a_folder_that_is_no_run_is_refused_by_the_command(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["report", str(tmp_path)])
    assert isinstance(done.exception, UsageError)
    assert str(tmp_path) in str(done.exception)
    assert "config.toml" in str(done.exception)


def test_training_ends_with_the_command_that_writes_the_report(
    private_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Console().show_result(summary(private_run))
    assert f"fedmpt report {summary(private_run)['folder']}" in capsys.readouterr().out


@pytest.mark.parametrize("lost", [-1.0, 0.4, 0.6])
def test_training_ends_with_a_word_where_the_frozen_model_is_the_better_one(
    private_run: Path, capsys: pytest.CaptureFixture[str], lost: float
) -> None:
    told = summary(private_run)
    told["final"]["mAP"] = told["zero_shot"]["mAP"] - lost
    Console().show_result(told)
    out = " ".join(capsys.readouterr().out.split())
    assert ("tuning did harm: 0.6 points of mAP below the frozen CLIP" in out) == (lost == 0.6)
    assert ("a larger --dp-epsilon" in out) == (lost == 0.6)
