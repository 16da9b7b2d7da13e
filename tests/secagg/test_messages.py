import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import Mode, SharedKey, errors
from secagg.ckks_presets import PRESETS
from secagg.ckks_terms import KeyTerms
from secagg.errors import Malformed, NonCanonical, Oversized, SecAggError
from secagg.messages import (
    KINDS,
    Advert,
    AdvertRow,
    BoxRow,
    Bundle,
    CohortRequest,
    Collect,
    Confirm,
    ConfirmRow,
    Decrypt,
    KeyAck,
    KeyAdvert,
    KeyBundle,
    KeyInstall,
    KeyLead,
    KeyOpen,
    Kind,
    Open,
    OpenKeyed,
    Refuse,
    Reveal,
    RevealRequest,
    ShareRow,
    Sum,
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

BAD = json.loads((Path(__file__).parent / "vectors/bad_inputs.json").read_text())[
    "bad_confirm_messages"
]
P, KEY, SIGNATURE = b"\x11" * 32, b"k" * 32, b"\x22" * 64
LIMIT = 1 << 20


def from_hex(text: str) -> bytes:
    return bytes.fromhex(text.replace("P", "11" * 32).replace("S", "22" * 64))


def keyed(world):
    return world.params(mode=Mode.CKKS, colluders=0, shared_key=SharedKey(1, KEY))


def terms(world):
    return KeyTerms.for_key(
        roster=world.roster, preset=PRESETS["wide"], library="0.3.18", sequence=1, run_id=bytes(16)
    )


def examples(world):
    params = world.params()
    bundle = KeyBundle(KEY, KEY, b"sealed", b"boxes", SIGNATURE)
    return [
        OpenKeyed(keyed(world), SIGNATURE),
        Decrypt(b"rows", b"", b"body", SIGNATURE),
        Sum(b"body", SIGNATURE),
        KeyOpen(terms(world), SIGNATURE),
        KeyAdvert(KEY, SIGNATURE),
        KeyLead(b"rows", SIGNATURE),
        bundle,
        KeyInstall(b"rows", bundle, SIGNATURE),
        KeyAck(KEY, SIGNATURE),
        Open(params, SIGNATURE),
        Advert(KEY, KEY, SIGNATURE),
        CohortRequest(b"rows", SIGNATURE),
        Bundle(b"sealed", KEY, SIGNATURE),
        Collect(b"bits", b"sealed", SIGNATURE),
        Upload(b"body" * 100, SIGNATURE),
        SurvivorsRequest(b"rows", SIGNATURE),
        Confirm(SIGNATURE),
        RevealRequest(b"rows", SIGNATURE),
        Reveal(KEY, b"rows", SIGNATURE),
        Refuse(3, 500, SIGNATURE),
    ]


def test_every_message_survives_the_wire(federation):
    messages = examples(federation(4))
    assert {type(message) for message in messages} == set(KINDS)
    for message in messages:
        data = encode(message, params=P, sender=7)
        assert decode(data, type(message), limit=LIMIT) == message
        assert read_header(data) == (KINDS[type(message)], P, 7)


def test_the_good_message_beside_the_bad_ones_is_accepted():
    assert decode(from_hex(BAD["good"]), Confirm, limit=LIMIT) == Confirm(SIGNATURE)
    assert encode(Confirm(SIGNATURE), params=P, sender=10) == from_hex(BAD["good"])


@pytest.mark.parametrize("case", BAD["cases"], ids=lambda case: case["why"])
def test_bad_messages_are_refused(case):
    with pytest.raises(getattr(errors, case["error"])):
        decode(from_hex(case["message"]), Confirm, limit=LIMIT)


def test_a_message_above_its_limit_is_refused_before_it_is_parsed():
    with pytest.raises(Oversized):
        decode(b"\xff" * 101, Confirm, limit=100)


@settings(max_examples=150)
@given(st.data())
def test_random_damage_raises_only_errors_of_this_package(federation, data):
    message = data.draw(st.sampled_from(examples(federation(4))))
    damaged = bytearray(encode(message, params=P, sender=7))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    for candidate in (bytes(damaged), cut):
        try:
            decoded = decode(candidate, type(message), limit=LIMIT)
        except SecAggError:
            continue
        header = read_header(candidate)
        assert encode(decoded, params=header.params, sender=header.sender) == candidate


@given(st.binary(max_size=300))
def test_random_bytes_raise_only_errors_of_this_package(data):
    for kind in KINDS:
        with pytest.raises(SecAggError):
            decode(data, kind, limit=200)


def test_tables_survive_and_keep_their_record_size():
    rows = {
        AdvertRow: [AdvertRow(1, KEY, KEY, SIGNATURE), AdvertRow(9, KEY, KEY, SIGNATURE)],
        SurvivorRow: [SurvivorRow(1, KEY, SIGNATURE)],
        ConfirmRow: [ConfirmRow(2**32 - 2, SIGNATURE)],
        ShareRow: [ShareRow(1, 0, KEY), ShareRow(2, 1, KEY)],
    }
    rows[BoxRow] = [BoxRow(1, KEY, SIGNATURE)]
    sizes = {BoxRow: 100, AdvertRow: 132, SurvivorRow: 100, ConfirmRow: 68, ShareRow: 37}
    for kind, listed in rows.items():
        table = to_table(listed)
        assert len(table) == sizes[kind] * len(listed)
        assert from_table(kind, table) == listed
        assert from_table(kind, b"") == []


@pytest.mark.parametrize("ids", [(2, 1), (1, 1), (1, 3, 2)])
def test_a_table_out_of_order_or_with_a_repeated_id_is_refused(ids):
    with pytest.raises(NonCanonical):
        from_table(ConfirmRow, to_table(ConfirmRow(i, SIGNATURE) for i in ids))


def test_a_table_cut_inside_a_record_is_refused():
    with pytest.raises(Malformed):
        from_table(ConfirmRow, to_table([ConfirmRow(1, SIGNATURE)])[:-1])


def test_parameters_that_contradict_themselves_are_malformed_on_the_wire(federation):
    params = federation(4).params()
    data = encode(Open(params, SIGNATURE), params=P, sender=7)
    run_id = b"\xc4\x10" + params.run_id
    shorter = data.replace(run_id, b"\xc4\x0f" + params.run_id[1:])
    assert decode(data, Open, limit=LIMIT).params == params
    assert shorter != data
    with pytest.raises(Malformed, match="run_id"):
        decode(shorter, Open, limit=LIMIT)


def test_no_honest_message_exceeds_its_limit(federation):
    world = federation(6)
    server, clients = world.server(), world.clients()
    requests = server.open()
    seen = set()
    for _ in range(5):
        for client, request in requests.items():
            reply = world.answer(clients[client], request)
            for message in (request, reply):
                kind = read_header(message).kind
                assert len(message) <= max_bytes(kind, server.params)
                seen.add(kind)
            server.receive(client, reply)
        requests = server.close_stage()
    assert seen == {kind for kind in Kind if kind < Kind.REFUSE}
