"""Everything said is kept and counted; the result follows from the file alone, and a changed file is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fedmpt.conditions.command import Command, as_text
from fedmpt.conditions.files import read_conditions
from fedmpt.conditions.language_model import Message, NoAnswer, Reply
from fedmpt.conditions.pipeline import ask
from fedmpt.conditions.prompts import CONDITIONS
from fedmpt.conditions.published import CONDITIONS as PUBLISHED
from fedmpt.conditions.record import digest, read_record, to_json
from fedmpt.conditions.recorded import Recorded
from fedmpt.data.registry import NAMES
from fedmpt.errors import UsageError

CLASSES = ("cat", "dog", "bus")
SECRET = "sk-0123456789"  # noqa: S105 -- of nothing


@dataclass
class Scripted:
    """Answers every call's last prompt with the next text; None is no answer."""

    answers: list[str | None]
    source: str = "command"
    name: str = "scripted"
    heard: list[tuple[str, tuple[Message, ...]]] = field(default_factory=list)

    def answer(self, conversation: Sequence[Message], *, place: str) -> Reply:
        self.heard.append((place, tuple(conversation)))
        if place.endswith("prompt-1"):
            return Reply(text=f"described in {place}")
        text = self.answers.pop(0)
        if text is None:
            raise NoAnswer("HTTP 503, 5 times", attempts=5)
        return Reply(text=text)


FIVE: list[str | None] = [
    '["background", "shape", "action"]',
    "1. Shape\n2. Background",
    "No.",
    None,
    f'["shape", "{SECRET} {SECRET}", "texture"]',
]


def of_five() -> tuple[Scripted, bytes]:
    model = Scripted([*FIVE])
    return model, to_json(ask(model, "conditions", CLASSES, count=2, secret=SECRET))


def test_calls_are_independent_conversations_of_two_stages() -> None:
    model, _ = of_five()
    assert [place for place, _ in model.heard] == [
        f"call-{call}-prompt-{prompt}" for call in range(1, 6) for prompt in (1, 2)
    ]
    for place, talk in model.heard:
        if place.endswith("1"):
            assert [message.role for message in talk] == ["user"]
        else:
            assert [message.role for message in talk] == ["user", "assistant", "user"]
            assert talk[1].text == f"described in {place.replace('prompt-2', 'prompt-1')}"


def test_answers_that_cannot_be_used_are_counted_and_the_most_frequent_of_the_others_win(
    tmp_path: Path,
) -> None:
    file = tmp_path / "result.json"
    file.write_bytes(of_five()[1])
    result = read_record(file).result
    assert result.counts == {"used": 2, "partly": 1, "malformed": 1, "failed": 1}
    assert [outcome.status for outcome in result.outcomes] == [
        *("used", "used", "malformed", "failed", "partly")
    ]
    assert result.outcomes[3].refused == ("HTTP 503, 5 times",)
    assert result.chosen == {CONDITIONS: ("shape", "background")}
    assert [(v.text, v.calls) for v in result.votes[CONDITIONS]] == [
        *(("shape", 3), ("background", 2), ("texture", 1), ("action", 1))
    ]
    assert read_conditions(file) == ("shape", "background")


def test_an_answer_that_repeats_the_key_is_kept_without_it() -> None:
    _, data = of_five()
    assert SECRET.encode() not in data
    assert b"[key] [key]" in data


def test_the_same_answers_give_the_same_bytes() -> None:
    assert of_five()[1] == of_five()[1]


def test_digests_are_those_of_prompts_answers_and_the_whole() -> None:
    tree = json.loads(of_five()[1])
    stated = tree.pop("sha256")
    assert stated == digest(
        json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    )
    exchange = tree["conversations"][0]["exchanges"][1]
    assert exchange["answer"] == FIVE[0]
    assert exchange["answer_sha256"] == digest(FIVE[0] or "")
    assert exchange["prompt_sha256"] == digest(exchange["prompt"])


@pytest.mark.parametrize("key", ["chosen", "answer", "prompt", "classes", "sha256"])
def test_a_file_that_was_changed_is_refused(tmp_path: Path, key: str) -> None:
    tree = json.loads(of_five()[1])
    exchange = tree["conversations"][0]["exchanges"][1]
    match key:
        case "chosen":
            tree["result"]["chosen"][CONDITIONS] = ["shape", "action"]
        case "classes":
            tree["classes"][0] = "cow"
        case "sha256":
            tree["sha256"] = "0" * 64
        case _:
            exchange[key] += " "
    file = tmp_path / "result.json"
    file.write_text(json.dumps(tree))
    with pytest.raises(UsageError, match="so it was changed"):
        read_conditions(file)


def test_a_result_that_does_not_follow_from_its_answers_is_refused_even_with_fitting_digests(
    tmp_path: Path,
) -> None:
    tree = json.loads(of_five()[1])
    del tree["sha256"]
    tree["result"]["chosen"][CONDITIONS] = ["shape", "action"]
    tree["sha256"] = digest(
        json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    )
    file = tmp_path / "result.json"
    file.write_text(json.dumps(tree))
    with pytest.raises(UsageError, match="does not follow from its answers"):
        read_record(file)


