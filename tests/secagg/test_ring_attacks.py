"""What an active server tries on a sparse graph; each attack with a positive control.

As in `test_attacks.py`, a control is the same attack against a client with one check taken out.
"""

import numpy as np
import pytest

from secagg import Stage
from secagg.errors import (
    BadSignature,
    ConfigurationError,
    PolicyViolation,
    ThinRing,
    TooFewSurvivors,
)
from secagg.keys import AgreementKey
from secagg.masking_client import MaskingClient
from secagg.masks import add_pair_mask, add_self_mask
from secagg.messages import (
    SEALED_BYTES,
    Confirm,
    ConfirmRow,
    Reveal,
    ShareRow,
    SurvivorRow,
    Upload,
    decode,
    from_table,
)
from secagg.shamir import combine
from secagg.views import ShareKind

LIMIT = 1 << 20


class Unwindowed(MaskingClient):
    """Without the window rule, before the upload and before the confirmation."""

    def _check_windows(self, cohort, listed, what):
        pass


class Unquestioning(MaskingClient):
    """Without the check that every upload was made under the same list of sharers."""

    def _check_uploads(self, view, rows):
        pass


class RingAttack:
    """An honest run on a ring up to the list of sharers, and then a liar takes over."""

    def __init__(self, federation, liar, kind, *, n, degree):
        self.world = federation(n, colluders=1)
        self.params = self.world.params(graph_degree=degree)
        self.clients = self.world.clients(kind)
        self.server = self.world.server(self.params)
        self.lie = liar(self.world, self.params)
        self.requests = self.world.run_until(Stage.UPLOAD, self.clients, self.server)
        self.cohort, self.sharers = self.server.cohort, self.server.sharers
        self.order = self.cohort.ring.order
        self.uploads: dict[int, bytes] = {}
        self.rows: dict[int, SurvivorRow] = {}

    def upload(self, client, request=None):
        message = self.world.answer(self.clients[client], request or self.requests[client])
        sent = decode(message, Upload, limit=LIMIT)
        digest = self.clients[client]._round.state.upload
        self.uploads[client] = sent.body
        self.rows[client] = SurvivorRow(client, digest, sent.signature)

    def confirm(self, client, survivors):
        _, request = self.lie.survivors(self.sharers, [self.rows[i] for i in survivors])
        reply = self.clients[client].handle(request).message
        return ConfirmRow(client, decode(reply, Confirm, limit=LIMIT).signature)

    def reveal(self, client, survivors, signers) -> Reveal:
        view, _ = self.lie.survivors(self.sharers, [self.rows[i] for i in survivors])
        reply = self.clients[client].handle(self.lie.reveal(view, signers)).message
        return decode(reply, Reveal, limit=LIMIT)

    def secret(self, reveals, owner, kind):
        shares = {
            self.cohort.points[holder]: row.value
            for holder, reveal in reveals.items()
            for row in from_table(ShareRow, reveal.shares)
            if (row.client, row.kind) == (owner, kind)
        }
        threshold = self.cohort.share_threshold
        assert len(shares) >= threshold
        return combine(dict(list(shares.items())[:threshold]))

    def unmask(self, group, view, seeds, keys):
        """The sum over `group`, given its seeds and the mask keys of all other peers it has."""
        plan = self.params.plan
        lanes = plan.zeros()
        for client in group:
            plan.add_body(lanes, self.uploads[client])
            add_self_mask(lanes, seeds[client], view, client, subtract=True)
            for other in set(self.cohort.neighbours(client)) & set(keys):
                peer = self.cohort.adverts[client].mask_key
                agreed = AgreementKey(keys[other]).agree(peer, peer_id=client)
                add_pair_mask(lanes, agreed, view, client, other, subtract=True)
        return plan.decode(lanes, len(group))

    def assert_found(self, sums, clients):
        for name, total in self.world.total(clients).items():
            assert np.array_equal(sums[name], total)


# Cutting a group off by choosing who dropped out --------------------------------------------


