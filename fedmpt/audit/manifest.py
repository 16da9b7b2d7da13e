"""The release manifest: everything that left a client or was written about it, and why it may.

Files are judged by what is in them: ``public`` (a function of plan and coins that do not depend on data), ``dp`` (a
function of charged releases), ``unprotected`` (a run without privacy), ``stays`` (depends on data, to be kept with it).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from fedmpt.audit.findings import Upload
from fedmpt.audit.records import RunRecords
from fedmpt.engine.adaptive import sums_of_a_round

_FILES: Final[dict[str, tuple[str, str]]] = {
    "config.toml": ("public", "settings, chosen before any data was read"),
    "ledger.json": ("public", "names and heads of the ledgers"),
    "ledger": ("public", "charged events, refusals, digests of what was sent: no counts of data"),
    "marks": ("public", "one-shot marks of the aggregation protocol"),
    "roster.json": ("public", "keys of the aggregation protocol"),
    "lock": ("public", "held while a process works on the run; empty"),
    "state.safetensors": (
        "dp",
        "what a resumed run starts from: the model, moments of released sums, lines of metrics.jsonl",
    ),
    "local": ("stays", "what clients keep to themselves: blocks of their own, their weights"),
    "transcripts": (
        "dp",
        "signatures of the aggregation protocol; digests in them are of masked or released values",
    ),
    "model.safetensors": ("dp", "the tuned model: a function of the released sums"),
    "card.json": ("dp", "what the tuned model is, its scores on test images and what it spent"),
    "metrics.jsonl": (
        "dp",
        "scores of released models on test images; its step times are of the simulation and stay",
    ),
    "warnings.jsonl": (
        "stays",
        "what went wrong on the way; the text of a client's error may name what it holds",
    ),
    "tensorboard": ("stays", "figures of metrics.jsonl, and warnings; likewise"),
    "summary.json": (
        "dp",
        "scores and accounts; digests, images_skipped and times are of the simulation and stay",
    ),
    "partition.json": ("stays", "who holds which images, and what of; the simulation's own record"),
    "protocol.json": ("stays", "what the benchmark fixed, with digests of labels; likewise"),
    "audit-empirical.json": (
        "stays",
        "how attacks did that know which images a client holds; for whoever may know that",
    ),
    "report.html": (
        "stays",
        "figures of the other files, warnings, times, and test images unless written with --no-images",
    ),
}


_ROSTER_OF_STRETCH: Final = re.compile(r"^roster-\d{4}\.json$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One thing that left, or that lies in the run folder.

    Attributes:
        name: what.
        kind: ``public``, ``dp``, ``unprotected``, ``stays`` or ``unknown``.
        why: why it may leave, or why it must not.
    """

    name: str
    kind: str
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Everything that left the clients of a run.

    Attributes:
        uploads: updates that ledgers book, each under its charge.
        items: the rest, and the files of the run folder.
    """

    uploads: tuple[Upload, ...]
    items: tuple[Item, ...]


def manifest(records: RunRecords, uploads: tuple[Upload, ...]) -> Manifest:
    """Return what left the clients of a run."""
    alone = records.config["train"]["weighting"] == "none"
    sums = sums_of_a_round(records.config["method"]["name"])
    sent = sums * sum(len(line.get("survivors", [])) for line in records.metrics)
    if alone:
        what_left = [
            Item(
                name=f"{sent} messages that a client took part"
                + ("" if records.private else ", with loss and number of examples"),
                kind="public" if records.private else "unprotected",
                why="every client trains alone: nothing of any model is sent",
            )
        ]
    elif records.private:
        what_left = [
            Item(
                name=f"{len(uploads)} noised updates, {records.config['secagg']['mode']}",
                kind="dp",
                why="each under one charge, its digest booked before it was sent"
                + (
                    f"; {sums} a round and client, all of them functions of its one noised update"
                    if sums > 1
                    else ""
                ),
            ),
            Item(
                name="declared sizes, participation, plan hashes, ledger heads, refusals",
                kind="public",
                why="functions of the plan and of charges alone",
            ),
        ]
    else:
        what_left = [
            Item(
                name=f"{sent} updates, {records.config['secagg']['mode']}, with loss and number of examples",
                kind="unprotected",
                why="the run claims no differential privacy: sums and model may reveal images",
            )
        ]
    files = [_file(path.name, private=records.private) for path in sorted(records.folder.iterdir())]
    return Manifest(uploads=uploads, items=(*what_left, *files))


def _file(name: str, *, private: bool) -> Item:
    kind, why = _FILES.get(
        _ROSTER_OF_STRETCH.sub("roster.json", name),
        ("unknown", "not a file that a run writes; nobody vouches for it"),
    )
    if kind == "dp" and not private:
        kind, why = "unprotected", "depends on data without differential privacy"
    return Item(name=name, kind=kind, why=why)
