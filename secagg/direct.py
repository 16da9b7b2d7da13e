"""What the modes `plain` and `ckks` have in common: clients upload in answer to the first request.

Both bind an upload to the round's parameters alone (P stands where masking has V), and both admit,
encode, sign, check and count in the same way. They differ in what the body of an upload is.
"""

from __future__ import annotations

import hmac
import os
from abc import ABC, abstractmethod
from typing import ClassVar

from secagg.api import InputWanted, Reply, Requests
from secagg.digests import upload_digest, upload_statement
from secagg.errors import SecAggError, UnsupportedSuite, ViewMismatch, WrongStage
from secagg.fixedpoint import Integers, Update, encode_update
from secagg.keys import SignatureCache, SigningKey
from secagg.latch import Latches
from secagg.marks import Marks
from secagg.messages import (
    Kind,
    Open,
    OpenKeyed,
    SurvivorRow,
    Upload,
    decode,
    encode,
    max_bytes,
)
from secagg.params import KeyedParams, Mode, RoundParams, Stage
from secagg.participant import Participant, SignedRequest
from secagg.roster import Roster
from secagg.round_server import RoundServer
from secagg.secret import RandomSource
from secagg.turn import alone


class DirectClient(ABC):
    """A client session up to its upload; see `secagg.api.ClientSession`.

    Args:
        participant: identity, roster, policy and durable storage.
        marks: the marks stored by an earlier process, if any.
        random: source of the rounding stream.
        keep_replies: whether the last reply is kept for a repeated request.
    """

    mode: ClassVar[Mode]

    def __init__(
        self,
        participant: Participant,
        *,
        marks: Marks | None = None,
        random: RandomSource = os.urandom,
        keep_replies: bool = True,
    ) -> None:
        self._participant = participant
        self._marks = Marks() if marks is None else marks
        self._random = random
        self._keep_replies = keep_replies
        self._latches = Latches(keep_replies=keep_replies)
        self._params: RoundParams | None = None
        self._request: tuple[bytes, SignedRequest] | None = None

    @property
    def client_id(self) -> int:
        """The id of this client in the roster."""
        return self._participant.identity.id

    def handle(self, request: bytes) -> Reply | InputWanted:
        """Answers the first request of a round; see `secagg.api.ClientSession.handle`."""
        kept = self._latches.repeated(Stage.UPLOAD, request)
        if kept is not None:
            return Reply(message=kept)
        params, signed = self._participant.read_open(request)
        if self._request is None or self._request[0] != request:
            self._begin(params, request, signed)
        return InputWanted(
            params=params,
            contributors=params.invited_ids(self._participant.roster),
            threshold=params.survivors_min,
            guaranteed_honest=max(1, params.survivors_min - params.colluders),
        )

    def _begin(self, params: RoundParams, request: bytes, signed: SignedRequest) -> None:
        try:
            self._check(params)
            self._marks = self._participant.admit(params, self._marks)
        except SecAggError as error:
            error.refusal = self._participant.refusal(params.digest, Stage.UPLOAD, error)
            raise
        self._latches = Latches(keep_replies=self._keep_replies)
        self._params, self._request = params, (request, signed)

    def _check(self, params: RoundParams) -> None:
        """Returns if this kind of session serves such a round.

        Raises:
            UnsupportedSuite: a round of another mode.
        """
        if params.mode is not self.mode:
            raise UnsupportedSuite(f"a {self.mode.name} session, a {params.mode.name} round")

    def submit(self, update: Update, context: bytes) -> Reply:
        """Encodes and signs the update; see `secagg.api.ClientSession.submit`."""
        if self._params is None or self._request is None:
            raise WrongStage("UPLOAD: no round is running")
        params, (request, signed) = self._params, self._request
        self._latches.check_open(Stage.UPLOAD, signed)
        if not hmac.compare_digest(params.context, context):
            raise self._leave(
                Stage.UPLOAD,
                ViewMismatch(
                    "UPLOAD: the model or plan received here is not the one the round is bound to"
                ),
            )
        body = self._body(params, encode_update(update, params.layout, self._random))
        upload = upload_digest(params.digest, self.client_id, body)
        statement = upload_statement(params.digest, self.client_id, upload)
        signature = self._participant.identity.key.sign(statement)
        reply = encode(Upload(body, signature), params=params.digest, sender=self.client_id)
        self._uploaded(upload)
        self._latches.close(Stage.UPLOAD, request, signed, reply)
        return Reply(message=reply)

    @abstractmethod
    def _body(self, params: RoundParams, encoded: dict[str, Integers]) -> bytes:
        """The body of an upload of these integers."""

    def _uploaded(self, upload: bytes) -> None:  # noqa: B027 -- a hook that may stay empty
        """Takes note of the digest of the upload that leaves now."""

    def _leave(self, stage: Stage, error: SecAggError) -> SecAggError:
        """Ends the round here; returns the error with the refusal for the server."""
        if self._params is not None:
            error.refusal = self._participant.refusal(self._params.digest, stage, error)
        self.abandon()
        return error

    def abandon(self) -> None:
        """Ends the running round."""
        self._params = self._request = None


class DirectServer(RoundServer, ABC):
    """A server session up to the uploads; see `secagg.api.ServerSession`."""

    def __init__(
        self,
        params: RoundParams,
        coordinator: SigningKey,
        roster: Roster,
        *,
        cache: SignatureCache | None = None,
    ) -> None:
        super().__init__(params, coordinator, roster, cache=cache, stage=Stage.UPLOAD)
        self._uploads: dict[int, SurvivorRow] = {}
        self._opened = False

    @alone
    def open(self) -> Requests:
        """The signed parameters, for every invited client."""
        if self._opened:
            raise WrongStage("the round was opened before")
        self._opened = True
        signature = self._book.sign_request(Stage.ADVERTISE, self.params.digest)
        request = opening(self.params, signature)
        requests = self._book.begin(Stage.UPLOAD, dict.fromkeys(self._book.invited, request))
        self._begun()
        return requests

    def _begun(self) -> None:
        """Called before the first requests leave."""

    @alone
    def receive(self, client_id: int, message: bytes) -> None:
        """Takes in one reply; see `secagg.api.ServerSession.receive`."""
        self._take(client_id, message)

    def _take(self, client_id: int, message: bytes) -> None:
        """Takes in one reply of the running stage: here, an upload."""
        if self._book.check_in(client_id, message, Kind.UPLOAD) is None:
            return
        upload = decode(message, Upload, limit=max_bytes(Kind.UPLOAD, self.params))
        view = self.params.digest
        self._check_body(upload.body)
        hashed = upload_digest(view, client_id, upload.body)
        statement = upload_statement(view, client_id, hashed)
        self._book.check_signature(client_id, upload.signature, statement)
        self._add(client_id, upload.body)
        self._uploads[client_id] = SurvivorRow(client_id, hashed, upload.signature)
        self._book.accept(client_id, message)

    @abstractmethod
    def _check_body(self, body: bytes) -> None:
        """Returns if the body may be an upload; called before its signature is verified."""

    @abstractmethod
    def _add(self, client: int, body: bytes) -> None:
        """Adds a body whose signature is verified to the sum; all of it or nothing."""


def opening(params: RoundParams, signature: bytes) -> Open | OpenKeyed:
    """The first request of a round with these parameters."""
    if isinstance(params, KeyedParams):
        return OpenKeyed(params, signature)
    return Open(params, signature)
