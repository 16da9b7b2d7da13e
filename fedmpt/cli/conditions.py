"""``fedmpt conditions``: words about classes from a language model, or the paper's own."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from fedmpt.config import load_config

if TYPE_CHECKING:
    from fedmpt.conditions.language_model import LanguageModel
    from fedmpt.conditions.prompts import Kind
    from fedmpt.conditions.record import Record

_COUNT: Final = {"conditions": 4, "descriptors": 10}  # of the paper's Table 11; of FedMVP
_GROUP: Final = {"conditions": None, "descriptors": 10}
_INCOMPLETE: Final = 1  # exit code where the answers do not suffice


@click.command("conditions")
@click.option("--data", help="Data set whose classes are asked about.")
@click.option(
    "--data-root", type=click.Path(), help="Its folder, where only that names the classes."
)
@click.option("--classes", help="Instead: names between commas, or a file with a name a line.")
@click.option(
    "--descriptors",
    is_flag=True,
    help="Ask for visual features of each class, which FedMVP reads, in place of conditions.",
)
@click.option(
    "--endpoint",
    is_flag=True,
    help="Ask the server of OPENAI_BASE_URL (OpenAI's protocol), with the key of OPENAI_API_KEY if that is set.",
)
@click.option("--model", help="The model there.  [default: OPENAI_MODEL]")
@click.option(
    "--command",
    "command_line",
    metavar="LINE",
    help="Ask a program: prompt on its standard input, answer on its standard output.",
)
@click.option(
    "--answers",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Take answers that were written down; --show-prompts says which file holds which.",
)
@click.option(
    "--again",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Check an earlier result and make it again from its answers; nothing is asked.",
)
@click.option(
    "--show-prompts", is_flag=True, help="Print all that would be asked, and ask nothing."
)
@click.option(
    "--count",
    type=click.IntRange(min=1, max=100),
    help="Conditions, or descriptors of a class.  [default: 4, or 10]",
)
@click.option(
    "--calls",
    type=click.IntRange(min=1, max=100),
    default=5,
    show_default=True,
    help="Independent calls; the most frequent words win.",
)
@click.option(
    "--group-size",
    type=click.IntRange(min=2),
    help="Most classes in a prompt; conditions see every two classes together.  [default: all, or 10]",
)
@click.option("--temperature", type=click.FloatRange(0, 2), help="Of an endpoint's sampling.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=120.0,
    show_default=True,
    help="Seconds to wait for one answer.",
)
@click.option(
    "--attempts",
    type=click.IntRange(min=1, max=20),
    default=5,
    show_default=True,
    help="Requests for one answer to an endpoint that is busy, broken or slow.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="File of the result.  [default: conditions.json or descriptors.json]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@click.option(
    "--plain",
    is_flag=True,
    help="Print only what was chosen, as JSON: a list of conditions, or class to descriptors.",
)
def command(
    *,
    data: str | None,
    data_root: str | None,
    classes: str | None,
    descriptors: bool,
    endpoint: bool,
    model: str | None,
    command_line: str | None,
    answers: Path | None,
    again: Path | None,
    show_prompts: bool,
    count: int | None,
    calls: int,
    group_size: int | None,
    temperature: float | None,
    timeout: float,
    attempts: int,
    out: Path | None,
    as_json: bool,
    plain: bool,
) -> None:
    """Find the conditions of FedMPT's prompts for a list of classes.

    With --data alone: the paper's list for that data set, which `fedmpt train` takes by default. With --endpoint,
    --command or --answers: a language model describes what the classes look like together and names what these
    descriptions have in common, five times over; the most frequent words win. `fedmpt train --conditions FILE` takes
    the result, and `--set method.fedmvp.descriptors=FILE` what --descriptors --plain prints.

    Nothing private is sent: class names are all that enters a prompt, no image, no label of an image, no count and no
    file name. If the names themselves are private, use a --command that runs on this machine.
    """
    kind: Kind = "descriptors" if descriptors else "conditions"
    if as_json and plain:
        raise click.UsageError("--json and --plain exclude each other")
    asked = [
        name for name, given in _sources(endpoint, command_line, answers, again).items() if given
    ]
    if len(asked) > 1:
        raise click.UsageError(f"{' and '.join(asked)} exclude each other")
    if again is not None:
        if data is not None or classes is not None:
            raise click.UsageError(
                "--again: the file holds its classes; leave --data and --classes out"
            )
        from fedmpt.conditions.record import read_record

        _show(read_record(again), again, as_json=as_json, plain=plain)
        return
    if (data is None) == (classes is None):
        raise click.UsageError("give --data NAME or --classes FILE, one of them")
    count, group = count or _COUNT[kind], group_size or _GROUP[kind]
    if not asked and not show_prompts:
        _show_published(data, kind, as_json=as_json, out=out)
        return
    names = _names(data, data_root, classes)
    if show_prompts:
        _show_prompts(kind, names, count=count, calls=calls, group_size=group, as_json=as_json)
        return
    if (model is not None or temperature is not None) and not endpoint:
        raise click.UsageError("--model and --temperature are of an --endpoint")
    target = out or Path(f"{kind}.json")
    _require_new(target)
    from fedmpt.conditions.pipeline import ask
    from fedmpt.conditions.record import to_json
    from fedmpt.runstore import write_whole

    record = ask(
        _language_model(
            endpoint=endpoint,
            model=model,
            command_line=command_line,
            answers=answers,
            timeout=timeout,
            attempts=attempts,
            temperature=temperature,
        ),
        kind,
        names,
        count=count,
        calls=calls,
        group_size=group,
        secret=_secret(),
        watch=lambda place, done, total: click.echo(f"{done + 1}/{total} {place}", err=True),
    )
    write_whole(target, to_json(record))
    _show(record, target, as_json=as_json, plain=plain)


def _sources(
    endpoint: bool, command_line: str | None, answers: Path | None, again: Path | None
) -> dict[str, bool]:
    return {
        "--endpoint": endpoint,
        "--command": command_line is not None,
        "--answers": answers is not None,
        "--again": again is not None,
    }


def _language_model(
    *,
    endpoint: bool,
    model: str | None,
    command_line: str | None,
    answers: Path | None,
    timeout: float,
    attempts: int,
    temperature: float | None,
) -> LanguageModel:
    if endpoint:
        from fedmpt.conditions.endpoint import Endpoint

        return Endpoint.from_environment(
            os.environ, name=model, timeout_s=timeout, attempts=attempts, temperature=temperature
        )
    if command_line is not None:
        from fedmpt.conditions.command import Command

        return Command.of(command_line, timeout_s=timeout)
    if answers is None:
        raise click.UsageError("nobody is asked: give --endpoint, --command or --answers")
    from fedmpt.conditions.recorded import Recorded

    return Recorded(folder=answers, name=answers.name)


def _secret() -> str | None:
    """Return the key, to be struck out wherever an answer repeats it."""
    from fedmpt.conditions.endpoint import KEY_VARIABLE

    return os.environ.get(KEY_VARIABLE, "").strip() or None


def _names(data: str | None, data_root: str | None, classes: str | None) -> tuple[str, ...]:
    from fedmpt.data.class_list import known_classes, read_classes

    if classes is not None:
        return read_classes(classes)
    known = known_classes(data or "") if data_root is None else None
    if known is not None:
        return known
    from fedmpt.data.registry import load_dataset

    config = load_config(options={"data.name": data, "data.root": data_root})
    return load_dataset(config.data, seed=config.seed).classes


def _require_new(target: Path) -> None:
    if target.exists():
        raise click.UsageError(
            f"--out {target}: exists; give another file, answers are never overwritten"
        )
    if not target.parent.is_dir():
        raise click.UsageError(f"--out {target}: its folder does not exist; make it first")


def _show_prompts(
    kind: Kind,
    names: tuple[str, ...],
    *,
    count: int,
    calls: int,
    group_size: int | None,
    as_json: bool,
) -> None:
    from fedmpt.conditions.prompts import scripts

    held = scripts(kind, names, count=count, group_size=group_size)
    prompts = [prompt for script in held for prompt in script.prompts]
    if as_json:
        click.echo(json.dumps({"calls": calls, "prompts": prompts}, indent=2, ensure_ascii=False))
        return
    for number, prompt in enumerate(prompts, start=1):
        files = "call-1" if calls == 1 else f"call-1 to call-{calls}"
        click.echo(f"# answers go into {files}-prompt-{number}.txt\n{prompt}\n")


def _show_published(data: str | None, kind: Kind, *, as_json: bool, out: Path | None) -> None:
    """Print the paper's list of a data set."""
    from fedmpt.conditions.published import CONDITIONS, DEFAULT_CONDITIONS
    from fedmpt.data.registry import NAMES

    if data is None or kind == "descriptors":
        raise click.UsageError(
            "nobody is asked: give --endpoint, --command or --answers (--show-prompts shows what they are asked)"
        )
    if data not in NAMES:
        raise click.UsageError(f"--data {data}: no such data set; choose one of {', '.join(NAMES)}")
    if out is not None:
        raise click.UsageError("--out: the paper's list is the default and needs no file")
    words = CONDITIONS.get(data, DEFAULT_CONDITIONS)
    source = "the paper's Table 11" if data in CONDITIONS else "the paper's list for voc2007"
    if as_json:
        click.echo(
            json.dumps({"data": data, "conditions": list(words), "source": source}, indent=2)
        )
    else:
        click.echo(", ".join(words))
        click.echo(f"{source}, the default of `fedmpt train --data {data}`", err=True)


