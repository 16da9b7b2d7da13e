import pytest

from secagg import Mode, Stage
from secagg.cost import predict_bytes
from secagg.inprocess import STAGES


@pytest.mark.parametrize("n", [3, 6, 12, 40])
@pytest.mark.parametrize("mode", [Mode.PLAIN, Mode.MASKING])
def test_predicted_bytes_equal_the_bytes_measured(federation, n, mode):
    world = federation(n, mode=mode)
    aggregate, predicted = world.run(), predict_bytes(world.params())
    assert set(aggregate.bytes_up.values()) == {predicted.up()}
    assert set(aggregate.bytes_down.values()) == {predicted.down()}


@pytest.mark.parametrize("ids", ["small", "large"])
def test_sizes_do_not_depend_on_who_takes_part(federation, ids):
    world = federation(7)
    invited = world.ids[:4] if ids == "small" else world.ids[-4:]
    clients = world.clients()
    server = world.server(world.params(invited=invited))
    aggregate = world.run(server=server, clients=clients)
    predicted = predict_bytes(world.params(invited=invited))
    assert {aggregate.bytes_up[i] for i in invited} == {predicted.up()}
    assert {aggregate.bytes_down[i] for i in invited} == {predicted.down()}


@pytest.mark.parametrize("stage", STAGES)
def test_predicted_bytes_equal_the_bytes_measured_when_a_client_is_lost(federation, stage):
    world = federation(9)
    aggregate = world.run({20: stage})
    lost = STAGES[stage]
    counts = {
        "cohort": 9 - (lost <= Stage.ADVERTISE),
        "sharers": 9 - (lost <= Stage.SHARE),
        "survivors": 9 - (lost <= Stage.UPLOAD),
    }
    predicted = predict_bytes(world.params(), **counts)
    for client in world.ids:
        gone = lost if client == 20 else None
        assert aggregate.bytes_up[client] == predicted.up(lost=gone)
        assert aggregate.bytes_down[client] == predicted.down(lost=gone)


def test_an_upload_is_packed_to_its_ring_width():
    from secagg import FixedSegment, Layout
    from secagg.ring import RingPlan

    layout = Layout((FixedSegment(name="x", length=800_000, clip=1.0, count_clips=False),))
    assert RingPlan.of(layout, 10).body_bytes == 2_400_000  # 0.75 of float32
