"""One round of secure aggregation as the benchmarks measure it, whichever system runs it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

Inputs = Mapping[int, np.ndarray]
"""{client: float32 [length], within the clip}."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is run.

    Attributes:
        clients: number of clients, numbered from 0.
        length: values of each client.
        lost: {client: the stage it does not answer any more}, in the words of each system.
        shares: clients that hold a share of each secret, its owner included (Flower's parameter); None means all.
        threshold: shares that open a secret (Flower's parameter; ours is computed by the clients).
        colluders: clients assumed to help the server (our parameter); None means just under a third.
        degree: neighbours of each client in a sparse graph (our parameter), and the least survivors in a window.
        clip: bound of the values.
    """

    clients: int
    length: int
    lost: Mapping[int, str] = field(default_factory=dict)
    shares: int | None = None
    threshold: int | None = None
    colluders: int | None = None
    degree: tuple[int, int] | None = None
    clip: float = 1.0

    def inputs(self, seed: int) -> Inputs:
        """The same vectors for both systems, uniform in [-1, 1]."""
        random = np.random.default_rng(seed)
        return {
            client: random.uniform(-1, 1, self.length).astype(np.float32)
            for client in range(self.clients)
        }


@dataclass(frozen=True)
class Span:
    """Seconds of processor time of the process, all threads, and of wall time."""

    cpu: float = 0.0
    wall: float = 0.0

    def __add__(self, other: Span) -> Span:
        return Span(self.cpu + other.cpu, self.wall + other.wall)

    def __sub__(self, other: Span) -> Span:
        return Span(self.cpu - other.cpu, self.wall - other.wall)


def total(spans: Iterable[Span]) -> Span:
    """The sum of several spans."""
    return sum(spans, start=Span())


def now() -> Span:
    """Both clocks."""
    return Span(time.process_time(), time.perf_counter())


class Clock:
    """Adds up the time spent under each key."""

    def __init__(self) -> None:
        self.spans: dict[Any, Span] = {}

    @contextmanager
    def on(self, key: Any) -> Iterator[None]:
        """Time what runs inside, also when it raises."""
        start = now()
        try:
            yield
        finally:
            self.spans[key] = self.spans.get(key, Span()) + (now() - start)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one round cost and gave.

    Attributes:
        masking: by client, from the request to upload to the upload ready to send, training excluded.
        clients: all clients, all stages.
        server: all of it.
        after: the server from the moment the last upload is there.
        up: bytes by client that sent an upload, all stages.
        error: largest difference of the mean from that of the survivors' inputs in float64; None without a result.
        survivors: whose values are in the mean.
    """

    masking: Mapping[int, Span]
    clients: Span
    server: Span
    after: Span
    up: Mapping[int, int]
    error: float | None
    survivors: tuple[int, ...]

    @property
    def client(self) -> Span:
        """The masking stage of the client in the middle."""
        return Span(
            median(span.cpu for span in self.masking.values()),
            median(span.wall for span in self.masking.values()),
        )

    @property
    def round(self) -> Span:
        """Server and all clients."""
        return self.clients + self.server


def error_of(mean: np.ndarray, inputs: Inputs, survivors: Iterable[int]) -> float:
    """Largest difference of `mean` from the mean in float64 of the survivors' inputs."""
    exact = np.mean([inputs[client].astype(np.float64) for client in survivors], axis=0)
    return float(np.abs(mean - exact).max())


Runner = Callable[[Case, Inputs], Measured]
