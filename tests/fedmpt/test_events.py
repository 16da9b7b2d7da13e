"""docs/events.md against what is written and told, and versions that are not known against the readers."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fedmpt.audit.records import read_run
from fedmpt.engine.checkpoint import read_checkpoint
from fedmpt.engine.listener import Listener, Preview, RoundRecord, Several
from fedmpt.errors import UsageError
from fedmpt.metrics import Metrics
from fedmpt.runstore import ROUND_SCHEMA

PAGE = (Path(__file__).parents[2] / "docs" / "events.md").read_text(encoding="utf-8")
JSON_TYPES: dict[str, Callable[[Any], bool]] = {
    "string": lambda v: isinstance(v, str),
    "integer": lambda v: type(v) is int,
    "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "object": lambda v: isinstance(v, dict),
    "null": lambda v: v is None,
}


def documented(heading: str) -> dict[str, tuple[str, str]]:
    """Return the fields of a section's table: name -> (type, unit)."""
    section = re.split(r"^#{2,3} ", PAGE.partition(f"# {heading}\n")[2], maxsplit=1, flags=re.M)[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.*?) ?\| .+ \|$", section, flags=re.M)
    return {name: (kind.strip("`").replace("\\|", "|"), unit) for name, kind, unit in rows}


def fits(value: object, kind: str) -> bool:
    if value is None and kind.endswith(" or null"):
        return True
    outer, _, inner = kind.partition(" of ")
    if outer == "array":
        return isinstance(value, list) and all(fits(v, inner) for v in value)
    if inner:
        return isinstance(value, dict) and all(fits(v, inner) for v in value.values())
    return any(JSON_TYPES[one](value) for one in kind.split(" or "))


def test_the_line_of_a_round_has_the_fields_and_types_of_the_page(
    sample_record: RoundRecord,
) -> None:
    table = documented("Lines of `metrics.jsonl`")
    frozen = RoundRecord(round=0, rounds=4, metrics=sample_record.metrics)
    for record in (sample_record, frozen):
        line = json.loads(json.dumps(record.as_dict()))
        assert list(line) == list(table)
        assert [name for name, value in line.items() if not fits(value, table[name][0])] == []
    taken = [field.name for field in fields(Metrics)]
    blind = replace(sample_record, metrics=None).as_dict()
    assert list(blind) == [name for name in table if name not in taken]
    assert sample_record.as_dict()["schema"] == ROUND_SCHEMA
    assert f"`{ROUND_SCHEMA}`" in PAGE


def test_the_check_of_types_finds_a_wrong_one() -> None:
    assert not fits(1.5, "integer")
    assert not fits(["a"], "array of number or null")
    assert not fits({"train": "long"}, "object of number")
    assert fits([1, None, 2.5], "array of number or null")


@pytest.mark.parametrize("event", [Preview, RoundRecord])
def test_what_a_listener_hears_has_the_fields_and_types_of_the_page(event: type) -> None:
    table = documented(f"`{event.__name__}`")
    assert {one.name: one.type for one in fields(event)} == {
        n: kind for n, (kind, _) in table.items()
    }


def test_every_method_of_a_listener_is_on_the_page() -> None:
    methods = {name for name in vars(Several) if not name.startswith("_")}
    assert methods == {"progress", "preview", "round_done", "warning"}
    assert all(hasattr(Listener, name) and f"| `{name}(" in PAGE for name in methods)


def test_several_listeners_hear_the_same(sample_record: RoundRecord) -> None:
    class Ear:
        def __init__(self) -> None:
            self.heard: list[object] = []

        def progress(self, label: str, done: int, total: int) -> None:
            self.heard.append((label, done, total))

        def preview(self, preview: Preview) -> None:
            self.heard.append(preview)

        def round_done(self, record: RoundRecord) -> None:
            self.heard.append(record)

        def warning(self, text: str) -> None:
            self.heard.append(text)

    ears = Ear(), Ear()
    both = Several(*ears)
    both.progress("images", 1, 2)
    both.round_done(sample_record)
    both.warning("late")
    assert ears[0].heard == ears[1].heard == [("images", 1, 2), sample_record, "late"]


@pytest.fixture
def copy(private_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be changed."""
    return Path(shutil.copytree(private_run, tmp_path / "run"))


def _change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("name", ["summary.json", "ledger.json"])
def test_a_file_of_an_unknown_version_is_refused_with_both_versions(copy: Path, name: str) -> None:
    known = json.loads((copy / name).read_text())["schema"]
    _change(copy / name, schema="fedmpt.other/7")
    with pytest.raises(UsageError, match=rf"{name}: is of schema fedmpt.other/7, .*reads {known}"):
        read_run(copy, None)


def test_a_line_of_an_unknown_version_is_refused_and_one_from_before_versions_is_the_first(
    copy: Path, sample_record: RoundRecord
) -> None:
    path = copy / "metrics.jsonl"
    first, *others = path.read_text().splitlines()
    old = {name: value for name, value in json.loads(first).items() if name != "schema"}
    path.write_text("\n".join([json.dumps(old), *others]) + "\n")
    assert read_run(copy, None).metrics[0] == old
    line = replace(sample_record, round=9).as_dict() | {"schema": "fedmpt.round/2"}
    path.write_text("\n".join([first, json.dumps(line)]) + "\n")
    with pytest.raises(UsageError, match=r"line 2: is of schema fedmpt.round/2, .*fedmpt.round/1"):
        read_run(copy, None)


def test_a_checkpoint_of_an_unknown_version_is_refused(copy: Path) -> None:
    path = copy / "state.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert read_checkpoint(copy).progress.round == 2
    save_file(load_file(path), path, metadata=metadata | {"schema": "fedmpt.state/2"})
    with pytest.raises(UsageError, match=r"fedmpt.state/2, .*reads fedmpt.state/1"):
        read_checkpoint(copy)
