"""Whatever arrives, from the wire or from the disk, raises errors of this package and no others.

Four kinds of input at every door: random bytes, genuine bytes with bits flipped or cut short, random
MessagePack of the right outline, and genuine messages with one field changed and then signed anew,
by the key that counts or by another. Sessions come from stored states, so each example starts from
a session that is really waiting for such a message.
"""

import contextlib
import hashlib
import json
import resource
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import (
    Identity,
    Mode,
    Policy,
    Roster,
    SecAggError,
    SigningKey,
    Stage,
    Update,
    open_client,
    restore_server,
)
from secagg.api import InputWanted
from secagg.bitmap import from_bitmap
from secagg.client_snapshot import unseal_client
from secagg.digests import (
    advert_statement,
    bundle_statement,
    confirm_statement,
    request_statement,
    reveal_statement,
    upload_digest,
    upload_statement,
)
from secagg.marks import Marks
from secagg.messages import (
    HEADER,
    KINDS,
    ROW_FORMATS,
    Advert,
    AdvertRow,
    Bundle,
    BundleRow,
    CohortRequest,
    Collect,
    Confirm,
    ConfirmRow,
    Kind,
    Open,
    Reveal,
    RevealRequest,
    ShareRow,
    SurvivorRow,
    SurvivorsRequest,
    Upload,
    decode,
    encode,
    from_table,
    max_bytes,
    read_header,
    to_table,
)
from secagg.roster import COORDINATOR_ID
from secagg.roundlog import RoundLog
from secagg.sealed_state import Vault
from secagg.server_snapshot import unseal_server
from secagg.views import Cohort, Sharers, Survivors

STORED = json.loads((Path(__file__).parent / "vectors/snapshot_v1.json").read_text())
LIMIT = 1 << 20
NEXT = {Stage(k): Stage(k + 1) for k in range(4)}


def word(text):
    return hashlib.sha256(text.encode()).digest()


STATE_KEY, COORDINATOR, CONTEXT = (
    word("state key"),
    SigningKey(word("coordinator")),
    word("context"),
)
IDENTITIES = {i: Identity(i, SigningKey(word(f"client {i}"))) for i in (1, 2, 3)}
STRANGER = SigningKey(word("stranger"))
ROSTER = Roster(
    coordinator=COORDINATOR.public, members=tuple(one.member() for one in IDENTITIES.values())
)
SERVER_STATES = {stage: bytes.fromhex(STORED["server"][stage.name]) for stage in Stage}
CLIENT_STATES = {stage: bytes.fromhex(STORED["client"][stage.name]["saved"]) for stage in Stage}
REPLIES = {stage: bytes.fromhex(STORED["client"][stage.name]["reply"]) for stage in Stage}
SERVER_VAULT, CLIENT_VAULT = Vault(STATE_KEY, COORDINATOR_ID), Vault(STATE_KEY, 1)
SNAPSHOTS = {stage: unseal_server(SERVER_VAULT, state) for stage, state in SERVER_STATES.items()}
REQUESTS = {stage: one.page.requests[one.page.sent[1]] for stage, one in SNAPSHOTS.items()}
LAST = SNAPSHOTS[Stage.REVEAL]
PARAMS = LAST.params
COHORT = Cohort.of(PARAMS, from_table(AdvertRow, LAST.adverts))
SHARERS = Sharers.of(COHORT, [row.client for row in from_table(BundleRow, LAST.dealt)])
UPLOADS = from_table(SurvivorRow, LAST.uploads)
SURVIVORS = Survivors.of(SHARERS.digest, [(row.client, row.upload) for row in UPLOADS])
POLICY = Policy(layout=PARAMS.layout, modes=(Mode.MASKING,), n_min=3, survivors_min=3, colluders=0)


