"""Stored inputs that must be refused, each with the error that must come out."""

import hashlib
import json
import os
from collections import defaultdict
from pathlib import Path

import pytest

from secagg import (
    Identity,
    Mode,
    Policy,
    Roster,
    SigningKey,
    Stage,
    errors,
    open_client,
    restore_server,
)
from secagg.aead import unseal
from secagg.bitmap import from_bitmap
from secagg.keys import AgreementKey
from secagg.messages import ConfirmRow, from_table
from secagg.roster import COORDINATOR_ID
from secagg.sealed_state import Vault
from secagg.server_snapshot import unseal_server
from secagg.shamir import combine, split

VECTORS = Path(__file__).parent / "vectors"
CASES = json.loads((VECTORS / "bad_vectors.json").read_text())["cases"]
STORED = json.loads((VECTORS / "snapshot_v1.json").read_text())


def word(text):
    return hashlib.sha256(text.encode()).digest()


STATE_KEY, COORDINATOR = word("state key"), SigningKey(word("coordinator"))
IDENTITIES = [Identity(i, SigningKey(word(f"client {i}"))) for i in (1, 2, 3)]
ROSTER = Roster(coordinator=COORDINATOR.public, members=tuple(one.member() for one in IDENTITIES))
PARAMS = unseal_server(
    Vault(STATE_KEY, COORDINATOR_ID), bytes.fromhex(STORED["server"]["UPLOAD"])
).params


def client_from(saved):
    policy = Policy(
        layout=PARAMS.layout, modes=(Mode.MASKING,), n_min=3, survivors_min=3, colluders=0
    )
    return open_client(
        Mode.MASKING,
        identity=IDENTITIES[0],
        roster=ROSTER,
        policy=policy,
        save=lambda state: None,
        saved=saved,
        state_key=STATE_KEY,
    )


def server_from(saved):
    return restore_server(
        saved,
        coordinator=COORDINATOR,
        roster=ROSTER,
        state_key=STATE_KEY,
        save=lambda state: None,
    )


def octets(case, name):
    return bytes.fromhex(case[name])


def combined(case):
    combine(dict(zip(case["points"], map(bytes.fromhex, case["values"]), strict=True)))


def received(case):
    server = server_from(bytes.fromhex(STORED["server"][case["stage"]]))
    assert server.stage is Stage[case["stage"]]
    server.receive(case["client"], octets(case, "message"))


def handled(case):
    client = client_from(bytes.fromhex(STORED["client"][case["after"]]["saved"]))
    client.handle(octets(case, "message"))


DOORS = {
    "unseal": lambda c: unseal(octets(c, "key"), octets(c, "sealed"), octets(c, "associated")),
    "combine": combined,
    "split": lambda c: split(bytes(range(32)), 2, c["points"], os.urandom),
    "agree": lambda c: AgreementKey(b"k" * 32).agree(octets(c, "key"), peer_id=2),
    "body": lambda c: PARAMS.plan.check_body(octets(c, "body")),
    "table": lambda c: from_table(ConfirmRow, octets(c, "table")),
    "bitmap": lambda c: from_bitmap(range(c["size"]), octets(c, "bitmap")),
    "receive": received,
    "handle": handled,
    "client_state": lambda c: client_from(octets(c, "saved")),
    "server_state": lambda c: server_from(octets(c, "saved")),
    "roster": lambda c: Roster.from_json(c["text"].encode()),
    "identity": lambda c: Identity.from_text(c["text"]),
}


def name_of(case):
    return "-".join([case["door"], case.get("stage", case.get("after", "")), case["why"]])


@pytest.mark.parametrize("case", [c for c in CASES if c["error"]], ids=name_of)
def test_stored_bad_inputs_raise_the_error_they_name(case):
    with pytest.raises(errors.SecAggError) as caught:
        DOORS[case["door"]](case)
    assert type(caught.value) is getattr(errors, case["error"])


@pytest.mark.parametrize("case", [c for c in CASES if not c["error"]], ids=name_of)
def test_the_genuine_input_beside_the_bad_ones_is_accepted(case):
    DOORS[case["door"]](case)


def test_every_door_has_a_genuine_input_and_bad_ones():
    seen = defaultdict(set)
    for case in CASES:
        seen[case["door"]].add(bool(case["error"]))
    assert set(seen) == set(DOORS)
    assert all(kinds == {True, False} for kinds in seen.values())
