"""What a round collects from clients and what the server makes of the sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from fedmpt.engine.sites import Site
from fedmpt.methods.base import Parameters
from fedmpt.protect import Envelope
from fedmpt.strategy.fedavg import fedavg
from fedmpt.types import ClientId, GlobalState
from privacy.sketch import Sketch
from secagg import Aggregate, Layout
from secagg import Update as SegmentValues


class FurtherSum(Protocol):
    """One more sum of a running round."""

    def __call__(
        self,
        clients: tuple[ClientId, ...],
        answer: Callable[[ClientId], SegmentValues],
        broadcast: bytes,
    ) -> Aggregate:
        """Return the sum of what ``clients`` answer to what the server broadcast, which the sum is bound to."""
        ...


class Rounds(Protocol):
    """One way to run rounds: the clients' side of a sum, and the server's."""

    @property
    def layout(self) -> Layout:
        """What is summed."""
        ...

    @property
    def sums(self) -> int:
        """Sums of a round."""
        ...

    @property
    def resubmit(self) -> bool:
        """Whether a client may send the same values again when a round is tried anew."""
        ...

    def contribute(
        self, site: Site, state: GlobalState, *, lr: float, sketch: Sketch | None
    ) -> SegmentValues:
        """Return what a client puts into the sum; charged, if training is private.

        Raises:
            privacy.BudgetExhausted: the client's budget does not admit the round.
        """
        ...

    def complete(self, first: Aggregate, more: FurtherSum) -> Aggregate:
        """Make what further sums the round takes, and return the last."""
        ...

    def advance(
        self, state: GlobalState, aggregate: Aggregate, *, lr: float, sketch: Sketch | None
    ) -> GlobalState:
        """Return the state after the round.

        Raises:
            RunError: the result holds a value that is not finite.
        """
        ...

    def loss(self, aggregate: Aggregate) -> float | None:
        """Return the mean training loss of an example, where it may leave a client."""
        ...

    def server_state(self) -> Parameters:
        """Return the tensors that the server keeps between rounds besides the model, by name."""
        ...

    def take_up(self, state: GlobalState, server: Parameters) -> None:
        """Go on from the model and the server's tensors of an earlier process."""
        ...


class OneSum:
    """What ways with a single sum a round have in common; see `Rounds`."""

    @property
    def sums(self) -> int:
        """One."""
        return 1

    def complete(self, first: Aggregate, more: FurtherSum) -> Aggregate:
        """Return the first sum."""
        del more
        return first


class AveragedUpdates(OneSum):
    """Clients train locally, and the server averages their updates; see `Rounds`."""

    def __init__(self, envelope: Envelope) -> None:
        self._envelope = envelope

    @property
    def layout(self) -> Layout:
        """What is summed."""
        return self._envelope.layout

    @property
    def resubmit(self) -> bool:
        """True: an update that is noised already is no new release."""
        return True

    def contribute(
        self, site: Site, state: GlobalState, *, lr: float, sketch: Sketch | None
    ) -> SegmentValues:
        """Return a client's update after local training."""
        return self._envelope.seal(site.train(state, lr=lr, sketch=sketch))

    def advance(
        self, state: GlobalState, aggregate: Aggregate, *, lr: float, sketch: Sketch | None
    ) -> GlobalState:
        """Return the state moved by the survivors' mean update."""
        del lr, sketch
        return fedavg(state, self._envelope.open_mean(aggregate))

    def loss(self, aggregate: Aggregate) -> float | None:
        """Return the survivors' mean loss of an example; None under privacy."""
        return self._envelope.open_loss(aggregate)

    def server_state(self) -> Parameters:
        """Return nothing: averaging has no memory."""
        return {}

    def take_up(self, state: GlobalState, server: Parameters) -> None:
        """Do nothing."""
