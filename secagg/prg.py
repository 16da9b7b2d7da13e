"""The keystream that masks are made of: AES-256 in counter mode from a zero counter block.

A key is used for exactly one keystream. The bytes are read as little-endian 32- or 64-bit words
(the *lane*) and added with wrap-around; keeping the low `m` bits of such a sum is exactly uniform,
because 2^m divides 2^lane.

Source: NIST SP 800-38A (CTR), FIPS 197 (AES).
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from secagg.errors import ConfigurationError

Words: TypeAlias = NDArray[np.uint32] | NDArray[np.uint64]

LANE_TYPES: dict[int, np.dtype[np.uint32] | np.dtype[np.uint64]] = {
    32: np.dtype("<u4"),
    64: np.dtype("<u8"),
}
MAX_BYTES_PER_KEY = 2**36
_CHUNK_BYTES = 1 << 18  # stays in the second-level cache while it is generated and added
_BLOCK_BYTES = 16
_ZERO_COUNTER = modes.CTR(bytes(_BLOCK_BYTES))
_ZEROS = memoryview(bytes(_CHUNK_BYTES))


def keystream(key: bytes, lane: int, length: int) -> Words:
    """The first `length` words of the keystream of `key`; uint32 or uint64 `[length]`."""
    words = np.zeros(length, LANE_TYPES[lane])
    add_keystream(words, key)
    return words


def add_keystream(words: Words, key: bytes, *, subtract: bool = False) -> None:
    """Adds the keystream of `key` to `words` in place, modulo 2^32 or 2^64 by their dtype.

    Args:
        words: uint32 or uint64 `[n]`, contiguous; changed in place.
        key: 32 bytes, used for this one keystream only.
        subtract: whether to take the keystream away instead.

    Raises:
        ConfigurationError: the keystream would exceed 2^36 bytes.
    """
    if words.nbytes > MAX_BYTES_PER_KEY:
        raise ConfigurationError(f"{words.nbytes} keystream bytes: at most {MAX_BYTES_PER_KEY}")
    encryptor: CipherContext = Cipher(algorithms.AES256(key), _ZERO_COUNTER).encryptor()
    step = _CHUNK_BYTES // words.itemsize
    # One buffer, filled again and again, with the spare room that the library asks for.
    buffer = np.empty(min(words.nbytes, _CHUNK_BYTES) + _BLOCK_BYTES - 1, np.uint8)
    for start in range(0, words.size, step):
        part = words[start : start + step]
        encryptor.update_into(_ZEROS[: part.nbytes], buffer.data)
        stream = buffer[: part.nbytes].view(words.dtype)
        if subtract:
            np.subtract(part, stream, out=part)
        else:
            np.add(part, stream, out=part)
