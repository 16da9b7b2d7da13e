import time
from collections import Counter, defaultdict
from dataclasses import asdict

import numpy as np
import pytest

from secagg import (
    CountSegment,
    FixedSegment,
    Layout,
    Mode,
    Stage,
    Update,
    dealing,
    direct,
    fixedpoint,
    keys,
    masking_client,
    masking_server,
    masks,
    participant,
    prg,
    recovery,
    ring,
    shamir,
)
from secagg.graph import least_window
from secagg.inprocess import STAGES, run_round
from secagg.messages import ROW_FORMATS
from secagg.operations import cost
from secagg.rates import Rates, calibrate


class Counted:
    """A session that tells on whose account the operations of a call are."""

    def __init__(self, session, name, switch):
        self._session, self._name, self._switch = session, name, switch

    def __getattr__(self, attribute):
        found = getattr(self._session, attribute)
        if not callable(found):
            return found

        def call(*arguments):
            self._switch(self._name)
            return found(*arguments)

        return call


@pytest.fixture
def counts(monkeypatch):
    """{participant: Counter of operations}, of those that the primitives are really asked for."""
    counted = defaultdict(Counter)
    running = [None]

    def count(owner, name, field, size=lambda *a, **k: 1):
        original = getattr(owner, name)

        def counting(*arguments, **options):
            counted[running[0]][field] += size(*arguments, **options)
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, counting)

    def of_size(array, *_):
        return array.size

    count(keys.SigningKey, "sign", "signatures")
    count(keys.Ed25519PublicKey, "from_public_bytes", "verifications")
    count(keys.AgreementKey, "__init__", "key_pairs")
    count(keys.AgreementKey, "agree", "agreements")
    count(keys, "HKDF", "derivations")
    count(dealing, "seal", "seals")
    count(dealing, "unseal", "opens")
    count(shamir, "evaluate", "field_products", lambda coefficients, *_: len(coefficients))
    count(shamir, "lagrange_at_zero", "field_products", lambda p, _: len(p) * (2 * len(p) - 1))
    count(recovery, "combine", "field_products", len)
    for module in (masks, prg):
        count(module, "add_keystream", "stream_bytes", lambda words, *_, **__: words.nbytes)
    count(fixedpoint, "quantise", "rounded", of_size)
    count(ring, "_packed", "packed", of_size)
    count(ring, "add_packed", "added", of_size)
    count(ring, "_decode", "decoded", of_size)
    for module in (masking_client, masking_server, direct):
        count(module, "upload_digest", "hashed_bytes", lambda view, client, body: len(body))
    for module in (participant, masking_client, masking_server, direct):
        count(module, "decode", "messages")
        count(module, "decode", "message_bytes", lambda data, *_, **__: len(data))
    for module in (masking_client, masking_server):
        count(
            module, "from_table", "rows", lambda kind, table: len(table) // ROW_FORMATS[kind].size
        )
    shamir._weights_at_zero.cache_clear()
    return counted, lambda name: running.__setitem__(0, name)


REAL = Layout((FixedSegment(name="delta", length=300, clip=1.0), CountSegment(name="n", bound=9)))


def real_update(client):
    return Update(values={"delta": np.full(300, client / 1000), "n": np.array([1])})


@pytest.mark.parametrize("mode", [Mode.PLAIN, Mode.MASKING])
@pytest.mark.parametrize("lost", [{}, {20: "share", 40: "upload", 60: "confirm", 80: "reveal"}])
def test_predicted_operations_equal_the_operations_counted(federation, counts, context, mode, lost):
    counted, switch = counts
    world = federation(12, mode=mode, layout=REAL, cache=None)
    server = Counted(world.server(), "server", switch)
    clients = {i: Counted(one, i, switch) for i, one in world.clients().items()}
    counted.clear()  # opening a session is no part of a round
    run_round(server, clients, real_update, context=context, lost=lost)
    gone = Counter(STAGES[stage] for stage in lost.values())
    predicted = cost(
        world.params(),
        sharers=12 - gone[Stage.SHARE],
        survivors=12 - gone[Stage.SHARE] - gone[Stage.UPLOAD],
        confirming=9 if lost else 12,
        revealing=8 if lost else 12,
    )
    sides = {"server": predicted.server}
    sides |= {client: predicted.client for client in world.ids if client not in lost}
    for name, operations in sides.items():
        assert counted[name] == {key: v for key, v in asdict(operations).items() if v}, name


@pytest.mark.parametrize("lost", [{}, {40: "upload"}, {80: "confirm"}, {80: "reveal"}])
def test_predicted_operations_equal_the_operations_counted_on_a_ring(
    federation, counts, context, lost
):
    """The graph comes from the parameters; n - 1 neighbours would give other counts."""
    counted, switch = counts
    world = federation(16, colluders=2, layout=REAL, cache=None)
    params = world.params(graph_degree=10)
    server = Counted(world.server(params), "server", switch)
    clients = {i: Counted(one, i, switch) for i, one in world.clients().items()}
    counted.clear()  # opening a session is no part of a round
    run_round(server, clients, real_update, context=context, lost=lost)
    stages = [STAGES[stage] for stage in lost.values()]
    numbers = {
        "survivors": 16 - (Stage.UPLOAD in stages),
        "confirming": 16 - bool({Stage.UPLOAD, Stage.CONFIRM} & set(stages)),
        "revealing": 16 - len(stages),
    }
    predicted = cost(params, **numbers)
    sides = {"server": predicted.server}
    sides |= {client: predicted.client for client in world.ids if client not in lost}
    for name, operations in sides.items():
        assert counted[name] == {key: v for key, v in asdict(operations).items() if v}, name
    window = least_window(16, 2, 10)
    assert predicted.client.field_products == 2 * 10 * (2 * window - 1)
    assert cost(params, degree=0, **numbers).client.seals == 15


@pytest.mark.slow
@pytest.mark.parametrize(("n", "length"), [(6, 500_000), (12, 50_000), (30, 20_000)])
def test_predicted_seconds_are_within_a_factor_of_two_of_those_measured(
    federation, context, n, length
):
    """Rates and rounds are measured in turn in this very run; the fastest of each counts."""
    layout = Layout((FixedSegment(name="delta", length=length, clip=1.0),))
    world = federation(n, layout=layout, cache=None)
    values = np.linspace(-1, 1, length)
    best, fastest = {}, None
    for _ in range(3):
        spent, running = Counter(), [None, time.process_time()]

        def switch(name, spent=spent, running=running):
            spent[running[0]] += time.process_time() - running[1]
            running[:] = name, time.process_time()

        server = Counted(world.server(), "server", switch)
        clients = {i: Counted(one, "clients", switch) for i, one in world.clients().items()}
        run_round(server, clients, lambda i: Update(values={"delta": values}), context=context)
        switch(None)
        best = {name: min(best.get(name, seconds), seconds) for name, seconds in spent.items()}
        rates = asdict(calibrate())
        fastest = {k: min(v, (fastest or rates)[k]) for k, v in rates.items()}
    predicted = cost(world.params(), rates=Rates(**fastest))
    assert 0.5 < best["clients"] / n / predicted.client_seconds < 2
    assert 0.5 < best["server"] / predicted.server_seconds < 2