def client_at(stage, saved=None):
    """Client 1, waiting for the request of `stage`."""
    known = CLIENT_STATES[Stage(stage - 1)] if stage and saved is None else saved or b""
    return open_client(
        Mode.MASKING,
        identity=IDENTITIES[1],
        roster=ROSTER,
        policy=POLICY,
        save=lambda state: None,
        saved=known,
        state_key=STATE_KEY,
    )


def server_at(stage, saved=None):
    """The server, waiting for the replies to the requests of `stage`."""
    return restore_server(
        saved or SERVER_STATES[stage],
        coordinator=COORDINATOR,
        roster=ROSTER,
        state_key=STATE_KEY,
        save=lambda state: None,
    )


def hands(client, request):
    answer = client.handle(request)
    if isinstance(answer, InputWanted):
        values = {"delta": np.zeros(3, np.int64), "samples": np.array([1])}
        answer = client.submit(Update(values=values), CONTEXT)
    return answer


# Damage -------------------------------------------------------------------------------------

stages = st.sampled_from(list(Stage))
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.binary(max_size=70)
    | st.text(max_size=10)
)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=6) | st.dictionaries(st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=12,
)


@st.composite
def damaged(draw, genuine):
    """Genuine bytes with bits flipped, cut, lengthened, or with a piece put elsewhere."""
    data = bytearray(genuine)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(["flip", "set", "cut", "insert", "copy"])):
            case "flip" if data:
                data[place] ^= 1 << draw(st.integers(0, 7))
            case "set" if data:
                data[place] = draw(st.sampled_from([0, 0x7F, 0x80, 0xC0, 0xDD, 0xDF, 0xFF]))
            case "cut":
                del data[place : place + draw(st.integers(1, 80))]
            case "insert":
                data[place:place] = draw(st.binary(min_size=1, max_size=80))
            case _:
                other = draw(st.integers(0, max(0, len(data) - 1)))
                data[place : place + 16] = data[other : other + 16]
    return bytes(data)


@st.composite
def changed_tree(draw, tree):
    """A tree of plain values with one of them replaced."""
    if isinstance(tree, list) and tree and draw(st.integers(0, 9)):
        place = draw(st.integers(0, len(tree) - 1))
        return [*tree[:place], draw(changed_tree(tree[place])), *tree[place + 1 :]]
    if isinstance(tree, dict) and tree and draw(st.integers(0, 9)):
        place = draw(st.sampled_from(sorted(tree, key=repr)))
        if draw(st.integers(0, 3)):
            return {**tree, place: draw(changed_tree(tree[place]))}
        return {**{k: v for k, v in tree.items() if k != place}, draw(leaves): tree[place]}
    if isinstance(tree, bytes) and draw(st.booleans()):
        return draw(damaged(tree))
    if isinstance(tree, int) and draw(st.booleans()):
        return tree + draw(st.integers(-2, 2))
    return draw(trees)


@st.composite
def changed_rows(draw, kind, rows):
    """A table with one record changed, repeated, dropped or added."""
    rows = list(rows)
    place = draw(st.integers(0, len(rows) - 1))
    match draw(st.sampled_from(["field", "drop", "repeat", "add", "swap"])):
        case "drop":
            del rows[place]
        case "repeat":
            rows.insert(place, rows[place])
        case "swap":
            rows[0], rows[-1] = rows[-1], rows[0]
        case "add":
            rows.append(rows[place]._replace(client=draw(st.integers(0, 2**32 - 1))))
            rows.sort()
        case _:
            field = draw(st.sampled_from(kind._fields))
            value = getattr(rows[place], field)
            if isinstance(value, bytes):
                value = draw(
                    st.binary(min_size=len(value), max_size=len(value))
                    | st.sampled_from([bytes(len(value)), b"\xff" * len(value)])
                )
            else:
                value = draw(st.integers(0, 255 if field == "kind" else 2**32 - 1))
            rows[place] = rows[place]._replace(**{field: value})
    return rows


