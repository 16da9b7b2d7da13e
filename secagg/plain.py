"""Aggregation without secrecy: the server sees every update.

One stage, with the same layout, quantiser, packing, signatures and context binding as the protected
modes, so that a run without protection returns the same integers bit for bit. It is the reference
every other mode is tested against, and what `Mode.PLAIN` must be chosen for by name.
"""

from __future__ import annotations

import hmac
import os

from secagg.aggregate import Aggregate, Transcript
from secagg.api import InputWanted, Reply, Requests
from secagg.attendance import Attendance
from secagg.digests import upload_digest, upload_statement
from secagg.errors import (
    ConfigurationError,
    CorruptState,
    SecAggError,
    TooFewSurvivors,
    ViewMismatch,
    WrongStage,
)
from secagg.fixedpoint import Update, encode_update
from secagg.keys import SignatureCache, SigningKey
from secagg.latch import Latches
from secagg.marks import Marks
from secagg.messages import (
    Kind,
    Open,
    SurvivorRow,
    Upload,
    decode,
    encode,
    from_table,
    max_bytes,
    to_table,
)
from secagg.params import RoundParams, Stage
from secagg.participant import Participant, SignedRequest
from secagg.roster import Roster
from secagg.roundlog import RoundLog
from secagg.secret import RandomSource
from secagg.server_snapshot import ServerSnapshot, ServerStore, freeze_lanes, thaw_lanes
from secagg.turn import Turn, alone


class PlainClient:
    """A client session of mode `plain`; see `secagg.api.ClientSession`.

    Args:
        participant: identity, roster, policy and durable storage.
        marks: the marks stored by an earlier process, if any.
        random: source of the rounding stream.
        keep_replies: whether the last reply is kept for a repeated request.
    """

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
        """Answers the one request of this mode; see `secagg.api.ClientSession.handle`."""
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
            self._marks = self._participant.admit(params, self._marks)
        except SecAggError as error:
            error.refusal = self._participant.refusal(params.digest, Stage.UPLOAD, error)
            raise
        self._latches = Latches(keep_replies=self._keep_replies)
        self._params, self._request = params, (request, signed)

    def submit(self, update: Update, context: bytes) -> Reply:
        """Encodes and signs the update; see `secagg.api.ClientSession.submit`."""
        if self._params is None or self._request is None:
            raise WrongStage("UPLOAD: no round is running")
        params, (request, signed) = self._params, self._request
        self._latches.check_open(Stage.UPLOAD, signed)
        if not hmac.compare_digest(params.context, context):
            error = ViewMismatch(
                "UPLOAD: the model or plan received here is not the one the round is bound to"
            )
            error.refusal = self._participant.refusal(params.digest, Stage.UPLOAD, error)
            self.abandon()
            raise error
        encoded = encode_update(update, params.layout, self._random)
        body = params.plan.pack(params.plan.to_lanes(encoded))
        upload = upload_digest(params.digest, self.client_id, body)
        statement = upload_statement(params.digest, self.client_id, upload)
        message = Upload(body, self._participant.identity.key.sign(statement))
        reply = encode(message, params=params.digest, sender=self.client_id)
        self._latches.close(Stage.UPLOAD, request, signed, reply)
        return Reply(message=reply)

    def abandon(self) -> None:
        """Ends the running round."""
        self._params = self._request = None


class PlainServer:
    """A server session of mode `plain`; see `secagg.api.RestartableServer`.

    Args:
        params: the round's parameters.
        coordinator: signs the requests.
        roster: whose signatures count.
        cache: shared only by simulations in one process.
        store: keeps the state when the round opens; None keeps nothing.
    """

    def __init__(
        self,
        params: RoundParams,
        coordinator: SigningKey,
        roster: Roster,
        *,
        cache: SignatureCache | None = None,
        store: ServerStore | None = None,
    ) -> None:
        self._store = store
        self._turn = Turn()
        self._book = Attendance(
            params=params,
            coordinator=coordinator,
            roster=roster,
            cache=cache,
            stage=Stage.UPLOAD,
        )
        self._lanes = params.plan.zeros()
        self._uploads: dict[int, SurvivorRow] = {}
        self._opened = False

    @property
    def params(self) -> RoundParams:
        """The round's parameters."""
        return self._book.params

    @property
    def stage(self) -> Stage:
        """The one stage of this mode."""
        return self._book.stage

    @alone
    def open(self) -> Requests:
        """The signed parameters, for every invited client."""
        if self._opened:
            raise WrongStage("the round was opened before")
        self._opened = True
        signature = self._book.sign_request(Stage.ADVERTISE, self.params.digest)
        request = Open(self.params, signature)
        requests = self._book.begin(Stage.UPLOAD, dict.fromkeys(self._book.invited, request))
        if self._store is not None:
            with self._book.all_or_nothing():
                self._store.save(self._sealed())
        return requests

    @alone
    def pending(self) -> Requests:
        """What is not answered yet; see `secagg.api.RestartableServer.pending`."""
        return self._book.pending()

    @alone
    def snapshot(self) -> bytes:
        """The sealed state; see `secagg.api.RestartableServer.snapshot`."""
        return self._sealed()

    def _sealed(self) -> bytes:
        if self._store is None:
            raise ConfigurationError("this session was opened without a state key")
        page = self._book.page()
        lanes = freeze_lanes(self._lanes, self._uploads)
        uploads = to_table(self._uploads[client] for client in sorted(self._uploads))
        return self._store.seal(
            ServerSnapshot(params=self.params, page=page, lanes=lanes, uploads=uploads)
        )

    def resume(self, snapshot: ServerSnapshot) -> None:
        """Takes up a round where a snapshot left it.

        Raises:
            CorruptState: the snapshot does not fit together.
        """
        self._book.turn_to(snapshot.page)
        self._lanes = thaw_lanes(snapshot.lanes, self.params, snapshot.uploads)
        try:
            rows = from_table(SurvivorRow, snapshot.uploads)
        except SecAggError as error:
            raise CorruptState(f"the stored state does not fit together: {error}") from error
        self._uploads = {row.client: row for row in rows}
        self._opened = True

    @alone
    def receive(self, client_id: int, message: bytes) -> None:
        """Takes in one upload; see `secagg.api.ServerSession.receive`."""
        if self._book.check_in(client_id, message, Kind.UPLOAD) is None:
            return
        upload = decode(message, Upload, limit=max_bytes(Kind.UPLOAD, self.params))
        view = self.params.digest
        self.params.plan.check_body(upload.body)
        hashed = upload_digest(view, client_id, upload.body)
        statement = upload_statement(view, client_id, hashed)
        self._book.check_signature(client_id, upload.signature, statement)
        with self._book.all_or_nothing():
            self.params.plan.add_body(self._lanes, upload.body)
        self._uploads[client_id] = SurvivorRow(client_id, hashed, upload.signature)
        self._book.accept(client_id, message)

    @alone
    def close_stage(self) -> Aggregate:
        """The sums over the uploads that arrived.

        Raises:
            TooFewSurvivors: fewer than `survivors_min`.
            SumOutOfRange: an upload was not an honest one.
        """
        survivors = self._book.close()
        least = self.params.survivors_min
        self._book.require(len(survivors), least, "uploads", TooFewSurvivors)
        log = RoundLog(
            params=self.params,
            requests=tuple(self._book.signed.values()),
            uploads=to_table(self._uploads[client] for client in survivors),
        )
        transcript = Transcript(params=self.params.digest, log=log.to_bytes())
        return self._book.aggregate(self._lanes, survivors, transcript)
