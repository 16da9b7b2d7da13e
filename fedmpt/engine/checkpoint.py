"""What a run needs to go on after its last completed round: one file, ``state.safetensors``, replaced round by round.

It holds released values: the model, the server's optimiser (post-processing of released sums), the lines of
``metrics.jsonl``, and the heads of the ledgers; and the seconds that phases took, for which it stays with the run.
What is a client's own lies with that client (`local_blocks`).
Replacing this file is what commits a round; ``metrics.jsonl`` follows it, and is written anew from it on resumption.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fedmpt.engine.listener import RoundRecord
from fedmpt.engine.prepare import Federation
from fedmpt.errors import RunError, UsageError
from fedmpt.methods.base import Parameters
from fedmpt.metrics import Metrics
from fedmpt.runstore import STATE_FILE, require_schema
from fedmpt.types import GlobalState
from privacy import LedgerHead

PHASES: Final = ("train", "secagg", "evaluate")
_SCHEMA: Final = "fedmpt.state/1"
_VECTOR: Final = "vector"
_SERVER: Final = "server/"  # before the names of the optimiser's tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """What a run has gathered so far, besides tensors.

    Attributes:
        round: rounds done.
        plan: digest of everything the run is planned from.
        records: of rounds 0 to ``round``; none before the frozen CLIP was evaluated.
        class_token: metrics of the frozen CLIP with its class token; None before it was evaluated.
        phases: seconds by phase.
        seconds: the run took.
        heads: what the run remembers of each client's ledger; none without privacy.
    """

    round: int
    plan: str
    records: tuple[RoundRecord, ...] = ()
    class_token: Metrics | None = None
    phases: Mapping[str, float]
    seconds: float = 0.0
    heads: tuple[LedgerHead, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A run between two rounds.

    Attributes:
        progress: what was gathered.
        state: the released model.
        server: tensors of the server's optimiser, by name; none where it has no state.
    """

    progress: Progress
    state: GlobalState
    server: Parameters

    def to_bytes(self) -> bytes:
        """Return the contents of ``state.safetensors``."""
        tensors = {_VECTOR: torch.from_numpy(self.state.vector)}
        tensors |= {_SERVER + name: value.contiguous() for name, value in self.server.items()}
        progress = msgspec.json.encode(self.progress).decode()
        return save(tensors, metadata={"schema": _SCHEMA, "progress": progress})


def first_checkpoint(federation: Federation) -> Checkpoint:
    """Return the state of a run of which nothing is done."""
    return Checkpoint(
        progress=Progress(round=0, plan=plan_digest(federation), phases=dict.fromkeys(PHASES, 0.0)),
        state=GlobalState(round=0, vector=federation.spec.flatten(federation.initial)),
        server={},
    )


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read the state of a run.

    Raises:
        UsageError: the run was stopped before it had any, and nothing was charged until then; or another version of
            fedmpt wrote it.
        RunError: the file cannot be read.
    """
    path = folder / STATE_FILE
    if not path.exists():
        raise UsageError(
            f"--resume {folder}: nothing to go on from, no round was begun and nothing was charged; start it anew"
        )
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
            text, schema = metadata["progress"], metadata.get("schema")
        require_schema(path, schema, _SCHEMA)
        progress = msgspec.json.decode(text, type=Progress)
        vector = tensors.pop(_VECTOR).numpy()
    except (OSError, SafetensorError, KeyError, msgspec.MsgspecError) as error:
        raise RunError(f"{path}: cannot be read ({error}); is the folder whole?") from error
    return Checkpoint(
        progress=progress,
        state=GlobalState(round=progress.round, vector=vector),
        server={name.removeprefix(_SERVER): value for name, value in tensors.items()},
    )


def plan_digest(federation: Federation) -> str:
    """Return a digest of all that decides what a run does: settings, frozen model, classes, data, clients, schedule."""
    parts = {"run": federation.digest.hex(), **federation.protocol_digests}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
