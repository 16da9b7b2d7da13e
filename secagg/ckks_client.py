"""The client of mode `ckks`: it shares a key with the other clients, encrypts, and decrypts sums.

What a decryptor gives away is decided here: it answers once for a sequence, only for a survivor
list that is long enough, signed by every member and holds its own upload, and it releases integers
that lie on the grid and nothing of the encryption error. Without verified sums it takes the server's
word that the ciphertext it is shown is the sum; with them it adds up every signed upload itself, for
the one survivor list that a majority has confirmed.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from secagg.api import InputWanted, Reply
from secagg.ckks_keys import SETUP_REQUESTS, HeldKey, KeySetup
from secagg.ckks_scheme import CiphertextSum
from secagg.digests import (
    confirm_statement,
    decryption_digest,
    decryptor_rank,
    sum_statement,
    upload_digest,
    upload_statement,
)
from secagg.direct import DirectClient
from secagg.errors import (
    KeyMissing,
    Malformed,
    MarginExceeded,
    SumOutOfRange,
    TooFewReplies,
    TooFewSurvivors,
    ViewMismatch,
    WrongRound,
    WrongStage,
)
from secagg.fixedpoint import Integers
from secagg.messages import (
    Confirm,
    ConfirmRow,
    Decrypt,
    Kind,
    Message,
    Sum,
    SurvivorRow,
    SurvivorsRequest,
    decode,
    encode,
    from_table,
    max_bytes,
    read_header,
)
from secagg.params import KeyedParams, Mode, RoundParams, Stage
from secagg.participant import SignedRequest
from secagg.threshold import threshold
from secagg.views import Survivors

DECRYPTORS = 2  # they must agree
_STAGES: dict[Kind, Stage] = {Kind.SURVIVORS: Stage.CONFIRM, Kind.DECRYPT: Stage.REVEAL}


class CKKSClient(DirectClient):
    """A client session of mode `ckks`; see `secagg.api.ClientSession`.

    The key lives in memory: a process that restarts takes part again after the next set-up.
    """

    mode = Mode.CKKS

    _setup: tuple[bytes, KeySetup] | None = None
    _held: HeldKey | None = None
    _upload: bytes | None = None
    _confirmed: bytes | None = None

    def handle(self, request: bytes) -> Reply | InputWanted:
        """Answers one request of a set-up or of a round; see `secagg.api.ClientSession.handle`."""
        kind = read_header(request).kind
        if kind in SETUP_REQUESTS:
            return self._set_up(kind, request)
        if kind not in _STAGES:
            return super().handle(request)
        stage = _STAGES[kind]
        kept = self._latches.repeated(stage, request)
        if kept is not None:
            return Reply(message=kept)
        params, upload = self._running(request)
        limit = max_bytes(kind, params)
        try:
            if kind is Kind.SURVIVORS:
                survivors = decode(request, SurvivorsRequest, limit=limit)
                signed, message = self._confirm(params, upload, survivors)
            else:
                signed, message = self._decrypt(
                    params, upload, decode(request, Decrypt, limit=limit)
                )
        except (MarginExceeded, SumOutOfRange) as error:
            if isinstance(error, MarginExceeded):
                self._held = None  # that it failed says something about the key: it ends here
            raise self._leave(stage, error) from error
        reply = encode(message, params=params.digest, sender=self.client_id)
        self._latches.close(stage, request, signed, reply)
        return Reply(message=reply)

    # Key ------------------------------------------------------------------------------------

    def _set_up(self, kind: Kind, request: bytes) -> Reply:
        if kind is Kind.KEY_OPEN:
            if self._setup is None or self._setup[0] != request:
                setup, self._marks = KeySetup.begin(
                    self._participant, request, self._marks, self._random
                )
                self._setup = (request, setup)
            return self._setup[1].advert
        if self._setup is None:
            raise WrongRound(f"{kind.name}: this client is in no key set-up")
        reply, held = self._setup[1].handle(request)
        if held is not None:
            self._held = held
        return reply

    def _check(self, params: RoundParams) -> None:
        super()._check(params)
        self._key_of(params)

    def _key_of(self, params: RoundParams) -> HeldKey:
        held = self._held
        if (
            held is None
            or not isinstance(params, KeyedParams)
            or (held.name, held.run_id) != (params.shared_key, params.run_id)
        ):
            raise KeyMissing("this client does not hold the round's shared key: run a key set-up")
        return held

    # Upload ---------------------------------------------------------------------------------

    def _body(self, params: RoundParams, encoded: dict[str, Integers]) -> bytes:
        key = self._key_of(params).key
        plan = _keyed(params).slots
        slots = plan.to_slots(encoded)
        body: bytes | None = None
        while body is None:  # a fresh encryption has another size; that one is too long is rare
            body = plan.frame(key.encrypt(slots))
        return body

    def _uploaded(self, upload: bytes) -> None:
        self._upload = upload

    def abandon(self) -> None:
        """Ends the running round."""
        super().abandon()
        self._upload = self._confirmed = None

    def _running(self, request: bytes) -> tuple[KeyedParams, bytes]:
        header = read_header(request)
        if self._params is None or header.params != self._params.digest:
            raise WrongRound(f"{header.kind.name}: not of the round this client is in")
        if self._upload is None:
            raise WrongStage(f"{header.kind.name}: this client has not uploaded")
        return _keyed(self._params), self._upload

    # Confirm and decrypt ----------------------------------------------------------------------

    def _survivors(self, params: KeyedParams, upload: bytes, table: bytes) -> list[SurvivorRow]:
        """The rows of a survivor list, once every member is invited and signed its upload."""
        rows = from_table(SurvivorRow, table)
        if (self.client_id, upload) not in {(row.client, row.upload) for row in rows}:
            raise ViewMismatch("the survivors do not hold this client with its own upload")
        if len(rows) < params.survivors_min:
            raise TooFewSurvivors(f"{len(rows)} survivors: {params.survivors_min} required")
        invited = set(params.invited_ids(self._participant.roster))
        for row in rows:
            if row.client not in invited:
                raise ViewMismatch(f"survivor {row.client} was not invited")
            statement = upload_statement(params.digest, row.client, row.upload)
            self._participant.check_signature(row.client, row.signature, statement)
        return rows

    def _confirm(
        self, params: KeyedParams, upload: bytes, request: SurvivorsRequest
    ) -> tuple[SignedRequest, Message]:
        if not params.verify_sum:
            raise WrongStage("CONFIRM: this round has no such stage")
        rows = from_table(SurvivorRow, request.uploads)
        digest = survivors_of(params, rows).digest
        signed = self._signed(params, Stage.CONFIRM, digest, request.signature)
        self._survivors(params, upload, request.uploads)
        self._confirmed = digest
        statement = confirm_statement(digest)
        return signed, Confirm(self._participant.identity.key.sign(statement))

    def _decrypt(
        self, params: KeyedParams, upload: bytes, request: Decrypt
    ) -> tuple[SignedRequest, Message]:
        rows = from_table(SurvivorRow, request.uploads)
        survivors = survivors_of(params, rows)
        digest = decryption_digest(survivors.digest, request.ciphertexts)
        signed = self._signed(params, Stage.REVEAL, digest, request.signature)
        rows = self._survivors(params, upload, request.uploads)
        if params.verify_sum:
            self._check_confirmations(params, survivors, request.confirmations)
            blobs = _added_up(params, rows, request.ciphertexts)
        else:
            blobs = params.slots.unframe(request.ciphertexts)
        decrypted = self._key_of(params).key.decrypt(blobs)
        sums = params.slots.from_slots(decrypted, len(rows))
        body = params.plan.pack(params.plan.to_lanes(sums))
        statement = sum_statement(digest, self.client_id, body)
        return signed, Sum(body, self._participant.identity.key.sign(statement))

    def _check_confirmations(self, params: KeyedParams, survivors: Survivors, table: bytes) -> None:
        """Returns if a majority of those invited confirmed this list, this client among them."""
        if self._confirmed is None or not hmac.compare_digest(self._confirmed, survivors.digest):
            raise ViewMismatch("the survivors are not those that this client confirmed")
        rows = from_table(ConfirmRow, table)
        needed = quorum(params)
        if len(rows) < needed:
            raise TooFewReplies(f"{len(rows)} confirmations: {needed} required")
        for row in rows:
            if row.client not in survivors.ids:
                raise ViewMismatch(f"client {row.client} confirms and is no survivor")
            statement = confirm_statement(survivors.digest)
            self._participant.check_signature(row.client, row.signature, statement)

    def _signed(
        self, params: KeyedParams, stage: Stage, digest: bytes, signature: bytes
    ) -> SignedRequest:
        """The genuine request, if the stage was not answered."""
        signed = self._participant.check_request(params.digest, stage, digest, signature)
        self._latches.check_open(stage, signed)
        return signed


def quorum(params: KeyedParams) -> int:
    """Confirmations that no two survivor lists can both have: more than half of those invited."""
    return threshold(params.invited_count, 0)


def survivors_of(params: KeyedParams, rows: list[SurvivorRow]) -> Survivors:
    """U and its digest R, which rests on P."""
    return Survivors.of(params.digest, [(row.client, row.upload) for row in rows])


def decryptors_in_order(survivors: Survivors, present: Iterable[int]) -> list[int]:
    """Those of the survivors who are present, in the order in which they are asked to decrypt."""
    return sorted(present, key=lambda client: decryptor_rank(survivors.digest, client))


def _added_up(params: KeyedParams, rows: list[SurvivorRow], ciphertexts: bytes) -> list[bytes]:
    """The sum of the uploads whose digests the survivors signed."""
    size = params.upload_bytes
    if len(ciphertexts) != size * len(rows):
        raise Malformed(f"{len(ciphertexts)} bytes of uploads: {size * len(rows)} expected")
    total = CiphertextSum(params.preset)
    for place, row in enumerate(rows):
        body = ciphertexts[place * size : (place + 1) * size]
        if upload_digest(params.digest, row.client, body) != row.upload:
            raise ViewMismatch(f"client {row.client}: this is not the upload it signed")
        total.add(params.slots.unframe(body))
    return total.to_blobs()


def _keyed(params: RoundParams) -> KeyedParams:
    if not isinstance(params, KeyedParams):
        raise KeyMissing("the round names no shared key")
    return params
