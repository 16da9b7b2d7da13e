"""The server's side of the in-process engine: roster, sessions and the aggregation of a round.

Keys come from the operating system and live for one process: a resumed run has new ones, and a new roster. Simulated
drop-outs come from the experiment seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from fedmpt.config import SecAggConfig
from fedmpt.protect import MODES, LedgeredSession
from fedmpt.runstore import storing, write_whole
from fedmpt.seeds import generator
from fedmpt.types import ClientId
from secagg import (
    Aggregate,
    Identity,
    KeyEpoch,
    Layout,
    Mode,
    Policy,
    RoundAborted,
    RoundParams,
    SignatureCache,
    SigningKey,
    new_run_id,
    open_client,
    open_key_setup,
    open_server,
    run_key_setup,
    run_round,
    statement,
)
from secagg import Roster as MemberRoster
from secagg import Update as SegmentValues
from secagg.errors import MarginExceeded

ATTEMPTS: Final = 3  # a round whose clients vanish is tried this often, each time with fresh keys
_STAGES: Final = ("advertise", "share", "upload", "confirm", "reveal")


class Aggregation:
    """Sums the updates of a run's clients, round by round, under one roster."""

    def __init__(
        self,
        *,
        config: SecAggConfig,
        clients: int,
        layout: Layout,
        private: bool,
        marks: Path,
        cohort: int,
    ) -> None:
        """Create identities, roster and sessions and, for CKKS, the clients' shared key.

        Args:
            config: how updates are protected.
            clients: number of clients.
            layout: what is summed.
            private: whether updates are differentially private.
            marks: folder of the clients' durable one-shot marks.
            cohort: clients of a round: what clients insist on in masked rounds follows from it, not from how many the
                server invites.

        Raises:
            secagg.ConfigurationError: the CKKS preset cannot add up so many clients.
        """
        self.mode: Mode = MODES[config.mode]
        self.statement = statement(self.mode, verify_sum=config.ckks_verify)
        self.key_epoch: KeyEpoch | None = None
        self._verify_sum = config.ckks_verify
        self._layout = layout
        self._coordinator = SigningKey.generate()
        identities = [Identity.generate(client) for client in range(clients)]
        self.roster = MemberRoster(
            version=1,
            coordinator=self._coordinator.public,
            members=tuple(identity.member() for identity in identities),
        )
        self._policy = _policy(self.mode, layout, cohort=cohort, private=private, config=config)
        self._run_id = new_run_id()
        self._sequence = 0
        self._cache = SignatureCache()  # all clients live in this process; none may see another's
        with storing(marks):
            marks.mkdir(exist_ok=True)
        self.sessions = {
            ClientId(identity.id): LedgeredSession(
                open_client(
                    self.mode,
                    identity=identity,
                    roster=self.roster,
                    policy=self._policy,
                    save=partial(write_whole, marks / f"client-{identity.id:03d}"),
                    saved=_saved(marks / f"client-{identity.id:03d}"),
                    signature_cache=self._cache,
                    keep_replies=False,
                )
            )
            for identity in identities
        }
        if self.mode is Mode.CKKS:
            self.key_epoch = self._share_key(config.ckks_preset)

    def _share_key(self, preset: str | None) -> KeyEpoch:
        """Let the clients agree on a key; it takes a sequence number of the run."""
        self._sequence += 1
        server = open_key_setup(
            coordinator=self._coordinator,
            roster=self.roster,
            run_id=self._run_id,
            sequence=self._sequence,
            preset=preset,
            signature_cache=self._cache,
        )
        return run_key_setup(
            server, {int(client): session for client, session in self.sessions.items()}
        )

    @property
    def least(self) -> int:
        """Clients of a round without which there is no sum."""
        return max(self._policy.n_min, self._policy.survivors_min)

    def parameters(
        self, cohort: tuple[ClientId, ...], context: bytes, sequence: int
    ) -> RoundParams:
        """Return the public parameters of a round."""
        return RoundParams.for_round(
            mode=self.mode,
            roster=self.roster,
            layout=self._layout,
            context=context,
            sequence=sequence,
            run_id=self._run_id,
            invited=cohort,
            n_min=self._policy.n_min,
            survivors_min=self._policy.survivors_min,
            colluders=self._policy.colluders,
            shared_key=None if self.key_epoch is None else self.key_epoch.key,
            verify_sum=self._verify_sum,
        )

    def run(
        self,
        cohort: tuple[ClientId, ...],
        contribute: Callable[[ClientId], SegmentValues | None],
        *,
        resubmit: bool,
        context: bytes,
        lost: Callable[[int], Mapping[int, str]],
    ) -> tuple[Aggregate, int]:
        """Aggregate one round; a round that aborts is tried again with fresh keys.

        Args:
            cohort: the clients asked.
            contribute: called when a client's session wants its values; None if it has none to give.
            resubmit: whether a client sends the same values again in a further attempt. Under local DP that is no new
                release; with noise shares it would be a leak, so each attempt asks anew.
            context: digest of model and plan.
            lost: for an attempt (1 for the first), the clients that vanish and the stage they miss.

        Returns:
            The aggregate, and the attempts it took.

        Raises:
            MarginExceeded: a decrypted sum was off the grid; the key must not be used again.
            RoundAborted: too few clients were left in every attempt.
        """
        kept: dict[int, SegmentValues | None] = {}

        def values(client: int) -> SegmentValues | None:
            if client not in kept or not resubmit:
                kept[client] = contribute(ClientId(client))
            return kept[client]

        sessions = {int(client): self.sessions[client] for client in cohort}
        for attempt in range(1, ATTEMPTS + 1):
            self._sequence += 1
            server = open_server(
                self.parameters(cohort, context, self._sequence),
                coordinator=self._coordinator,
                roster=self.roster,
                signature_cache=self._cache,
            )
            try:
                aggregate = run_round(server, sessions, values, context=context, lost=lost(attempt))
            except MarginExceeded:  # says something about the key: the run stops here
                raise
            except RoundAborted:
                if attempt == ATTEMPTS:
                    raise
            else:
                return aggregate, attempt
        raise AssertionError("unreachable")


def _saved(mark: Path) -> bytes:
    """Return a client's marks of earlier stretches of the run; they stay, whatever keys it has now."""
    return mark.read_bytes() if mark.exists() else b""


def _policy(
    mode: Mode, layout: Layout, *, cohort: int, private: bool, config: SecAggConfig
) -> Policy:
    """Return the floors of every client of the run."""
    match mode:
        case Mode.MASKING:
            return Policy.masking(layout, cohort=cohort, allow_sensitive=not private)
        case Mode.CKKS:
            return Policy.ckks(layout, allow_sensitive=not private, verify_sum=config.ckks_verify)
        case Mode.PLAIN:
            return Policy.plain(layout, allow_sensitive=not private)


def simulated_losses(
    cohort: tuple[ClientId, ...], *, probability: float, seed: int, round_number: int, attempt: int
) -> dict[int, str]:
    """Draw which clients vanish in a round, and at which stage, from the experiment seed."""
    random = generator(seed, "dropout", round_number, attempt)
    return {
        int(client): _STAGES[int(random.integers(len(_STAGES)))]
        for client in cohort
        if random.random() < probability
    }
