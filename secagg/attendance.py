"""Who is expected, who answered, who is gone: the server's book of one round, for every mode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Generic, Protocol, TypeVar

from secagg.aggregate import Aggregate, Transcript, split_clip_counts
from secagg.digests import refuse_statement, request_statement
from secagg.errors import (
    REFUSAL_NAMES,
    BadSignature,
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
        self._expected: set[int] = set()
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
        self._expected, self._answered = set(requests), {}
        encoded: dict[int, bytes] = {}
        shared: dict[int, bytes] = {}  # the same request to everybody is encoded once
        for client, message in requests.items():
            data = shared.get(id(message))
            if data is None:
                data = encode(message, params=self.params.digest, sender=COORDINATOR_ID)
                shared[id(message)] = data
            encoded[client] = data
            self._bytes_down[client] += len(data)
        return encoded

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
        if client not in self._expected:
            raise WrongStage(f"client {client}: no reply is awaited from it")
        if client in self._answered:
            if self._answered[client] == _fingerprint(message):
                return None
            raise Latched(f"client {client}: a second, different {header.kind.name}")
        return header

    def accept(self, client: int, message: bytes) -> None:
        """Records a reply that passed every check."""
        self._answered[client] = _fingerprint(message)

    def check_signature(self, client: int, signature: bytes, statement: bytes) -> None:
        """Returns if `client` signed `statement`; raises BadSignature otherwise."""
        key = self._roster.key_of(client)
        verify(key, signature, statement, author=f"client {client}", cache=self._cache)

    def close(self) -> tuple[int, ...]:
        """Ends the stage; the ids that answered, ascending. The others are dropped."""
        if not self.running:
            raise WrongStage("no stage is open")
        self.running = False
        for client in self._expected - set(self._answered):
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
