"""The public log of one round: what its participants signed, and no update, key or share.

A log exists for a round that gave a sum. It holds no digest that can be computed from the rest, so
nothing in it can be believed without being checked; `secagg.transcript` does that. An attempt that
aborted leaves none, since it has no sum whose origin could be shown; a gap of sequences tells of it.

The file is a prefix (magic, version) and one strictly decoded MessagePack array. The magic tells the
three kinds apart: rounds here, rounds and key set-ups of CKKS in `secagg.ckks_log`.
"""

from __future__ import annotations

import struct
from typing import Annotated, TypeVar

import msgspec

from secagg.digests import DIGEST_BYTES
from secagg.errors import (
    ConfigurationError,
    Malformed,
    NonCanonical,
    Oversized,
    UnsupportedVersion,
)
from secagg.keys import SIGNATURE_BYTES
from secagg.messages import (
    MAX_OPEN_BYTES,
    ROW_FORMATS,
    AdvertRow,
    BundleRow,
    ConfirmRow,
    OpenedRow,
    SurvivorRow,
)
from secagg.params import RoundParams, Stage

MAGIC = b"FMTL"
VERSION = 1
_PREFIX = struct.Struct("<4sB")
L = TypeVar("L", bound=msgspec.Struct)
_FRAMING_BYTES = 16  # MessagePack length prefixes and integers of one entry, with room to spare

_Digest = Annotated[bytes, msgspec.Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
_Signature = Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
_Id = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]


class RevealEntry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What one client opened: a table of `OpenedRow`, the digest of the values, its signature."""

    client: _Id
    opened: bytes
    values: _Digest
    signature: _Signature


class RoundLog(
    msgspec.Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True
):
    """What was signed in one round; tables are empty where a mode has no such stage.

    Attributes:
        params: the round's parameters.
        requests: the coordinator's signatures, in order of stages.
        adverts: table of `AdvertRow`, the cohort.
        bundles: table of `BundleRow`, the sharers.
        uploads: table of `SurvivorRow`, the survivors.
        confirmations: table of `ConfirmRow`.
        reveals: one entry for each client that opened shares, ascending.
    """

    params: RoundParams
    requests: tuple[_Signature, ...]
    uploads: bytes
    adverts: bytes = b""
    bundles: bytes = b""
    confirmations: bytes = b""
    reveals: tuple[RevealEntry, ...] = ()

    def to_bytes(self) -> bytes:
        """The one encoding of this log."""
        return framed(MAGIC, self)

    @classmethod
    def from_bytes(cls, data: bytes, *, members: int) -> RoundLog:
        """Reads what `to_bytes` wrote.

        Args:
            data: the file.
            members: members of the roster, which bound its size.

        Raises:
            Oversized: longer than any honest log of so many members.
            UnsupportedVersion: another version of the format.
            Malformed: not a log, or with parameters that contradict themselves.
            NonCanonical: decodable, but encoded otherwise than `to_bytes` does.
        """
        return unframed(MAGIC, cls, data, members=members)


def framed(magic: bytes, log: msgspec.Struct) -> bytes:
    """The one encoding of a log whose kind this magic names."""
    return _PREFIX.pack(magic, VERSION) + msgspec.msgpack.encode(log)


def unframed(magic: bytes, kind: type[L], data: bytes, *, members: int) -> L:
    """Reads what `framed` wrote; arguments and errors as of `RoundLog.from_bytes`."""
    limit = max_log_bytes(members)
    if len(data) > limit:
        raise Oversized(f"log of {len(data)} bytes: at most {limit} for {members} members")
    if len(data) < _PREFIX.size or not data.startswith(magic):
        raise Malformed(f"not a {kind.__name__}")
    _, version = _PREFIX.unpack_from(data)
    if version != VERSION:
        raise UnsupportedVersion(f"log version {version}: {VERSION} known")
    try:
        log = msgspec.msgpack.decode(memoryview(data)[_PREFIX.size :], type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"the log does not decode: {error}") from error
    except ConfigurationError as error:
        raise Malformed(f"the log holds refused parameters: {error}") from error
    if framed(magic, log) != data:
        raise NonCanonical("the log is not in canonical encoding")
    return log


def max_log_bytes(members: int) -> int:
    """No honest log of so many members is longer, of whatever kind: masking has the most tables."""
    rows = sum(ROW_FORMATS[kind].size for kind in (AdvertRow, BundleRow, SurvivorRow, ConfirmRow))
    opened = members * ROW_FORMATS[OpenedRow].size
    reveal = opened + DIGEST_BYTES + SIGNATURE_BYTES + _FRAMING_BYTES
    requests = len(Stage) * (SIGNATURE_BYTES + _FRAMING_BYTES)
    return MAX_OPEN_BYTES + requests + members * (rows + reveal)
