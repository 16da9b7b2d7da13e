"""Clients and server as processes of the operating system, killed with SIGKILL at every stage.

Whatever is killed, the outcome is the exact sum over those whose upload arrived, or an abort: never
another sum. With sealed states a killed process is started again and its round goes on.
"""

import contextlib
import struct
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest

import secagg
from secagg import RoundAborted, Stage
from secagg.client_snapshot import unseal_client
from secagg.messages import Upload, decode
from secagg.sealed_state import Vault

PARTY = Path(__file__).parent / "party.py"
STATE_KEY = bytes(range(100, 132))
PATIENCE_S = 60
LENGTH = struct.Struct("<I")
LIMIT = 1 << 20

pytestmark = pytest.mark.slow


class Killed(Exception):  # noqa: N818 - what happened to the process
    """The process is gone; it gave no answer."""


class Process:
    """A party that is started, asked, killed and started again."""

    def __init__(self, folder, *arguments):
        self.arguments, self.folder = [str(one) for one in arguments], folder
        self.start()

    def start(self):
        role, *rest = self.arguments
        self.process = subprocess.Popen(
            [sys.executable, str(PARTY), role, str(self.folder), *rest],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PYTHONPATH": str(Path(secagg.__file__).parent.parent), "OMP_NUM_THREADS": "1"},
        )
        return self

    def ask(self, *content):
        data = msgspec.msgpack.encode(content)
        timer = threading.Timer(PATIENCE_S, self.process.kill)
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.write(LENGTH.pack(len(data)) + data)
                self.process.stdin.flush()
            head = self.process.stdout.read(LENGTH.size)
            if len(head) < LENGTH.size:
                raise Killed
            return msgspec.msgpack.decode(self.process.stdout.read(*LENGTH.unpack(head)))
        finally:
            timer.cancel()

    def stop(self):
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        return self.process.wait(PATIENCE_S)

    def restart(self):
        assert self.stop() == -9
        return self.start()


@pytest.fixture
def site(federation, context, tmp_path):
    """Four clients of a federation, with everything their processes need in one folder."""
    world, processes = federation(4), []
    (tmp_path / "roster.json").write_bytes(world.roster.to_json())
    (tmp_path / "state.key").write_bytes(STATE_KEY)
    (tmp_path / "coordinator").write_bytes(world.coordinator.seed())
    (tmp_path / "layout").write_bytes(msgspec.msgpack.encode(world.layout))
    (tmp_path / "params").write_bytes(msgspec.msgpack.encode(world.params()))
    (tmp_path / "context").write_bytes(context)
    for client in world.ids:
        (tmp_path / f"identity-{client}").write_text(world.identities[client].to_text())
        values = {name: one.tolist() for name, one in world.values(client).items()}
        (tmp_path / f"input-{client}.json").write_bytes(msgspec.json.encode(values))

    def start(*arguments):
        processes.append(Process(tmp_path, *arguments))
        return processes[-1]

    yield world, tmp_path, start
    for process in processes:
        process.stop()


def reply_of(process, request, crash="", attempt=0):
    kind, content = process.ask(crash, attempt, request)
    assert kind == "reply", content
    return content


def assert_sum(world, aggregate, clients):
    assert aggregate.survivors == tuple(clients)
    for name, total in world.total(clients).items():
        assert np.array_equal(aggregate.sums[name], total)


def survivors_of(ids, victims, stage, answered):
    """Whose upload arrives if `victims` die at `stage`, before or after their reply to it."""
    counted = stage > Stage.UPLOAD or (stage is Stage.UPLOAD and answered)
    return [client for client in ids if counted or client not in victims]


# Clients that do not come back --------------------------------------------------------------


def round_with_deaths(world, server, clients, victims, stage, *, answered):
    """A round in which `victims` are killed at `stage`; the sum, or RoundAborted."""
    step = server.open()
    while isinstance(step, dict):
        for client, request in step.items():
            dying = client in victims and server.stage >= stage
            if dying and not (server.stage is stage and answered):
                with pytest.raises(Killed):
                    clients[client].ask("before answer", 0, request)
                continue
            server.receive(client, reply_of(clients[client], request))
        step = server.close_stage()
    return step


def test_one_client_killed_at_any_stage_leaves_the_exact_sum_over_those_that_uploaded(site):
    world, _, start = site
    clients = {client: start("client", client) for client in world.ids}
    for sequence, (stage, answered) in enumerate(
        ((stage, answered) for stage in Stage for answered in (False, True)), start=1
    ):
        victim = world.ids[sequence % 4]
        server = world.server(world.params(sequence))
        aggregate = round_with_deaths(world, server, clients, [victim], stage, answered=answered)
        assert_sum(world, aggregate, survivors_of(world.ids, [victim], stage, answered))
        clients[victim].restart()  # its marks let it into the next round, not into this one


@pytest.mark.parametrize("stage", list(Stage))
def test_more_clients_killed_than_the_threshold_spares_abort_the_round(site, stage):
    world, _, start = site
    clients = {client: start("client", client) for client in world.ids}
    with pytest.raises(RoundAborted):
        round_with_deaths(world, world.server(), clients, [10, 20], stage, answered=False)


