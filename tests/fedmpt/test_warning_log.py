"""Warnings are kept with the run and shown by its report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fedmpt.engine import sites
from fedmpt.engine.warning_log import WarningLog
from fedmpt.errors import StorageError, UsageError
from fedmpt.report.source import read_source
from fedmpt.report.write import Choices, write_report
from fedmpt.runstore import RunStore
from tests.fedmpt.conftest import SmallRun
from tests.fedmpt.test_report import Page, Silence

HOSTILE = "</li><script>alert(1)</script>"


@pytest.fixture(scope="module")
def warned_run(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two rounds in whose second client 2 failed."""
    train = sites.Site._train

    def fail(self: sites.Site, *arguments: Any, **options: Any) -> Any:
        if self.client == 2 and arguments[0].round == 1:  # rounds done
            raise RuntimeError(f"broken image {HOSTILE}")
        return train(self, *arguments, **options)

    folder = tmp_path_factory.mktemp("warned") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sites.Site, "_train", fail)
        small_run(folder, privacy__enabled=False, clients__count=5, train__rounds=2)
    return folder


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "warnings.jsonl").read_text().splitlines()]


def test_a_warning_is_kept_with_the_rounds_that_were_done(warned_run: Path) -> None:
    (line,) = lines(warned_run)
    assert line["schema"] == "fedmpt.warning/1"
    assert line["round"] == 1
    assert "client 2 is left out of round 2" in line["text"]


def test_a_run_without_warnings_has_no_such_file(small_run: SmallRun, tmp_path: Path) -> None:
    small_run(tmp_path / "run", privacy__enabled=False, train__rounds=1)
    assert not (tmp_path / "run" / "warnings.jsonl").exists()
    assert read_source(tmp_path / "run").warnings == ()


def test_the_report_lists_warnings_as_texts(warned_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(warned_run, tmp_path / "run")
    with (folder / "warnings.jsonl").open("a") as file:
        file.write('{"schema": "fedmpt.warn')  # torn by a crash
    written = write_report(folder, Choices(images=False), progress=Silence())
    page = Page(written.read_text())
    assert "1 warning(s) while it ran" in page.text
    assert "after round 1: client 2 is left out of round 2" in page.text
    assert HOSTILE in page.text
    assert page.tags["script"] == 0


def test_warnings_of_another_version_are_refused(warned_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(warned_run, tmp_path / "run")
    (folder / "warnings.jsonl").write_text('{"schema": "fedmpt.warning/2"}\n')
    with pytest.raises(UsageError, match=r"warnings.jsonl, line 1: is of schema fedmpt.warning/2"):
        read_source(folder)


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b"7",
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"schema": "fedmpt.warning/1", "round": "x", "text": "left"}',
        b'{"schema": "fedmpt.warning/1", "round": 1}',
        b'{"schema": "fedmpt.warning/1", "round": 1, "text": ["left"]}',
    ],
)
def test_a_damaged_warning_is_refused_with_its_line_and_a_remedy(
    warned_run: Path, tmp_path: Path, line: bytes
) -> None:
    folder = shutil.copytree(warned_run, tmp_path / "run")
    path = folder / "warnings.jsonl"
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(UsageError, match=r"run/warnings\.jsonl, line 2 is not as .* move it away"):
        read_source(folder)
    path.unlink()
    assert read_source(folder).warnings == ()


def test_a_torn_warning_is_left_out_wherever_it_is_torn(warned_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(warned_run, tmp_path / "run")
    path = folder / "warnings.jsonl"
    whole, told = path.read_bytes(), read_source(folder).warnings
    for torn in (b'{"schema"', whole.rstrip(b"\n"), b"\xff\x00"):
        path.write_bytes(whole + torn)
        assert read_source(folder).warnings == told


def test_a_torn_warning_does_not_spoil_the_next_one(tmp_path: Path) -> None:
    with RunStore(tmp_path / "run") as store:
        log = WarningLog(store, done=1)
        log.warning("the first")
        with (store.folder / "warnings.jsonl").open("a") as file:
            file.write('{"schema": "fedmpt.warn')
        log.warning("the second")
    assert [line["text"] for line in lines(tmp_path / "run")] == ["the first", "the second"]


def test_warnings_that_cannot_be_read_are_told_by_their_path(
    warned_run: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(warned_run, tmp_path / "run")
    (folder / "warnings.jsonl").unlink()
    (folder / "warnings.jsonl").mkdir()
    with pytest.raises(UsageError, match=r"warnings\.jsonl: cannot be read"):
        read_source(folder)


def test_a_warning_that_cannot_be_kept_ends_no_run(tmp_path: Path) -> None:
    with RunStore(tmp_path / "run") as store:
        log = WarningLog(store, done=3)
        (store.folder / "warnings.jsonl").mkdir()  # stands for a disk that takes nothing more
        with pytest.raises(StorageError):
            store.append_warning({})
        log.warning("the disk is full")
