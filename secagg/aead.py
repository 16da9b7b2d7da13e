"""Sealing of one message to one reader: ChaCha20-Poly1305 with a random nonce in front.

Source: RFC 8439. Every key seals one message in one direction, so nonces cannot repeat under a key.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from secagg.errors import BadSeal
from secagg.secret import RandomSource

NONCE_BYTES = 12
TAG_BYTES = 16
OVERHEAD_BYTES = NONCE_BYTES + TAG_BYTES


def seal(key: bytes, plaintext: bytes, associated: bytes, random: RandomSource) -> bytes:
    """Nonce, ciphertext and tag: `len(plaintext) + 28` bytes."""
    nonce = random(NONCE_BYTES)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, plaintext, associated)


def unseal(key: bytes, sealed: bytes, associated: bytes) -> bytes:
    """The plaintext of `sealed`.

    Raises:
        BadSeal: key, associated data, nonce, text or tag differ from those it was sealed with.
    """
    if len(sealed) < OVERHEAD_BYTES:
        raise BadSeal(f"sealed text of {len(sealed)} bytes: at least {OVERHEAD_BYTES} expected")
    try:
        return ChaCha20Poly1305(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], associated)
    except InvalidTag as error:
        raise BadSeal("sealed text does not open") from error
