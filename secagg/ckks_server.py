"""The server of mode `ckks`: it adds ciphertexts it cannot read and asks two clients for the sum.

It holds one encrypted sum, whatever the number of clients, and no key; with verified sums it keeps
the uploads, since decryptors add them up themselves. Two survivors decrypt, chosen by a digest, and
must agree; a decryptor that is lost is replaced by the next one.
"""

from __future__ import annotations

import hashlib

from secagg.aggregate import Aggregate, Transcript
from secagg.api import Requests
from secagg.ckks_client import DECRYPTORS, decryptors_in_order, quorum, survivors_of
from secagg.ckks_log import KeyedLog
from secagg.ckks_scheme import CiphertextSum
from secagg.digests import confirm_statement, decryption_digest, sum_statement
from secagg.direct import DirectServer
from secagg.errors import (
    AnswersDiffer,
    ConfigurationError,
    Malformed,
    MarginExceeded,
    SumOutOfRange,
    TooFewReplies,
    TooFewSurvivors,
)
from secagg.keys import SignatureCache, SigningKey
from secagg.messages import (
    AnswerRow,
    Confirm,
    ConfirmRow,
    Decrypt,
    Kind,
    Sum,
    SurvivorsRequest,
    decode,
    max_bytes,
    to_table,
)
from secagg.params import KeyedParams, RoundParams, Stage
from secagg.roster import Roster
from secagg.turn import alone
from secagg.views import Survivors, known


