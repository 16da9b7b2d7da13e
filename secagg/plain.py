"""Aggregation without secrecy: the server sees every update.

One stage, with the same layout, quantiser, packing, signatures and context binding as the protected
modes, so that a run without protection returns the same integers bit for bit. It is the reference
every other mode is tested against, and what `Mode.PLAIN` must be chosen for by name.
"""

from __future__ import annotations

from secagg.aggregate import Aggregate, Transcript
from secagg.direct import DirectClient, DirectServer
from secagg.errors import CorruptState, SecAggError, TooFewSurvivors
from secagg.fixedpoint import Integers
from secagg.keys import SignatureCache, SigningKey
from secagg.messages import SurvivorRow, from_table, to_table
from secagg.params import Mode, RoundParams
from secagg.roster import Roster
from secagg.round_server import StoredServer
from secagg.roundlog import RoundLog
from secagg.server_snapshot import ServerSnapshot, ServerStore, freeze_lanes, thaw_lanes
from secagg.turn import alone


class PlainClient(DirectClient):
    """A client session of mode `plain`; see `secagg.api.ClientSession`."""

    mode = Mode.PLAIN

    def _body(self, params: RoundParams, encoded: dict[str, Integers]) -> bytes:
        return params.plan.pack(params.plan.to_lanes(encoded))


class PlainServer(DirectServer, StoredServer):
    """A server session of mode `plain`; see `secagg.api.RestartableServer`.

    Args:
        params: the round's parameters.
        coordinator: signs the requests.
        roster: whose signatures count.
        cache: shared only by simulations in one process.
        store: keeps the state when the round opens; None keeps nothing.
    """

    def __init__(
        self,
        params: RoundParams,
        coordinator: SigningKey,
        roster: Roster,
        *,
        cache: SignatureCache | None = None,
        store: ServerStore | None = None,
    ) -> None:
        super().__init__(params, coordinator, roster, cache=cache)
        self._store = store
        self._lanes = params.plan.zeros()

    def _state(self) -> ServerSnapshot:
        page = self._book.page()
        lanes = freeze_lanes(self._lanes, self._uploads)
        uploads = to_table(self._uploads[client] for client in sorted(self._uploads))
        return ServerSnapshot(params=self.params, page=page, lanes=lanes, uploads=uploads)

    def resume(self, snapshot: ServerSnapshot) -> None:
        """Takes up a round where a snapshot left it.

        Raises:
            CorruptState: the snapshot does not fit together.
        """
        self._book.turn_to(snapshot.page)
        self._lanes = thaw_lanes(snapshot.lanes, self.params, snapshot.uploads)
        try:
            rows = from_table(SurvivorRow, snapshot.uploads)
        except SecAggError as error:
            raise CorruptState(f"the stored state does not fit together: {error}") from error
        self._uploads = {row.client: row for row in rows}
        self._opened = True

    def _begun(self) -> None:
        self._keep()

    def _check_body(self, body: bytes) -> None:
        self.params.plan.check_body(body)

    def _add(self, client: int, body: bytes) -> None:
        del client
        with self._book.all_or_nothing():
            self.params.plan.add_body(self._lanes, body)

    @alone
    def close_stage(self) -> Aggregate:
        """The sums over the uploads that arrived.

        Raises:
            TooFewSurvivors: fewer than `survivors_min`.
            SumOutOfRange: an upload was not an honest one.
        """
        survivors = self._book.close()
        least = self.params.survivors_min
        self._book.require(len(survivors), least, "uploads", TooFewSurvivors)
        log = RoundLog(
            params=self.params,
            requests=tuple(self._book.signed.values()),
            uploads=to_table(self._uploads[client] for client in survivors),
        )
        transcript = Transcript(params=self.params.digest, log=log.to_bytes())
        return self._book.aggregate(self._lanes, survivors, transcript)
