"""Who may take part, and whose word counts: the trust anchor of every other check.

A roster is a small public file that reaches each site out of band, never through the server: it
holds the coordinator's key and one Ed25519 key for each member. Two people who read the same
fingerprint to each other hold the same roster.
"""

from __future__ import annotations

import base64
import binascii
from functools import cached_property

import msgspec

from secagg.digests import digest, u16, u32
from secagg.errors import ConfigurationError, CorruptState, UnknownIdentity
from secagg.keys import KEY_BYTES, SigningKey

MAX_MEMBERS = 65_535
COORDINATOR_ID = 2**32 - 1
_FINGERPRINT_GROUPS = 8


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One site: an id that stays over roster versions, a display name, and its public key."""

    id: int
    key: bytes
    name: str = ""


class Roster(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """The coordinator and the members, in ascending order of id.

    Raises:
        ConfigurationError: ids not ascending, a key repeated or of the wrong length, no member,
            or more than 65,535.
    """

    coordinator: bytes
    members: tuple[Member, ...]
    version: int = 1

    def __post_init__(self) -> None:
        ids = [member.id for member in self.members]
        keys = [self.coordinator, *(member.key for member in self.members)]
        if not 1 <= len(ids) <= MAX_MEMBERS:
            raise ConfigurationError(f"roster of {len(ids)} members: 1 to {MAX_MEMBERS} expected")
        if ids != sorted(set(ids)) or not 0 <= ids[0] <= ids[-1] < COORDINATOR_ID:
            raise ConfigurationError("roster ids must be unique, ascending and below 2^32 - 1")
        if any(len(key) != KEY_BYTES for key in keys) or len(set(keys)) != len(keys):
            raise ConfigurationError("roster keys must be distinct and 32 bytes each")
        if not 0 <= self.version < 2**32:
            raise ConfigurationError(f"roster version {self.version}: must fit in 32 bits")

    @cached_property
    def digest(self) -> bytes:
        """32 bytes over version, ids and keys; display names are not part of it."""
        records = (u32(member.id) + member.key for member in self.members)
        head = (u32(self.version), self.coordinator, u16(len(self.members)))
        return digest("roster", *head, *records)

    @property
    def fingerprint(self) -> str:
        """The first 128 bits of the digest in groups of four, for people to compare."""
        text = self.digest.hex()
        return " ".join(text[4 * i : 4 * i + 4] for i in range(_FINGERPRINT_GROUPS))

    @cached_property
    def ids(self) -> tuple[int, ...]:
        """Member ids, ascending: the order that bitmaps over the roster follow."""
        return tuple(member.id for member in self.members)

    @cached_property
    def _keys(self) -> dict[int, bytes]:
        return {member.id: member.key for member in self.members}

    def key_of(self, client: int) -> bytes:
        """The public key of a member.

        Raises:
            UnknownIdentity: `client` is not in the roster.
        """
        try:
            return self._keys[client]
        except KeyError as error:
            raise UnknownIdentity(f"client {client} is not in the roster") from error

    def to_json(self) -> bytes:
        """The roster file: JSON, keys in base64."""
        return msgspec.json.format(msgspec.json.encode(self)) + b"\n"

    @classmethod
    def from_json(cls, text: bytes) -> Roster:
        """Reads a roster file.

        Raises:
            CorruptState: not JSON of this shape.
            ConfigurationError: the shape is right and the content is not a roster.
        """
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise CorruptState(f"not a roster file: {error}") from error


class Identity:
    """A member's id and its signing key."""

    __slots__ = ("id", "key")

    def __init__(self, client_id: int, key: SigningKey) -> None:
        self.id = client_id
        self.key = key

    @classmethod
    def generate(cls, client_id: int) -> Identity:
        """A fresh identity; its key goes to a file that only its owner can read."""
        return cls(client_id, SigningKey.generate())

    def member(self, name: str = "") -> Member:
        """The public half, for the roster."""
        return Member(id=self.id, key=self.key.public, name=name)

    def to_text(self) -> str:
        """Id and secret seed on one line, for a file with mode 0600."""
        return f"{self.id} {base64.b64encode(self.key.seed()).decode()}\n"

    @classmethod
    def from_text(cls, text: str) -> Identity:
        """Reads what `to_text` wrote.

        Raises:
            CorruptState: not an identity file; nothing of its content is repeated.
        """
        try:
            number, seed = text.split()
            client_id = int(number)
            if not 0 <= client_id < COORDINATOR_ID:
                raise ValueError
            return cls(client_id, SigningKey(base64.b64decode(seed, validate=True)))
        except (ValueError, binascii.Error):
            raise CorruptState("not an identity file") from None

    def __repr__(self) -> str:
        return f"Identity(id={self.id})"
