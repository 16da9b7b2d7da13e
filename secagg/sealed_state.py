"""A stored state under seal: what a restarted process trusts of what it reads from its disk.

    header      magic, version, owner, run, sequence, salt; readable, and bound into key and seal
    sealed      nonce, ciphertext, tag (ChaCha20-Poly1305)

Every state is sealed under a key of its own, derived from the keeper's key and the header, so one
that was changed, cut short, or labelled as another owner's or another run's does not open. An old
state that is put back whole does open: nothing inside it can tell that the disk was turned back.

Source: RFC 8439 (seal), RFC 5869 (key); `docs/secagg.md` says which states are kept and when.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from secagg.aead import OVERHEAD_BYTES, seal, unseal
from secagg.digests import enc, u8, u32
from secagg.errors import ConfigurationError, CorruptState
from secagg.keys import KEY_BYTES, derive_key
from secagg.secret import Secret

SNAPSHOT_VERSION = 1
MAGIC = b"FMSS"
HEADER = struct.Struct("<4sBI16sQ32s")
MAX_CONTENT_BYTES = 2**31 - 1 - OVERHEAD_BYTES  # the most the cipher takes in one piece


class Opened(NamedTuple):
    """What a sealed state holds, and the round that it says it is of."""

    run_id: bytes
    sequence: int
    content: bytes


class Vault:
    """Seals the states of one owner, and opens them again.

    Args:
        state_key: 32 random bytes that the owner keeps in a file only it can read.
        owner: the client's id, or the coordinator's.

    Raises:
        ConfigurationError: the key has another length.
    """

    __slots__ = ("_key", "_owner")

    def __init__(self, state_key: bytes, owner: int) -> None:
        if len(state_key) != KEY_BYTES:
            raise ConfigurationError(
                f"state key of {len(state_key)} bytes: {KEY_BYTES} random ones expected"
            )
        self._key = Secret(state_key)
        self._owner = owner

    def seal(self, content: bytes, *, run_id: bytes, sequence: int) -> bytes:
        """The state of one round under seal.

        Raises:
            ConfigurationError: it is longer than one seal can be.
        """
        if len(content) > MAX_CONTENT_BYTES:
            raise ConfigurationError(
                f"a state of {len(content)} bytes: at most {MAX_CONTENT_BYTES} can be sealed; "
                "work without a state key"
            )
        salt = os.urandom(KEY_BYTES)
        header = HEADER.pack(MAGIC, SNAPSHOT_VERSION, self._owner, run_id, sequence, salt)
        key = self._derive(run_id, salt)
        return header + seal(key, content, enc("state-aad", header), os.urandom)

    def unseal(self, saved: bytes) -> Opened:
        """What `seal` was given.

        Raises:
            CorruptState: not a sealed state, of an unknown version, or of another owner.
            BadSeal: changed, cut short, or sealed under another key.
        """
        if not is_sealed(saved) or len(saved) < HEADER.size:
            raise CorruptState("not a sealed state")
        _, version, owner, run_id, sequence, salt = HEADER.unpack_from(saved)
        if version != SNAPSHOT_VERSION:
            raise CorruptState(f"stored state has version {version}: {SNAPSHOT_VERSION} known")
        if owner != self._owner:
            raise CorruptState(f"stored state of participant {owner}: this is {self._owner}")
        header, sealed = saved[: HEADER.size], saved[HEADER.size :]
        content = unseal(self._derive(run_id, salt), sealed, enc("state-aad", header))
        return Opened(run_id, sequence, content)

    def _derive(self, run_id: bytes, salt: bytes) -> bytes:
        bound = (run_id, u32(self._owner), u8(SNAPSHOT_VERSION), salt)
        return derive_key(self._key.reveal(), "state", *bound)

    def __repr__(self) -> str:
        return "Vault"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a Vault cannot be pickled")


def is_sealed(saved: bytes) -> bool:
    """Whether these bytes claim to be a sealed state; marks begin otherwise."""
    return saved.startswith(MAGIC)
