import pytest

from secagg import CountSegment, Layout, Mode, RoundParams
from secagg.errors import ConfigurationError, Malformed, NonCanonical, RingTooSmall, UnknownIdentity

CHANGES = {
    "mode": Mode.PLAIN,
    "run_id": b"another-run-id..",
    "roster_digest": b"r" * 32,
    "sequence": 2,
    "context": b"c" * 32,
    "invited": b"\x0f",
    "n_min": 4,
    "survivors_min": 4,
    "colluders": 2,
    "layout": Layout((CountSegment(name="n", bound=5),)),
    "version": 2,
    "suite": 2,
}
RING = {"graph_degree": 6, "graph_window": 2}


def changed(params, **changes):
    fields = {name: getattr(params, name) for name in params.__struct_fields__}
    return RoundParams(**{**fields, **changes})


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_enters_the_digest_that_all_signatures_are_bound_to(federation, field):
    params = federation(5).params()
    assert changed(params, **{field: CHANGES[field]}).digest != params.digest
    assert changed(params).digest == params.digest


def test_the_digest_covers_every_field_there_is(federation):
    assert set(RoundParams.__struct_fields__) == set(CHANGES) | set(RING)


def test_degree_and_window_of_a_ring_enter_the_digest(federation):
    params = federation(12).params()
    rings = [RING, {**RING, "graph_window": 3}, {**RING, "graph_degree": 8}]
    assert len({changed(params, **ring).digest for ring in [{}, *rings]}) == 4


@pytest.mark.parametrize(
    "ring",
    [
        {"graph_degree": 5},
        {"graph_degree": 2},
        {"graph_degree": 12},
        {"graph_window": 0},
        {"graph_window": 1},
        {"graph_window": 4},
        {"graph_degree": 0},
        {"mode": Mode.PLAIN},
    ],
)
def test_a_ring_that_cannot_be_is_refused(federation, ring):
    params = federation(12).params()
    with pytest.raises(ConfigurationError, match="graph"):
        changed(params, **{**RING, **ring})


def test_a_forced_degree_too_small_for_the_colluders_is_refused(federation):
    with pytest.raises(ConfigurationError, match="allows for more colluders"):
        federation(30, colluders=9).params(graph_degree=8)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"run_id": b"short"}, ConfigurationError),
        ({"context": b""}, ConfigurationError),
        ({"roster_digest": b"x" * 31}, ConfigurationError),
        ({"graph_degree": 4}, ConfigurationError),
        ({"graph_window": 1}, ConfigurationError),
        ({"sequence": -1}, ConfigurationError),
        ({"n_min": 6}, ConfigurationError),
        ({"survivors_min": 6}, ConfigurationError),
        ({"n_min": 0, "survivors_min": 0}, ConfigurationError),
        ({"colluders": 5}, ConfigurationError),
        ({"layout": Layout((CountSegment(name="n", bound=2**62),))}, RingTooSmall),
    ],
)
def test_parameters_that_cannot_work_are_refused(federation, change, error):
    with pytest.raises(error):
        changed(federation(5).params(), **change)


def test_invited_clients_are_a_bitmap_over_the_roster(federation):
    world = federation(9)
    params = world.params(invited=(90, 10, 30))
    assert params.invited == bytes([0b00000101, 0b1])
    assert params.invited_ids(world.roster) == (10, 30, 90)
    assert params.invited_count == 3


def test_a_bitmap_that_does_not_fit_the_roster_is_refused(federation):
    world = federation(9)
    with pytest.raises(Malformed):
        changed(world.params(), invited=b"\xff").invited_ids(world.roster)
    with pytest.raises(NonCanonical):
        changed(world.params(), invited=b"\xff\xff").invited_ids(world.roster)
    with pytest.raises(UnknownIdentity, match="client 11"):
        world.params(invited=(10, 20, 11))