def reads(door, data):
    """Whether a door took the data; any error but this package's own passes through."""
    try:
        door(data)
    except SecAggError:
        return False
    return True


# Decoders -----------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(list(KINDS)), trees, st.binary(max_size=120))
def test_decoders_of_messages(kind, tree, noise):
    """Random content behind a genuine header, so that it is looked at."""
    head = HEADER.pack(b"FMSA", 1, KINDS[kind], 1, PARAMS.digest, 1)
    for content in (noise, msgspec.msgpack.encode(tree), msgspec.msgpack.encode([tree, noise])):
        reads(lambda data: decode(data, kind, limit=LIMIT), head + content)
    reads(read_header, noise)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(list(ROW_FORMATS)), st.binary(max_size=300), st.integers(0, 40))
def test_decoders_of_tables_bitmaps_and_bodies(kind, data, size):
    reads(lambda data: from_table(kind, data), data)
    reads(lambda data: from_bitmap(range(size), data), data)
    reads(PARAMS.plan.check_body, data)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_changed_parameters(data):
    """OPEN is decoded before anything of it can be checked: its author may be anybody."""
    tree = msgspec.msgpack.decode(REQUESTS[Stage.ADVERTISE][HEADER.size :])
    changed = data.draw(changed_tree(tree))
    message = REQUESTS[Stage.ADVERTISE][: HEADER.size] + msgspec.msgpack.encode(changed)
    client = client_at(Stage.ADVERTISE)
    for sign in (False, True):
        if sign:
            with contextlib.suppress(SecAggError):
                params = decode(message, Open, limit=LIMIT).params
                statement = request_statement(params.digest, 0, params.digest)
                signed = Open(params, COORDINATOR.sign(statement))
                message = encode(signed, params=params.digest, sender=COORDINATOR_ID)
        reads(client.handle, message)


# Files --------------------------------------------------------------------------------------

MARKS = Marks.from_bytes(Marks().raised(b"r" * 16, 7, max_rounds=9).to_bytes()).to_bytes()
ROSTER_FILE = ROSTER.to_json()


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), damaged(MARKS), damaged(ROSTER_FILE), trees)
def test_files_of_marks_rosters_and_identities(noise, marks, roster, tree):
    for data in (noise, marks, msgspec.msgpack.encode(tree), msgspec.msgpack.encode([tree, 1])):
        reads(Marks.from_bytes, data)
        reads(lambda data: client_at(Stage.ADVERTISE, data), data)
    for data in (noise, roster):
        reads(Roster.from_json, data)
        reads(Identity.from_text, data.decode("latin-1"))


@settings(max_examples=60, deadline=None)
@given(st.data(), stages)
def test_roster_files_with_one_value_changed(data, stage):
    tree = msgspec.json.decode(ROSTER_FILE)
    members = data.draw(changed_tree(tree["members"]))
    for changed in ({**tree, "members": members}, {**tree, "version": members}, members):
        with contextlib.suppress(TypeError, UnicodeEncodeError):  # not JSON: cannot be a file
            reads(Roster.from_json, msgspec.json.encode(changed))


@settings(max_examples=100, deadline=None)
@given(st.data(), stages)
def test_sealed_states_that_were_damaged_never_open(data, stage):
    for state, door in (
        (CLIENT_STATES[stage], lambda saved: client_at(stage, saved)),
        (SERVER_STATES[stage], lambda saved: server_at(stage, saved)),
    ):
        changed = data.draw(damaged(state))
        assert changed in (state, b"") or not reads(door, changed)


