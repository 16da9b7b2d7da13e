"""The bytes on the wire: a fixed 44-byte header, then one strictly decoded MessagePack array.

Every message names its type, suite, round (P) and sender in the header. Lists of clients travel as
tables of fixed-width records, so sizes depend on numbers of clients alone. Decoding accepts one
encoding of each content and nothing else; it takes its size limit from the caller before it parses.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from enum import IntEnum
from itertools import pairwise
from typing import Annotated, NamedTuple, TypeAlias, TypeVar

import msgspec

from secagg.aead import OVERHEAD_BYTES
from secagg.ckks_presets import preset_of
from secagg.ckks_terms import KeyTerms
from secagg.digests import DIGEST_BYTES
from secagg.errors import (
    ConfigurationError,
    Malformed,
    NonCanonical,
    Oversized,
    UnsupportedSuite,
    UnsupportedVersion,
    WrongStage,
)
from secagg.keys import KEY_BYTES, SIGNATURE_BYTES
from secagg.params import PROTOCOL_VERSION, SUITE, KeyedParams, RoundParams

MAGIC = b"FMSA"
HEADER = struct.Struct("<4sBBH32sI")
SEALED_BYTES = 92  # nonce 12, two shares of 32, tag 16
MAX_OPEN_BYTES = 1 << 16
BOX_BYTES = KEY_BYTES + OVERHEAD_BYTES  # one sealed 32-byte key
_FRAMING_BYTES = 64  # MessagePack array and length prefixes, with room to spare
_FRAME_BYTES = HEADER.size + SIGNATURE_BYTES + _FRAMING_BYTES
MAX_REFUSE_BYTES = _FRAME_BYTES

_Digest = Annotated[bytes, msgspec.Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
_Key = Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
_Signature = Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]


class Kind(IntEnum):
    """Message types: requests of the coordinator are odd, replies of clients even."""

    OPEN = 1
    ADVERT = 2
    COHORT = 3
    BUNDLE = 4
    COLLECT = 5
    UPLOAD = 6
    SURVIVORS = 7
    CONFIRM = 8
    REQUEST = 9
    REVEAL = 10
    REFUSE = 12
    OPEN_KEYED = 33
    DECRYPT = 35
    SUM = 36
    KEY_OPEN = 37
    KEY_ADVERT = 38
    KEY_LEAD = 39
    KEY_BUNDLE = 40
    KEY_INSTALL = 41
    KEY_ACK = 42


class Header(NamedTuple):
    """What every message says of itself, before any of it is believed."""

    kind: Kind
    params: bytes
    sender: int


# Records of the tables ----------------------------------------------------------------------


class AdvertRow(NamedTuple):
    """A client's round keys, signed by it."""

    client: int
    mask_key: bytes
    share_key: bytes
    signature: bytes


class SurvivorRow(NamedTuple):
    """An accepted upload's digest, signed by its author."""

    client: int
    upload: bytes
    signature: bytes


class ConfirmRow(NamedTuple):
    """A signature on the survivor list."""

    client: int
    signature: bytes


class ShareRow(NamedTuple):
    """A share that its holder opens: of which client, of which secret, and its value."""

    client: int
    kind: int
    value: bytes


class BundleRow(NamedTuple):
    """In a round's log: a client's commitment and the SHA-256 of what it dealt, signed by it."""

    client: int
    commitment: bytes
    sealed: bytes
    signature: bytes


class OpenedRow(NamedTuple):
    """In a round's log: a share that was opened, of which client, of which secret; no value."""

    client: int
    kind: int


class AnswerRow(NamedTuple):
    """In a CKKS round's log: a decryptor's signature on the sum."""

    client: int
    signature: bytes


class BoxRow(NamedTuple):
    """The key that a CKKS key may be sealed to a client under, signed by it."""

    client: int
    box_key: bytes
    signature: bytes


Row: TypeAlias = (
    AdvertRow | SurvivorRow | ConfirmRow | ShareRow | BundleRow | OpenedRow | AnswerRow | BoxRow
)
R = TypeVar(
    "R", AdvertRow, SurvivorRow, ConfirmRow, ShareRow, BundleRow, OpenedRow, AnswerRow, BoxRow
)

ROW_FORMATS: dict[type[Row], struct.Struct] = {
    AdvertRow: struct.Struct("<I32s32s64s"),
    SurvivorRow: struct.Struct("<I32s64s"),
    ConfirmRow: struct.Struct("<I64s"),
    ShareRow: struct.Struct("<IB32s"),
    BundleRow: struct.Struct("<I32s32s64s"),
    OpenedRow: struct.Struct("<IB"),
    AnswerRow: struct.Struct("<I64s"),
    BoxRow: struct.Struct("<I32s64s"),
}


def to_table(rows: Iterable[Row]) -> bytes:
    """Records one after the other; the caller passes them in ascending order of client id."""
    return b"".join(ROW_FORMATS[type(row)].pack(*row) for row in rows)


