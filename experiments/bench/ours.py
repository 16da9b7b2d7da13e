"""A round of `secagg`, with both clocks read around every call of a session."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from experiments.bench.rounds import Case, Clock, Inputs, Measured, error_of, total
from secagg import (
    Aggregate,
    ClientSession,
    CountSegment,
    FixedSegment,
    Identity,
    Layout,
    Mode,
    Policy,
    Roster,
    RoundParams,
    ServerSession,
    SignatureCache,
    SigningKey,
    Stage,
    Update,
    new_run_id,
    open_client,
    open_server,
    run_round,
)
from secagg.fixedpoint import encode_update

CONTEXT = bytes(32)
WEIGHT = 1000
BITS = 20


@dataclass
class TimedClient:
    """A client session that is timed."""

    session: ClientSession
    clock: Clock
    stage: Stage | None = None

    @property
    def client_id(self) -> int:
        """As `ClientSession`."""
        return self.session.client_id

    def handle(self, request: bytes) -> Any:
        """As `ClientSession`; requests come in order of stages."""
        self.stage = Stage.ADVERTISE if self.stage is None else Stage(self.stage + 1)
        with self.clock.on((self.client_id, self.stage)):
            return self.session.handle(request)

    def submit(self, update: Update, context: bytes) -> Any:
        """As `ClientSession`."""
        with self.clock.on((self.client_id, Stage.UPLOAD)):
            return self.session.submit(update, context)

    def abandon(self) -> None:
        """As `ClientSession`."""
        self.session.abandon()


@dataclass
class TimedServer:
    """A server session that is timed: until the last upload is taken in, and after it."""

    session: ServerSession
    clock: Clock
    after: bool = False

    @property
    def params(self) -> RoundParams:
        """As `ServerSession`."""
        return self.session.params

    @property
    def stage(self) -> Stage:
        """As `ServerSession`."""
        return self.session.stage

    def open(self) -> Any:
        """As `ServerSession`."""
        with self.clock.on(self.after):
            return self.session.open()

    def receive(self, client_id: int, message: bytes) -> None:
        """As `ServerSession`."""
        with self.clock.on(self.after):
            self.session.receive(client_id, message)

    def close_stage(self) -> Any:
        """As `ServerSession`."""
        self.after |= self.stage >= Stage.UPLOAD
        with self.clock.on(self.after):
            return self.session.close_stage()


@dataclass
class World:
    """Identities, roster and layout for one case.

    Attributes:
        cache: whether clients share verified signatures, which no real client does: for cases of which only the
            server is reported.
    """

    case: Case
    cache: bool = False

    def __post_init__(self) -> None:
        self.layout = Layout(
            (
                FixedSegment(
                    name="values", length=self.case.length, clip=self.case.clip, bits=BITS
                ),
                CountSegment(name="weight", bound=WEIGHT),
            )
        )
        self.coordinator = SigningKey.generate()
        self.sites = {i: Identity.generate(i) for i in range(self.case.clients)}
        self.roster = Roster(
            coordinator=self.coordinator.public,
            members=tuple(site.member() for site in self.sites.values()),
        )
        self.signatures = SignatureCache() if self.cache else None

    def params(self) -> RoundParams:
        """Parameters of the case; raises ConfigurationError where its graph is not supported."""
        params = RoundParams.for_round(
            mode=Mode.MASKING,
            roster=self.roster,
            layout=self.layout,
            context=CONTEXT,
            sequence=1,
            run_id=new_run_id(),
            colluders=self.case.colluders,
        )
        if self.case.degree is None:
            return params
        degree, window = self.case.degree
        return msgspec.structs.replace(params, graph_degree=degree, graph_window=window)

    def client(self, i: int) -> ClientSession:
        """A client with the floors of the case."""
        policy = Policy(
            layout=self.layout,
            modes=(Mode.MASKING,),
            n_min=3,
            survivors_min=3,
            colluders=self.case.colluders,
        )
        return open_client(
            Mode.MASKING,
            identity=self.sites[i],
            roster=self.roster,
            policy=policy,
            save=lambda state: None,
            signature_cache=self.signatures,
            keep_replies=False,
        )

    def update(self, values: np.ndarray, key: bytes | None = None) -> Update:
        """What a client contributes."""
        weight = np.array([WEIGHT], np.int64)
        return Update(values={"values": values, "weight": weight}, rounding_key=key)

    def run(
        self,
        update: Callable[[int], Update],
        client_clock: Clock,
        server_clock: Clock,
    ) -> Aggregate:
        """One round; a client lost at a stage gives no reply from there on."""
        params = self.params()
        server = open_server(params, coordinator=self.coordinator, roster=self.roster)
        clients = {i: TimedClient(self.client(i), client_clock) for i in self.sites}
        return run_round(
            TimedServer(server, server_clock),
            clients,
            update,
            context=CONTEXT,
            lost=self.case.lost,
        )


def run(case: Case, inputs: Inputs, *, cache: bool = False) -> Measured:
    """Run the case and measure it."""
    world, client_clock, server_clock = World(case, cache), Clock(), Clock()
    aggregate = world.run(lambda i: world.update(inputs[i]), client_clock, server_clock)
    with server_clock.on(True):
        mean = aggregate.decode_mean("values")
    return Measured(
        masking={i: client_clock.spans[i, Stage.UPLOAD] for i in aggregate.survivors},
        clients=total(list(client_clock.spans.values())),
        server=total(list(server_clock.spans.values())),
        after=server_clock.spans[True],
        up={i: aggregate.bytes_up[i] for i in aggregate.survivors},
        error=error_of(mean, inputs, aggregate.survivors),
        survivors=aggregate.survivors,
    )


def is_exact(case: Case, inputs: Inputs) -> bool:
    """Whether the sum is that of the integers which the clients' values were rounded to, bit for bit."""
    world = World(case)
    updates = {
        i: world.update(inputs[i], hashlib.sha256(b"rounding %d" % i).digest()) for i in world.sites
    }
    aggregate = world.run(updates.__getitem__, Clock(), Clock())
    rounded = [
        encode_update(updates[i], world.layout, os.urandom)["values"] for i in aggregate.survivors
    ]
    return np.array_equal(aggregate.sums["values"], np.sum(rounded, axis=0))