@settings(max_examples=100, deadline=None)
@given(st.data(), stages)
def test_contents_of_states_that_were_changed_and_sealed_again(data, stage):
    """And what opens all the same still raises nothing but errors of this package when it is used."""
    label = {"run_id": PARAMS.run_id, "sequence": PARAMS.sequence}
    content = CLIENT_VAULT.unseal(CLIENT_STATES[stage]).content
    changed = data.draw(changed_tree(msgspec.msgpack.decode(content)))
    sealed = CLIENT_VAULT.seal(msgspec.msgpack.encode(changed), **label)
    reads(lambda saved: unseal_client(CLIENT_VAULT, saved, 1), sealed)
    with contextlib.suppress(SecAggError):
        client = client_at(stage, sealed)
        for request in REQUESTS.values():
            reads(lambda request, client=client: hands(client, request), request)
    content = SERVER_VAULT.unseal(SERVER_STATES[stage]).content
    changed = data.draw(changed_tree(msgspec.msgpack.decode(content)))
    reads(
        lambda saved: server_at(stage, saved),
        SERVER_VAULT.seal(msgspec.msgpack.encode(changed), **label),
    )


LOG = RoundLog(
    params=PARAMS,
    requests=tuple(LAST.page.signed.values()),
    adverts=LAST.adverts,
    bundles=LAST.dealt,
    uploads=LAST.uploads,
    confirmations=LAST.confirmations,
).to_bytes()


def read_log(data):
    RoundLog.from_bytes(data, members=3)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_public_logs_of_rounds(data):
    read_log(LOG)
    changed = data.draw(changed_tree(msgspec.msgpack.decode(LOG[5:])))
    for log in (data.draw(damaged(LOG)), LOG[:5] + msgspec.msgpack.encode(changed)):
        reads(read_log, log)


# Sessions -----------------------------------------------------------------------------------


def test_the_stored_sessions_take_the_genuine_messages():
    """Without this the tests below could be refused for a reason of their own."""
    for stage in Stage:
        assert hands(client_at(stage), REQUESTS[stage])
        server_at(stage).receive(1, REPLIES[stage])


@settings(max_examples=120, deadline=None)
@given(st.data(), stages)
def test_damaged_requests_at_a_client(data, stage):
    """A request that is refused without a REFUSE leaves the round as it was.

    The one that ends it is genuine but for another client's signature, which the coordinator's own
    does not cover.
    """
    client = client_at(stage)
    request = data.draw(damaged(REQUESTS[stage]) | st.binary(max_size=300))
    try:
        hands(client, request)
    except SecAggError as error:
        if error.refusal is None:
            assert hands(client, REQUESTS[stage])
        else:
            reads(lambda request: hands(client, request), REQUESTS[stage])


@settings(max_examples=120, deadline=None)
@given(st.data(), stages)
def test_damaged_replies_at_a_server(data, stage):
    server = server_at(stage)
    reply = data.draw(damaged(REPLIES[stage]) | st.binary(max_size=300))
    if not reads(lambda reply: server.receive(1, reply), reply) or reply == REPLIES[stage]:
        server.receive(1, REPLIES[stage])


REQUEST_TYPES = {
    Stage.SHARE: CohortRequest,
    Stage.UPLOAD: Collect,
    Stage.CONFIRM: SurvivorsRequest,
    Stage.REVEAL: RevealRequest,
}


