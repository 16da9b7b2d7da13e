"""One call of a session at a time: what a call has begun, no other call may find half done.

Between the moment an upload is masked and the moment the client knows that it was, a second call
would find the masks unused and make a second upload under them; a call that ends the round there
would leave the first without its secrets. Between the moment a server looks whether an upload is
new and the moment it has noted it, the same upload would be added once more. Other threads wait; a
callback that calls back is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from secagg.errors import WrongStage

P = ParamSpec("P")
R = TypeVar("R")


class Turn:
    """`with turn.taken():` runs alone."""

    __slots__ = ("_lock", "_taken")

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._taken = False

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Waits for calls of other threads, and runs alone.

        Raises:
            WrongStage: called from within a call, by `save` or `random`.
        """
        with self._lock:
            if self._taken:
                raise WrongStage("a session cannot be called from within one of its own calls")
            self._taken = True
            try:
                yield
            finally:
                self._taken = False


class _Session(Protocol):
    _turn: Turn


S = TypeVar("S", bound=_Session)


def alone(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """A method of a session that runs alone among all such methods of that session."""

    @wraps(method)
    def in_turn(session: S, /, *arguments: P.args, **options: P.kwargs) -> R:
        with session._turn.taken():
            return method(session, *arguments, **options)

    return in_turn