@pytest.mark.parametrize(
    "answers",
    [
        ['["shape", "pose"]', '["shape", "pose"]', "No.", None, None],  # two of five
        ['["shape"]'] * 5,  # one word where two are needed
    ],
)
def test_too_few_usable_answers_choose_nothing_and_are_kept(
    tmp_path: Path, answers: list[str | None]
) -> None:
    record = ask(Scripted([*answers]), "conditions", CLASSES, count=2)
    assert record.result.chosen == {}
    file = tmp_path / "result.json"
    file.write_bytes(to_json(record))
    assert read_record(file) == record
    with pytest.raises(UsageError, match="holds no conditions"):
        read_conditions(file)


@dataclass
class Describer:
    """Knows the cat and the dog, and the bus in one call of three."""

    source: str = "command"
    name: str = "describer"

    def answer(self, conversation: Sequence[Message], *, place: str) -> Reply:
        if '"bus"' not in conversation[-1].text:
            return Reply(text='{"cat": ["whiskers", "paws"], "dog": ["a tail"]}')
        return Reply(text='{"bus": ["wheels"]}' if place.startswith("call-2") else "What is a bus?")


def test_descriptors_are_chosen_class_by_class(tmp_path: Path) -> None:
    record = ask(Describer(), "descriptors", CLASSES, count=1, calls=3, group_size=2)
    assert record.result.chosen == {"cat": ("whiskers",), "dog": ("a tail",)}
    assert record.result.counts == {"used": 4, "partly": 0, "malformed": 2, "failed": 0}
    file = tmp_path / "result.json"
    file.write_bytes(to_json(record))
    assert read_record(file) == record
    with pytest.raises(UsageError, match="holds no conditions"):
        read_conditions(file)


def test_plain_lists_are_read_as_well_and_anything_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "plain.json"
    file.write_text('["shape", "color"]')
    assert read_conditions(file) == ("shape", "color")
    file.write_text('{"cat": ["whiskers"]}')
    with pytest.raises(UsageError, match="holds no conditions"):
        read_conditions(file)
    for text in ("[]", "{", '[""]', "[1]", '{"schema": "fedmpt.conditions/1"}', "[" * 100_000):
        file.write_text(text)
        with pytest.raises(UsageError, match=r"plain\.json"):
            read_conditions(file)
    with pytest.raises(UsageError, match="No such file"):
        read_conditions(tmp_path / "none.json")


def test_a_command_hears_the_conversation_and_its_failures_are_no_answers(tmp_path: Path) -> None:
    talk = [Message(role="user", text="describe")]
    code = "import sys; print(sys.stdin.read().upper())"
    echo = Command(words=(sys.executable, "-c", code))
    assert echo.answer(talk, place="").text == "DESCRIBE"
    longer = [*talk, Message(role="assistant", text="done"), Message(role="user", text="sum up")]
    assert as_text(longer) == "User:\ndescribe\n\nAssistant:\ndone\n\nUser:\nsum up\n\nAssistant:\n"
    with pytest.raises(NoAnswer, match="exit code 3"):
        Command(words=(sys.executable, "-c", "import sys; sys.exit(3)")).answer(talk, place="")
    with pytest.raises(NoAnswer, match="longer than"):
        Command(words=(sys.executable, "-c", "import time; time.sleep(9)"), timeout_s=0.05).answer(
            talk, place=""
        )
    with pytest.raises(UsageError, match="cannot be started"):
        Command(words=(str(tmp_path / "none"),)).answer(talk, place="")
    with pytest.raises(UsageError, match="close the quotes"):
        Command.of("say 'hello", timeout_s=1)


def test_recorded_answers_are_found_by_place_and_missing_ones_are_counted(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"call-1-prompt-1\.txt"):
        Recorded(folder=tmp_path, name="by hand")
    for call in (1, 2):
        (tmp_path / f"call-{call}-prompt-1.txt").write_text("a cat and a dog")
        (tmp_path / f"call-{call}-prompt-2.txt").write_text('["shape"]')
    (tmp_path / "call-3-prompt-1.txt").write_bytes(b"\xff\xfe")
    model = Recorded(folder=tmp_path, name="by hand")
    record = ask(model, "conditions", CLASSES, count=1, calls=4)
    assert record.result.counts == {"used": 2, "partly": 0, "malformed": 0, "failed": 2}
    assert [outcome.refused for outcome in record.result.outcomes[2:]] == [
        ("call-3-prompt-1.txt cannot be read as text",),
        ("no file call-4-prompt-1.txt",),
    ]


def test_every_published_list_is_of_a_known_data_set_and_has_four_conditions() -> None:
    assert set(PUBLISHED) <= set(NAMES)
    assert all(len(set(words)) == 4 for words in PUBLISHED.values())