@st.composite
def signed_request(draw, stage, key):
    """A request with one thing changed in it, and a signature over what it says now."""
    message = decode(
        REQUESTS[stage],
        {1: CohortRequest, 2: Collect, 3: SurvivorsRequest, 4: RevealRequest}[stage],
        limit=LIMIT,
    )
    digest, changes = SURVIVORS.digest, {}
    if stage is Stage.SHARE:
        rows = draw(changed_rows(AdvertRow, COHORT.adverts.values()))
        changes, digest = {"adverts": to_table(rows)}, Cohort.of(PARAMS, rows).digest
    elif stage is Stage.UPLOAD:
        bitmap = draw(st.integers(0, 7)).to_bytes(1, "little")
        peers = bitmap[0].bit_count() - (bitmap[0] & 1)
        size = 92 * peers if draw(st.booleans()) else draw(st.integers(0, 200))
        sealed = draw(damaged(message.sealed) | st.just(message.sealed))[:size]
        changes = {"sharers": bitmap, "sealed": sealed.ljust(size, b"\x00")}
        digest = Sharers.from_bitmap(COHORT, bitmap).digest
    elif stage is Stage.CONFIRM:
        rows = draw(changed_rows(SurvivorRow, UPLOADS))
        pairs = [(row.client, row.upload) for row in rows]
        changes, digest = {"uploads": to_table(rows)}, Survivors.of(SHARERS.digest, pairs).digest
    else:
        rows = draw(changed_rows(ConfirmRow, from_table(ConfirmRow, message.confirmations)))
        changes = {"confirmations": to_table(rows)}
    changes["signature"] = key.sign(request_statement(PARAMS.digest, stage, digest))
    changed = msgspec.structs.replace(message, **changes)
    return encode(changed, params=PARAMS.digest, sender=COORDINATOR_ID)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(list(NEXT.values())))
def test_changed_requests_signed_by_the_coordinator_or_by_another(data, stage):
    for key in (STRANGER, COORDINATOR):
        client = client_at(stage)
        taken = reads(
            lambda request, client=client: hands(client, request),
            data.draw(signed_request(stage, key)),
        )
        if key is STRANGER:
            assert not taken
            assert hands(client, REQUESTS[stage])
        reads(lambda request, client=client: hands(client, request), REQUESTS[stage])


@st.composite
def signed_reply(draw, stage, key):
    """A reply with one thing changed in it, and a signature over what it says now."""
    field = st.binary(min_size=32, max_size=32) | st.sampled_from([bytes(32), b"\xff" * 32])
    if stage is Stage.ADVERTISE:
        mask, share = draw(field), draw(field)
        message = Advert(mask, share, key.sign(advert_statement(PARAMS.digest, 1, mask, share)))
    elif stage is Stage.SHARE:
        good = decode(REPLIES[stage], Bundle, limit=LIMIT)
        sealed, committed = draw(damaged(good.sealed) | st.just(good.sealed)), draw(field)
        statement = bundle_statement(COHORT.digest, 1, committed, sealed)
        message = Bundle(sealed, committed, key.sign(statement))
    elif stage is Stage.UPLOAD:
        body = draw(damaged(decode(REPLIES[stage], Upload, limit=LIMIT).body))
        statement = upload_statement(SHARERS.digest, 1, upload_digest(SHARERS.digest, 1, body))
        message = Upload(body, key.sign(statement))
    elif stage is Stage.CONFIRM:
        message = Confirm(key.sign(confirm_statement(draw(field))))
    else:
        good = decode(REPLIES[stage], Reveal, limit=LIMIT)
        rows = draw(changed_rows(ShareRow, from_table(ShareRow, good.shares)))
        seed = draw(field | st.just(good.seed))
        statement = reveal_statement(SURVIVORS.digest, 1, seed, rows)
        message = Reveal(seed, to_table(rows), key.sign(statement))
    return encode(message, params=PARAMS.digest, sender=1)


@settings(max_examples=150, deadline=None)
@given(st.data(), stages)
def test_changed_replies_signed_by_their_sender_or_by_another(data, stage):
    for key in (STRANGER, IDENTITIES[1].key):
        server = server_at(stage)
        reply = data.draw(signed_reply(stage, key))
        taken = reads(lambda reply, server=server: server.receive(1, reply), reply)
        if key is STRANGER:
            assert not taken
            server.receive(1, REPLIES[stage])
        reads(lambda reply, server=server: server.receive(1, reply), REPLIES[stage])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_client_that_reveals_nonsense_costs_the_round_at_most(data):
    """Its shares are duly signed and wrong; the sum is the stored one, or there is none."""
    server = server_at(Stage.REVEAL)
    reads(
        lambda reply: server.receive(1, reply),
        data.draw(signed_reply(Stage.REVEAL, IDENTITIES[1].key)),
    )
    for client in (2, 3):
        saved = bytes.fromhex(STORED["midway"]["clients"][str(client)])
        session = open_client(
            Mode.MASKING,
            identity=IDENTITIES[client],
            roster=ROSTER,
            policy=POLICY,
            save=lambda state: None,
            saved=saved,
            state_key=STATE_KEY,
        )
        session.handle(SNAPSHOTS[Stage.CONFIRM].page.requests[0])
        server.receive(client, session.handle(REQUESTS[Stage.REVEAL]).message)
    try:
        aggregate = server.close_stage()
    except SecAggError:
        return
    assert {name: sums.tolist() for name, sums in aggregate.sums.items()} == STORED["sums"]


