"""From a client's update to what leaves the client: the only place where privacy and secure aggregation meet.

An update is clipped per coordinate and rounded by the encoder of ``secagg`` (under local DP it is noised already, so
both are post-processing), its weight and, without DP, the client's loss travel inside the same vector, and the ledger
records the digest of the very bytes that are sent.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmpt.config import SecAggConfig
from fedmpt.errors import RunError
from fedmpt.types import FloatVector, GlobalState, Update
from privacy import Charge, Ledger
from privacy.integer import LARGEST_SUM, GridRelease
from privacy.sketch import Sketch
from secagg import (
    Aggregate,
    ClientSession,
    CountSegment,
    FixedSegment,
    InputWanted,
    Layout,
    Mode,
    Reply,
)
from secagg import Update as SegmentValues

MODES: Final = {"masking": Mode.MASKING, "ckks": Mode.CKKS, "none": Mode.PLAIN}
_LOSS_STEPS: Final = 1000  # a loss is sent in thousandths
_LARGEST_LOSS: Final = 1e6  # summed loss of one client and round; larger ones are sent as this


@dataclass(frozen=True, kw_only=True, slots=True)
class Envelope:
    """How updates become segments of integers with public bounds.

    Attributes:
        layout: segments ``delta`` (none where clients train alone), ``weight`` and, without DP, ``loss`` and
            ``examples``.
        largest_weight: bound of a client's weight.
        reports_loss: whether loss and examples travel; never under DP.
    """

    layout: Layout
    largest_weight: int
    reports_loss: bool

    @classmethod
    def of(
        cls,
        *,
        size: int,
        config: SecAggConfig,
        private: bool,
        largest_weight: int,
        largest_examples: int,
    ) -> Envelope:
        """Return the envelope of a run.

        Args:
            size: number of values that clients tune together; may be 0.
            config: clip and bits of a coordinate.
            private: whether updates are differentially private; if not, the sum is marked sensitive.
            largest_weight: bound of a client's public weight.
            largest_examples: bound of the examples a client sees in a round.
        """
        segments: tuple[FixedSegment | CountSegment, ...] = (
            CountSegment(name="weight", bound=largest_weight),
        )
        if size:
            delta = FixedSegment(
                name="delta",
                length=size,
                clip=config.clip,
                bits=config.bits,
                sensitivity="dp" if private else "sensitive",
            )
            segments = (delta, *segments)
        if not private:
            segments += (
                CountSegment(
                    name="loss", bound=int(_LARGEST_LOSS * _LOSS_STEPS), sensitivity="sensitive"
                ),
                CountSegment(name="examples", bound=largest_examples, sensitivity="sensitive"),
            )
        return cls(layout=Layout(segments), largest_weight=largest_weight, reports_loss=not private)

    def seal(self, update: Update) -> SegmentValues:
        """Return the values of every segment for an update.

        Raises:
            RunError: the update holds a loss although none may leave the client.
        """
        if (update.loss_sum is not None) != self.reports_loss:
            raise RunError("a loss is sent exactly when training is not private")
        share = np.float32(update.weight / self.largest_weight)
        values: dict[str, NDArray[np.float32] | NDArray[np.int64]] = {
            "weight": np.array([update.weight], dtype=np.int64),
        }
        if len(update.delta):
            values["delta"] = update.delta * share
        if update.loss_sum is not None and update.examples is not None:
            thousandths = int(min(max(update.loss_sum, 0.0), _LARGEST_LOSS) * _LOSS_STEPS)
            values["loss"] = np.array([thousandths], dtype=np.int64)
            values["examples"] = np.array([update.examples], dtype=np.int64)
        return SegmentValues(values=values)

    def open_mean(self, aggregate: Aggregate) -> FloatVector:
        """Return the weighted mean of the survivors' updates: float32 ``[d]``."""
        if "delta" not in aggregate.sums:
            return np.zeros(0, np.float32)
        return aggregate.decode_weighted_mean("delta", "weight").astype(np.float32)

    def open_loss(self, aggregate: Aggregate) -> float | None:
        """Return the survivors' mean loss of an example; None under DP."""
        if not self.reports_loss:
            return None
        examples = max(1, int(aggregate.sums["examples"][0]))
        return int(aggregate.sums["loss"][0]) / _LOSS_STEPS / examples


