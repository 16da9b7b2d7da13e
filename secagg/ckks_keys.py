"""Key set-up of mode `ckks`: how the clients of a run come to share a key that the server lacks.

1. ADVERTISE: every client sends a fresh X25519 box key, signed by its identity.
2. SHARE: the leader, the lowest id that advertised, makes the key, seals it once under a random
   content key, seals the content key to every member, and signs the fingerprint and all of it.
3. CONFIRM: every member opens its box, checks the key and acknowledges the fingerprint.

The server relays sealed bytes. A set-up takes a sequence number of the run like a round does, so the
same durable marks make it one-shot; a new epoch is a set-up with a higher number. The leader is not
trusted with anything more than any client: whoever holds the key can read every upload it sees.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from secagg.aead import seal, unseal
from secagg.api import Reply, Requests
from secagg.attendance import Register
from secagg.ckks_presets import Preset, SharedKey, preset_of
from secagg.ckks_scheme import SecretKey, library_version
from secagg.ckks_terms import KeyTerms
from secagg.digests import (
    box_statement,
    key_ack_statement,
    key_fingerprint,
    key_members_digest,
    key_statement,
    u32,
)
from secagg.errors import (
    BadKey,
    Latched,
    Malformed,
    SecAggError,
    TooFewClients,
    TooFewReplies,
    UnknownIdentity,
    UnsupportedSuite,
    ViewMismatch,
    WrongRound,
    WrongStage,
)
from secagg.keys import KEY_BYTES, AgreementKey, SignatureCache, SigningKey, derive_key
from secagg.marks import Marks
from secagg.messages import (
    BOX_BYTES,
    MAX_OPEN_BYTES,
    BoxRow,
    KeyAck,
    KeyAdvert,
    KeyBundle,
    KeyInstall,
    KeyLead,
    KeyOpen,
    Kind,
    Message,
    decode,
    encode,
    from_table,
    max_setup_bytes,
    read_header,
    to_table,
)
from secagg.params import Stage
from secagg.participant import Participant, SignedRequest
from secagg.roster import Roster
from secagg.secret import RandomSource

SETUP_REQUESTS = frozenset({Kind.KEY_OPEN, Kind.KEY_LEAD, Kind.KEY_INSTALL})
_LENGTH_BYTES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyEpoch:
    """The result of a set-up: what rounds are bound to, and who can take part in them.

    Attributes:
        key: preset and fingerprint.
        holders: members that acknowledged the key, ascending.
        bytes_up: {id: bytes received from it}.
        bytes_down: {id: bytes sent to it}.
    """

    key: SharedKey
    holders: tuple[int, ...]
    bytes_up: dict[int, int]
    bytes_down: dict[int, int]


@dataclass(frozen=True, slots=True)
class HeldKey:
    """A key as a client holds it."""

    name: SharedKey
    run_id: bytes
    key: SecretKey


class KeySetup:
    """A client's side of one set-up, from the terms to the key.

    Args:
        participant: the client.
        terms: what the coordinator proposed and the client admitted.
        random: source of the box key and, at the leader, of the content key.
    """

    def __init__(self, participant: Participant, terms: KeyTerms, random: RandomSource) -> None:
        self._participant = participant
        self._terms = terms
        self._random = random
        self._box = AgreementKey.generate(random)
        self._led: bytes | None = None
        self.advert = self._reply(
            KeyAdvert(
                self._box.public,
                participant.identity.key.sign(
                    box_statement(terms.digest, participant.identity.id, self._box.public)
                ),
            )
        )

    @classmethod
    def begin(
        cls, participant: Participant, request: bytes, marks: Marks, random: RandomSource
    ) -> tuple[KeySetup, Marks]:
        """The set-up that a KEY_OPEN request proposes, and the raised marks.

        Raises:
            SecAggError: the request is not genuine, or the client refuses its terms.
        """
        message = decode(request, KeyOpen, limit=MAX_OPEN_BYTES)
        terms, digest = message.terms, message.terms.digest
        if read_header(request).params != digest:
            raise WrongRound("KEY_OPEN: header and terms name different set-ups")
        participant.check_request(digest, Stage.ADVERTISE, digest, message.signature)
        try:
            if terms.library != library_version():
                raise UnsupportedSuite(
                    f"TenSEAL {terms.library} is asked for, {library_version()} is installed: keys "
                    "and ciphertexts are not portable between versions"
                )
            raised = participant.admit_key(terms, marks)
        except SecAggError as error:
            error.refusal = participant.refusal(digest, Stage.ADVERTISE, error)
            raise
        return cls(participant, terms, random), raised

    def handle(self, request: bytes) -> tuple[Reply, HeldKey | None]:
        """Answers a later request of this set-up; the key comes with the last answer.

        Raises:
            SecAggError: the request is refused.
        """
        header = read_header(request)
        if header.params != self._terms.digest:
            raise WrongRound(f"{header.kind.name}: not of the set-up this client is in")
        limit = max_setup_bytes(header.kind, self._terms)
        if header.kind is Kind.KEY_LEAD:
            return self._lead(decode(request, KeyLead, limit=limit)), None
        return self._install(decode(request, KeyInstall, limit=limit))

    # SHARE --------------------------------------------------------------------------------------

    def _lead(self, request: KeyLead) -> Reply:
        members = self._members(request.adverts, Stage.SHARE, request.signature)
        if self._led is not None:
            raise Latched("SHARE: this client has made the key of this set-up")
        preset = preset_of(self._terms.preset)
        data = SecretKey.generate(preset).to_bytes()
        content_key = self._random(KEY_BYTES)
        fingerprint = key_fingerprint(members.digest, self._id, data)
        sealed = seal(content_key, _padded(data, preset), fingerprint, self._random)
        ephemeral = AgreementKey.generate(self._random)
        boxes = b"".join(
            seal(
                self._box_key(ephemeral.agree(row.box_key, peer_id=row.client), row.client),
                content_key,
                fingerprint,
                self._random,
            )
            for row in members.rows
        )
        statement = key_statement(fingerprint, ephemeral.public, sealed, boxes)
        signature = self._participant.identity.key.sign(statement)
        self._led = fingerprint
        return self._reply(KeyBundle(fingerprint, ephemeral.public, sealed, boxes, signature))

    # CONFIRM ------------------------------------------------------------------------------------

    def _install(self, request: KeyInstall) -> tuple[Reply, HeldKey]:
        try:
            members = self._members(request.adverts, Stage.CONFIRM, request.signature)
            held = self._open_key(members, request.bundle)
        except SecAggError as error:
            error.refusal = self._participant.refusal(self._terms.digest, Stage.CONFIRM, error)
            raise
        fingerprint = held.name.fingerprint
        statement = key_ack_statement(fingerprint, self._id)
        signature = self._participant.identity.key.sign(statement)
        return self._reply(KeyAck(fingerprint, signature)), held

    def _open_key(self, members: _Members, bundle: KeyBundle) -> HeldKey:
        leader = members.leader
        statement = key_statement(bundle.fingerprint, bundle.ephemeral, bundle.sealed, bundle.boxes)
        self._participant.check_signature(leader, bundle.signature, statement)
        if len(bundle.boxes) != BOX_BYTES * len(members.rows):
            raise Malformed(f"{len(bundle.boxes)} bytes of boxes for {len(members.rows)} members")
        place = members.ids.index(self._id) * BOX_BYTES
        shared = self._box.agree(bundle.ephemeral, peer_id=leader)
        content_key = unseal(
            self._box_key(shared, self._id, leader=leader),
            bundle.boxes[place : place + BOX_BYTES],
            bundle.fingerprint,
        )
        preset = preset_of(self._terms.preset)
        data = _unpadded(unseal(content_key, bundle.sealed, bundle.fingerprint), preset)
        expected = key_fingerprint(members.digest, leader, data)
        if not hmac.compare_digest(expected, bundle.fingerprint):
            raise BadKey("the sealed key is not the one of the signed fingerprint")
        return HeldKey(
            SharedKey(self._terms.preset, bundle.fingerprint),
            self._terms.run_id,
            SecretKey.from_bytes(data, preset),
        )

    # Shared -------------------------------------------------------------------------------------

    @property
    def _id(self) -> int:
        return self._participant.identity.id

    def _members(self, table: bytes, stage: Stage, signature: bytes) -> _Members:
        """Those who advertised, once every signature holds and this client is among them."""
        members = _Members.of(self._terms, from_table(BoxRow, table))
        self._check_request(stage, members.digest, signature)
        invited = set(self._terms.invited_ids(self._participant.roster))
        for row in members.rows:
            if row.client not in invited:
                raise UnknownIdentity(f"client {row.client} is not invited")
            statement = box_statement(self._terms.digest, row.client, row.box_key)
            self._participant.check_signature(row.client, row.signature, statement)
        if len(members.rows) < self._terms.n_min:
            raise TooFewClients(f"{len(members.rows)} members: {self._terms.n_min} required")
        if (self._id, self._box.public) not in {(r.client, r.box_key) for r in members.rows}:
            raise ViewMismatch("this client is not listed with the key it advertised")
        if stage is Stage.SHARE and members.leader != self._id:
            raise ViewMismatch(f"client {members.leader} is to make the key, not this one")
        return members

    def _check_request(self, stage: Stage, digest: bytes, signature: bytes) -> SignedRequest:
        return self._participant.check_request(self._terms.digest, stage, digest, signature)

    def _box_key(self, shared: bytes, reader: int, *, leader: int | None = None) -> bytes:
        maker = self._id if leader is None else leader
        return derive_key(shared, "box", self._terms.digest, u32(maker), u32(reader))

    def _reply(self, message: Message) -> Reply:
        return Reply(message=encode(message, params=self._terms.digest, sender=self._id))


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
        self._members: _Members | None = None
        self._bundle: KeyBundle | None = None

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
        statement = key_statement(bundle.fingerprint, bundle.ephemeral, bundle.sealed, bundle.boxes)
        self._book.check_signature(client, bundle.signature, statement)
        self._bundle = bundle

    def _take_ack(self, client: int, ack: KeyAck) -> None:
        self._book.check_signature(
            client, ack.signature, key_ack_statement(self._fingerprint, client)
        )
        if ack.fingerprint != self._fingerprint:
            raise ViewMismatch(f"client {client} acknowledges another key")

    @property
    def _fingerprint(self) -> bytes:
        return _known(self._bundle).fingerprint

    def _ask_leader(self) -> Requests:
        rows = [self._adverts[client] for client in sorted(self._adverts)]
        terms = self._book.params
        self._book.require(len(rows), max(1, terms.n_min), "members", TooFewClients)
        members = self._members = _Members.of(terms, rows)
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
        )


@dataclass(frozen=True, slots=True)
class _Members:
    """Those who advertised a box key, ascending; the first of them makes the key."""

    digest: bytes
    rows: tuple[BoxRow, ...]

    @classmethod
    def of(cls, terms: KeyTerms, rows: Iterable[BoxRow]) -> _Members:
        listed = tuple(rows)
        keys = [(row.client, row.box_key) for row in listed]
        return cls(key_members_digest(terms.digest, keys), listed)

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(row.client for row in self.rows)

    @property
    def leader(self) -> int:
        return self.rows[0].client


V = TypeVar("V", _Members, KeyBundle)


def _known(value: V | None) -> V:
    if value is None:
        raise WrongStage("out of order: an earlier stage of the set-up is not finished")
    return value


_REPLY_OF_STAGE: dict[Stage, Kind] = {
    Stage.ADVERTISE: Kind.KEY_ADVERT,
    Stage.SHARE: Kind.KEY_BUNDLE,
    Stage.CONFIRM: Kind.KEY_ACK,
}


def _padded(data: bytes, preset: Preset) -> bytes:
    """The serialised key after its length, in the constant room that the preset has for it."""
    return (u32(len(data)) + data).ljust(preset.key_bytes, b"\0")


def _unpadded(padded: bytes, preset: Preset) -> bytes:
    length = int.from_bytes(padded[:_LENGTH_BYTES], "little")
    if len(padded) != preset.key_bytes or length > len(padded) - _LENGTH_BYTES:
        raise BadKey("the shared key is not of the length that its preset has")
    return padded[_LENGTH_BYTES : _LENGTH_BYTES + length]
