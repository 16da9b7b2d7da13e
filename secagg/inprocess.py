"""Drives one round with all sessions in one process, by direct calls and with simulated losses.

For simulations and tests. Clients are asked for their input one at a time, at the moment their
session wants it, so a caller may train lazily and hold one client's update at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from secagg.aggregate import Aggregate
from secagg.api import ClientSession, InputWanted, Requests, ServerSession
from secagg.ckks_key_server import KeyEpoch, KeySetupServer
from secagg.errors import SecAggError
from secagg.fixedpoint import Update
from secagg.params import Stage

STAGES: dict[str, Stage] = {stage.name.lower(): stage for stage in Stage}
"""The names a loss is given under: advertise, share, upload, confirm, reveal."""


def run_round(
    server: ServerSession,
    clients: Mapping[int, ClientSession],
    inputs: Callable[[int], Update | None],
    *,
    context: bytes,
    lost: Mapping[int, str] | None = None,
    on_refusal: Callable[[int, SecAggError], None] | None = None,
) -> Aggregate:
    """One round from the first request to the sum.

    A client lost at a stage gives no reply at that stage or any later one; whatever it sent before
    has arrived. A mode without that stage treats it as the protected modes would: lost up to
    `upload` does not count, lost after it does.

    Args:
        server: a fresh session.
        clients: sessions by id; an invited client without one is lost from the start.
        inputs: called once for each client that gets as far as its upload, after it verified its
            peers; returns its update, or None if it has none to give.
        context: the digest that the clients computed of the model and plan they train on.
        lost: {client id: stage name}.
        on_refusal: told of every message that a client or the server refuses, and from or for
            which client it was. The round goes on without it.

    Raises:
        RoundAborted: too few clients are left, or the sum is not credible.
        KeyError: a stage name in `lost` is not one of `STAGES`.
    """
    step: Requests | Aggregate = server.open()
    while not isinstance(step, Aggregate):
        _carry(server, clients, step, inputs, context, lost or {}, on_refusal)
        step = server.close_stage()
    return step


def run_key_setup(
    server: KeySetupServer,
    clients: Mapping[int, ClientSession],
    *,
    lost: Mapping[int, str] | None = None,
    on_refusal: Callable[[int, SecAggError], None] | None = None,
) -> KeyEpoch:
    """The set-up of a CKKS key, from the first request to the epoch; losses as in `run_round`.

    Raises:
        RoundAborted: too few clients are left, or the leader is lost.
    """
    step: Requests | KeyEpoch = server.open()
    while not isinstance(step, KeyEpoch):
        _carry(server, clients, step, lambda _: None, b"", lost or {}, on_refusal)
        step = server.close_stage()
    return step


def _carry(
    server: ServerSession | KeySetupServer,
    clients: Mapping[int, ClientSession],
    requests: Requests,
    inputs: Callable[[int], Update | None],
    context: bytes,
    lost: Mapping[int, str],
    on_refusal: Callable[[int, SecAggError], None] | None,
) -> None:
    """One stage: requests to those that are there, replies back."""
    lost_at = {client: STAGES[name] for client, name in lost.items()}
    for client_id, request in requests.items():
        gone = lost_at.get(client_id)
        if client_id in clients and (gone is None or gone > server.stage):
            try:
                _exchange(server, clients[client_id], request, inputs, context)
            except SecAggError as error:
                if on_refusal is not None:
                    on_refusal(client_id, error)


def _exchange(
    server: ServerSession | KeySetupServer,
    client: ClientSession,
    request: bytes,
    inputs: Callable[[int], Update | None],
    context: bytes,
) -> None:
    """Carries one request to a client, and its reply or refusal back."""
    try:
        answer = client.handle(request)
        if isinstance(answer, InputWanted):
            update = inputs(client.client_id)
            if update is None:
                client.abandon()
                return
            answer = client.submit(update, context)
    except SecAggError as error:
        client.abandon()
        if error.refusal is not None:
            server.receive(client.client_id, error.refusal)
        raise
    server.receive(client.client_id, answer.message)