def isolated(federation, liar, kind):
    """Three clients in a row are left between six that the server declares lost: 14 of 20 remain."""
    attack = RingAttack(federation, liar, kind, n=20, degree=6)
    group = [attack.order[k] for k in (6, 7, 8)]
    gone = [attack.order[k] for k in (3, 4, 5, 9, 10, 11)]
    survivors = sorted(set(attack.world.ids) - set(gone))
    for client in attack.world.ids:
        attack.upload(client)
    assert len(survivors) == 14 >= attack.cohort.threshold == 11
    return attack, group, gone, survivors


def test_ring_isolation_control_without_the_window_rule_the_sum_of_three_of_twenty_opens(
    federation, liar
):
    attack, group, gone, survivors = isolated(federation, liar, Unwindowed)
    signers = [attack.confirm(client, survivors) for client in survivors]
    reveals = {client: attack.reveal(client, survivors, signers) for client in survivors}
    seeds = {client: reveals[client].seed for client in group}
    keys = {client: attack.secret(reveals, client, ShareKind.MASK_KEY) for client in gone}
    attack.assert_found(attack.unmask(group, attack.sharers.digest, seeds, keys), group)


def test_a_list_that_cuts_a_group_off_is_confirmed_by_nobody(federation, liar):
    attack, _, _, survivors = isolated(federation, liar, None)
    for client in survivors:
        with pytest.raises(ThinRing, match="CONFIRM: survivors: only 0 in some 3"):
            attack.confirm(client, survivors)


def test_a_list_of_sharers_that_cuts_a_group_off_gets_no_upload(federation, liar):
    attack = RingAttack(federation, liar, None, n=20, degree=6)
    gone = {attack.order[k] for k in (3, 4, 5, 9, 10, 11)}
    victim = attack.order[7]
    seen = sorted(set(attack.world.ids) - gone)
    peers = set(attack.cohort.neighbours(victim)) - gone
    _, request = attack.lie.collect(attack.cohort, seen, bytes(SEALED_BYTES * len(peers)))
    with pytest.raises(ThinRing, match="UPLOAD: sharers"):
        attack.upload(victim, request)


def test_a_server_whose_survivors_break_the_window_rule_aborts_the_round(federation):
    world = federation(20, colluders=1)
    server, clients = world.server(world.params(graph_degree=6)), world.clients()
    requests = world.run_until(Stage.UPLOAD, clients, server)
    order = server.cohort.ring.order
    for client, request in requests.items():
        if client not in order[3:6]:
            server.receive(client, world.answer(clients[client], request))
    with pytest.raises(ThinRing, match="UPLOAD: uploads: only 0 in some 3"):
        server.close_stage()


def test_the_global_floor_stands_on_a_ring_too(federation, liar):
    attack = RingAttack(federation, liar, Unwindowed, n=20, degree=6)
    for client in attack.world.ids:
        attack.upload(client)
    with pytest.raises(TooFewSurvivors):
        attack.confirm(attack.order[0], sorted(attack.order[:10]))


# Another list of sharers for the victim -----------------------------------------------------


def split(federation, liar, kind):
    """Near the victim, its list of sharers holds exactly those that will be declared lost.

    Both lists satisfy the window rule: the victim's leaves out every second neighbour, and the
    survivors leave out the others.
    """
    attack = RingAttack(federation, liar, kind, n=20, degree=8)
    place = 10
    victim = attack.order[place]
    near = {step: attack.order[place + step] for step in (-4, -3, -2, -1, 1, 2, 3, 4)}
    gone = [near[step] for step in (-4, -2, 2, 4)]
    hidden = {near[step] for step in (-3, -1, 1, 3)}
    seen = sorted(set(attack.world.ids) - hidden)
    texts = attack.requests[victim]
    attack.cohort.check_windows(seen, "")
    survivors = sorted(set(attack.world.ids) - set(gone))
    attack.cohort.check_windows(survivors, "")
    view, request = attack.lie.collect(attack.cohort, seen, bytes(SEALED_BYTES * len(gone)))
    assert texts != request
    for client in attack.world.ids:
        attack.upload(client, request if client == victim else None)
    return attack, victim, gone, survivors, view


