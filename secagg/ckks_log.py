"""The public logs of mode `ckks`: of a round, and of the set-up that left its key with the clients.

Like the log of any round (`secagg.roundlog`) they hold what participants signed and no digest that
can be computed from the rest. No ciphertext, sum, key or sealed key is in them: where a signature
covers one, its SHA-256 stands for it.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from secagg.ckks_terms import KeyTerms
from secagg.digests import DIGEST_BYTES
from secagg.keys import KEY_BYTES, SIGNATURE_BYTES
from secagg.params import KeyedParams
from secagg.roundlog import framed, unframed

KEYED_MAGIC = b"FMTC"
SETUP_MAGIC = b"FMTK"

_Digest = Annotated[bytes, msgspec.Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
_Key = Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
_Signature = Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]


class KeyedLog(
    msgspec.Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True
):
    """What was signed in one round of mode CKKS.

    Attributes:
        params: the round's parameters, with the key's fingerprint.
        requests: the coordinator's signatures, in order of stages.
        uploads: table of `SurvivorRow`, the survivors.
        ciphertexts: SHA-256 of what the decryptors were shown.
        sums: SHA-256 of the packed integers that they signed: one value, since they must agree.
        answers: table of `AnswerRow`, the decryptors.
        confirmations: table of `ConfirmRow`; empty without verified sums.
    """

    params: KeyedParams
    requests: tuple[_Signature, ...]
    uploads: bytes
    ciphertexts: _Digest
    sums: _Digest
    answers: bytes
    confirmations: bytes = b""

    def to_bytes(self) -> bytes:
        """The one encoding of this log."""
        return framed(KEYED_MAGIC, self)

    @classmethod
    def from_bytes(cls, data: bytes, *, members: int) -> KeyedLog:
        """Reads what `to_bytes` wrote; arguments and errors as of `RoundLog.from_bytes`."""
        return unframed(KEYED_MAGIC, cls, data, members=members)


class KeySetupLog(
    msgspec.Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True
):
    """What was signed in one key set-up.

    Attributes:
        terms: the public terms of the key.
        requests: the coordinator's signatures, in order of stages.
        adverts: table of `BoxRow`, the members.
        fingerprint: of the key that the leader made.
        ephemeral: the leader's X25519 key that the boxes were sealed with.
        sealed: SHA-256 of the sealed key.
        boxes: SHA-256 of all boxes.
        signature: the leader's, on the five before and the members.
        acknowledgements: table of `ConfirmRow`, the holders.
    """

    terms: KeyTerms
    requests: tuple[_Signature, ...]
    adverts: bytes
    fingerprint: _Digest
    ephemeral: _Key
    sealed: _Digest
    boxes: _Digest
    signature: _Signature
    acknowledgements: bytes

    def to_bytes(self) -> bytes:
        """The one encoding of this log."""
        return framed(SETUP_MAGIC, self)

    @classmethod
    def from_bytes(cls, data: bytes, *, members: int) -> KeySetupLog:
        """Reads what `to_bytes` wrote; arguments and errors as of `RoundLog.from_bytes`."""
        return unframed(SETUP_MAGIC, cls, data, members=members)