# Bounds -------------------------------------------------------------------------------------

DEEP = b"\x91" * 60_000 + b"\xc0"
HUGE = [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"]


def peak_kib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def wrapped(tree, mark, content):
    """The tree as MessagePack, with `content` in the place of the mark."""
    data, token = msgspec.msgpack.encode(tree), msgspec.msgpack.encode(mark)
    assert data.count(token) == 1
    return data.replace(token, content)


@pytest.mark.parametrize("content", [DEEP, *HUGE], ids=["deep", "array", "map", "bytes"])
def test_nesting_and_announced_lengths_cost_neither_stack_nor_memory_nor_time(content):
    """In every place of every message, of the files, and of the states."""
    before, started, mark = peak_kib(), time.perf_counter(), b"in the place of this"
    doors = []
    for stage in Stage:
        for message, door in (
            (REQUESTS[stage], client_at(stage).handle),
            (REPLIES[stage], lambda data, stage=stage: server_at(stage).receive(1, data)),
        ):
            tree = msgspec.msgpack.decode(message[HEADER.size :])
            trees = [[*tree, mark], *([*tree[:k], mark, *tree[k + 1 :]] for k in range(len(tree)))]
            if stage is Stage.ADVERTISE and isinstance(tree[0], list):
                trees += [[[*tree[0], mark], *tree[1:]]]
            doors += [(door, message[: HEADER.size] + wrapped(t, mark, content)) for t in trees]
    doors += [(Marks.from_bytes, content), (Marks.from_bytes, b"\x93\x80\x01" + content)]
    log = msgspec.msgpack.decode(LOG[5:])
    doors += [
        (read_log, LOG[:5] + wrapped(tree, mark, content))
        for tree in ([*log, mark], [[*log[0], mark], *log[1:]], [*log[:2], mark, *log[3:]])
    ]
    doors += [(Roster.from_json, b'{"x":' * 30_000), (Roster.from_json, b'{"x":' + b"[" * 60_000)]
    label = {"run_id": PARAMS.run_id, "sequence": PARAMS.sequence}
    for vault, door in ((CLIENT_VAULT, client_at), (SERVER_VAULT, server_at)):
        saved = vault.seal(b"\x91" + content, **label)
        doors.append((lambda data, door=door: door(Stage.UPLOAD, data), saved))
    for door, data in doors:
        assert not reads(door, data)
    assert time.perf_counter() - started < 10
    assert peak_kib() - before < 64 * 1024


def test_no_message_longer_than_its_kind_can_be_is_parsed():
    """A parser that was reached would say that it is malformed."""
    for stage in Stage:
        kind = read_header(REPLIES[stage]).kind
        long = REPLIES[stage][: HEADER.size] + b"\xff" * max_bytes(kind, PARAMS)
        with pytest.raises(SecAggError, match="at most"):
            server_at(stage).receive(1, long)
    for stage in NEXT.values():
        kind = read_header(REQUESTS[stage]).kind
        long = REQUESTS[stage][: HEADER.size] + b"\xff" * max_bytes(Kind(kind), PARAMS)
        with pytest.raises(SecAggError, match="at most"):
            client_at(stage).handle(long)
