"""What a run tells whoever watches it: typed values, in the order in which they happen; docs/events.md lists them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fedmpt.engine.prepare import Progress
from fedmpt.metrics import Metrics
from fedmpt.runstore import ROUND_SCHEMA


@dataclass(frozen=True, kw_only=True, slots=True)
class Preview:
    """What a run is about to do; public but for ``data`` and ``protocol_digests``, which only a simulation knows.

    Attributes:
        method: name of the method and what it tunes.
        data: name and sizes of the data.
        protocol_digests: of all that the benchmark fixes, by name.
        backbone: name of the frozen CLIP.
        parameters: number of tunable values.
        clients: number of all clients.
        sizes: images of every client; declared sizes under DP, and none where a client is the unit of privacy.
        rounds: rounds of the run.
        cohort: clients in a round.
        alone: whether every client trains by itself, and nothing is averaged.
        local: the local optimiser in words.
        target_epsilon: None without privacy.
        delta: None without privacy.
        protected: what the guarantee protects, in words.
        against: whom it keeps out, in words.
        noise_multipliers: (smallest, largest) over clients.
        sample_rates: (smallest, largest) over clients.
        steps: (smallest, largest) number of noised steps of a client over the run.
        planned_epsilons: (smallest, largest) epsilon once all rounds are done.
        space: where gradients are clipped and noised.
        secagg: ``masking``, ``ckks`` or ``none``.
        statement: who could read what, in a sentence.
        tolerated: (threshold of clients without which a round aborts, colluders tolerated); None without masking.
        bytes_up: predicted upload of a client in a round, on average over the cohort.
        bytes_down: predicted download of a client in a round, on average, protocol only.
        setup_bytes: most bytes a client (sent, received) to share the CKKS key, once; None in other modes.
        folder: the run folder.
    """

    method: str
    data: str
    protocol_digests: dict[str, str]
    backbone: str
    parameters: int
    clients: int
    sizes: tuple[int, ...]
    rounds: int
    cohort: int
    alone: bool
    local: str
    target_epsilon: float | None
    delta: float | None
    protected: str
    against: str
    noise_multipliers: tuple[float, float] | None
    sample_rates: tuple[float, float] | None
    steps: tuple[int, int] | None
    planned_epsilons: tuple[float, float] | None
    space: str | None
    secagg: str
    statement: str
    tolerated: tuple[int, int] | None
    bytes_up: float
    bytes_down: float
    setup_bytes: tuple[int, int] | None
    folder: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundRecord:
    """One line of ``metrics.jsonl``. Round 0 is the frozen CLIP.

    Attributes:
        round: rounds done.
        rounds: rounds in all.
        metrics: of the global model on the test split; the mean over clients where each has its own. None where the
            round was not evaluated.
        shared: of the shared blocks alone, where clients have blocks of their own beside them.
        by_client: mAP, CF1 and OF1 of every client's own model, where each has one.
        survivors: clients whose updates are in the sum.
        dropped: clients of the cohort that vanished, with the stage they missed.
        attempts: tries the round took; 1 unless too many clients vanished.
        epsilon: (smallest, largest) spent so far over clients that took part; None without privacy.
        train_loss: mean loss of an example over survivors; None under privacy, where it must not leave a client.
        clipped: share of coordinates that the encoder clipped.
        bytes_up: bytes a surviving client sent, on average.
        seconds: by phase: ``train``, ``secagg``, ``evaluate``.
    """

    round: int
    rounds: int
    metrics: Metrics | None
    shared: Metrics | None = None
    by_client: tuple[tuple[float, float, float], ...] = ()
    survivors: tuple[int, ...] = ()
    dropped: tuple[tuple[int, str], ...] = ()
    attempts: int = 1
    epsilon: tuple[float, float] | None = None
    train_loss: float | None = None
    clipped: float = 0.0
    bytes_up: float = 0.0
    seconds: tuple[tuple[str, float], ...] = ()

    def as_dict(self) -> dict[str, object]:
        """Return a line of ``metrics.jsonl``, as docs/events.md has it; without metrics where none were taken."""
        return {
            "schema": ROUND_SCHEMA,
            "round": self.round,
            **(self.metrics.as_dict() if self.metrics is not None else {}),
            "mAP_shared": self.shared.mAP if self.shared else None,
            "mAP_clients": [figures[0] for figures in self.by_client] or None,
            "survivors": list(self.survivors),
            "dropped": [{"client": client, "stage": stage} for client, stage in self.dropped],
            "attempts": self.attempts,
            "epsilon_min": self.epsilon[0] if self.epsilon else None,
            "epsilon_max": self.epsilon[1] if self.epsilon else None,
            "train_loss": self.train_loss,
            "clipped": self.clipped,
            "bytes_up_per_client": self.bytes_up,
            "seconds": dict(self.seconds),
        }


class Listener(Progress, Protocol):
    """Watches a run; must not change it."""

    def preview(self, preview: Preview) -> None:
        """Everything is ready; training comes next."""
        ...

    def round_done(self, record: RoundRecord) -> None:
        """A round is on disk; one that only turned out to be the last is told again once it is evaluated."""
        ...

    def warning(self, text: str) -> None:
        """Something the user should know."""
        ...


class Several:
    """A listener that tells others, in their order."""

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = listeners

    def progress(self, label: str, done: int, total: int) -> None:
        """See `Listener`."""
        for one in self._listeners:
            one.progress(label, done, total)

    def preview(self, preview: Preview) -> None:
        """See `Listener`."""
        for one in self._listeners:
            one.preview(preview)

    def round_done(self, record: RoundRecord) -> None:
        """See `Listener`."""
        for one in self._listeners:
            one.round_done(record)

    def warning(self, text: str) -> None:
        """See `Listener`."""
        for one in self._listeners:
            one.warning(text)
