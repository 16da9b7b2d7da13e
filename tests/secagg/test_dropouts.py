"""Whoever is lost, whenever: the exact integer sum, or the exact abort, and never a wrong sum."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secagg import RoundAborted, Stage, threshold
from secagg.errors import TooFewClients, TooFewReplies, TooFewSurvivors
from secagg.inprocess import STAGES


def outcome(params, ids, lost):
    """What must happen, by the rules alone: the survivors, or the error that ends the round."""

    def left(stage):
        return [i for i in ids if i not in lost or STAGES[lost[i]] > stage]

    cohort = left(Stage.ADVERTISE)
    t = threshold(max(1, len(cohort)), params.colluders)
    if len(cohort) < max(params.n_min, t) or len(left(Stage.SHARE)) < max(t, params.survivors_min):
        return TooFewClients
    survivors = left(Stage.UPLOAD)
    if len(survivors) < max(t, params.survivors_min):
        return TooFewSurvivors
    if len(left(Stage.CONFIRM)) < t or len(left(Stage.REVEAL)) < t:
        return TooFewReplies
    return survivors


def check(world, lost):
    """Runs a round and compares it with the rules and with an ordinary integer sum."""
    expected = outcome(world.params(), world.ids, lost)
    if isinstance(expected, type):
        with pytest.raises(expected):
            world.run(lost)
        return
    aggregate = world.run(lost)
    assert aggregate.survivors == tuple(expected)
    for name, sums in world.total(expected).items():
        assert np.array_equal(aggregate.sums[name], sums)
    assert aggregate.dropped == {client: STAGES[stage] for client, stage in lost.items()}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("n", [3, 4, 5, 6])
def test_sum_is_exact_or_refused_for_every_subset_lost_at_one_stage(federation, n, stage):
    world = federation(n)
    for size in range(n + 1):
        for gone in itertools.combinations(world.ids, size):
            check(world, dict.fromkeys(gone, stage))


@pytest.mark.parametrize("colluders", [0, 1, 2])
def test_sum_is_exact_or_refused_for_every_pair_of_losses(federation, colluders):
    world = federation(5, colluders=colluders)
    for one, other in itertools.product(STAGES, repeat=2):
        check(world, {10: one, 40: other})


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([7, 10, 12]), st.data())
def test_sum_is_exact_or_refused_for_random_losses_at_all_stages(federation, n, data):
    world = federation(n)
    gone = data.draw(st.lists(st.sampled_from(world.ids), max_size=n // 2, unique=True))
    check(world, {client: data.draw(st.sampled_from(list(STAGES))) for client in gone})


def test_as_many_as_the_threshold_allows_may_be_lost_after_upload(federation):
    world = federation(12)
    check(world, dict.fromkeys(world.ids[:4], "reveal"))
    with pytest.raises(RoundAborted):
        world.run(dict.fromkeys(world.ids[:5], "reveal"))


@pytest.mark.slow
def test_sum_is_exact_or_refused_for_all_triples_of_losses(federation):
    world = federation(5)
    for gone in itertools.combinations(world.ids, 3):
        for stages in itertools.product(STAGES, repeat=3):
            check(world, dict(zip(gone, stages, strict=True)))


def test_thirty_clients_with_a_quarter_lost_give_the_exact_sum(federation):
    world = federation(30)
    stages = list(STAGES)
    check(world, {client: stages[k % 5] for k, client in enumerate(world.ids[::4])})
