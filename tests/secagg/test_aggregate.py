import numpy as np
import pytest

from secagg import CountSegment, FixedSegment, Layout, Policy, Update, run_round
from secagg.errors import WrongLayout

LAYOUT = Layout(
    (
        FixedSegment(name="delta", length=4, clip=2.0, bits=20),
        CountSegment(name="weight", bound=100),
        CountSegment(name="hits", bound=50, length=3),
    )
)
VECTORS = {
    client: np.linspace(-1.9, 1.9, 4) * (1 + client / 100) for client in (10, 20, 30, 40, 50)
}
STEP = 2.0 / (2**19 - 1)


@pytest.fixture(scope="module")
def aggregate(federation, context):
    world = federation(5, layout=LAYOUT)

    def inputs(client):
        weight = client
        return Update(
            values={
                "delta": VECTORS[client] * weight / 100,
                "weight": np.array([weight]),
                "hits": np.array([1, client, 0]),
            }
        )

    clients = {i: world.client(i, policy=Policy.masking(LAYOUT)) for i in world.ids}
    return run_round(world.server(), clients, inputs, context=context, lost={50: "share"})


def test_a_decoded_sum_is_within_one_step_for_each_survivor(aggregate):
    exact = sum(VECTORS[i] * i / 100 for i in (10, 20, 30, 40))
    assert np.abs(aggregate.decode_sum("delta") - exact).max() <= 4 * STEP
    assert aggregate.decode_sum("delta").dtype == np.float64


def test_a_decoded_mean_divides_by_the_survivors(aggregate):
    assert np.array_equal(aggregate.decode_mean("delta"), aggregate.decode_sum("delta") / 4)


def test_a_weighted_mean_weighs_by_the_sum_of_the_weights(aggregate):
    exact = sum(VECTORS[i] * i for i in (10, 20, 30, 40)) / 100
    assert aggregate.sums["weight"].tolist() == [100]
    error = np.abs(aggregate.decode_weighted_mean("delta", "weight") - exact).max()
    assert error <= 4 * STEP


def test_counts_are_exact_and_clip_counters_stand_apart(aggregate):
    assert aggregate.sums["hits"].tolist() == [4, 100, 0]
    assert set(aggregate.sums) == {"delta", "weight", "hits"}
    assert aggregate.clip_counts == {"delta": (0, 0)}


def test_values_outside_the_clip_are_counted_over_all_survivors(federation, context):
    world = federation(4)

    def inputs(client):
        values = {"delta": np.array([-3.0, 0, 0, 2.0, 5.0]), "samples": np.array([1])}
        return Update(values=values)

    aggregate = run_round(world.server(), world.clients(), inputs, context=context)
    assert aggregate.clip_counts == {"delta": (4, 8)}


@pytest.mark.parametrize(
    ("name", "weight"), [("hits", "weight"), ("delta", "hits"), ("no", "weight")]
)
def test_helpers_refuse_segments_of_the_other_kind(aggregate, name, weight):
    with pytest.raises(WrongLayout):
        aggregate.decode_weighted_mean(name, weight)


def test_the_mean_of_weights_that_sum_to_zero_is_an_error(federation, context):
    world = federation(4)
    layout = Layout((FixedSegment(name="x", length=1, clip=1.0), CountSegment(name="w", bound=3)))
    world = federation(4, layout=layout)

    def inputs(client):
        return Update(values={"x": np.zeros(1), "w": np.array([0])})

    aggregate = run_round(world.server(), world.clients(), inputs, context=context)
    with pytest.raises(ZeroDivisionError, match="'w'"):
        aggregate.decode_weighted_mean("x", "w")


def test_integer_noise_of_all_survivors_is_in_the_sum(federation, context):
    segment = FixedSegment(
        name="x", length=3, clip=1.0, bits=8, noise_bound=1000, count_clips=False
    )
    world = federation(6, layout=Layout((segment,)))
    generator = np.random.default_rng(3)
    noise = {i: generator.integers(-1000, 1001, 3) for i in world.ids}
    values = {i: generator.integers(-127, 128, 3) for i in world.ids}

    def inputs(client):
        return Update(values={"x": values[client]}, noise={"x": noise[client]})

    aggregate = run_round(
        world.server(), world.clients(), inputs, context=context, lost={20: "upload"}
    )
    expected = sum(values[i] + noise[i] for i in aggregate.survivors)
    assert aggregate.sums["x"].tolist() == expected.tolist()