def from_table(kind: type[R], table: bytes) -> list[R]:
    """The records of a table.

    Raises:
        Malformed: not a whole number of records.
        NonCanonical: ids not strictly ascending.
    """
    layout = ROW_FORMATS[kind]
    if len(table) % layout.size:
        raise Malformed(f"table of {len(table)} bytes: a multiple of {layout.size} expected")
    rows = [kind(*fields) for fields in layout.iter_unpack(table)]
    if any(a.client >= b.client for a, b in pairwise(rows)):
        raise NonCanonical("ids in a table must be unique and ascending")
    return rows


# Messages -----------------------------------------------------------------------------------


class Open(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Stage 0 request (and the only one of plain mode): the round's parameters."""

    params: RoundParams
    signature: _Signature


class Advert(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Stage 0 reply: two fresh X25519 keys."""

    mask_key: _Key
    share_key: _Key
    signature: _Signature


class CohortRequest(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Stage 1 request: everybody's adverts."""

    adverts: bytes
    signature: _Signature


class Bundle(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Stage 1 reply: sealed shares for each neighbour, ascending, and the seed's commitment."""

    sealed: bytes
    commitment: _Digest
    signature: _Signature


class Collect(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Stage 2 request: who dealt shares, and the sealed shares for this client, ascending."""

    sharers: bytes
    sealed: bytes
    signature: _Signature


class Upload(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Stage 2 reply: the packed vector, masked or plain."""

    body: bytes
    signature: _Signature


class SurvivorsRequest(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Stage 3 request: every accepted upload's digest and signature."""

    uploads: bytes
    signature: _Signature


class Confirm(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Stage 3 reply: a signature on the survivor list."""

    signature: _Signature


class RevealRequest(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Stage 4 request: the confirmations, at least a threshold of them."""

    confirmations: bytes
    signature: _Signature


class Reveal(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Stage 4 reply: the client's own seed, and one share of each neighbour's one secret."""

    seed: _Digest
    shares: bytes
    signature: _Signature

    def __repr__(self) -> str:
        return "Reveal"


class OpenKeyed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The first request of a CKKS round: its parameters, the shared key among them."""

    params: KeyedParams
    signature: _Signature


class Decrypt(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The last request of a CKKS round: decrypt the sum of these uploads.

    `ciphertexts` is one encrypted vector, the sum; with verified sums it is every upload in order
    of id, and `confirmations` are those of a majority.
    """

    uploads: bytes
    confirmations: bytes
    ciphertexts: bytes
    signature: _Signature


class Sum(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The reply to it: the packed integer sums."""

    body: bytes
    signature: _Signature


class KeyOpen(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """First request of a key set-up: its terms."""

    terms: KeyTerms
    signature: _Signature


class KeyAdvert(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The reply: a fresh X25519 key to seal to."""

    box_key: _Key
    signature: _Signature


class KeyLead(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Second request, to the leader alone: everybody's box keys."""

    adverts: bytes
    signature: _Signature


class KeyBundle(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The leader's reply: the key, sealed once, and a box with the seal's key for each member."""

    fingerprint: _Digest
    ephemeral: _Key
    sealed: bytes
    boxes: bytes
    signature: _Signature


class KeyInstall(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Third request: what the leader signed, for everybody."""

    adverts: bytes
    bundle: KeyBundle
    signature: _Signature


class KeyAck(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The reply: this client holds the key, and it works."""

    fingerprint: _Digest
    signature: _Signature


class Refuse(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A client ends its part of the round; a code and no other detail."""

    stage: Annotated[int, msgspec.Meta(ge=0, lt=2**8)]
    code: Annotated[int, msgspec.Meta(ge=0, lt=2**16)]
    signature: _Signature


Message: TypeAlias = (
    Open
    | Advert
    | CohortRequest
    | Bundle
    | Collect
    | Upload
    | SurvivorsRequest
    | Confirm
    | RevealRequest
    | Reveal
    | Refuse
    | OpenKeyed
    | Decrypt
    | Sum
    | KeyOpen
    | KeyAdvert
    | KeyLead
    | KeyBundle
    | KeyInstall
    | KeyAck
)
T = TypeVar(
    "T",
    Open,
    Advert,
    CohortRequest,
    Bundle,
    Collect,
    Upload,
    SurvivorsRequest,
    Confirm,
    RevealRequest,
    Reveal,
    Refuse,
    OpenKeyed,
    Decrypt,
    Sum,
    KeyOpen,
    KeyAdvert,
    KeyLead,
    KeyBundle,
    KeyInstall,
    KeyAck,
)

KINDS: dict[type[Message], Kind] = {
    Open: Kind.OPEN,
    Advert: Kind.ADVERT,
    CohortRequest: Kind.COHORT,
    Bundle: Kind.BUNDLE,
    Collect: Kind.COLLECT,
    Upload: Kind.UPLOAD,
    SurvivorsRequest: Kind.SURVIVORS,
    Confirm: Kind.CONFIRM,
    RevealRequest: Kind.REQUEST,
    Reveal: Kind.REVEAL,
    Refuse: Kind.REFUSE,
    OpenKeyed: Kind.OPEN_KEYED,
    Decrypt: Kind.DECRYPT,
    Sum: Kind.SUM,
    KeyOpen: Kind.KEY_OPEN,
    KeyAdvert: Kind.KEY_ADVERT,
    KeyLead: Kind.KEY_LEAD,
    KeyBundle: Kind.KEY_BUNDLE,
    KeyInstall: Kind.KEY_INSTALL,
    KeyAck: Kind.KEY_ACK,
}


def max_bytes(kind: Kind, params: RoundParams) -> int:
    """No honest message of this kind in this round is longer."""
    n = params.invited_count
    content = {
        Kind.OPEN: MAX_OPEN_BYTES,
        Kind.ADVERT: 2 * KEY_BYTES,
        Kind.COHORT: n * ROW_FORMATS[AdvertRow].size,
        Kind.BUNDLE: n * SEALED_BYTES + DIGEST_BYTES,
        Kind.COLLECT: n * (SEALED_BYTES + 1),
        Kind.UPLOAD: params.upload_bytes,
        Kind.SURVIVORS: n * ROW_FORMATS[SurvivorRow].size,
        Kind.CONFIRM: 0,
        Kind.REQUEST: n * ROW_FORMATS[ConfirmRow].size,
        Kind.REVEAL: n * ROW_FORMATS[ShareRow].size + KEY_BYTES,
    }
    if isinstance(params, KeyedParams):
        rows = ROW_FORMATS[SurvivorRow].size + ROW_FORMATS[ConfirmRow].size
        encrypted = n if params.verify_sum else 1
        content[Kind.DECRYPT] = n * rows + encrypted * params.upload_bytes
        content[Kind.SUM] = params.plan.body_bytes
    return _FRAME_BYTES + content[kind]


def max_setup_bytes(kind: Kind, terms: KeyTerms) -> int:
    """No honest message of this kind in this key set-up is longer."""
    n = int.from_bytes(terms.invited, "little").bit_count()
    adverts = n * ROW_FORMATS[BoxRow].size
    bundle = (
        DIGEST_BYTES
        + KEY_BYTES
        + preset_of(terms.preset).key_bytes
        + OVERHEAD_BYTES
        + n * BOX_BYTES
        + SIGNATURE_BYTES
    )
    content = {
        Kind.KEY_OPEN: MAX_OPEN_BYTES,
        Kind.KEY_ADVERT: KEY_BYTES,
        Kind.KEY_LEAD: adverts,
        Kind.KEY_BUNDLE: bundle,
        Kind.KEY_INSTALL: adverts + bundle,
        Kind.KEY_ACK: DIGEST_BYTES,
    }
    return _FRAME_BYTES + content[kind]


def encode(message: Message, *, params: bytes, sender: int) -> bytes:
    """The one encoding of `message` in the round with digest `params`."""
    kind = KINDS[type(message)]
    head = HEADER.pack(MAGIC, PROTOCOL_VERSION, kind, SUITE, params, sender)
    return head + msgspec.msgpack.encode(message)


def read_header(data: bytes) -> Header:
    """What `data` says of itself.

    Raises:
        Malformed: too short, not of this protocol, or of an unknown type.
        UnsupportedVersion: another wire version.
        UnsupportedSuite: another set of primitives.
    """
    if len(data) < HEADER.size:
        raise Malformed(f"message of {len(data)} bytes: at least {HEADER.size} expected")
    magic, version, kind, suite, params, sender = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise Malformed("not a message of this protocol")
    if version != PROTOCOL_VERSION:
        raise UnsupportedVersion(f"wire version {version}: {PROTOCOL_VERSION} known")
    if suite != SUITE:
        raise UnsupportedSuite(f"suite {suite:#06x}: {SUITE:#06x} known")
    try:
        return Header(Kind(kind), params, sender)
    except ValueError as error:
        raise Malformed(f"unknown message type {kind}") from error


def decode(data: bytes, kind: type[T], *, limit: int) -> T:
    """The message in `data`.

    Args:
        data: header and body.
        kind: the message expected.
        limit: most bytes accepted, from `max_bytes`.

    Raises:
        Oversized: more than `limit` bytes.
        WrongStage: a message of another type.
        Malformed: not decodable as `kind`.
        NonCanonical: decodable, but encoded otherwise than `encode` does.
    """
    if len(data) > limit:
        raise Oversized(f"message of {len(data)} bytes: at most {limit} expected")
    header = read_header(data)
    if header.kind != KINDS[kind]:
        raise WrongStage(f"message {header.kind.name}: {KINDS[kind].name} expected")
    try:
        message = msgspec.msgpack.decode(memoryview(data)[HEADER.size :], type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"{header.kind.name} does not decode: {error}") from error
    except ConfigurationError as error:  # parameters that contradict themselves
        raise Malformed(f"{header.kind.name} holds refused content: {error}") from error
    again = msgspec.msgpack.encode(message)  # the header has one encoding: its fields fill it
    if len(data) != HEADER.size + len(again) or not data.endswith(again):
        raise NonCanonical(f"{header.kind.name} is not in canonical encoding")
    return message