@dataclass(frozen=True, kw_only=True, slots=True)
class GridEnvelope:
    """How a step in integers, with its share of noise, becomes the one segment of a sum.

    Nothing is rescaled or rounded on the way: a grid step of `privacy` is a grid step of `secagg`.

    Attributes:
        layout: segment ``gradient``; no clip counters, which would be computed before noise.
    """

    layout: Layout

    @classmethod
    def of(cls, *, dimension: int, noise_bound: int) -> GridEnvelope:
        """Return the envelope of a run.

        Args:
            dimension: released values.
            noise_bound: largest magnitude of a client's noise, in grid steps.
        """
        gradient = FixedSegment(
            name="gradient",
            length=dimension,
            clip=float(LARGEST_SUM),
            bits=LARGEST_SUM.bit_length() + 1,
            noise_bound=noise_bound,
            count_clips=False,
        )
        return cls(layout=Layout((gradient,)))

    def seal(self, release: GridRelease) -> SegmentValues:
        """Return the segment's values; `secagg` adds the noise before it masks."""
        return SegmentValues(values={"gradient": release.query}, noise={"gradient": release.noise})

    def open_sum(self, aggregate: Aggregate) -> NDArray[np.int64]:
        """Return the survivors' noised sum, int64 ``[dimension]``, in grid steps."""
        return aggregate.sums["gradient"]


def round_context(
    state: GlobalState, *, lr: float, run_digest: bytes, sketch: Sketch | None = None
) -> bytes:
    """Return the 32-byte digest of all that an update of this round rests on.

    Every client computes it from what it received; a server that shows a client another model, or another sketch, gets
    no update from it.

    Args:
        state: the broadcast state.
        lr: the round's learning rate.
        run_digest: digest of the resolved configuration, frozen model and classes.
        sketch: of the text encoder at ``state``, where gradients are clipped in one that all clients share.
    """
    digest = hashlib.sha256(b"fedmpt/round/v2")
    digest.update(run_digest)
    digest.update(f"{state.round + 1} {lr!r} {len(state.vector)}".encode())
    digest.update(np.ascontiguousarray(state.vector, dtype="<f4").tobytes())
    if sketch is not None:
        digest.update(sketch.digest.encode())
    return digest.digest()


class LedgeredSession:
    """A client's session that writes the digest of an upload on the ledger before handing it over."""

    def __init__(self, session: ClientSession) -> None:
        self._session = session
        self._ledger: Ledger | None = None
        self._charge: Charge | None = None
        self._wanted: InputWanted | None = None

    @property
    def guaranteed_honest(self) -> int:
        """Honest clients that the running round's sum is sure to hold, as this client verified.

        Raises:
            RunError: no round has come so far that an update is wanted.
        """
        return self._verified().guaranteed_honest

    @property
    def colluders(self) -> int:
        """Clients of the running round that are assumed to work with the server."""
        return self._verified().params.colluders

    def _verified(self) -> InputWanted:
        if self._wanted is None:
            raise RunError(f"client {self.client_id}: no update is wanted")
        return self._wanted

    @property
    def client_id(self) -> int:
        """The id of this client in the roster."""
        return self._session.client_id

    def charged(self, ledger: Ledger, charge: Charge) -> None:
        """Say under which charge the next upload is released."""
        self._ledger, self._charge = ledger, charge

    def handle(self, request: bytes) -> Reply | InputWanted:
        """Answer one request of the server."""
        answer = self._session.handle(request)
        if isinstance(answer, InputWanted):
            self._wanted = answer
        return answer

    def submit(self, update: SegmentValues, context: bytes) -> Reply:
        """Protect the update and book its release."""
        reply = self._session.submit(update, context)
        if self._ledger is not None and self._charge is not None:
            self._ledger.release(self._charge, reply.message)
        return reply

    def abandon(self) -> None:
        """End the running round and erase its secrets."""
        self._session.abandon()
