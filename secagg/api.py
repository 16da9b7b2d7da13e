"""What every mode of aggregation has in common: requests, replies, sessions, and the result.

Sessions are state machines without input or output of their own. The caller carries bytes between
them, owns every clock and deadline, and decides when a stage is closed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

from secagg.aggregate import Aggregate
from secagg.fixedpoint import Update
from secagg.params import RoundParams, Stage

Requests: TypeAlias = dict[int, bytes]
"""{client id: the message to carry to it}."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """A message to carry to the server."""

    message: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class InputWanted:
    """The session has verified its peers and waits for `submit`.

    Attributes:
        params: the round's parameters; `params.layout` says what to submit.
        contributors: clients that may contribute to this sum, this one included.
        threshold: clients without which the round aborts.
        guaranteed_honest: honest clients that any completed sum is sure to hold; a share of noise
            is scaled to this number, never to `contributors`.
    """

    params: RoundParams
    contributors: tuple[int, ...]
    threshold: int
    guaranteed_honest: int


class ClientSession(Protocol):
    """One client; lives as long as its process and takes part in many rounds, one at a time."""

    @property
    def client_id(self) -> int:
        """The id of this client in the roster."""

    def handle(self, request: bytes) -> Reply | InputWanted:
        """Answers one request of the server.

        The identical request gets the identical answer again.

        Raises:
            SecAggError: the request is refused. If that ended the round here, the error carries a
                REFUSE message for the server in `refusal`.
        """

    def submit(self, update: Update, context: bytes) -> Reply:
        """Encodes, protects and signs the update that `InputWanted` asked for.

        Args:
            update: the values of every declared segment.
            context: the digest this client computed itself of the model and plan it received.

        Raises:
            InputError: the update cannot be encoded; a corrected one may be submitted.
            ViewMismatch: `context` is not the round's: the server showed this client another model.
            Latched: this sequence has its upload.
        """

    def abandon(self) -> None:
        """Ends the running round and erases its secrets; call it when a deadline has passed."""


class ServerSession(Protocol):
    """The server's side of one round."""

    @property
    def params(self) -> RoundParams:
        """The round's parameters."""

    @property
    def stage(self) -> Stage:
        """The stage whose replies are being collected."""

    def open(self) -> Requests:
        """The first requests."""

    def receive(self, client_id: int, message: bytes) -> None:
        """Takes in one reply; an exact duplicate is ignored.

        Raises:
            SecAggError: the reply is refused and counts as none. The round goes on.
        """

    def close_stage(self) -> Requests | Aggregate:
        """Ends the stage: the next requests, or the result after the last.

        Raises:
            RoundAborted: too few clients are left, or the sum is not credible.
        """


class RestartableServer(ServerSession, Protocol):
    """The server's side of a round that a later process can go on with."""

    def pending(self) -> Requests:
        """The requests of the running stage that are not answered yet; to be sent once more."""

    def snapshot(self) -> bytes:
        """The sealed state at this very moment, late replies and half a sum included.

        `save` is given the state at every close of a stage; taking one in between spares clients
        that have answered since from answering again.

        Raises:
            WrongStage: no stage is running: there is nothing to go on with.
        """