class CKKSServer(DirectServer):
    """A server session of mode `ckks`; see `secagg.api.ServerSession`."""

    def __init__(
        self,
        params: RoundParams,
        coordinator: SigningKey,
        roster: Roster,
        *,
        cache: SignatureCache | None = None,
    ) -> None:
        if not isinstance(params, KeyedParams):
            raise ConfigurationError("the parameters name no shared key")
        super().__init__(params, coordinator, roster, cache=cache)
        self._keyed = params
        self._sum = CiphertextSum(params.preset)
        self._bodies: dict[int, bytes] = {}  # kept for verified sums only
        self._survivors: Survivors | None = None
        self._confirmations: dict[int, ConfirmRow] = {}
        self._candidates: list[int] = []
        self._request = Decrypt(b"", b"", b"", b"")
        self._asked = b""
        self._answers: dict[int, Sum] = {}

    def _take(self, client_id: int, message: bytes) -> None:
        match self.stage:
            case Stage.CONFIRM:
                self._take_confirm(client_id, message)
            case Stage.REVEAL:
                self._take_sum(client_id, message)
            case _:
                super()._take(client_id, message)

    @alone
    def close_stage(self) -> Requests | Aggregate:
        """Ends the stage; see `secagg.api.ServerSession.close_stage`.

        Raises:
            MarginExceeded: a decrypted sum was off the grid; the key must be replaced.
            SumOutOfRange: a decrypted sum was one that honest clients cannot produce.
            AnswersDiffer: two decryptors disagree.
        """
        answered = self._book.close()
        match self.stage:
            case Stage.CONFIRM:
                self._book.require(
                    len(answered), quorum(self._keyed), "confirmations", TooFewReplies
                )
                return self._ask_first(answered)
            case Stage.REVEAL:
                return self._finish()
            case _:
                return self._end_uploads()

    # UPLOAD -----------------------------------------------------------------------------------

    def _check_body(self, body: bytes) -> None:
        expected = self.params.upload_bytes
        if len(body) != expected:
            raise Malformed(f"upload body of {len(body)} bytes: {expected} expected")

    def _add(self, client: int, body: bytes) -> None:
        parsed = self._sum.parse(self._keyed.slots.unframe(body))
        with self._book.all_or_nothing():
            self._sum.add_parsed(parsed)
        if self._keyed.verify_sum:
            self._bodies[client] = body

    def _end_uploads(self) -> Requests:
        rows = [self._uploads[client] for client in sorted(self._uploads)]
        self._book.require(len(rows), self.params.survivors_min, "uploads", TooFewSurvivors)
        survivors = self._survivors = survivors_of(self._keyed, rows)
        if not self._keyed.verify_sum:
            return self._ask_first(survivors.ids)
        signature = self._book.sign_request(Stage.CONFIRM, survivors.digest)
        request = SurvivorsRequest(to_table(rows), signature)
        return self._book.begin(Stage.CONFIRM, dict.fromkeys(survivors.ids, request))

    # CONFIRM ----------------------------------------------------------------------------------

    def _take_confirm(self, client: int, message: bytes) -> None:
        if self._book.check_in(client, message, Kind.CONFIRM) is None:
            return
        confirm = decode(message, Confirm, limit=max_bytes(Kind.CONFIRM, self.params))
        statement = confirm_statement(known(self._survivors).digest)
        self._book.check_signature(client, confirm.signature, statement)
        self._confirmations[client] = ConfirmRow(client, confirm.signature)
        self._book.accept(client, message)

    # REVEAL -----------------------------------------------------------------------------------

    def _ask_first(self, present: tuple[int, ...]) -> Requests:
        survivors = known(self._survivors)
        self._candidates = decryptors_in_order(survivors, present)
        if self._keyed.verify_sum:
            ciphertexts = b"".join(self._bodies[client] for client in survivors.ids)
        else:
            ciphertexts = self._framed_sum()
        confirming = sorted(self._confirmations)[: quorum(self._keyed)]
        self._asked = decryption_digest(survivors.digest, ciphertexts)
        self._request = Decrypt(
            to_table(self._uploads[client] for client in survivors.ids),
            to_table(self._confirmations[client] for client in confirming),
            ciphertexts,
            self._book.sign_request(Stage.REVEAL, self._asked),
        )
        return self._ask(DECRYPTORS)

    def _framed_sum(self) -> bytes:
        body = self._keyed.slots.frame(self._sum.to_blobs())
        if body is None:
            raise Malformed("the encrypted sum does not fit its frame")
        return body

    def _ask(self, number: int) -> Requests:
        """Asks the next candidates to decrypt."""
        chosen, self._candidates = self._candidates[:number], self._candidates[number:]
        return self._book.begin(Stage.REVEAL, dict.fromkeys(chosen, self._request))

    def _take_sum(self, client: int, message: bytes) -> None:
        if self._book.check_in(client, message, Kind.SUM) is None:
            return
        reply = decode(message, Sum, limit=max_bytes(Kind.SUM, self.params))
        self.params.plan.check_body(reply.body)
        statement = sum_statement(self._asked, client, reply.body)
        self._book.check_signature(client, reply.signature, statement)
        self._answers[client] = reply
        self._book.accept(client, message)

    def _finish(self) -> Requests | Aggregate:
        reasons = set(self._book.refusals.values())
        if MarginExceeded.__name__ in reasons:
            raise MarginExceeded(
                "REVEAL: a decryptor found the sum off the grid; the run stops here, and a new one "
                "needs a new shared key"
            )
        if SumOutOfRange.__name__ in reasons:
            raise SumOutOfRange("REVEAL: a decryptor found the sum outside its public bounds")
        missing = DECRYPTORS - len(self._answers)
        if missing > 0 and self._candidates:
            return self._ask(missing)
        self._book.require(len(self._answers), DECRYPTORS, "decrypted sums", TooFewReplies)
        body, *others = (answer.body for answer in self._answers.values())
        if any(other != body for other in others):
            clients = ", ".join(map(str, sorted(self._answers)))
            raise AnswersDiffer(f"REVEAL: clients {clients} decrypted the same sum differently")
        lanes = self.params.plan.zeros()
        self.params.plan.add_body(lanes, body)
        survivors = known(self._survivors)
        transcript = Transcript(
            params=self.params.digest,
            survivors=survivors.digest,
            threshold=quorum(self._keyed) if self._keyed.verify_sum else 0,
            log=self._log(survivors, body).to_bytes(),
        )
        return self._book.aggregate(lanes, survivors.ids, transcript)

    def _log(self, survivors: Survivors, body: bytes) -> KeyedLog:
        """What was signed in this round, without any ciphertext or sum."""
        return KeyedLog(
            params=self._keyed,
            requests=tuple(self._book.signed.values()),
            uploads=to_table(self._uploads[client] for client in survivors.ids),
            confirmations=to_table(row for _, row in sorted(self._confirmations.items())),
            ciphertexts=hashlib.sha256(self._request.ciphertexts).digest(),
            sums=hashlib.sha256(body).digest(),
            answers=to_table(
                AnswerRow(client, answer.signature)
                for client, answer in sorted(self._answers.items())
            ),
        )
