import pytest

from secagg import CountSegment, FixedSegment, Layout, Mode, Policy
from secagg.errors import PolicyViolation, UnknownIdentity, UnsupportedSuite

OTHER = Layout((FixedSegment(name="delta", length=5, clip=2.0, bits=8),))


def check(world, policy, params, client=10):
    policy.check(params, roster=world.roster, client=client)


def test_the_default_floors_accept_the_default_parameters(federation):
    for n in (3, 4, 12, 40):
        world = federation(n)
        check(world, Policy.masking(world.layout), world.params())
        check(world, Policy.plain(world.layout), world.params(mode=Mode.PLAIN))


@pytest.mark.parametrize(
    "weaker",
    [{"n_min": 2}, {"survivors_min": 2}, {"colluders": 1}, {"colluders": 0}],
)
def test_weaker_parameters_than_the_floors_are_refused(federation, weaker):
    world = federation(9)
    with pytest.raises(PolicyViolation, match=next(iter(weaker))):
        check(world, Policy.masking(world.layout), world.params(**weaker))


@pytest.mark.parametrize("stricter", [{"n_min": 8}, {"survivors_min": 7}, {"colluders": 4}])
def test_stricter_parameters_than_the_floors_are_accepted(federation, stricter):
    world = federation(9)
    check(world, Policy.masking(world.layout), world.params(**stricter))


def test_colluders_and_survivors_are_counted_by_the_known_cohort_however_few_are_invited(
    federation,
):
    """Four of twelve, three of whom may help the server: by those invited, one helper would be assumed."""
    world = federation(12)
    few = world.ids[:4]
    params = world.params(invited=few)
    assert params.colluders == 1
    check(world, Policy.masking(world.layout), params)  # the control
    policy = Policy.masking(world.layout, cohort=12)
    with pytest.raises(PolicyViolation, match=r"survivors_min=3: .* at least 8"):
        check(world, policy, params)
    with pytest.raises(PolicyViolation, match=r"colluders=1: .* at least 3"):
        check(world, policy, world.params(colluders=1, survivors_min=8))
    check(world, policy, world.params(survivors_min=8))


def test_plain_mode_is_refused_unless_it_is_allowed_by_name(federation):
    world = federation(5)
    with pytest.raises(UnsupportedSuite, match="PLAIN"):
        check(world, Policy.masking(world.layout), world.params(mode=Mode.PLAIN))
    with pytest.raises(UnsupportedSuite, match="MASKING"):
        check(world, Policy.plain(world.layout), world.params())


def test_another_layout_is_refused(federation):
    world = federation(5)
    with pytest.raises(PolicyViolation, match="layout"):
        check(world, Policy.masking(OTHER), world.params())


def test_another_roster_is_refused(federation):
    world, other = federation(5), federation(5)
    with pytest.raises(PolicyViolation, match="roster"):
        Policy.masking(world.layout).check(world.params(), roster=other.roster, client=10)


def test_a_client_that_is_not_invited_stays_out(federation):
    world = federation(5)
    params = world.params(invited=(10, 20, 30))
    with pytest.raises(UnknownIdentity, match="client 40"):
        check(world, Policy.masking(world.layout), params, client=40)


def test_the_published_schedule_of_clients_is_enforced(federation):
    world = federation(5)
    policy = world.policy(invited=frozenset({10, 20, 30, 40}))
    check(world, policy, world.params(invited=(10, 20, 30, 40)))
    with pytest.raises(PolicyViolation, match="schedule"):
        check(world, policy, world.params())


@pytest.mark.parametrize("version", [0, 2])
def test_another_version_or_suite_is_refused(federation, version):
    world = federation(5)
    for params in (world.params(), world.params()):
        fields = {name: getattr(params, name) for name in params.__struct_fields__}
        for name in ("version", "suite"):
            with pytest.raises(UnsupportedSuite):
                check(world, world.policy(), type(params)(**{**fields, name: version}))


@pytest.mark.parametrize("bits", [7, 25])
def test_bits_outside_the_accepted_range_are_refused(federation, bits):
    layout = Layout((FixedSegment(name="x", length=1, clip=1.0, bits=bits),))
    world = federation(5, layout=layout)
    with pytest.raises(PolicyViolation, match="bits"):
        check(world, Policy.masking(layout), world.params())


def test_sensitive_segments_need_permission_and_raw_clip_counters_are_sensitive(federation):
    sensitive = CountSegment(name="n", bound=5, sensitivity="sensitive")
    counters = FixedSegment(name="x", length=1, clip=1.0, noise_bound=9)
    for segment in (sensitive, counters):
        layout = Layout((segment,))
        world = federation(5, layout=layout)
        with pytest.raises(PolicyViolation, match="sensitive"):
            check(world, Policy.masking(layout), world.params())
        check(world, Policy.masking(layout, allow_sensitive=True), world.params())


def test_a_layout_above_the_most_values_is_refused(federation):
    world = federation(5)
    with pytest.raises(PolicyViolation, match="values"):
        check(world, world.policy(max_values=5), world.params())
