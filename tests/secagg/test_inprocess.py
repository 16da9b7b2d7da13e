import numpy as np
import pytest

from secagg import Mode, RoundAborted, Stage, Update, run_round
from secagg.errors import NonFiniteInput, PolicyViolation, ViewMismatch


def test_inputs_are_asked_for_one_at_a_time_and_only_of_those_that_get_there(federation, context):
    world = federation(6)
    server, asked = world.server(), []

    def inputs(client):
        assert server.stage is Stage.UPLOAD
        asked.append(client)
        return world.update(client)

    lost = {10: "share", 20: "upload"}
    aggregate = run_round(server, world.clients(), inputs, context=context, lost=lost)
    assert tuple(asked) == aggregate.survivors == (30, 40, 50, 60)


def test_a_client_without_an_input_is_a_dropout(federation, context):
    world = federation(6)

    def inputs(client):
        return None if client == 30 else world.update(client)

    aggregate = run_round(world.server(), world.clients(), inputs, context=context)
    assert aggregate.dropped == {30: Stage.UPLOAD}
    assert np.array_equal(aggregate.sums["samples"], world.total(aggregate.survivors)["samples"])


def test_an_input_that_is_not_finite_costs_one_client_and_is_reported(federation, context):
    world, told = federation(6), []

    def inputs(client):
        values = world.values(client)
        if client == 30:
            values = {**values, "delta": np.full(5, np.nan)}
        return Update(values=values)

    aggregate = run_round(
        world.server(),
        world.clients(),
        inputs,
        context=context,
        on_refusal=lambda client, error: told.append((client, type(error))),
    )
    assert 30 not in aggregate.survivors
    assert told == [(30, NonFiniteInput)]


def test_an_error_of_the_caller_is_not_swallowed(federation, context):
    world = federation(4)

    def inputs(client):
        raise RuntimeError("training failed")

    with pytest.raises(RuntimeError, match="training failed"):
        run_round(world.server(), world.clients(), inputs, context=context)


def test_clients_that_refuse_say_why_in_the_message_of_the_abort(federation):
    world = federation(4)
    clients = world.clients(policy=world.policy(n_min=4))
    told = []
    with pytest.raises(RoundAborted, match="PolicyViolation x4"):
        world.run(clients=clients, on_refusal=lambda client, error: told.append(type(error)))
    assert set(told) == {PolicyViolation}


@pytest.mark.parametrize("mode", list(Mode))
def test_a_refusal_is_part_of_the_result(federation, mode):
    world = federation(6, mode=mode)
    clients = world.clients()
    stricter = world.policy(survivors_min=5)
    clients[20] = world.client(20, policy=stricter)
    aggregate = world.run(clients=clients)
    assert aggregate.refusals == {20: "PolicyViolation"}
    assert 20 not in aggregate.survivors


def test_losses_after_the_upload_count_the_same_in_every_mode(federation):
    lost = {10: "advertise", 20: "upload", 30: "confirm", 40: "reveal"}
    results = [federation(12, mode=mode).run(lost) for mode in Mode]
    assert results[0].survivors == results[1].survivors == tuple(range(30, 130, 10))


def test_an_unknown_stage_name_is_an_error_of_the_caller(federation):
    with pytest.raises(KeyError):
        federation(4).run({10: "train"})


def test_another_model_than_the_rounds_ends_every_part(federation):
    world, told = federation(4), []
    with pytest.raises(RoundAborted, match="ViewMismatch x4"):
        run_round(
            world.server(),
            world.clients(),
            world.update,
            context=b"x" * 32,
            on_refusal=lambda client, error: told.append(type(error)),
        )
    assert told == [ViewMismatch] * 4
