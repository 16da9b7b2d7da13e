"""Who is expected, who answered, who is gone: the server's book of one round, for every mode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Annotated, Generic, Protocol, TypeVar

import msgspec

from secagg.aggregate import Aggregate, Transcript, split_clip_counts
from secagg.digests import refuse_statement, request_statement
from secagg.errors import (
    REFUSAL_NAMES,
    BadSignature,
    CorruptState,
    Latched,
    Malformed,
    RoundAborted,
    UnknownIdentity,
    WrongRound,
    WrongStage,
)
from secagg.keys import SIGNATURE_BYTES, SignatureCache, SigningKey, verify
from secagg.messages import (
    MAX_REFUSE_BYTES,
    Header,
    Kind,
    Message,
    Refuse,
    decode,
    encode,
    read_header,
)
from secagg.params import RoundParams, Stage
from secagg.ring import Lanes
from secagg.roster import COORDINATOR_ID, Roster

_Count = Annotated[int, msgspec.Meta(ge=0)]
_Signature = Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]


class Page(msgspec.Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True):
    """The book at one moment of a running stage, for storage.

    Attributes:
        stage: the stage whose replies are being collected.
        signed: {stage: the coordinator's signature on its request}, up to this one.
        requests: the different requests sent, once each.
        sent: {id of a client whose reply is awaited: the place of its request in `requests`}.
        answered: {id: fingerprint of its reply, its length and its signature}.
        dropped: {id: the first stage whose reply was missing}.
        refusals: {id: name of the error}.
        bytes_up: {id: bytes received from it}.
        bytes_down: {id: bytes sent to it}.
    """

    stage: Stage
    signed: dict[Stage, _Signature]
    requests: list[bytes]
    sent: dict[int, _Count]
    answered: dict[int, tuple[_Count, _Signature]]
    dropped: dict[int, Stage]
    refusals: dict[int, str]
    bytes_up: dict[int, _Count]
    bytes_down: dict[int, _Count]


class Terms(Protocol):
    """What is fixed before a session and must be alike for everybody."""

    @property
    def digest(self) -> bytes:
        """What every signature of the session is bound to."""

    @property
    def roster_digest(self) -> bytes:
        """The roster in force."""

    def invited_ids(self, roster: Roster) -> tuple[int, ...]:
        """Who may take part."""


P = TypeVar("P", bound=Terms)


class Register(Generic[P]):
    """Checks that a message comes from a client whose reply is awaited, and counts bytes.

    Args:
        params: the public parameters of the session.
        coordinator: signs the requests.
        roster: whose signatures count.
        cache: shared only by simulations in one process.
        stage: the first stage of the mode.

    Raises:
        UnknownIdentity: `coordinator` is not the roster's.
        WrongRound: the parameters name another roster.
    """

    def __init__(
        self,
        *,
        params: P,
        coordinator: SigningKey,
        roster: Roster,
        cache: SignatureCache | None,
        stage: Stage,
    ) -> None:
        if coordinator.public != roster.coordinator:
            raise UnknownIdentity("the coordinator's key is not the one in the roster")
        if params.roster_digest != roster.digest:
            raise WrongRound("the parameters name another roster")
        self.params = params
        self.stage = stage
        self.running = False
        self.dropped: dict[int, Stage] = {}
        self.signed: dict[Stage, bytes] = {}
        self._coordinator = coordinator
        self._roster = roster
        self._cache = cache
        self._sent: dict[int, bytes] = {}
        self._answered: dict[int, tuple[int, bytes]] = {}
        self._refusals: dict[int, str] = {}
        self._bytes_up = dict.fromkeys(params.invited_ids(roster), 0)
        self._bytes_down = dict.fromkeys(self._bytes_up, 0)

    @property
    def invited(self) -> tuple[int, ...]:
        """Ids of the invited clients, ascending."""
        return tuple(self._bytes_up)

    @property
    def refusals(self) -> dict[int, str]:
        """{id: name of the error} of those that said why they left, ascending."""
        return dict(sorted(self._refusals.items()))

    @property
    def bytes_up(self) -> dict[int, int]:
        """{id: bytes received from it}."""
        return dict(self._bytes_up)

    @property
    def bytes_down(self) -> dict[int, int]:
        """{id: bytes sent to it}."""
        return dict(self._bytes_down)

    # Outgoing -------------------------------------------------------------------------------

    def sign_request(self, stage: Stage, digest: bytes) -> bytes:
        """The coordinator's signature on a stage digest; kept in `signed` for the log."""
        signature = self._coordinator.sign(request_statement(self.params.digest, stage, digest))
        self.signed[stage] = signature
        return signature

    def begin(self, stage: Stage, requests: dict[int, Message]) -> dict[int, bytes]:
        """Opens a stage: encodes its requests and awaits one reply of each receiver."""
        self.stage, self.running = stage, True
        self._answered = {}
        encoded: dict[int, bytes] = {}
        shared: dict[int, bytes] = {}  # the same request to everybody is encoded once
        for client, message in requests.items():
            data = shared.get(id(message))
            if data is None:
                data = encode(message, params=self.params.digest, sender=COORDINATOR_ID)
                shared[id(message)] = data
            encoded[client] = data
            self._bytes_down[client] += len(data)
        self._sent = encoded
        return dict(encoded)

    def pending(self) -> dict[int, bytes]:
        """The requests of the running stage that are not answered yet."""
        return {
            client: request
            for client, request in self._sent.items()
            if self.running and client not in self._answered
        }

    # Incoming -------------------------------------------------------------------------------

    def check_in(self, client: int, message: bytes, awaited: Kind) -> Header | None:
        """The header of a message to process, or None if there is nothing left to do with it.

        Raises:
            UnknownIdentity: the client was not invited.
            WrongRound: of another round.
            BadSignature: the header names another sender than the transport.
            WrongStage: of another stage, or nothing is awaited from this client.
            Latched: a second, different reply.
        """
        if client not in self._bytes_up:
            raise UnknownIdentity(f"client {client} was not invited")
        self._bytes_up[client] += len(message)
        header = read_header(message)
        if header.sender != client:
            raise BadSignature(f"a message of client {client} names sender {header.sender}")
        if header.params != self.params.digest:
            raise WrongRound(f"client {client}: message of another round")
        if header.kind is Kind.REFUSE:
            self._note_refusal(client, message)
            return None
        if not self.running or header.kind is not awaited:
            raise WrongStage(f"client {client}: {header.kind.name} while {awaited.name} is awaited")
        if client not in self._sent:
            raise WrongStage(f"client {client}: no reply is awaited from it")
        if client in self._answered:
            if self._answered[client] == _fingerprint(message):
                return None
            raise Latched(f"client {client}: a second, different {header.kind.name}")
        return header

    def accept(self, client: int, message: bytes) -> None:
        """Records a reply that passed every check."""
        self._answered[client] = _fingerprint(message)

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Stops the round for good if what is done inside fails midway: no sum is half added."""
        try:
            yield
        except BaseException:
            self.running = False
            raise

    def check_signature(self, client: int, signature: bytes, statement: bytes) -> None:
        """Returns if `client` signed `statement`; raises BadSignature otherwise."""
        key = self._roster.key_of(client)
        verify(key, signature, statement, author=f"client {client}", cache=self._cache)

    def close(self) -> tuple[int, ...]:
        """Ends the stage; the ids that answered, ascending. The others are dropped."""
        if not self.running:
            raise WrongStage("no stage is open")
        self.running = False
        for client in set(self._sent) - set(self._answered):
            self.dropped.setdefault(client, self.stage)
        return tuple(sorted(self._answered))

    def require(self, found: int, least: int, what: str, kind: type[RoundAborted]) -> None:
        """Returns if at least `least` of `what` were found.

        Raises:
            RoundAborted: of this `kind`, with the reasons that leaving clients gave.
        """
        if found < least:
            counts = sorted(Counter(self._refusals.values()).items())
            reasons = ", ".join(f"{name} x{count}" for name, count in counts)
            told = f"; clients that refused said: {reasons}" if reasons else ""
            raise kind(f"{self.stage.name}: {found} {what}, {least} required{told}")

    def _note_refusal(self, client: int, message: bytes) -> None:
        refusal = decode(message, Refuse, limit=MAX_REFUSE_BYTES)
        statement = refuse_statement(self.params.digest, client, refusal.stage, refusal.code)
        self.check_signature(client, refusal.signature, statement)
        if refusal.code not in REFUSAL_NAMES:
            raise Malformed(f"client {client}: unknown refusal code {refusal.code}")
        self._refusals[client] = REFUSAL_NAMES[refusal.code]

    # Storage --------------------------------------------------------------------------------

    def page(self) -> Page:
        """The book as it stands.

        Raises:
            WrongStage: no stage is running.
        """
        if not self.running:
            raise WrongStage("no stage is running: there is nothing to go on with")
        requests = list(dict.fromkeys(self._sent.values()))
        places = {request: place for place, request in enumerate(requests)}
        return Page(
            stage=self.stage,
            signed=self.signed,
            requests=requests,
            sent={client: places[request] for client, request in self._sent.items()},
            answered=self._answered,
            dropped=self.dropped,
            refusals=self._refusals,
            bytes_up=self._bytes_up,
            bytes_down=self._bytes_down,
        )

    def turn_to(self, page: Page) -> None:
        """Takes the book back to a page of it.

        Raises:
            CorruptState: it is not a page of this round's book.
        """
        known = set(self._bytes_up)
        listed = (page.sent, page.dropped, page.refusals, page.bytes_up, page.bytes_down)
        if any(not set(clients) <= known for clients in listed):
            raise CorruptState("the stored state names clients that were not invited")
        if set(page.bytes_up) != known or set(page.bytes_down) != known:
            raise CorruptState("the stored state does not count the bytes of every client")
        if not set(page.answered) <= set(page.sent):
            raise CorruptState("the stored state holds a reply that nobody asked for")
        if max(page.sent.values(), default=-1) >= len(page.requests):
            raise CorruptState("the stored state lacks a request")
        self.stage, self.running, self.signed = page.stage, True, dict(page.signed)
        self._sent = {client: page.requests[place] for client, place in page.sent.items()}
        self._answered, self.dropped = dict(page.answered), dict(page.dropped)
        self._refusals = dict(page.refusals)
        self._bytes_up, self._bytes_down = dict(page.bytes_up), dict(page.bytes_down)


class Attendance(Register[RoundParams]):
    """The register of a round, which ends in an aggregate."""

    def aggregate(
        self, lanes: Lanes, survivors: Collection[int], transcript: Transcript
    ) -> Aggregate:
        """The result of unmasked accumulators.

        Raises:
            SumOutOfRange: the sum is not one that honest survivors can produce.
        """
        sums = self.params.plan.decode(lanes, len(survivors))
        declared, clip_counts = split_clip_counts(sums)
        return Aggregate(
            params=self.params,
            sums=declared,
            survivors=tuple(sorted(survivors)),
            dropped=dict(sorted(self.dropped.items())),
            refusals=self.refusals,
            clip_counts=clip_counts,
            bytes_up=self.bytes_up,
            bytes_down=self.bytes_down,
            transcript=transcript,
        )


def _fingerprint(message: bytes) -> tuple[int, bytes]:
    """Tells a repeated reply from another one by its length and the signature at its end.

    Nothing rests on it: neither is processed a second time. A hash of the whole would cost an
    upload of megabytes as much as checking it.
    """
    return len(message), message[-SIGNATURE_BYTES:]
