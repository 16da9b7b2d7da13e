"""What a round costs before it is run: bytes, operations and seconds.

Every table on the wire has records of fixed width, so message sizes follow from numbers of clients
alone and not from who they are. Bytes and numbers of operations are exact; seconds are what these
operations take at measured rates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from secagg.bitmap import bitmap_bytes
from secagg.digests import DIGEST_BYTES
from secagg.keys import KEY_BYTES, SIGNATURE_BYTES
from secagg.layout import FixedSegment
from secagg.messages import (
    HEADER,
    ROW_FORMATS,
    SEALED_BYTES,
    AdvertRow,
    ConfirmRow,
    Open,
    ShareRow,
    SurvivorRow,
    encode,
)
from secagg.params import Mode, RoundParams, Stage
from secagg.rates import Rates
from secagg.roster import COORDINATOR_ID
from secagg.threshold import threshold


@dataclass(frozen=True, kw_only=True, slots=True)
class StageBytes:
    """Bytes of one client in one stage."""

    down: int
    up: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundBytes:
    """Bytes of one client in one round, {stage: bytes}, in order of stages."""

    stages: dict[Stage, StageBytes]

    def up(self, *, lost: Stage | None = None) -> int:
        """Bytes a client sends in all, if it gives no reply from stage `lost` on."""
        return sum(b.up for stage, b in self.stages.items() if lost is None or stage < lost)

    def down(self, *, lost: Stage | None = None) -> int:
        """Bytes sent to a client in all; the request of stage `lost` is sent, none after it."""
        return sum(b.down for stage, b in self.stages.items() if lost is None or stage <= lost)


@dataclass(frozen=True, kw_only=True, slots=True)
class Operations:
    """How often one participant does what takes time, in one round.

    Attributes:
        signatures: Ed25519 signatures made.
        verifications: Ed25519 signatures checked.
        key_pairs: X25519 public keys computed.
        agreements: X25519 shared secrets computed.
        derivations: keys derived (HKDF).
        seals: shares sealed.
        opens: shares opened.
        field_products: products modulo 2^256 - 189, of dealing and rebuilding secrets.
        stream_bytes: keystream, of masks and of rounding.
        rounded: real values put on the grid.
        packed: values packed to their ring width.
        added: packed values added to the sum.
        decoded: values of the sum decoded.
        hashed_bytes: upload bodies hashed.
        messages: messages taken in, with all that is done around one.
        message_bytes: bytes of them.
        rows: records of tables in them.
    """

    signatures: int = 0
    verifications: int = 0
    key_pairs: int = 0
    agreements: int = 0
    derivations: int = 0
    seals: int = 0
    opens: int = 0
    field_products: int = 0
    stream_bytes: int = 0
    rounded: int = 0
    packed: int = 0
    added: int = 0
    decoded: int = 0
    hashed_bytes: int = 0
    messages: int = 0
    message_bytes: int = 0
    rows: int = 0

    def seconds(self, rates: Rates) -> float:
        """Processor seconds at these rates, on one thread."""
        return float(
            sum(getattr(self, one.name) * getattr(rates, one.name) for one in fields(self))
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What one round costs.

    Attributes:
        bytes: of one client, by stage.
        client: operations of one client that stays to the end.
        server: operations of the server.
        client_seconds: processor seconds of that client; None without rates.
        server_seconds: processor seconds of the server; None without rates.
    """

    bytes: RoundBytes
    client: Operations
    server: Operations
    client_seconds: float | None
    server_seconds: float | None


def cost(
    params: RoundParams,
    *,
    cohort: int | None = None,
    sharers: int | None = None,
    survivors: int | None = None,
    confirming: int | None = None,
    revealing: int | None = None,
    degree: int | None = None,
    rates: Rates | None = None,
) -> Cost:
    """Bytes, operations and, given rates, seconds of a round.

    Numbers are exact on a complete graph. On a sparse one the clients that are lost are taken to be
    spread evenly over it.

    Args:
        params: the round's parameters.
        cohort: clients that advertise keys; all invited by default.
        sharers: clients that deal shares; all of the cohort by default.
        survivors: clients whose uploads arrive; all sharers by default.
        confirming: clients that confirm the survivors; all of them by default.
        revealing: clients that open shares; all that confirm by default.
        degree: neighbours of a client; all others of the cohort by default.
        rates: from `rates.calibrate`.
    """
    n = params.invited_count if cohort is None else cohort
    dealt = n if sharers is None else sharers
    alive = dealt if survivors is None else survivors
    confirmed = alive if confirming is None else confirming
    opened = confirmed if revealing is None else revealing
    sizes = predict_bytes(params, cohort=n, sharers=dealt, survivors=alive)
    replies = {Stage.UPLOAD: alive}
    if params.mode is Mode.PLAIN:
        client, server = _plain_client(params), _plain_server(params, alive)
    else:
        replies = dict(zip(Stage, (n, dealt, alive, confirmed, opened), strict=True))
        k = n - 1 if degree is None else degree
        client = _masking_client(params, n, dealt, alive, k)
        server = _masking_server(params, replies, k)
    client = replace(client, messages=len(sizes.stages), message_bytes=sizes.down())
    server = replace(
        server,
        messages=sum(replies.values()),
        message_bytes=sum(sizes.stages[stage].up * count for stage, count in replies.items()),
    )
    return Cost(
        bytes=sizes,
        client=client,
        server=server,
        client_seconds=None if rates is None else client.seconds(rates),
        server_seconds=None if rates is None else server.seconds(rates),
    )


