"""The points of the masking protocol a client can be at, with the secrets still needed there.

Answering a request consumes one state and makes the next, so a secret lives exactly as long as some
state names it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from secagg.dealing import HeldShares
from secagg.errors import WrongStage
from secagg.keys import AgreementKey
from secagg.latch import Latches
from secagg.params import RoundParams
from secagg.participant import SignedRequest
from secagg.secret import Secret
from secagg.views import Cohort, Sharers, Survivors


@dataclass(frozen=True, slots=True)
class Advertised:
    """Keys are out; waits for the cohort."""

    mask_key: AgreementKey
    share_key: AgreementKey

    def erase(self) -> None:
        """Nothing here can be overwritten; dropping the state drops the keys."""


@dataclass(frozen=True, slots=True)
class Dealt:
    """Shares are out; waits for those dealt to it. `read_keys` open them, by dealer."""

    cohort: Cohort
    mask_key: AgreementKey
    seed: Secret
    read_keys: dict[int, Secret]

    def erase(self) -> None:
        """Overwrites the seed and the reading keys."""
        self.seed.erase()
        for key in self.read_keys.values():
            key.erase()


@dataclass(frozen=True, slots=True)
class Collecting:
    """Everything is verified; waits for the caller's update."""

    cohort: Cohort
    mask_key: AgreementKey
    seed: Secret
    sharers: Sharers
    held: dict[int, HeldShares]
    request: bytes
    signed: SignedRequest

    def erase(self) -> None:
        """Overwrites the seed and the shares held for others."""
        _erase(self.seed, self.held)


@dataclass(frozen=True, slots=True)
class Uploaded:
    """The masked update is out and the mask key gone; waits for the survivors."""

    cohort: Cohort
    seed: Secret
    sharers: Sharers
    held: dict[int, HeldShares]
    upload: bytes

    def erase(self) -> None:
        """Overwrites the seed and the shares held for others."""
        _erase(self.seed, self.held)


@dataclass(frozen=True, slots=True)
class Confirmed:
    """One survivor list is signed; waits for a threshold of others to have signed it too."""

    cohort: Cohort
    seed: Secret
    sharers: Sharers
    held: dict[int, HeldShares]
    survivors: Survivors

    def erase(self) -> None:
        """Overwrites the seed and the shares held for others."""
        _erase(self.seed, self.held)


@dataclass(frozen=True, slots=True)
class Ended:
    """The round is over here, by its last reply or by a failure; no secret is left."""

    def erase(self) -> None:
        """Nothing to overwrite."""


State: TypeAlias = Advertised | Dealt | Collecting | Uploaded | Confirmed | Ended
S = TypeVar("S", Advertised, Dealt, Collecting, Uploaded, Confirmed)


class Round:
    """The running sequence: its parameters, where it stands, and what was answered."""

    def __init__(self, params: RoundParams, state: State, *, keep_replies: bool = True) -> None:
        self.params = params
        self.state = state
        self.latches = Latches(keep_replies=keep_replies)
        self.cohort: Cohort | None = None
        self.sharers: Sharers | None = None
        self.survivors: Survivors | None = None
        self._process = os.getpid()

    def expect(self, kind: type[S]) -> S:
        """The state, if it is of this kind.

        Raises:
            WrongStage: it is another, or these keys belong to the process this one was forked from,
                which may use them too.
        """
        if os.getpid() != self._process:
            raise WrongStage("this process was forked: only the one before it holds this round")
        if not isinstance(self.state, kind):
            raise WrongStage(f"request out of order: this client is {type(self.state).__name__}")
        return self.state

    def end(self) -> None:
        """Erases the secrets and the reply kept: nothing more is answered in this sequence."""
        self.state.erase()
        self.state = Ended()
        self.latches.forget_replies()


def _erase(seed: Secret, held: dict[int, HeldShares]) -> None:
    seed.erase()
    for shares in held.values():
        shares.erase()
