"""The release manifest: everything that left a client or was written about it, and why it may.

Files are judged by what a run writes in them: ``public`` (a function of plan and coins that do not depend on data),
``dp`` (a function of charged releases), ``unprotected`` (a run without privacy), ``stays`` (depends on data, if only in
part, and is to be kept with it). That ``metrics.jsonl`` and ``summary.json`` of a private run hold no more than that is
not believed: `strangers` finds in them what no such run writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, TypeAlias

from fedmpt.audit.findings import Upload
from fedmpt.audit.records import RunRecords
from fedmpt.engine.adaptive import sums_of_a_round

# ``mixed`` is ``dp`` but for what ``why`` names; as a whole it stays, for whoever copies a file copies all of it.
_FILES: Final[dict[str, tuple[str, str]]] = {
    "config.toml": ("public", "settings, chosen before any data was read"),
    "ledger.json": ("public", "names and heads of the ledgers"),
    "ledger": ("public", "charged events, refusals, digests of what was sent: no counts of data"),
    "marks": ("public", "one-shot marks of the aggregation protocol"),
    "roster.json": ("public", "keys of the aggregation protocol"),
    "lock": ("public", "held while a process works on the run; empty"),
    "state.safetensors": (
        "mixed",
        "holds seconds, which may tell of private batches; else the model, moments of released sums, scores",
    ),
    "local": ("stays", "what clients keep to themselves: blocks of their own, their weights"),
    "transcripts": (
        "dp",
        "signatures of the aggregation protocol; digests in them are of masked or released values",
    ),
    "model.safetensors": ("dp", "the tuned model: a function of the released sums"),
    "card.json": ("dp", "what the tuned model is, its scores on test images and what it spent"),
    "metrics.jsonl": (
        "mixed",
        "seconds may tell of private batches; without them it may leave: scores on test images, who took part, epsilon",
    ),
    "warnings.jsonl": (
        "stays",
        "what went wrong on the way; the text of a client's error may name what it holds",
    ),
    "tensorboard": ("stays", "figures of metrics.jsonl, and warnings; likewise"),
    "summary.json": (
        "mixed",
        "seconds, seconds_by_phase, secagg.seconds, peak_memory_bytes, images_skipped, protocol_digests, "
        "partition_digest and folder tell of private data or its machine; without them it may leave: scores on test "
        "images, accounts, settings",
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


class Form(Enum):
    """What a key of a JSON file holds, where this is no object with keys of its own."""

    ONE = auto()  # a number, a text or a truth value
    BY_CLASS = auto()  # one of these for each class, by its name
    NULL = auto()  # nothing, where a run without privacy has a value


# A mapping is an object with no other keys, a tuple a list of what its one element describes. null fits everywhere.
Shape: TypeAlias = Form | Mapping[str, "Shape"] | tuple["Shape"]

ONE: Final = Form.ONE
_HEADLINE: Final[Shape] = dict.fromkeys(("mAP", "CF1", "OF1"), ONE)
_PHASES: Final[Shape] = dict.fromkeys(("train", "secagg", "evaluate"), ONE)
_ORACLE: Final = dict.fromkeys(
    ("CF1_oracle_optimistic", "CF1_mean_oracle_optimistic", "OF1_oracle_optimistic"), ONE
)
_TOP_K: Final = dict.fromkeys(("CF1_top3", "OF1_top3", "CF1_top5", "OF1_top5"), ONE)

# Both are written out rather than taken from the writers: a field that a writer gets is a finding until somebody has
# judged whether it may be there.
METRICS_SHAPE: Final[Shape] = {
    **dict.fromkeys(
        ("schema", "round", "mAP", "CF1", "OF1", "CF1_mean", "CP", "CR", "OP", "OR"), ONE
    ),
    **_TOP_K,
    **_ORACLE,
    **dict.fromkeys(("threshold", "classes_scored", "classes_without_positives"), ONE),
    "AP": (ONE,),
    "mAP_shared": ONE,
    "mAP_clients": (ONE,),
    "survivors": (ONE,),
    "dropped": ({"client": ONE, "stage": ONE},),
    "attempts": ONE,
    "epsilon_min": ONE,
    "epsilon_max": ONE,
    "train_loss": Form.NULL,
    "clipped": ONE,
    "bytes_up_per_client": ONE,
    "seconds": _PHASES,
}
SUMMARY_SHAPE: Final[Shape] = {
    **dict.fromkeys(("schema", "method", "data", "backbone", "seed", "rounds", "clients"), ONE),
    **dict.fromkeys(
        ("parameters", "backbone_parameters", "preset", "compatibility", "folder"), ONE
    ),
    "protocol": ONE,
    "protocol_digests": dict.fromkeys(
        ("classes", "train", "test", "mask", "partition", "schedule"), ONE
    ),
    "zero_shot": _HEADLINE,
    "zero_shot_class_token": _HEADLINE,
    "final": _HEADLINE,
    "final_shared": _HEADLINE,
    "final_clients": {"min": _HEADLINE, "max": _HEADLINE},
    "final_top_k": _TOP_K,
    "final_oracle": _ORACLE,
    "final_AP": Form.BY_CLASS,
    "privacy": {
        **dict.fromkeys(("run", "enabled", "target_epsilon", "delta", "unit", "noise"), ONE),
        **dict.fromkeys(("protected", "against", "relation"), ONE),
        "clients": (
            {
                **dict.fromkeys(("client", "n_public", "epsilon", "delta"), ONE),
                **dict.fromkeys(("noise_multiplier", "sample_rate", "steps", "rounds"), ONE),
                **dict.fromkeys(("lifetime_spent", "lifetime_epsilon"), ONE),
                "ledger_head": {"count": ONE, "hash": ONE},
            },
        ),
    },
    "secagg": dict.fromkeys(
        ("mode", "statement", "bytes_up_per_client_round", "seconds", "dropped", "clipped_share"),
        ONE,
    ),
    **dict.fromkeys(("images_skipped", "partition_digest", "seconds", "peak_memory_bytes"), ONE),
    "seconds_by_phase": _PHASES,
}
_UNSAFE: Final = re.compile(r"[^\w.-]")  # in a terminal's markup, and in a line of a log
_LONGEST_KEY: Final = 60


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
    """Return what a run folder holds and what was sent, each with what may become of it."""
    alone = records.settings.train.weighting == "none"
    sums = sums_of_a_round(records.settings.method.name)
    sent = sums * sum(len(line.survivors) for line in records.lines)
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
                name=f"{len(uploads)} noised updates, {records.settings.secagg.mode}",
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
                name=f"{sent} updates, {records.settings.secagg.mode}, with loss and number of examples",
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
    if kind in ("dp", "mixed") and not private:
        kind, why = "unprotected", "depends on data without differential privacy"
    if kind == "mixed":
        kind = "stays"
    return Item(name=name, kind=kind, why=why)


def strangers(value: object, shape: Shape, *, path: str = "") -> Iterator[str]:
    """Yield the path of whatever in a JSON value is not of the shape; what lies below it is not looked at.

    Args:
        value: as read from a file.
        shape: what it may hold.
        path: of ``value``: keys, joined by dots.
    """
    if value is None:
        return
    if isinstance(shape, Mapping) and isinstance(value, dict):
        for key, one in value.items():
            below = f"{path}.{shown_key(key)}" if path else shown_key(key)
            if key in shape:
                yield from strangers(one, shape[key], path=below)
            else:
                yield below
    elif isinstance(shape, tuple) and isinstance(value, list):
        paths = (found for one in value for found in strangers(one, shape[0], path=path))
        yield from dict.fromkeys(paths)
    elif shape is Form.BY_CLASS and isinstance(value, dict):
        for key, one in value.items():
            yield from strangers(one, ONE, path=f"{path}.{shown_key(key)}")
    elif shape is not ONE or isinstance(value, dict | list):
        yield path


def shown_key(key: str) -> str:
    """Return a key of a file so that it can be printed: somebody else chose it."""
    return _UNSAFE.sub("?", key)[:_LONGEST_KEY]