def test_split_sharers_on_a_ring_control_without_the_upload_signatures_the_victim_opens(
    federation, liar
):
    attack, victim, gone, survivors, view = split(federation, liar, Unquestioning)
    others = [client for client in survivors if client != victim]
    signers = [attack.confirm(client, survivors) for client in others]
    reveals = {client: attack.reveal(client, survivors, signers) for client in others}
    seed = attack.secret(reveals, victim, ShareKind.SEED)
    keys = {client: attack.secret(reveals, client, ShareKind.MASK_KEY) for client in gone}
    sums = attack.unmask([victim], view.digest, {victim: seed}, keys)
    attack.assert_found(sums, [victim])


def test_split_sharers_on_a_ring_are_noticed_by_every_other_survivor(federation, liar):
    attack, victim, _, survivors, _ = split(federation, liar, None)
    for client in survivors:
        if client != victim:
            with pytest.raises(BadSignature, match=f"client {victim}"):
                attack.confirm(client, survivors)


# Weaker parameters --------------------------------------------------------------------------


def weak(federation, monkeypatch, *, believed):
    """A ring of window 1: thresholds of one share, so that a single colluder reads a neighbour."""
    world = federation(20, colluders=1)
    monkeypatch.setattr("secagg.params.MIN_WINDOW", 1)
    monkeypatch.setattr("secagg.params.least_window", lambda *_: 1)
    if believed:
        monkeypatch.setattr("secagg.graph.least_window", lambda *_: 1)
    return world, world.params(graph_degree=6)


def colluders_shares(world, params, kind=None):
    """The shares that colluder 20 holds of a neighbour, who is then read from them alone."""
    clients, server = world.clients(kind), world.server(params)
    requests = world.run_until(Stage.UPLOAD, clients, server)
    clients[20].handle(requests[20])
    victim = server.cohort.neighbours(20)[0]
    return server, victim, clients[20]._round.state.held[victim]


def test_weak_window_control_believed_by_the_client_one_colluder_holds_both_secrets(
    federation, monkeypatch
):
    world, params = weak(federation, monkeypatch, believed=True)
    server, victim, held = colluders_shares(world, params)
    key = AgreementKey(held.of(ShareKind.MASK_KEY))
    assert key.public == server.cohort.adverts[victim].mask_key
    assert server._is_seed_of(victim, held.of(ShareKind.SEED))


def test_a_window_below_the_clients_own_is_refused_before_keys_leave(federation, monkeypatch):
    world, params = weak(federation, monkeypatch, believed=False)
    assert params.graph_window == 1
    with pytest.raises(PolicyViolation, match="graph_window=1: this client requires at least 2"):
        world.client(10).handle(world.server(params).open()[10])


def test_a_smaller_window_weakens_no_secret_even_if_the_policy_lets_it_pass(
    federation, monkeypatch
):
    """The cohort computes its window again: what is asked for can only raise it."""
    world, params = weak(federation, monkeypatch, believed=False)
    monkeypatch.setattr("secagg.policy.check_strength", lambda *_, **__: None)
    server, victim, held = colluders_shares(world, params)
    assert server.cohort.ring.window == 2
    key = AgreementKey(held.of(ShareKind.MASK_KEY))
    assert key.public != server.cohort.adverts[victim].mask_key


@pytest.mark.parametrize("colluders", [5, 20])
def test_a_degree_in_which_colluders_can_fill_a_window_is_refused(federation, colluders):
    world = federation(60, colluders=colluders)
    params = world.params(graph_degree=0)
    fields = {name: getattr(params, name) for name in params.__struct_fields__}
    weak = type(params)(**{**fields, "graph_degree": 10, "graph_window": 5})
    with pytest.raises(PolicyViolation, match="can fill 5 neighbouring ring positions"):
        world.client(10).handle(world.server(weak).open()[10])


def test_fewer_colluders_than_the_floor_cannot_be_claimed_for_the_sake_of_a_smaller_ring(
    federation,
):
    world = federation(60, colluders=5)
    client = world.client(10)
    params = world.params(colluders=1, graph_degree=10)
    with pytest.raises(PolicyViolation, match="colluders"):
        client.handle(world.server(params).open()[10])
    with pytest.raises(ConfigurationError):
        world.params(graph_degree=10)
