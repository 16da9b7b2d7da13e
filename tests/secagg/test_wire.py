"""Every byte of a whole round with fixed randomness: a change of the wire format shows here."""

import contextlib
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import (
    CountSegment,
    FixedSegment,
    Identity,
    Layout,
    Mode,
    Policy,
    Roster,
    RoundParams,
    SigningKey,
    Stage,
    Update,
    open_client,
    open_server,
)
from secagg.api import InputWanted
from secagg.errors import SecAggError

GOLDEN = Path(__file__).parent / "vectors/transcript_v1.json"
LAYOUT = Layout(
    (
        FixedSegment(name="delta", length=3, clip=1.0, bits=12),
        CountSegment(name="samples", bound=2**40),
    )
)
CONTEXT = hashlib.sha256(b"context").digest()


def insecure_random(label: str):
    """Reproducible bytes: SHA-256 of a label and a counter. For this test only."""
    counter = 0

    def draw(size: int) -> bytes:
        nonlocal counter
        counter += 1
        return hashlib.sha256(f"{label} {counter}".encode()).digest()[:size]

    return draw


def transcript(mode: Mode) -> dict[str, str]:
    """SHA-256 of every message of a 4-client round; client 4 is lost before its reveal."""
    coordinator = SigningKey(hashlib.sha256(b"coordinator").digest())
    identities = [
        Identity(i, SigningKey(hashlib.sha256(f"client {i}".encode()).digest()))
        for i in (1, 2, 3, 4)
    ]
    roster = Roster(
        coordinator=coordinator.public, members=tuple(one.member() for one in identities)
    )
    params = RoundParams.for_round(
        mode=mode, roster=roster, layout=LAYOUT, context=CONTEXT, sequence=1, run_id=b"r" * 16
    )
    policy = (Policy.masking if mode is Mode.MASKING else Policy.plain)(LAYOUT)
    clients = {
        one.id: open_client(
            mode,
            identity=one,
            roster=roster,
            policy=policy,
            save=lambda state: None,
            random=insecure_random(f"random {one.id}"),
        )
        for one in identities
    }
    server = open_server(params, coordinator=coordinator, roster=roster)
    step, seen = server.open(), {"params": params.digest.hex()}
    while isinstance(step, dict):
        stage = server.stage
        for client, request in step.items():
            seen[f"{stage.name} request {client}"] = hashlib.sha256(request).hexdigest()
            if (client, stage) == (4, Stage.REVEAL):
                continue
            answer = clients[client].handle(request)
            if isinstance(answer, InputWanted):
                values = {
                    "delta": np.array([0.5, -0.25, client / 10]),
                    "samples": np.array([client]),
                }
                answer = clients[client].submit(Update(values=values), CONTEXT)
            seen[f"{stage.name} reply {client}"] = hashlib.sha256(answer.message).hexdigest()
            server.receive(client, answer.message)
        step = server.close_stage()
    seen["sums"] = json.dumps({name: sums.tolist() for name, sums in step.sums.items()})
    return seen


@pytest.mark.parametrize("mode", [Mode.PLAIN, Mode.MASKING])
def test_wire_version_1_has_not_changed_by_a_byte(mode):
    assert transcript(mode) == json.loads(GOLDEN.read_text())[mode.name]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_messages_raise_only_errors_of_this_package(federation, data):
    """At every stage, at clients and server; and the round still ends with the exact sum."""
    world = federation(3, colluders=0)
    clients, server = world.clients(), world.server()
    stage = data.draw(st.sampled_from(list(Stage)))
    requests = world.run_until(stage, clients, server)

    def damage(message):
        damaged = bytearray(message)
        for _ in range(data.draw(st.integers(1, 3))):
            place = data.draw(st.integers(0, len(damaged) - 1))
            damaged[place] ^= data.draw(st.integers(1, 255))
        return bytes(damaged[: data.draw(st.integers(0, len(damaged)))])

    replies = {client: world.answer(clients[client], r) for client, r in requests.items()}
    with contextlib.suppress(SecAggError):
        server.receive(10, damage(replies[10]))
    fresh = world.client(20)
    for session in (clients[10], fresh):
        with contextlib.suppress(SecAggError):
            session.handle(damage(requests[10]))
    for client, reply in replies.items():
        server.receive(client, reply)
    step = server.close_stage()
    while isinstance(step, dict):
        for client, request in step.items():
            server.receive(client, world.answer(clients[client], request))
        step = server.close_stage()
    for name, total in world.total(world.ids).items():
        assert np.array_equal(step.sums[name], total)
