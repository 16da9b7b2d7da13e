"""Aggregation without secrecy: the server sees every update.

One stage, with the same layout, quantiser, packing, signatures and context binding as the protected
modes, so that a run without protection returns the same integers bit for bit. It is the reference
every other mode is tested against, and what `Mode.PLAIN` must be chosen for by name.
"""

from __future__ import annotations

from secagg.aggregate import Aggregate, Transcript
from secagg.direct import DirectClient, DirectServer
from secagg.errors import TooFewSurvivors
from secagg.fixedpoint import Integers
from secagg.keys import SignatureCache, SigningKey
from secagg.messages import to_table
from secagg.params import Mode, RoundParams
from secagg.roster import Roster
from secagg.roundlog import RoundLog


class PlainClient(DirectClient):
    """A client session of mode `plain`; see `secagg.api.ClientSession`."""

    mode = Mode.PLAIN

    def _body(self, params: RoundParams, encoded: dict[str, Integers]) -> bytes:
        return params.plan.pack(params.plan.to_lanes(encoded))


class PlainServer(DirectServer):
    """A server session of mode `plain`; see `secagg.api.ServerSession`."""

    def __init__(
        self,
        params: RoundParams,
        coordinator: SigningKey,
        roster: Roster,
        *,
        cache: SignatureCache | None = None,
    ) -> None:
        super().__init__(params, coordinator, roster, cache=cache)
        self._lanes = params.plan.zeros()

    def _check_body(self, body: bytes) -> None:
        self.params.plan.check_body(body)

    def _add(self, client: int, body: bytes) -> None:
        del client
        self.params.plan.add_body(self._lanes, body)

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
