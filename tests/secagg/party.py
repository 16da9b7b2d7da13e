"""One client or the server as a process of its own, for `test_processes.py`.

    python party.py client FOLDER ID        python party.py server FOLDER

Both speak frames over standard input and output: a length as u32, then MessagePack. A client's
frame is [crash, attempt, request]; the server's is [crash, command, ...]. `crash` names the point
at which the process kills itself with SIGKILL, so that not even its `finally` clauses run.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from secagg import (
    Aggregate,
    Identity,
    Mode,
    Policy,
    Roster,
    RoundParams,
    SecAggError,
    SigningKey,
    Update,
    open_client,
    open_restartable_server,
    restore_server,
)
from secagg.api import InputWanted
from secagg.layout import Layout
from secagg.sealed_state import is_sealed

_LENGTH = struct.Struct("<I")


class Folder:
    """What a process finds on its disk, and what it leaves there."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.state, self.crash = path, path / f"state-{name}", ""
        self.roster = Roster.from_json((path / "roster.json").read_bytes())
        self.state_key = (path / "state.key").read_bytes()
        self.durable = not (path / "no-durable-save").exists()

    @property
    def saved(self) -> bytes:
        return self.state.read_bytes() if self.state.exists() else b""

    def save(self, state: bytes) -> None:
        """Whole and on disk, or not at all."""
        self.die_at("before save")
        if self.durable:
            fresh = self.state.with_suffix(".new")
            with fresh.open("wb") as file:
                file.write(state)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self.state)
            folder = os.open(self.path, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
        self.die_at("after save" if is_sealed(state) else "after mark")

    def die_at(self, point: str) -> None:
        if self.crash == point:
            os.kill(os.getpid(), signal.SIGKILL)


def frames() -> Iterator[Any]:
    while head := sys.stdin.buffer.read(_LENGTH.size):
        yield msgspec.msgpack.decode(sys.stdin.buffer.read(*_LENGTH.unpack(head)))


def answer(content: Any) -> None:
    data = msgspec.msgpack.encode(content)
    sys.stdout.buffer.write(_LENGTH.pack(len(data)) + data)
    sys.stdout.buffer.flush()


def run_client(folder: Folder, client_id: int) -> None:
    inputs = msgspec.json.decode((folder.path / f"input-{client_id}.json").read_bytes())
    layout = msgspec.msgpack.decode((folder.path / "layout").read_bytes(), type=Layout)
    context = (folder.path / "context").read_bytes()
    client = open_client(
        Mode.MASKING,
        identity=Identity.from_text((folder.path / f"identity-{client_id}").read_text()),
        roster=folder.roster,
        policy=Policy.masking(layout, allow_sensitive=True),
        save=folder.save,
        saved=folder.saved,
        state_key=folder.state_key,
    )
    for crash, attempt, request in frames():
        folder.crash = crash
        folder.die_at("before answer")
        try:
            reply = client.handle(request)
            if isinstance(reply, InputWanted):
                folder.die_at("while training")
                values = {name: np.array(one) + attempt for name, one in inputs.items()}
                reply = client.submit(Update(values=values), context)
        except SecAggError as error:
            answer(["error", type(error).__name__])
            continue
        answer(["reply", reply.message])


def run_server(folder: Folder) -> None:
    options = {
        "coordinator": SigningKey((folder.path / "coordinator").read_bytes()),
        "roster": folder.roster,
        "state_key": folder.state_key,
        "save": folder.save,
    }
    if folder.saved:
        server = restore_server(folder.saved, **options)
    else:
        params = msgspec.msgpack.decode((folder.path / "params").read_bytes(), type=RoundParams)
        server = open_restartable_server(params, **options)
    for crash, command, *arguments in frames():
        folder.crash = crash
        folder.die_at("before answer")
        result: Any = None
        match command:
            case "open":
                result = server.open()
            case "receive":
                server.receive(*arguments)
            case "snapshot":
                folder.save(server.snapshot())
            case "pending":
                result = server.pending()
            case "close":
                result = server.close_stage()
        if isinstance(result, Aggregate):
            sums = {name: one.tolist() for name, one in result.sums.items()}
            result = {"survivors": list(result.survivors), "sums": sums}
        answer(result)


if __name__ == "__main__":
    role, path, *rest = sys.argv[1:]
    if role == "client":
        run_client(Folder(Path(path), rest[0]), int(rest[0]))
    else:
        run_server(Folder(Path(path), "server"))