# Clients that come back ---------------------------------------------------------------------

POINTS = ["before answer", "before save", "after save", "after answer"]
PLACES = [
    *((stage, point) for stage in Stage for point in POINTS),
    (Stage.ADVERTISE, "after mark"),
    (Stage.UPLOAD, "while training"),
]


def test_a_client_killed_anywhere_and_started_again_goes_on_and_counts_once(site):
    """At every point of every stage, one life of the process after another.

    Killed between its mark and its first state, it alone is lost: it drew no keys yet.
    """
    world, folder, start = site
    victim, others = start("client", 10), world.clients()
    for sequence, (stage, point) in enumerate(PLACES, start=1):
        server = world.server(world.params(sequence))
        step = server.open()
        while isinstance(step, dict):
            for client, request in step.items():
                if client != 10:
                    server.receive(client, world.answer(others[client], request))
                elif server.stage is not stage:
                    server.receive(10, reply_of(victim, request))
                elif point == "after mark":
                    assert killed(victim, request, point).ask("", 0, request)[1] == "StaleState"
                else:
                    server.receive(10, killed_and_asked_again(victim, folder, request, point))
            step = server.close_stage()
        assert_sum(world, step, world.ids[1:] if point == "after mark" else world.ids)


def killed(victim, request, point):
    """A client that was killed at `point` of its answer, and started again."""
    with pytest.raises(Killed):
        victim.ask(point, 0, request)
    return victim.restart()


def killed_and_asked_again(victim, folder, request, point):
    """The reply that counts; if one was sent or only saved before the end, it is that one."""
    if point == "after answer":
        first = reply_of(victim, request)
        victim.restart()
    else:
        killed(victim, request, point)
        first = saved_reply(folder) if point == "after save" else None
    second = reply_of(victim, request)
    assert first in (None, second)
    return second


def saved_reply(folder):
    """What the client had on disk when it was killed between saving and sending."""
    saved = (folder / "state-10").read_bytes()
    _, running = unseal_client(Vault(STATE_KEY, 10), saved, 10)
    reply = running.latches.answered[-1].reply
    assert reply
    return reply


def test_two_time_pad_control_without_the_durable_save_a_restarted_client_uploads_twice(site):
    """Its two uploads, of one input and of that input plus one, differ by exactly one."""
    world, folder, start = site
    victim, others = start("client", 10), world.clients()
    server = world.server()
    clients = {**others, 10: victim}
    step = server.open()
    while server.stage is not Stage.UPLOAD:
        for client, request in step.items():
            own = client == 10
            server.receive(
                client,
                reply_of(victim, request) if own else world.answer(clients[client], request),
            )
        step = server.close_stage()
    (folder / "no-durable-save").touch()
    victim.restart()
    first = reply_of(victim, step[10], attempt=0)
    victim.restart()
    second = reply_of(victim, step[10], attempt=1)
    plan, lanes = server.params.plan, []
    for message in (first, second):
        lanes.append(plan.zeros())
        plan.add_body(lanes[-1], decode(message, Upload, limit=LIMIT).body)
    found = plan.decode({lane: lanes[1][lane] - lanes[0][lane] for lane in lanes[0]}, 4)
    assert found["delta"].tolist() == [1] * 5
    assert found["samples"].tolist() == [1]
    (folder / "no-durable-save").unlink()
    victim.restart()
    first = reply_of(victim, step[10], attempt=0)
    victim.restart()
    assert reply_of(victim, step[10], attempt=1) == first


# The server ---------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["within the stage", "before answer", "after save", "answered"])
def test_a_server_killed_at_every_stage_and_started_again_gives_the_exact_sum(site, point):
    """One round, in which the server is killed at this point of all five stages."""
    world, _, start = site
    server, clients = start("server"), world.clients()
    requests = requests_after(server, "open", "after save" if point == "after save" else "")
    for stage in Stage:
        for client, request in requests.items():
            reply = world.answer(clients[client], request)
            server.ask("", "receive", client, reply)
            if point == "within the stage" and client == 20:
                server.ask("", "snapshot")
                server.restart()
                assert set(server.ask("", "pending")) == {30, 40}
        if point == "before answer":
            with pytest.raises(Killed):
                server.ask("before answer", "close")
            server.restart()
            for client, request in server.ask("", "pending").items():
                server.ask("", "receive", client, world.answer(clients[client], request))
        crash = "after save" if point == "after save" and stage is not Stage.REVEAL else ""
        requests = requests_after(server, "close", crash)
        if point == "answered" and stage is not Stage.REVEAL:
            server.restart()
            assert server.ask("", "pending") == requests
    assert requests["survivors"] == list(world.ids)
    assert requests["sums"] == {
        name: total.tolist() for name, total in world.total(world.ids).items()
    }


def requests_after(server, command, crash):
    """What the server answers to a command; killed before it could, it says it after a restart."""
    if not crash:
        return server.ask("", command)
    with pytest.raises(Killed):
        server.ask(crash, command)
    return server.restart().ask("", "pending")
