"""Rounds on rings: whoever is lost, the exact sum or the exact abort; and the bytes foretold."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secagg import RoundAborted, Stage, threshold
from secagg.cost import predict_bytes
from secagg.errors import (
    PolicyViolation,
    ReconstructionFailed,
    ThinRing,
    TooFewClients,
    TooFewReplies,
    TooFewSurvivors,
)
from secagg.inprocess import STAGES
from secagg.messages import OpenedRow, from_table


class RingWorld:
    """A federation whose rounds use a forced degree, and what must become of each of them."""

    def __init__(self, federation, n, degree, colluders):
        self.world = federation(n, colluders=colluders)
        self.params = self.world.params(graph_degree=degree)

    def run(self, lost, **options):
        self.server = self.world.server(self.params)
        return self.world.run(lost, server=self.server, **options)

    def outcome(self, lost):
        """By the rules alone, on the ring that this run drew: the survivors, or an error."""
        ids, params, ring = self.world.ids, self.params, self.server.cohort.ring

        def left(stage):
            return [i for i in ids if i not in lost or STAGES[lost[i]] > stage]

        def thin(listed):
            size, reach = len(ring.order), params.graph_degree // 2
            windows = [[ring.order[(k + j) % size] for j in range(reach)] for k in range(size)]
            return min(len(set(one) & set(listed)) for one in windows) < ring.window

        t = threshold(len(left(Stage.ADVERTISE)), params.colluders)
        sharers, survivors = left(Stage.SHARE), left(Stage.UPLOAD)
        if len(sharers) < max(t, params.survivors_min):
            return TooFewClients
        if ring is not None and thin(sharers):
            return ThinRing
        if len(survivors) < max(t, params.survivors_min):
            return TooFewSurvivors
        if ring is not None and thin(survivors):
            return ThinRing
        answering = left(Stage.REVEAL)
        if len(left(Stage.CONFIRM)) < t or len(answering) < t:
            return TooFewReplies
        for owner in sharers:  # those that do not reveal themselves need holders that do
            holders = set(self.server.cohort.neighbours(owner)) & set(answering)
            if owner not in answering and len(holders) < self.server.cohort.share_threshold:
                return ReconstructionFailed
        return survivors

    def check(self, lost):
        try:
            aggregate = self.run(lost)
        except RoundAborted as error:
            found = type(error)
        else:
            found = None
        expected = self.outcome(lost)
        if isinstance(expected, type):
            assert found is expected
            return found
        assert found is None
        assert aggregate.survivors == tuple(expected)
        for name, sums in self.world.total(expected).items():
            assert np.array_equal(aggregate.sums[name], sums)
        return None


@pytest.mark.parametrize(("n", "degree", "colluders"), [(7, 4, 1), (9, 6, 1), (12, 6, 2)])
def test_a_ring_without_losses_gives_the_exact_sum(federation, n, degree, colluders):
    ring = RingWorld(federation, n, degree, colluders)
    assert ring.check({}) is None
    assert ring.server.cohort.ring is not None


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("n", "degree"), [(7, 4), (8, 6)])
def test_on_a_ring_any_two_losses_give_the_exact_sum_or_the_exact_abort(
    federation, n, degree, stage
):
    ring = RingWorld(federation, n, degree, 1)
    for gone in itertools.combinations(ring.world.ids, 2):
        ring.check(dict.fromkeys(gone, stage))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([(12, 8), (16, 10), (20, 8)]), st.data())
def test_on_a_ring_random_losses_at_all_stages_give_the_exact_sum_or_abort(federation, size, data):
    ring = RingWorld(federation, *size, 1)
    gone = data.draw(st.lists(st.sampled_from(ring.world.ids), max_size=size[0] // 3, unique=True))
    ring.check({client: data.draw(st.sampled_from(list(STAGES))) for client in gone})


def test_on_a_ring_every_outcome_is_seen(federation):
    """The matrix above is not vacuous: sums, thin rings and too few of everything all occur."""
    ring = RingWorld(federation, 12, 8, 1)
    seen = set()
    for stage, size in itertools.product(STAGES, (0, 5, 6)):
        seen.add(ring.check(dict.fromkeys(ring.world.ids[:size], stage)))
    for _ in range(20):  # the ring is another one each time
        if ThinRing not in seen:
            seen.add(ring.check(dict.fromkeys(ring.world.ids[:4], "upload")))
    assert {None, ThinRing, TooFewClients, TooFewSurvivors, TooFewReplies} <= seen


def test_sixty_clients_on_a_ring_with_a_tenth_lost_give_the_exact_sum(federation):
    ring = RingWorld(federation, 60, 24, 3)
    stages = list(STAGES)
    lost = {client: stages[k % 5] for k, client in enumerate(ring.world.ids[::10])}
    ring.check(lost)


def test_a_client_shares_with_its_neighbours_only(federation):
    ring = RingWorld(federation, 20, 8, 1)
    aggregate = ring.run({})
    for client, reveal in ring.server._reveals.items():
        opened = {row.client for row in from_table(OpenedRow, reveal.opened)}
        assert opened == set(ring.server.cohort.neighbours(client))
        assert len(opened) == 8
    assert aggregate.survivors == ring.world.ids


def test_predicted_bytes_on_a_ring_equal_the_bytes_measured(federation):
    ring = RingWorld(federation, 20, 8, 1)
    aggregate, predicted = ring.run({}), predict_bytes(ring.params)
    assert set(aggregate.bytes_up.values()) == {predicted.up()}
    assert set(aggregate.bytes_down.values()) == {predicted.down()}


@pytest.mark.parametrize("stage", STAGES)
def test_predicted_bytes_on_a_ring_equal_the_bytes_measured_when_a_client_is_lost(
    federation, stage
):
    ring, lost = RingWorld(federation, 20, 12, 1), STAGES[stage]
    gone = ring.world.ids[4]
    aggregate = ring.run({gone: stage})
    cohort, sharers = ring.server.cohort, set(ring.server.sharers.ids)
    counts = {
        "cohort": 20 - (lost <= Stage.ADVERTISE),
        "sharers": 20 - (lost <= Stage.SHARE),
        "survivors": 20 - (lost <= Stage.UPLOAD),
    }
    for client in cohort.ids:
        peers = len(sharers & set(cohort.neighbours(client)))
        predicted = predict_bytes(ring.params, peers=peers, **counts)
        last = lost if client == gone else None
        assert aggregate.bytes_up[client] == predicted.up(lost=last)
        assert aggregate.bytes_down[client] == predicted.down(lost=last)


def test_a_client_may_refuse_sparse_graphs_altogether(federation):
    world = federation(20, colluders=1)
    params = world.params(graph_degree=8)
    world.policy().check(params, roster=world.roster, client=10)
    with pytest.raises(PolicyViolation, match="no sparse graph"):
        world.policy(sparse=False).check(params, roster=world.roster, client=10)


@pytest.mark.slow
def test_520_clients_get_a_ring_by_default_and_the_exact_sum(federation):
    """Ids are in order of the roster, so every tenth of them is anywhere on the ring."""
    world = federation(520, colluders=20)
    params = world.params()
    assert params.graph_degree == 76
    server = world.server(params)
    aggregate = world.run(dict.fromkeys(world.ids[::10], "upload"), server=server)
    survivors = [client for client in world.ids if client not in world.ids[::10]]
    assert aggregate.survivors == tuple(survivors)
    for name, sums in world.total(survivors).items():
        assert np.array_equal(aggregate.sums[name], sums)
