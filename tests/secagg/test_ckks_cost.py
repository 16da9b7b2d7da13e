import pytest

from secagg import Mode, SharedKey, Stage
from secagg.ckks_presets import PRESETS
from secagg.ckks_scheme import library_version
from secagg.ckks_terms import KeyTerms
from secagg.cost import predict_bytes, predict_setup_bytes
from secagg.errors import UnsupportedSuite
from secagg.operations import cost


@pytest.mark.parametrize("verify_sum", [False, True])
@pytest.mark.parametrize("n", [3, 7])
def test_predicted_bytes_equal_the_bytes_measured(federation, n, verify_sum):
    world = federation(n, mode=Mode.CKKS, verify_sum=verify_sum)
    aggregate, predicted = world.run(), predict_bytes(world.params())
    asking = {i for i in world.ids if aggregate.bytes_up[i] == predicted.up()}
    assert len(asking) == 2
    only = predicted.stages
    rest_up = sum(size.up for stage, size in only.items() if stage is not Stage.REVEAL)
    rest_down = sum(size.down for stage, size in only.items() if stage is not Stage.REVEAL)
    for client in world.ids:
        decrypts = client in asking
        assert aggregate.bytes_up[client] == (predicted.up() if decrypts else rest_up)
        assert aggregate.bytes_down[client] == (predicted.down() if decrypts else rest_down)
    assert sum(aggregate.bytes_up.values()) == pytest.approx(n * predicted.mean_up(), abs=1e-6)
    assert sum(aggregate.bytes_down.values()) == pytest.approx(n * predicted.mean_down(), abs=1e-6)


def test_operations_of_a_ckks_round_are_refused_and_not_taken_for_those_of_masking(federation):
    world = federation(4)
    key = SharedKey(PRESETS["compact"].code, bytes(32))
    with pytest.raises(UnsupportedSuite, match="predict_bytes"):
        cost(world.params(mode=Mode.CKKS, shared_key=key))


def test_predicted_bytes_hold_when_clients_are_lost(federation):
    world = federation(5, mode=Mode.CKKS)
    aggregate = world.run({20: "upload", 40: "share"})
    predicted = predict_bytes(world.params(), survivors=3)
    total = sum(aggregate.bytes_up[i] for i in aggregate.survivors)
    assert total == pytest.approx(3 * predicted.mean_up(), abs=1e-6)


@pytest.mark.parametrize("preset", ["compact", "wide"])
def test_predicted_bytes_of_a_key_set_up_equal_the_bytes_measured(federation, preset):
    world = federation(4, mode=Mode.CKKS, preset=preset)
    terms = KeyTerms.for_key(
        roster=world.roster,
        preset=PRESETS[preset],
        library=library_version(),
        sequence=0,
        run_id=world.params().run_id,
    )
    leader, member = predict_setup_bytes(terms)
    for client in world.ids:
        predicted = leader if client == world.ids[0] else member
        assert world.epoch.bytes_up[client] == predicted.up()
        assert world.epoch.bytes_down[client] == predicted.down()
