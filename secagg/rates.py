"""How fast this machine does what a round consists of, measured in about a second."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from secagg.aead import seal, unseal
from secagg.digests import DIGEST_BYTES, enc, reveal_statement, upload_digest
from secagg.fixedpoint import Update, quantise
from secagg.inprocess import run_round
from secagg.keys import (
    KEY_BYTES,
    AgreementKey,
    SignatureCache,
    SigningKey,
    derive_key,
    verify,
)
from secagg.layout import CountSegment, FixedSegment, Layout
from secagg.messages import ShareRow, Upload, decode, encode, from_table, to_table
from secagg.params import Mode, RoundParams, new_run_id
from secagg.policy import Policy
from secagg.prg import add_keystream, keystream
from secagg.ring import RingPlan, add_packed, pack
from secagg.roster import Identity, Roster
from secagg.sessions import open_client, open_server
from secagg.shamir import PRIME, SHARE_BYTES, evaluate

_VALUES = 1 << 20  # a lane of four mebibytes, like a long update beyond the second-level cache
_DEGREE = 64
_CLIENTS = 8
_REPEATS = 5
_SECONDS_EACH = 0.01  # of one repeat; 17 rates times 5 repeats make about a second


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Seconds of processor time of each operation; the fields are those of `secagg.operations.Operations`."""

    signatures: float
    verifications: float
    key_pairs: float
    agreements: float
    derivations: float
    seals: float
    opens: float
    field_products: float
    stream_bytes: float
    rounded: float
    packed: float
    added: float
    decoded: float
    hashed_bytes: float
    messages: float
    message_bytes: float
    rows: float


def calibrate() -> Rates:
    """Measures every rate on one thread; of several short measurements the fastest counts."""
    signer, one, other = SigningKey.generate(), *(AgreementKey.generate(os.urandom) for _ in "ab")
    statement, key = bytes(32), os.urandom(KEY_BYTES)
    signature = signer.sign(statement)
    bound, text = enc("share-aad", key, bytes(10)), bytes(2 * SHARE_BYTES)
    sealed = seal(key, text, bound, os.urandom)
    polynomial = [int.from_bytes(os.urandom(SHARE_BYTES), "little") for _ in range(_DEGREE)]
    segment = FixedSegment(name="x", length=_VALUES, clip=1.0, count_clips=False)
    plan = RingPlan.of(Layout((segment,)), 12)
    width, lane = plan.slots[0].width, keystream(key, 32, _VALUES)
    reals = np.linspace(-1, 1, _VALUES, dtype=np.float32)
    uniform = np.arange(_VALUES, dtype=np.uint32)
    packed, empty = pack(lane, width), plan.zeros()
    large = encode(Upload(packed, signature), params=key, sender=1)
    table = to_table([ShareRow(owner, 0, statement) for owner in range(_DEGREE)])
    signing = _seconds(lambda: signer.sign(statement))
    decoding = _seconds(lambda: decode(large, Upload, limit=len(large)))
    return Rates(
        signatures=signing,
        verifications=_seconds(lambda: verify(signer.public, signature, statement, author="")),
        key_pairs=_seconds(lambda: AgreementKey.generate(os.urandom)),
        agreements=_seconds(lambda: one.agree(other.public, peer_id=0)),
        derivations=_seconds(lambda: derive_key(key, "pair-mask", key, bytes(4), bytes(4))),
        seals=_seconds(lambda: seal(key, text, bound, os.urandom)),
        opens=_seconds(lambda: unseal(key, sealed, bound)),
        field_products=_seconds(lambda: evaluate(polynomial, 100, PRIME)) / _DEGREE,
        stream_bytes=_seconds(lambda: add_keystream(lane, key)) / lane.nbytes,
        rounded=_seconds(lambda: quantise(reals, uniform, segment)) / _VALUES,
        packed=_seconds(lambda: plan.pack({32: lane})) / _VALUES,
        added=_seconds(lambda: add_packed(lane, packed, width)) / _VALUES,
        decoded=_seconds(lambda: plan.decode(empty, 1)) / _VALUES,
        hashed_bytes=_seconds(lambda: upload_digest(key, 1, packed)) / len(packed),
        messages=max(0.0, _seconds(_plain_round()) / (2 * _CLIENTS) - signing),
        message_bytes=decoding / len(large),
        rows=_seconds(lambda: reveal_statement(key, 1, key, from_table(ShareRow, table))) / _DEGREE,
    )


def _plain_round() -> Callable[[], object]:
    """A round of one value a client: a signature and the handling of a message, twice a client.

    Its signatures are the same every time, so all but the first checks are skipped.
    """
    layout = Layout((CountSegment(name="x", bound=1),))
    coordinator, cache = SigningKey.generate(), SignatureCache()
    sites = [Identity.generate(client) for client in range(_CLIENTS)]
    roster = Roster(coordinator=coordinator.public, members=tuple(one.member() for one in sites))
    context = bytes(DIGEST_BYTES)
    params = RoundParams.for_round(
        mode=Mode.PLAIN,
        roster=roster,
        layout=layout,
        context=context,
        sequence=1,
        run_id=new_run_id(),
    )
    update = Update(values={"x": np.ones(1, np.int64)})

    def run() -> object:
        server = open_server(params, coordinator=coordinator, roster=roster, signature_cache=cache)
        clients = {
            site.id: open_client(
                Mode.PLAIN,
                identity=site,
                roster=roster,
                policy=Policy.plain(layout),
                save=lambda marks: None,
                signature_cache=cache,
            )
            for site in sites
        }
        return run_round(server, clients, lambda client: update, context=context)

    return run


def _seconds(act: Callable[[], object]) -> float:
    """Processor seconds of one call."""
    act()  # fills caches
    started = time.process_time()
    act()
    calls = max(1, int(_SECONDS_EACH / max(1e-7, time.process_time() - started)))
    fastest = float("inf")
    for _ in range(_REPEATS):
        started = time.process_time()
        for _ in range(calls):
            act()
        fastest = min(fastest, (time.process_time() - started) / calls)
    return fastest
