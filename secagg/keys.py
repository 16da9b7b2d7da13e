"""Signing keys, key agreement, key derivation, and the cache of verified signatures.

Ed25519 keys name a participant for years; X25519 keys live for one sequence. Every derived key has
one purpose, said by its label, and is bound to the round, the direction and the two ids.

Source: RFC 8032 (Ed25519), RFC 7748 (X25519), RFC 5869 (HKDF); all from `cryptography`.
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from secagg.digests import enc
from secagg.errors import BadAdvert, BadSignature
from secagg.secret import RandomSource

KEY_BYTES = 32
SIGNATURE_BYTES = 64
_SHA256 = hashes.SHA256()
_CACHE_LIMIT = 1 << 17


class SigningKey:
    """An Ed25519 private key of a client or of the coordinator.

    `seed` is the whole key: the caller keeps it in a file that only its owner can read.
    """

    __slots__ = ("_key", "public")

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public: bytes = self._key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> SigningKey:
        """A fresh key from the operating system."""
        return cls(os.urandom(KEY_BYTES))

    def seed(self) -> bytes:
        """The 32 secret bytes, for storage."""
        return self._key.private_bytes_raw()

    def sign(self, statement: bytes) -> bytes:
        """The 64-byte signature over `statement`."""
        return self._key.sign(statement)

    def __repr__(self) -> str:
        return "SigningKey"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a SigningKey cannot be pickled")


class SignatureCache:
    """Remembers signatures that verified, for simulations that run everyone in one process.

    Real clients never share one: a client must check with its own processor. The cache holds the
    exact (key, signature, statement) triples, so it can only skip a check that would succeed.
    """

    __slots__ = ("_verified",)

    def __init__(self) -> None:
        self._verified: set[tuple[bytes, bytes, bytes]] = set()

    def __contains__(self, triple: tuple[bytes, bytes, bytes]) -> bool:
        return triple in self._verified

    def add(self, triple: tuple[bytes, bytes, bytes]) -> None:
        """Records a triple that verified; starts afresh when full."""
        if len(self._verified) >= _CACHE_LIMIT:
            self._verified.clear()
        self._verified.add(triple)


def verify(
    public: bytes,
    signature: bytes,
    statement: bytes,
    *,
    author: str,
    cache: SignatureCache | None = None,
) -> None:
    """Returns if `signature` over `statement` is by the holder of `public`.

    Raises:
        BadSignature: it is not; `author` names whose signature it was said to be.
    """
    triple = (public, signature, statement)
    if cache is not None and triple in cache:
        return
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, statement)
    except (InvalidSignature, ValueError) as error:
        raise BadSignature(f"the signature of {author} does not verify") from error
    if cache is not None:
        cache.add(triple)


class AgreementKey:
    """An X25519 private key that lives for one sequence."""

    __slots__ = ("_key", "public")

    def __init__(self, private: bytes) -> None:
        self._key = X25519PrivateKey.from_private_bytes(private)
        self.public: bytes = self._key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls, random: RandomSource) -> AgreementKey:
        """A fresh key from `random`."""
        return cls(random(KEY_BYTES))

    def private(self) -> bytes:
        """The 32 secret bytes."""
        return self._key.private_bytes_raw()

    def agree(self, peer: bytes, *, peer_id: int) -> bytes:
        """The 32-byte shared secret with the holder of `peer`.

        Raises:
            BadAdvert: the peer's key is a low-order point, which gives everyone the same secret.
        """
        try:
            return self._key.exchange(X25519PublicKey.from_public_bytes(peer))
        except ValueError as error:
            raise BadAdvert(f"client {peer_id} advertised a key of low order") from error

    def __repr__(self) -> str:
        return "AgreementKey"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("an AgreementKey cannot be pickled")


def derive_key(secret: bytes, label: str, *bound: bytes) -> bytes:
    """A 32-byte key for one purpose: HKDF-SHA256, empty salt, info = `enc(label, *bound)`."""
    return HKDF(algorithm=_SHA256, length=KEY_BYTES, salt=None, info=enc(label, *bound)).derive(
        secret
    )
