"""A round of FedAWA under secure aggregation: four sums in place of one, over the same clients.

The server sees weighted means of updates, of directions and of slopes, and the total weight; no update, no weight.
Three means over one set of clients tell it more than federated averaging does: with few clients, use it with
differential privacy, where everything a client contributes here is post-processing of a noised update.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np

from fedmpt.engine.adaptive_client import AdaptiveClient
from fedmpt.engine.rounds import AveragedUpdates, FurtherSum
from fedmpt.engine.sites import Site
from fedmpt.errors import RunError
from fedmpt.methods.base import Parameters
from fedmpt.protect import Envelope
from fedmpt.strategy.fedawa import LARGEST_WEIGHT, SLOPE_UNIT
from fedmpt.types import ClientId, GlobalState, Update
from privacy.sketch import Sketch
from secagg import Aggregate, Layout
from secagg import Update as SegmentValues

SUMS_OF_A_ROUND: Final = 4


def sums_of_a_round(method: str) -> int:
    """Return how many sums a round of the method of this name takes, and so how many uploads it has of a client."""
    return SUMS_OF_A_ROUND if method == "fedawa" else 1


class AdaptiveUpdates:
    """Clients train locally, and their updates are averaged with weights that adapt; see `Rounds`.

    Clients that vanish during the first sum are out of the round. Should one vanish later, the remaining sums are over
    those that are left: weights are then slightly off, the mean is still a proper one.
    """

    def __init__(self, envelope: Envelope) -> None:
        """Start a run's rounds; the envelope's largest weight is `LARGEST_WEIGHT`."""
        if envelope.largest_weight != LARGEST_WEIGHT:
            raise ValueError(f"largest_weight {envelope.largest_weight}: must be {LARGEST_WEIGHT}")
        self._averaged = AveragedUpdates(envelope)
        self._envelope = envelope
        self._clients: dict[ClientId, AdaptiveClient] = {}

    @property
    def layout(self) -> Layout:
        """What is summed."""
        return self._averaged.layout

    @property
    def sums(self) -> int:
        """Four."""
        return SUMS_OF_A_ROUND

    @property
    def resubmit(self) -> bool:
        """True: an update that is noised already is no new release."""
        return True

    def contribute(
        self, site: Site, state: GlobalState, *, lr: float, sketch: Sketch | None
    ) -> SegmentValues:
        """Return a client's update after local training, with its current weight."""
        if site.adaptive is None:
            raise RunError(f"client {site.client} has no adaptive weight")
        self._clients[site.client] = site.adaptive
        update = site.train(state, lr=lr, sketch=sketch)
        return self._envelope.seal(site.adaptive.first(update, state))

    def complete(self, first: Aggregate, more: FurtherSum) -> Aggregate:
        """Make the other three sums and return the last, whose mean is FedAWA's, with the bytes of all four."""
        aggregates = [first]

        def go_on(answer: Callable[[AdaptiveClient], Update], broadcast: bytes) -> Aggregate:
            survivors = tuple(ClientId(client) for client in aggregates[-1].survivors)
            aggregate = more(
                survivors,
                lambda client: self._envelope.seal(answer(self._clients[client])),
                bytes([len(aggregates)]) + broadcast,
            )
            aggregates.append(aggregate)
            return aggregate

        mean = self._envelope.open_mean(first)
        directions = go_on(lambda client: client.second(mean), mean.tobytes())
        pull = self._envelope.open_mean(directions)
        slopes = go_on(lambda client: client.third(pull), pull.tobytes())
        level = float(self._envelope.open_mean(slopes).mean(dtype=np.float64)) * SLOPE_UNIT
        total = int(first.sums["weight"][0])
        last = go_on(lambda client: client.fourth(level, total), f"{level!r} {total}".encode())
        sent = {
            client: sum(aggregate.bytes_up[client] for aggregate in aggregates)
            for client in last.survivors
        }
        return replace(last, bytes_up=sent, dropped=first.dropped)

    def advance(
        self, state: GlobalState, aggregate: Aggregate, *, lr: float, sketch: Sketch | None
    ) -> GlobalState:
        """Return the state moved by the last sum's mean."""
        return self._averaged.advance(state, aggregate, lr=lr, sketch=sketch)

    def loss(self, aggregate: Aggregate) -> float | None:
        """Return the survivors' mean loss of an example; None under privacy."""
        return self._averaged.loss(aggregate)

    def server_state(self) -> Parameters:
        """Return nothing: what adapts is the clients'."""
        return {}

    def take_up(self, state: GlobalState, server: Parameters) -> None:
        """Do nothing."""
