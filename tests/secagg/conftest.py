"""A small federation for tests: identities, roster, layout, inputs, and a server that can lie."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from secagg import (
    Aggregate,
    CountSegment,
    FixedSegment,
    Identity,
    Layout,
    Mode,
    Policy,
    Roster,
    RoundParams,
    SignatureCache,
    SigningKey,
    Stage,
    Update,
    open_key_setup,
    run_key_setup,
    run_round,
)
from secagg.api import InputWanted
from secagg.ckks_client import CKKSClient
from secagg.ckks_server import CKKSServer
from secagg.digests import request_statement
from secagg.masking_client import MaskingClient
from secagg.masking_server import MaskingServer
from secagg.messages import (
    AdvertRow,
    CohortRequest,
    Collect,
    ConfirmRow,
    Message,
    Open,
    RevealRequest,
    SurvivorRow,
    SurvivorsRequest,
    encode,
    to_table,
)
from secagg.participant import Participant
from secagg.plain import PlainClient, PlainServer
from secagg.roster import COORDINATOR_ID
from secagg.views import Cohort, Sharers, Survivors

RUN_ID = b"run-of-the-tests"
CONTEXT = bytes(range(32))
CLIENTS = {Mode.PLAIN: PlainClient, Mode.MASKING: MaskingClient, Mode.CKKS: CKKSClient}
SERVERS = {Mode.PLAIN: PlainServer, Mode.MASKING: MaskingServer, Mode.CKKS: CKKSServer}
LENGTH = 5


@dataclass
class Federation:
    """`n` clients with ids 10, 20, 30, ... that know each other through one roster."""

    n: int
    mode: Mode = Mode.MASKING
    colluders: int | None = None
    layout: Layout = field(
        default_factory=lambda: Layout(
            (
                FixedSegment(name="delta", length=LENGTH, clip=1.0, bits=8),
                CountSegment(name="samples", bound=2**40),
            )
        )
    )
    cache: SignatureCache | None = field(default_factory=SignatureCache)
    preset: str | None = None  # of CKKS
    verify_sum: bool = False

    def __post_init__(self) -> None:
        self.coordinator = SigningKey.generate()
        self.identities = {i: Identity.generate(i) for i in range(10, 10 * self.n + 1, 10)}
        self.roster = Roster(
            coordinator=self.coordinator.public,
            members=tuple(identity.member() for identity in self.identities.values()),
        )
        self.ids = self.roster.ids
        self.epoch = None  # the CKKS key of all sessions made by `client`
        self.held: dict[int, Any] = {}
        if self.mode is Mode.CKKS:
            self.set_up_key()

    def set_up_key(self, sequence: int = 0, **options: Any) -> Any:
        """A key set-up among fresh sessions; later sessions of `client` start with its key."""
        sessions = {client: CKKSClient(self.participant(client)) for client in self.ids}
        server = open_key_setup(
            coordinator=self.coordinator,
            roster=self.roster,
            run_id=RUN_ID,
            sequence=sequence,
            preset=self.preset,
            signature_cache=self.cache,
        )
        self.epoch = run_key_setup(server, sessions, **options)
        self.held = {client: session._held for client, session in sessions.items()}
        return self.epoch

    def params(self, sequence: int = 1, **changes: Any) -> RoundParams:
        known = {"colluders": self.colluders, "context": CONTEXT, "mode": self.mode}
        if self.epoch is not None:
            known |= {"shared_key": self.epoch.key, "verify_sum": self.verify_sum}
        return RoundParams.for_round(
            roster=self.roster,
            layout=self.layout,
            sequence=sequence,
            run_id=RUN_ID,
            **{**known, **changes},
        )

    def policy(self, **changes: Any) -> Policy:
        colluders = 0 if self.mode is Mode.CKKS else self.colluders
        floors = {"n_min": 3, "survivors_min": 3, "colluders": colluders}
        return Policy(layout=self.layout, modes=tuple(Mode), **{**floors, **changes})

    def participant(self, client: int, **changes: Any) -> Participant:
        known: dict[str, Any] = {
            "identity": self.identities[client],
            "roster": self.roster,
            "policy": self.policy(),
            "save": lambda state: None,
            "cache": self.cache,
        }
        return Participant(**{**known, **changes})

    def client(
        self,
        client: int,
        kind: Callable[..., Any] | None = None,
        *,
        marks: Any = None,
        random: Any = None,
        **changes: Any,
    ) -> Any:
        chosen = kind or CLIENTS[self.mode]
        options = {} if random is None else {"random": random}
        session = chosen(self.participant(client, **changes), marks=marks, **options)
        if client in self.held:
            session._held = self.held[client]
        return session

    def clients(self, kind: Callable[..., Any] | None = None, **changes: Any) -> dict[int, Any]:
        return {client: self.client(client, kind, **changes) for client in self.ids}

    def server(self, params: RoundParams | None = None, *, mode: Mode | None = None) -> Any:
        chosen = SERVERS[mode or self.mode]
        return chosen(params or self.params(), self.coordinator, self.roster, cache=self.cache)

    def values(self, client: int) -> dict[str, np.ndarray]:
        """Distinct integers for each client, negative ones and large ones among them."""
        signs = np.array([1, -1, 1, -1, 1])
        delta = (np.arange(LENGTH, dtype=np.int64) * 7 + client) % 127 * signs
        return {"delta": delta, "samples": np.array([2**33 + client], np.int64)}

    def update(self, client: int) -> Update:
        return Update(values=self.values(client))

    def total(self, clients: Iterable[int]) -> dict[str, np.ndarray]:
        """The integer reference: an ordinary sum."""
        inputs = [self.values(client) for client in clients]
        return {name: np.sum([one[name] for one in inputs], axis=0) for name in inputs[0]}

    def run(self, lost: dict[int, str] | None = None, **options: Any) -> Aggregate:
        server = options.pop("server", None) or self.server()
        clients = options.pop("clients", None) or self.clients()
        return run_round(server, clients, self.update, context=CONTEXT, lost=lost, **options)

    def run_until(self, stage: Stage, clients: dict[int, Any], server: Any) -> dict[int, bytes]:
        """Runs honestly and returns the requests of `stage`, not yet delivered."""
        requests = server.open()
        while server.stage is not stage:
            for client, request in requests.items():
                server.receive(client, self.answer(clients[client], request))
            requests = server.close_stage()
        return requests

    def answer(self, client: Any, request: bytes, context: bytes = CONTEXT) -> bytes:
        answer = client.handle(request)
        if isinstance(answer, InputWanted):
            answer = client.submit(self.update(client.client_id), context)
        return answer.message


@dataclass
class Liar:
    """A server that signs whatever it likes: it holds the coordinator's key and nothing else."""

    federation: Federation
    params: RoundParams

    def _request(self, message: Message) -> bytes:
        return encode(message, params=self.params.digest, sender=COORDINATOR_ID)

    def _sign(self, stage: Stage, digest: bytes) -> bytes:
        statement = request_statement(self.params.digest, stage, digest)
        return self.federation.coordinator.sign(statement)

    def open(self) -> bytes:
        return self._request(Open(self.params, self._sign(Stage.ADVERTISE, self.params.digest)))

    def cohort(self, rows: Iterable[AdvertRow]) -> tuple[Cohort, bytes]:
        listed = sorted(rows)
        cohort = Cohort.of(self.params, listed)
        signature = self._sign(Stage.SHARE, cohort.digest)
        return cohort, self._request(CohortRequest(to_table(listed), signature))

    def collect(self, cohort: Cohort, ids: Collection[int], sealed: bytes) -> tuple[Sharers, bytes]:
        sharers = Sharers.of(cohort, ids)
        signature = self._sign(Stage.UPLOAD, sharers.digest)
        return sharers, self._request(Collect(sharers.bitmap, sealed, signature))

    def survivors(self, sharers: Sharers, rows: Iterable[SurvivorRow]) -> tuple[Survivors, bytes]:
        listed = sorted(rows)
        pairs = [(row.client, row.upload) for row in listed]
        survivors = Survivors.of(sharers.digest, pairs)
        signature = self._sign(Stage.CONFIRM, survivors.digest)
        return survivors, self._request(SurvivorsRequest(to_table(listed), signature))

    def reveal(self, survivors: Survivors, rows: Iterable[ConfirmRow]) -> bytes:
        signature = self._sign(Stage.REVEAL, survivors.digest)
        return self._request(RevealRequest(to_table(sorted(rows)), signature))


@pytest.fixture(scope="session")
def federation() -> type[Federation]:
    """The class itself: `federation(6)` is a federation of six."""
    return Federation


@pytest.fixture(scope="session")
def liar() -> type[Liar]:
    return Liar


@pytest.fixture(scope="session")
def context() -> bytes:
    return CONTEXT
