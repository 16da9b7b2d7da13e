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

from secagg.aead import seal, unseal
from secagg.api import Reply
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
    UnknownIdentity,
    UnsupportedSuite,
    ViewMismatch,
    WrongRound,
)
from secagg.keys import KEY_BYTES, AgreementKey, derive_key
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
)
from secagg.params import Stage
from secagg.participant import Participant, SignedRequest
from secagg.secret import RandomSource

SETUP_REQUESTS = frozenset({Kind.KEY_OPEN, Kind.KEY_LEAD, Kind.KEY_INSTALL})
_LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True)
class HeldKey:
    """A key as a client holds it."""

    name: SharedKey
    run_id: bytes
    key: SecretKey


@dataclass(frozen=True, slots=True)
class KeyMembers:
    """Those who advertised a box key, ascending; the first of them makes the key."""

    digest: bytes
    rows: tuple[BoxRow, ...]

    @classmethod
    def of(cls, terms: KeyTerms, rows: Iterable[BoxRow]) -> KeyMembers:
        """The members of these rows, which are in ascending order of id."""
        listed = tuple(rows)
        keys = [(row.client, row.box_key) for row in listed]
        return cls(key_members_digest(terms.digest, keys), listed)

    @property
    def ids(self) -> tuple[int, ...]:
        """Member ids, ascending."""
        return tuple(row.client for row in self.rows)

    @property
    def leader(self) -> int:
        """The lowest id, which makes the key."""
        return self.rows[0].client


def bundle_statement(members: KeyMembers, bundle: KeyBundle) -> bytes:
    """What the leader signed of its bundle."""
    return key_statement(
        members.digest, bundle.fingerprint, bundle.ephemeral, bundle.sealed, bundle.boxes
    )


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
        self._box: AgreementKey | None = AgreementKey.generate(random)
        self._box_public = self._box.public
        self._made = False
        statement = box_statement(terms.digest, self._id, self._box_public)
        signature = participant.identity.key.sign(statement)
        self.advert = self._reply(KeyAdvert(self._box_public, signature))

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

        The key is opened once; the leader makes one key. Replies are not kept: a client whose
        answer is lost takes part after the next set-up.

        Raises:
            Latched: it was.
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
        if self._made:
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
        statement = key_statement(members.digest, fingerprint, ephemeral.public, sealed, boxes)
        signature = self._participant.identity.key.sign(statement)
        self._made = True
        return self._reply(KeyBundle(fingerprint, ephemeral.public, sealed, boxes, signature))

    # CONFIRM ------------------------------------------------------------------------------------

    def _install(self, request: KeyInstall) -> tuple[Reply, HeldKey]:
        try:
            members = self._members(request.adverts, Stage.CONFIRM, request.signature)
            held = self._open_key(members, request.bundle)
            self._box = None  # what was sealed to it stays sealed from here on
        except SecAggError as error:
            error.refusal = self._participant.refusal(self._terms.digest, Stage.CONFIRM, error)
            raise
        fingerprint = held.name.fingerprint
        statement = key_ack_statement(members.digest, fingerprint, self._id)
        signature = self._participant.identity.key.sign(statement)
        return self._reply(KeyAck(fingerprint, signature)), held

    def _open_key(self, members: KeyMembers, bundle: KeyBundle) -> HeldKey:
        leader = members.leader
        statement = bundle_statement(members, bundle)
        self._participant.check_signature(leader, bundle.signature, statement)
        if len(bundle.boxes) != BOX_BYTES * len(members.rows):
            raise Malformed(f"{len(bundle.boxes)} bytes of boxes for {len(members.rows)} members")
        place = members.ids.index(self._id) * BOX_BYTES
        if self._box is None:
            raise Latched("CONFIRM: this client has the key of this set-up")
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

    def _members(self, table: bytes, stage: Stage, signature: bytes) -> KeyMembers:
        """Those who advertised, once every signature holds and this client is among them."""
        members = KeyMembers.of(self._terms, from_table(BoxRow, table))
        self._check_request(stage, members.digest, signature)
        invited = set(self._terms.invited_ids(self._participant.roster))
        for row in members.rows:
            if row.client not in invited:
                raise UnknownIdentity(f"client {row.client} is not invited")
            statement = box_statement(self._terms.digest, row.client, row.box_key)
            self._participant.check_signature(row.client, row.signature, statement)
        if len(members.rows) < self._terms.n_min:
            raise TooFewClients(f"{len(members.rows)} members: {self._terms.n_min} required")
        if (self._id, self._box_public) not in {(r.client, r.box_key) for r in members.rows}:
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


def _padded(data: bytes, preset: Preset) -> bytes:
    """The serialised key after its length, in the constant room that the preset has for it."""
    return (u32(len(data)) + data).ljust(preset.key_bytes, b"\0")


def _unpadded(padded: bytes, preset: Preset) -> bytes:
    length = int.from_bytes(padded[:_LENGTH_BYTES], "little")
    if len(padded) != preset.key_bytes or length > len(padded) - _LENGTH_BYTES:
        raise BadKey("the shared key is not of the length that its preset has")
    return padded[_LENGTH_BYTES : _LENGTH_BYTES + length]
