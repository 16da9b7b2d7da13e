"""How a client begins and leaves a round, whatever the mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from secagg.ckks_terms import KeyTerms
from secagg.digests import refuse_statement, request_statement
from secagg.errors import SecAggError, WrongRound, refusal_code
from secagg.keys import SignatureCache, verify
from secagg.marks import Marks
from secagg.messages import (
    MAX_OPEN_BYTES,
    Kind,
    Open,
    OpenKeyed,
    Refuse,
    decode,
    encode,
    read_header,
)
from secagg.params import RoundParams, Stage
from secagg.policy import Policy
from secagg.roster import Identity, Roster


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """What the coordinator signed for one stage: proof of it to anybody who holds the roster."""

    digest: bytes
    signature: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Participant:
    """One client's fixed part: who it is, whom it trusts, what it insists on, where it saves.

    Attributes:
        identity: its id and signing key.
        roster: the trust anchor.
        policy: its floors.
        save: makes bytes durable before it returns; called before any key leaves.
        cache: shared only by simulations in one process.
    """

    identity: Identity
    roster: Roster
    policy: Policy
    save: Callable[[bytes], None]
    cache: SignatureCache | None = None

    def check_request(
        self, params: bytes, stage: Stage, digest: bytes, signature: bytes
    ) -> SignedRequest:
        """The request as signed, once the coordinator's signature holds.

        Raises:
            BadSignature: the coordinator did not sign this digest for this stage and round.
        """
        statement = request_statement(params, stage, digest)
        verify(
            self.roster.coordinator,
            signature,
            statement,
            author="the coordinator",
            cache=self.cache,
        )
        return SignedRequest(digest, signature)

    def check_signature(self, client: int, signature: bytes, statement: bytes) -> None:
        """Returns if `client` signed `statement`.

        Raises:
            UnknownIdentity: it is not in the roster.
            BadSignature: it did not.
        """
        key = self.roster.key_of(client)
        verify(key, signature, statement, author=f"client {client}", cache=self.cache)

    def read_open(self, request: bytes) -> tuple[RoundParams, SignedRequest]:
        """The parameters of an OPEN request, once the coordinator's signature on them holds.

        Raises:
            MessageError: not a well-formed request.
            WrongRound: the header names another round than the parameters.
            BadSignature: not signed by the coordinator.
        """
        message: Open | OpenKeyed
        if read_header(request).kind is Kind.OPEN_KEYED:
            message = decode(request, OpenKeyed, limit=MAX_OPEN_BYTES)
        else:
            message = decode(request, Open, limit=MAX_OPEN_BYTES)
        digest = message.params.digest
        if read_header(request).params != digest:
            raise WrongRound("OPEN: header and parameters name different rounds")
        signed = self.check_request(digest, Stage.ADVERTISE, digest, message.signature)
        return message.params, signed

    def admit(self, params: RoundParams, marks: Marks) -> Marks:
        """The raised marks, saved, if this client takes part in the round.

        Raises:
            ConfigurationError, UnknownIdentity: the policy refuses.
            StaleState: the sequence is not above the mark.
        """
        self.policy.check(params, roster=self.roster, client=self.identity.id)
        return self._raise_mark(marks, params.run_id, params.sequence)

    def admit_key(self, terms: KeyTerms, marks: Marks) -> Marks:
        """The raised marks, saved, if this client takes part in the set-up of a CKKS key.

        Raises:
            ConfigurationError, UnknownIdentity: the policy refuses.
            StaleState: the sequence is not above the mark.
        """
        self.policy.check_key(terms, roster=self.roster, client=self.identity.id)
        return self._raise_mark(marks, terms.run_id, terms.sequence)

    def _raise_mark(self, marks: Marks, run_id: bytes, sequence: int) -> Marks:
        raised = marks.raised(run_id, sequence, max_rounds=self.policy.max_rounds)
        self.save(raised.to_bytes())
        return raised

    def refusal(self, params: bytes, stage: Stage, error: SecAggError) -> bytes:
        """The signed message that tells the server, by a number, why this client left."""
        code = refusal_code(error)
        statement = refuse_statement(params, self.identity.id, stage, code)
        message = Refuse(stage=stage, code=code, signature=self.identity.key.sign(statement))
        return encode(message, params=params, sender=self.identity.id)


STAGE_OF_REQUEST: dict[Kind, Stage] = {
    Kind.OPEN: Stage.ADVERTISE,
    Kind.COHORT: Stage.SHARE,
    Kind.COLLECT: Stage.UPLOAD,
    Kind.SURVIVORS: Stage.CONFIRM,
    Kind.REQUEST: Stage.REVEAL,
}
