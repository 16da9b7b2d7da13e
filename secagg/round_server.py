"""What the servers of all modes have in common, and what those have that outlive their process."""

from __future__ import annotations

from abc import ABC, abstractmethod

from secagg.api import Requests
from secagg.attendance import Attendance
from secagg.errors import ConfigurationError
from secagg.keys import SignatureCache, SigningKey
from secagg.params import RoundParams, Stage
from secagg.roster import Roster
from secagg.server_snapshot import ServerSnapshot, ServerStore
from secagg.turn import Turn, alone


class RoundServer:
    """A server session of one round: who is expected and who answered, one message at a time.

    Args:
        params: the round's parameters.
        coordinator: signs the requests.
        roster: whose signatures count.
        cache: shared only by simulations in one process.
        stage: whose replies are collected first.
    """

    def __init__(
        self,
        params: RoundParams,
        coordinator: SigningKey,
        roster: Roster,
        *,
        cache: SignatureCache | None,
        stage: Stage,
    ) -> None:
        self._turn = Turn()
        self._book = Attendance(
            params=params, coordinator=coordinator, roster=roster, cache=cache, stage=stage
        )

    @property
    def params(self) -> RoundParams:
        """The round's parameters."""
        return self._book.params

    @property
    def stage(self) -> Stage:
        """The stage whose replies are being collected."""
        return self._book.stage


class StoredServer(RoundServer, ABC):
    """A server session that keeps its state where it was given a store; see `secagg.api.RestartableServer`."""

    _store: ServerStore | None = None

    @alone
    def pending(self) -> Requests:
        """What is not answered yet; see `secagg.api.RestartableServer.pending`."""
        return self._book.pending()

    @alone
    def snapshot(self) -> bytes:
        """The sealed state; see `secagg.api.RestartableServer.snapshot`."""
        if self._store is None:
            raise ConfigurationError("this session was opened without a state key")
        return self._store.seal(self._state())

    def _keep(self) -> None:
        """Makes the state durable; if that fails the round stops, and nothing leaves."""
        if self._store is not None:
            with self._book.all_or_nothing():
                self._store.save(self._store.seal(self._state()))

    @abstractmethod
    def _state(self) -> ServerSnapshot:
        """The state, to be sealed."""
