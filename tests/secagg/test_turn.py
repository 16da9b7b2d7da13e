"""What one call has begun, no other call finds half done."""

import os
import threading
from contextlib import nullcontext

import numpy as np
import pytest

from secagg import Mode, SignatureCache, Stage, Update
from secagg.errors import WrongStage
from secagg.masking_client import MaskingClient
from secagg.messages import Upload, decode
from secagg.turn import Turn

LIMIT = 1 << 20


class NoTurn:
    """In the place of the turn: a call may begin while another is half done."""

    @staticmethod
    def taken():
        return nullcontext()


class Unguarded(MaskingClient):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self._turn = NoTurn


def submits_within_submit(world, kind):
    """A client whose source of randomness, asked in the middle of `submit`, submits once more."""
    inner, uploads = [], []

    def random(size):
        if inner:
            update = inner.pop()
            uploads.append(clients[10].submit(update, world.params().context).message)
        return os.urandom(size)

    clients, server = world.clients(), world.server()
    clients[10] = world.client(10, kind, random=random)
    clients[10].handle(world.run_until(Stage.UPLOAD, clients, server)[10])
    inner.append(world.update(20))
    rounded = {**world.values(10), "delta": np.zeros(5, np.float32)}  # real values draw
    uploads.append(clients[10].submit(Update(values=rounded), world.params().context).message)
    return server, uploads


def test_half_done_control_without_the_turn_two_uploads_are_made_under_the_same_masks(federation):
    world = federation(4)
    server, uploads = submits_within_submit(world, Unguarded)
    plan, lanes = server.params.plan, []
    for message in uploads:
        lanes.append(plan.zeros())
        plan.add_body(lanes[-1], decode(message, Upload, limit=LIMIT).body)
    found = plan.decode({lane: lanes[0][lane] - lanes[1][lane] for lane in lanes[0]}, 4)
    assert np.array_equal(found["delta"], world.values(20)["delta"])
    assert found["samples"] == world.values(20)["samples"] - world.values(10)["samples"]


def test_a_call_within_a_call_is_refused(federation):
    with pytest.raises(WrongStage, match="within one of its own calls"):
        submits_within_submit(federation(4), None)


class CallsBack(SignatureCache):
    """In the place of a second thread: while a signature is looked up, the message comes again."""

    def __init__(self):
        super().__init__()
        self.once = []

    def __contains__(self, triple):
        if self.once:
            self.once.pop()()
        return super().__contains__(triple)


def receives_within_receive(world, turn):
    """A server that is given an upload a second time while it looks at the first."""
    clients, server = world.clients(), world.server()
    requests = world.run_until(Stage.UPLOAD, clients, server)
    replies = {client: world.answer(clients[client], r) for client, r in requests.items()}
    server._turn = turn
    world.cache.once = [lambda: server.receive(10, replies[10])]
    server.receive(10, replies[10])
    for client, reply in replies.items():
        server.receive(client, reply)
    return server


def test_half_done_control_without_the_turn_an_upload_that_comes_twice_is_added_twice(federation):
    world = federation(4, mode=Mode.PLAIN, cache=CallsBack())
    server = receives_within_receive(world, NoTurn)
    extra = server.close_stage().sums["delta"] - world.total(world.ids)["delta"]
    assert np.array_equal(extra, world.values(10)["delta"])


@pytest.mark.parametrize("mode", list(Mode))
def test_an_upload_that_comes_again_while_it_is_looked_at_is_refused(federation, mode):
    world = federation(4, mode=mode, cache=CallsBack())
    with pytest.raises(WrongStage, match="within one of its own calls"):
        receives_within_receive(world, Turn())


def test_a_session_can_be_called_again_after_a_call_that_failed():
    turn = Turn()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), turn.taken():
            raise ZeroDivisionError
    with turn.taken():
        pass


def test_calls_of_two_threads_follow_each_other():
    turn, running, seen = Turn(), [], []

    def work():
        for _ in range(50):
            with turn.taken():
                running.append(1)
                seen.append(len(running))
                running.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert seen == [1] * 200


def test_a_forked_process_cannot_use_the_keys_of_the_one_before_it(federation, monkeypatch):
    """Control: the process that drew them can."""
    world = federation(4)
    clients, server = world.clients(), world.server()
    clients[10].handle(world.run_until(Stage.UPLOAD, clients, server)[10])
    with monkeypatch.context() as forked:
        forked.setattr("os.getpid", lambda: -1)
        with pytest.raises(WrongStage, match="forked"):
            clients[10].submit(world.update(10), server.params.context)
    clients[10].submit(world.update(10), server.params.context)