def _show(record: Record, file: Path, *, as_json: bool, plain: bool) -> None:
    """Print a result, and end the command with an error where it lacks something."""
    from fedmpt.conditions.prompts import CONDITIONS
    from fedmpt.conditions.record import subjects_of, to_json

    subjects = subjects_of(record.kind, record.classes)
    missing = [subject for subject in subjects if subject not in record.result.chosen]
    if as_json:
        tree: dict[str, Any] = json.loads(to_json(record))
        click.echo(json.dumps(tree, indent=2, ensure_ascii=False))
    elif plain:
        chosen = record.result.chosen
        bare = chosen.get(CONDITIONS, ()) if record.kind == "conditions" else chosen
        click.echo(json.dumps(bare, indent=2, ensure_ascii=False))
    else:
        for subject, words in record.result.chosen.items():
            told = {vote.text: vote.calls for vote in record.result.votes[subject]}
            listed = ", ".join(f"{word} ({told[word]}/{record.calls})" for word in words)
            click.echo(listed if record.kind == "conditions" else f"{subject}: {listed}")
    for outcome in record.result.outcomes:
        for reason in outcome.refused:
            click.echo(f"call {outcome.call}, {outcome.status}: {reason}", err=True)
    counts = ", ".join(f"{number} {status}" for status, number in record.result.counts.items())
    click.echo(f"{file}: {counts}", err=True)
    if missing:
        what = (
            ""
            if record.kind == "conditions"
            else f" for {len(missing)} classes, first {missing[0]!r}"
        )
        click.echo(
            f"fedmpt: too few usable answers{what}: more than half of {record.calls} calls must name words, and "
            f"{record.count} of them together; the answers are kept in {file}",
            err=True,
        )
        sys.exit(_INCOMPLETE)
