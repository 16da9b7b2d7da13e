"""What a round costs before it is run: how often each participant does what takes time.

Numbers of operations are exact, from the public parameters and counts of clients, like the bytes of
`secagg.cost`; seconds are what these operations take at measured rates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from secagg.cost import RoundBytes, predict_bytes
from secagg.errors import UnsupportedSuite
from secagg.graph import COMPLETE_GRAPH, least_window, share_threshold
from secagg.layout import FixedSegment
from secagg.params import Mode, RoundParams, Stage
from secagg.rates import Rates
from secagg.threshold import threshold


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

    Numbers are exact on a complete graph. On a ring the clients that are lost are taken to be spread
    evenly over it, and no two secrets to be rebuilt by the same holders: exact if everybody deals
    shares and at most one is lost later.

    Args:
        params: the round's parameters.
        cohort: clients that advertise keys; all invited by default.
        sharers: clients that deal shares; all of the cohort by default.
        survivors: clients whose uploads arrive; all sharers by default.
        confirming: clients that confirm the survivors; all of them by default.
        revealing: clients that open shares; all that confirm by default.
        degree: neighbours of a client, 0 for everybody; by default as the parameters say, of which
            `bytes` are in any case.
        rates: from `secagg.rates.calibrate`.

    Raises:
        UnsupportedSuite: a CKKS round, whose encryptions have no rate here.
    """
    if params.mode is Mode.CKKS:
        raise UnsupportedSuite("operations of CKKS rounds are not counted: use predict_bytes")
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
        graph = _Graph.of(params, n, params.graph_degree if degree is None else degree)
        client = _masking_client(params, n, dealt, alive, graph)
        server = _masking_server(params, replies, graph)
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


@dataclass(frozen=True, slots=True)
class _Graph:
    """Who shares with whom: each with `degree` others of a cohort, any `threshold` of which rebuild."""

    degree: int
    threshold: int
    sparse: bool

    @classmethod
    def of(cls, params: RoundParams, n: int, degree: int) -> _Graph:
        """The graph of a cohort of n, as `secagg.views.Cohort` makes it."""
        if degree == COMPLETE_GRAPH or degree >= n - 1:
            return cls(n - 1, threshold(n, params.colluders), sparse=False)
        least = least_window(n, min(params.colluders, n), degree)
        window = max(params.graph_window, least)
        return cls(degree, share_threshold(window), sparse=True)


def _masking_client(
    params: RoundParams, n: int, dealt: int, alive: int, graph: _Graph
) -> Operations:
    t, k = threshold(n, params.colluders), graph.degree
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
        field_products=2 * k * graph.threshold,
        rows=n + alive + t,
        stream_bytes=plain.stream_bytes + mask_bytes * (1 + peers),
    )


def _masking_server(params: RoundParams, replies: Mapping[Stage, int], graph: _Graph) -> Operations:
    n, dealt, alive, _, opened = (replies[stage] for stage in Stage)
    t, k = graph.threshold, graph.degree
    lost, silent = dealt - alive, alive - opened
    pairs = lost * _neighbours_in(alive, n, k)
    lanes, mask_bytes = _mask(params)
    rebuilt = lost + silent
    sets = rebuilt if graph.sparse else min(1, rebuilt)  # of holders; one serves all if all hold
    return replace(
        _plain_server(params, alive),
        signatures=len(Stage),
        verifications=sum(replies.values()),
        key_pairs=2 * lost,
        agreements=2 * n + pairs,
        derivations=lanes * (alive + pairs),
        field_products=sets * t * (2 * t - 1) + rebuilt * t,
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