def _plain_client(params: RoundParams) -> Operations:
    layout = params.layout
    rounded = sum(one.length for one in layout.segments if isinstance(one, FixedSegment))
    return Operations(
        signatures=1,
        verifications=1,
        stream_bytes=4 * rounded,
        rounded=rounded,
        packed=layout.size,
        hashed_bytes=params.plan.body_bytes,
    )


def _plain_server(params: RoundParams, alive: int) -> Operations:
    return Operations(
        signatures=1,
        verifications=alive,
        added=alive * params.layout.size,
        decoded=params.layout.size,
        hashed_bytes=alive * params.plan.body_bytes,
    )


def _masking_client(params: RoundParams, n: int, dealt: int, alive: int, k: int) -> Operations:
    t = threshold(n, params.colluders)
    peers = _neighbours_in(dealt - 1, n, k)
    lanes, mask_bytes = _mask(params)
    plain = _plain_client(params)
    return replace(
        plain,
        signatures=len(Stage),
        verifications=len(Stage) + (n - 1) + (alive - 1) + t,
        key_pairs=2,
        agreements=k + peers,
        derivations=2 * k + lanes * (1 + peers),
        seals=k,
        opens=peers,
        field_products=2 * k * t,
        rows=n + alive + t,
        stream_bytes=plain.stream_bytes + mask_bytes * (1 + peers),
    )


def _masking_server(params: RoundParams, replies: Mapping[Stage, int], k: int) -> Operations:
    n, dealt, alive, _, opened = (replies[stage] for stage in Stage)
    t = threshold(n, params.colluders)
    lost, silent = dealt - alive, alive - opened
    pairs = lost * _neighbours_in(alive, n, k)
    lanes, mask_bytes = _mask(params)
    rebuilt = lost + silent
    weights = t * (2 * t - 1) if rebuilt else 0  # of one set of holders, which serves all secrets
    return replace(
        _plain_server(params, alive),
        signatures=len(Stage),
        verifications=sum(replies.values()),
        key_pairs=2 * lost,
        agreements=2 * n + pairs,
        derivations=lanes * (alive + pairs),
        field_products=weights + rebuilt * t,
        stream_bytes=mask_bytes * (alive + pairs),
        rows=opened * _neighbours_in(dealt - 1, n, k),
    )


def _neighbours_in(members: int, n: int, k: int) -> int:
    """How many of a client's k neighbours are among `members` others of its cohort of n."""
    return round(members * k / (n - 1))


def _mask(params: RoundParams) -> tuple[int, int]:
    """How many lanes a mask has, and its bytes."""
    lengths = params.plan.lane_lengths
    return len(lengths), sum(lane // 8 * length for lane, length in lengths.items())


def predict_bytes(
    params: RoundParams,
    *,
    cohort: int | None = None,
    sharers: int | None = None,
    survivors: int | None = None,
) -> RoundBytes:
    """The bytes of every stage for one client.

    Args:
        params: the round's parameters.
        cohort: clients that advertise keys; all invited by default.
        sharers: clients that deal shares; all of the cohort by default.
        survivors: clients whose uploads arrive; all sharers by default.
    """
    n = params.invited_count if cohort is None else cohort
    dealt = n if sharers is None else sharers
    alive = dealt if survivors is None else survivors
    opening = len(
        encode(Open(params, bytes(SIGNATURE_BYTES)), params=params.digest, sender=COORDINATOR_ID)
    )
    upload = _message(params.plan.body_bytes, SIGNATURE_BYTES)
    if params.mode is Mode.PLAIN:
        return RoundBytes(stages={Stage.UPLOAD: StageBytes(down=opening, up=upload)})
    confirmations = threshold(n, params.colluders) * ROW_FORMATS[ConfirmRow].size
    return RoundBytes(
        stages={
            Stage.ADVERTISE: StageBytes(
                down=opening, up=_message(KEY_BYTES, KEY_BYTES, SIGNATURE_BYTES)
            ),
            Stage.SHARE: StageBytes(
                down=_message(n * ROW_FORMATS[AdvertRow].size, SIGNATURE_BYTES),
                up=_message((n - 1) * SEALED_BYTES, DIGEST_BYTES, SIGNATURE_BYTES),
            ),
            Stage.UPLOAD: StageBytes(
                down=_message(bitmap_bytes(n), (dealt - 1) * SEALED_BYTES, SIGNATURE_BYTES),
                up=upload,
            ),
            Stage.CONFIRM: StageBytes(
                down=_message(alive * ROW_FORMATS[SurvivorRow].size, SIGNATURE_BYTES),
                up=_message(SIGNATURE_BYTES),
            ),
            Stage.REVEAL: StageBytes(
                down=_message(confirmations, SIGNATURE_BYTES),
                up=_message(KEY_BYTES, (dealt - 1) * ROW_FORMATS[ShareRow].size, SIGNATURE_BYTES),
            ),
        }
    )


def _message(*fields: int) -> int:
    """Header, array marker, and each byte string with its MessagePack length prefix."""
    return HEADER.size + 1 + sum(_prefix(length) + length for length in fields)


def _prefix(length: int) -> int:
    if length < 2**8:
        return 2
    return 3 if length < 2**16 else 5
