"""Secret random bytes, and the one test double that repeats them.

Noise and sampling coins decide whether the guarantee holds at all: whoever can repeat them can
subtract the noise. They come from ChaCha20 under a key the operating system gives afresh for every
draw and nobody keeps, so there is no generator state to store, log or ship in a checkpoint. The
experiment's seed never reaches this module.
"""

import hashlib
import os
from typing import Protocol

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

_KEY_BYTES = 32
_NONCE = bytes(16)  # block counter and nonce zero: every key is used for one draw only
_MAX_DRAW_BYTES = 1 << 36  # ChaCha20's 32-bit block counter allows 2^38


class ByteSource(Protocol):
    """Where secret randomness comes from."""

    @property
    def is_secret(self) -> bool:
        """Whether the bytes are unknown to everyone, as the guarantee needs."""
        ...

    def read(self, size: int) -> bytes:
        """The next `size` uniform bytes."""
        ...


class SystemBytes:
    """ChaCha20 keystream under a key the operating system gives for each draw, then forgotten.

    Two objects, or two draws, share nothing, so noise, coins and anything else are independent
    streams. The object holds no state: it may be copied, pickled or forked without repeating a
    byte.
    """

    @property
    def is_secret(self) -> bool:
        """True."""
        return True

    def read(self, size: int) -> bytes:
        """Uniform bytes that nothing else will ever return."""
        return _keystream(os.urandom(_KEY_BYTES), size)


class FromBytes:
    """What a source of noise has that turns bytes into numbers.

    Args:
        source: Where the bytes come from; the operating system by default.
    """

    def __init__(self, source: ByteSource | None = None) -> None:
        self._source = SystemBytes() if source is None else source

    @property
    def is_secret(self) -> bool:
        """Whether the bytes are secret."""
        return self._source.is_secret

    def __repr__(self) -> str:
        return type(self).__name__


class InsecureSeededBytes:
    """Repeatable bytes for tests and audits. NOT private: who knows the seed can remove the noise.

    Args:
        insecure_seed: The seed.
        purpose: Label of the stream; streams of different purposes are independent.
    """

    def __init__(self, *, insecure_seed: int, purpose: str) -> None:
        self._root = hashlib.sha256(f"insecure|{purpose}|{insecure_seed}".encode()).digest()
        self._draws = 0

    @property
    def is_secret(self) -> bool:
        """False."""
        return False

    def read(self, size: int) -> bytes:
        """The next bytes of the seeded stream."""
        key = hashlib.sha256(self._root + self._draws.to_bytes(8, "big")).digest()
        self._draws += 1
        return _keystream(key, size)


def _keystream(key: bytes, size: int) -> bytes:
    if not 0 <= size <= _MAX_DRAW_BYTES:
        raise ValueError(f"size={size}: one draw gives between 0 and {_MAX_DRAW_BYTES} bytes")
    return Cipher(ChaCha20(key, _NONCE), mode=None).encryptor().update(bytes(size))
