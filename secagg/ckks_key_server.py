"""The server's side of a CKKS key set-up: it signs requests, checks signatures and relays."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TypeVar

from secagg.api import Requests
from secagg.attendance import Register
from secagg.ckks_keys import KeyMembers, bundle_statement
from secagg.ckks_log import KeySetupLog
from secagg.ckks_presets import SharedKey
from secagg.ckks_terms import KeyTerms
from secagg.digests import box_statement, key_ack_statement
from secagg.errors import (
    TooFewClients,
    TooFewReplies,
    ViewMismatch,
    WrongStage,
)
from secagg.keys import SignatureCache, SigningKey
from secagg.messages import (
    BoxRow,
    ConfirmRow,
    KeyAck,
    KeyAdvert,
    KeyBundle,
    KeyInstall,
    KeyLead,
    KeyOpen,
    Kind,
    decode,
    max_setup_bytes,
    to_table,
)
from secagg.params import Stage
from secagg.roster import Roster

_REPLY_OF_STAGE: dict[Stage, Kind] = {
    Stage.ADVERTISE: Kind.KEY_ADVERT,
    Stage.SHARE: Kind.KEY_BUNDLE,
    Stage.CONFIRM: Kind.KEY_ACK,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyEpoch:
    """The result of a set-up: what rounds are bound to, and who can take part in them.

    Attributes:
        key: preset and fingerprint.
        holders: members that acknowledged the key, ascending.
        bytes_up: {id: bytes received from it}.
        bytes_down: {id: bytes sent to it}.
        log: what was signed, for `secagg.transcript`; public, without key material.
    """

    key: SharedKey
    holders: tuple[int, ...]
    bytes_up: dict[int, int]
    bytes_down: dict[int, int]
    log: bytes = field(repr=False)


class KeySetupServer:
    """The server's side of one set-up: it signs requests, checks signatures and relays.

    Args:
        terms: the public terms; see `KeyTerms.for_key`.
        coordinator: the key that the roster names.
        roster: the same file the clients hold.
        cache: for simulations only.
    """

    def __init__(
        self,
        terms: KeyTerms,
        coordinator: SigningKey,
        roster: Roster,
        *,
        cache: SignatureCache | None = None,
    ) -> None:
        self._book = Register(
            params=terms,
            coordinator=coordinator,
            roster=roster,
            cache=cache,
            stage=Stage.ADVERTISE,
        )
        self._adverts: dict[int, BoxRow] = {}
        self._members: KeyMembers | None = None
        self._bundle: KeyBundle | None = None
        self._acks: dict[int, ConfirmRow] = {}

    @property
    def stage(self) -> Stage:
        """The stage whose replies are being collected."""
        return self._book.stage

    def open(self) -> Requests:
        """The signed terms, for every invited client."""
        if self._book.running or self._members is not None:
            raise WrongStage("the set-up was opened before")
        terms = self._book.params
        request = KeyOpen(terms, self._book.sign_request(Stage.ADVERTISE, terms.digest))
        return self._book.begin(Stage.ADVERTISE, dict.fromkeys(self._book.invited, request))

    def receive(self, client_id: int, message: bytes) -> None:
        """Takes in one reply; see `secagg.api.ServerSession.receive`."""
        awaited = _REPLY_OF_STAGE[self.stage]
        if self._book.check_in(client_id, message, awaited) is None:
            return
        limit = max_setup_bytes(awaited, self._book.params)
        match self.stage:
            case Stage.ADVERTISE:
                self._take_advert(client_id, decode(message, KeyAdvert, limit=limit))
            case Stage.SHARE:
                self._take_bundle(client_id, decode(message, KeyBundle, limit=limit))
            case _:
                self._take_ack(client_id, decode(message, KeyAck, limit=limit))
        self._book.accept(client_id, message)

    def close_stage(self) -> Requests | KeyEpoch:
        """Ends the stage: the next requests, or the epoch after the last.

        Raises:
            TooFewClients: fewer than `n_min` advertised or hold the key, or the leader left.
        """
        answered = self._book.close()
        match self.stage:
            case Stage.ADVERTISE:
                return self._ask_leader()
            case Stage.SHARE:
                return self._relay()
            case _:
                return self._finish(answered)

    def _take_advert(self, client: int, advert: KeyAdvert) -> None:
        statement = box_statement(self._book.params.digest, client, advert.box_key)
        self._book.check_signature(client, advert.signature, statement)
        self._adverts[client] = BoxRow(client, advert.box_key, advert.signature)

    def _take_bundle(self, client: int, bundle: KeyBundle) -> None:
        statement = bundle_statement(_known(self._members), bundle)
        self._book.check_signature(client, bundle.signature, statement)
        self._bundle = bundle

    def _take_ack(self, client: int, ack: KeyAck) -> None:
        statement = key_ack_statement(_known(self._members).digest, self._fingerprint, client)
        self._book.check_signature(client, ack.signature, statement)
        if ack.fingerprint != self._fingerprint:
            raise ViewMismatch(f"client {client} acknowledges another key")
        self._acks[client] = ConfirmRow(client, ack.signature)

    @property
    def _fingerprint(self) -> bytes:
        return _known(self._bundle).fingerprint

    def _ask_leader(self) -> Requests:
        rows = [self._adverts[client] for client in sorted(self._adverts)]
        terms = self._book.params
        self._book.require(len(rows), max(1, terms.n_min), "members", TooFewClients)
        members = self._members = KeyMembers.of(terms, rows)
        signature = self._book.sign_request(Stage.SHARE, members.digest)
        request = KeyLead(to_table(rows), signature)
        return self._book.begin(Stage.SHARE, {members.leader: request})

    def _relay(self) -> Requests:
        members = _known(self._members)
        self._book.require(int(self._bundle is not None), 1, "keys made", TooFewReplies)
        signature = self._book.sign_request(Stage.CONFIRM, members.digest)
        request = KeyInstall(to_table(members.rows), _known(self._bundle), signature)
        return self._book.begin(Stage.CONFIRM, dict.fromkeys(members.ids, request))

    def _finish(self, answered: tuple[int, ...]) -> KeyEpoch:
        terms = self._book.params
        self._book.require(len(answered), terms.n_min, "holders of the key", TooFewReplies)
        return KeyEpoch(
            key=SharedKey(terms.preset, self._fingerprint),
            holders=answered,
            bytes_up=self._book.bytes_up,
            bytes_down=self._book.bytes_down,
            log=self._log().to_bytes(),
        )

    def _log(self) -> KeySetupLog:
        """What was signed in this set-up, without anything that was sealed."""
        bundle = _known(self._bundle)
        return KeySetupLog(
            terms=self._book.params,
            requests=tuple(self._book.signed.values()),
            adverts=to_table(_known(self._members).rows),
            fingerprint=bundle.fingerprint,
            ephemeral=bundle.ephemeral,
            sealed=hashlib.sha256(bundle.sealed).digest(),
            boxes=hashlib.sha256(bundle.boxes).digest(),
            signature=bundle.signature,
            acknowledgements=to_table(row for _, row in sorted(self._acks.items())),
        )


V = TypeVar("V", KeyMembers, KeyBundle)


def _known(value: V | None) -> V:
    if value is None:
        raise WrongStage("out of order: an earlier stage of the set-up is not finished")
    return value
