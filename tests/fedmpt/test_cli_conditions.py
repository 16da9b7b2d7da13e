"""``fedmpt conditions`` as a user meets it: what it sends, prints and keeps, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from fedmpt.conditions.files import read_conditions
from fedmpt.data.class_list import known_classes
from fedmpt.data.layout import prompt_name
from fedmpt.data.scenes import CLASSES
from fedmpt.methods.fedmvp import descriptions
from tests.fedmpt.conftest import Invoke
from tests.fedmpt.test_conditions_endpoint import KEY, Step, completion, serve

WORDS = completion('["Shape", "pose", "color", "place"]')


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and no endpoint in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_MODEL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("voc2007", "background, position, shape, action"),
        ("mlrsnet", "size, color, shape, texture"),
        ("table", "background, position, shape, action"),
    ],
)
def test_without_a_model_the_papers_list_is_shown(
    fedmpt: Invoke, at_home: Path, data: str, words: str
) -> None:
    assert fedmpt("conditions", "--data", data).stdout == f"{words}\n"
    told = json.loads(fedmpt("conditions", "--data", data, "--json").stdout)
    assert told["conditions"] == words.split(", ")
    assert not list(at_home.iterdir())


def test_an_endpoint_is_asked_and_train_takes_the_result(
    fedmpt: Invoke, at_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(Step(body=completion("described")), Step(body=WORDS)) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        done = fedmpt("conditions", "--data", "scenes", "--endpoint", "--model", "m", "--calls", 1)
    assert done.exit_code == 0, done.output
    assert done.stdout == "shape (1/1), pose (1/1), color (1/1), place (1/1)\n"
    assert KEY not in done.output
    assert KEY not in (at_home / "conditions.json").read_text()
    assert str(server.url) not in (at_home / "conditions.json").read_text()
    asked = [message["content"] for _, _, body in server.requests for message in body["messages"]]
    assert all(name in asked[0] for name in CLASSES)
    settings = fedmpt(
        *("train", "--conditions", "conditions.json", "--set", "train.rounds=0", "--out", "run")
    )
    assert settings.exit_code == 2  # the rounds are refused, the conditions are not
    assert "rounds" in str(settings.exception)


def test_train_refuses_a_file_without_conditions(fedmpt: Invoke, at_home: Path) -> None:
    (at_home / "words.json").write_text('{"cat": ["paws"]}')
    done = fedmpt("train", "--conditions", "words.json", "--out", "run")
    assert done.exit_code == 2
    assert "holds no conditions" in str(done.exception)


def test_a_wrong_key_ends_the_command_with_2_and_leaves_no_file(
    fedmpt: Invoke, at_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = json.dumps({"error": {"message": f"wrong key {KEY}"}}).encode()
    with serve(Step(status=401, body=refusal)) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        done = fedmpt("conditions", "--classes", "cat,dog", "--endpoint", "--model", "m")
    assert done.exit_code == 2
    assert "check OPENAI_API_KEY" in str(done.exception)
    assert KEY not in done.output + str(done.exception)
    assert not list(at_home.iterdir())


def test_too_few_answers_end_the_command_with_1_and_are_kept_to_be_read_again(
    fedmpt: Invoke, at_home: Path
) -> None:
    answers = at_home / "answers"
    answers.mkdir()
    for prompt, text in ((1, "described"), (2, '["shape"]')):
        (answers / f"call-1-prompt-{prompt}.txt").write_text(text)
    done = fedmpt("conditions", "--classes", "cat,dog", "--answers", answers, "--count", 1)
    assert done.exit_code == 1
    assert "1 used, 0 partly, 0 malformed, 4 failed" in done.stderr
    assert "no file call-5-prompt-1.txt" in done.stderr
    again = fedmpt("conditions", "--again", "conditions.json", "--json")
    assert again.exit_code == 1
    assert json.loads(again.stdout) == json.loads((at_home / "conditions.json").read_text())
    over = fedmpt("conditions", "--classes", "cat,dog", "--answers", answers)
    assert over.exit_code == 2
    assert "never overwritten" in over.stderr


def test_descriptors_reach_fedmvp_class_by_class(fedmpt: Invoke, at_home: Path) -> None:
    answers = at_home / "answers"
    answers.mkdir()
    text = '{"cat": ["whiskers", "four paws"], "dog": ["a tail", "a wet nose"]}'
    (answers / "call-1-prompt-1.txt").write_text(text)
    done = fedmpt(
        *("conditions", "--classes", "cat,dog", "--descriptors", "--answers", answers),
        *("--calls", 1, "--count", 2, "--plain"),
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == json.loads(text)
    again = fedmpt("conditions", "--again", "descriptors.json", "--plain")
    assert again.stdout == done.stdout
    (at_home / "plain.json").write_text(done.stdout)
    dog, cat = descriptions(("dog", "cat"), str(at_home / "plain.json"))
    assert all(
        word in sentence for word, sentence in zip(["a tail", "a wet nose"], dog, strict=True)
    )
    assert all(
        word in sentence for word, sentence in zip(["whiskers", "four paws"], cat, strict=True)
    )


def test_plain_conditions_are_a_list_that_train_reads(fedmpt: Invoke, at_home: Path) -> None:
    code = "import sys; print('- shape' if 'Given these' in sys.stdin.read() else 'described')"
    line = f'{sys.executable} -c "{code}"'
    done = fedmpt(
        *("conditions", "--classes", "cat,dog", "--command", line),
        *("--calls", 1, "--count", 1, "--plain"),
    )
    (at_home / "plain.json").write_text(done.stdout)
    assert read_conditions(at_home / "plain.json") == ("shape",)


def test_all_that_would_be_asked_is_shown_without_asking(fedmpt: Invoke, at_home: Path) -> None:
    done = fedmpt("conditions", "--classes", "cat,dog", "--show-prompts")
    assert "call-1 to call-5-prompt-2.txt" in done.stdout
    assert "Categories: cat, dog." in done.stdout
    told = json.loads(
        fedmpt("conditions", "--classes", "cat,dog", "--show-prompts", "--json").stdout
    )
    assert len(told["prompts"]) == 2
    assert not list(at_home.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "one of them"),
        (("--data", "voc2007", "--classes", "cat"), "one of them"),
        (("--data", "vok"), "no such data set"),
        (("--classes", "cat"), "nobody is asked"),
        (("--data", "voc2007", "--descriptors"), "nobody is asked"),
        (("--classes", "cat", "--endpoint", "--command", "x"), "exclude each other"),
        (("--classes", "cat", "--command", "x", "--model", "m"), "of an --endpoint"),
        (("--classes", "cat", "--endpoint", "--model", "m"), "OPENAI_BASE_URL is not set"),
        (("--again", "none.json"), "none.json"),
        (("--again", "none.json", "--classes", "cat"), "leave"),
        (("--classes", "cat", "--command", "x", "--out", "none/x.json"), "make it first"),
        (("--data", "voc2007", "--out", "x.json"), "needs no file"),
        (("--data", "table", "--command", "x"), "--data-root"),
    ],
)
def test_what_cannot_be_used_is_refused_with_2_and_a_remedy(
    fedmpt: Invoke, at_home: Path, arguments: tuple[str, ...], message: str
) -> None:
    del at_home
    done = fedmpt("conditions", *arguments)
    assert done.exit_code == 2
    assert message in done.output + str(done.exception)


def test_the_help_says_what_is_sent(fedmpt: Invoke) -> None:
    told = " ".join(fedmpt("conditions", "--help").stdout.split())
    assert "Nothing private is sent: class names are all that enters a prompt" in told


@pytest.mark.parametrize(
    ("data", "count"),
    [
        ("scenes", 20),
        ("voc2007", 20),
        ("coco2014", 80),
        ("nuswide", 81),
        ("multiscene", 36),
        ("mlrsnet", 60),
    ],
)
def test_known_classes_are_as_many_as_published_and_fit_a_prompt(data: str, count: int) -> None:
    names = known_classes(data)
    assert names is not None
    assert len(set(names)) == count
    assert all(name == prompt_name(name).lower() for name in names)
