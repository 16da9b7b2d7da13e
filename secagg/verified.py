"""What the signatures in public logs prove: of a round, of a key set-up, of a whole run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from secagg.ckks_presets import SharedKey, preset_of
from secagg.ckks_terms import KeyTerms
from secagg.params import KeyedParams, Mode, RoundParams
from secagg.participant import SignedRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifiedRound:
    """What the signatures of one round's log prove; all ids ascending.

    Attributes:
        params: the parameters that the coordinator signed.
        requests: what the coordinator signed, stage by stage.
        cohort: clients that advertised keys; in plain and CKKS mode those that uploaded.
        sharers: clients that dealt shares; in plain and CKKS mode those that uploaded.
        uploads: {client whose upload the sum is over: the upload's digest, which it signed}.
        confirmed: clients that signed this very list of survivors; in plain mode, and in CKKS
            without verified sums, none.
        revealed: clients that opened shares for it, or in CKKS decrypted; none in plain mode.
        threshold: t, confirmations needed, and in masking reveals; 0 where nobody confirms.
        passed_over: in CKKS, clients whose turn to decrypt was before that of one that did, and
            whose answer is not in the log.
        sums: in CKKS, SHA-256 of the packed sums that the decryptors signed.
    """

    params: RoundParams
    requests: tuple[SignedRequest, ...]
    cohort: tuple[int, ...]
    sharers: tuple[int, ...]
    uploads: Mapping[int, bytes]
    confirmed: tuple[int, ...] = ()
    revealed: tuple[int, ...] = ()
    threshold: int = 0
    passed_over: tuple[int, ...] = ()
    sums: bytes = b""

    @property
    def run_id(self) -> bytes:
        """Of the run."""
        return self.params.run_id

    @property
    def sequence(self) -> int:
        """Of the round."""
        return self.params.sequence

    @property
    def survivors(self) -> tuple[int, ...]:
        """The clients that the sum is over."""
        return tuple(self.uploads)

    def describe(self) -> str:
        """One line in plain words."""
        params, invited = self.params, self.params.invited_count
        head = f"sequence {self.sequence}, {params.mode.name.lower()}"
        if params.mode is Mode.PLAIN:
            return (
                f"{head}: {len(self.survivors)} of {invited} invited clients are in the sum; the "
                "server saw every update"
            )
        if isinstance(params, KeyedParams):
            return f"{head}: {self._describe_keyed(params)}"
        degree, window = params.graph_degree, params.graph_window
        ring = f"; ring of degree {degree}, window {window} or more" if degree else ""
        return (
            f"{head}: of {invited} invited clients {len(self.cohort)} advertised keys, "
            f"{len(self.sharers)} dealt shares, {len(self.survivors)} are in the sum; "
            f"{len(self.confirmed)} confirmed this list and {len(self.revealed)} opened shares for "
            f"it ({self.threshold} needed, {params.colluders} colluders tolerated){ring}"
        )

    def _describe_keyed(self, params: KeyedParams) -> str:
        passed = (
            f" ({listed(self.passed_over)}, whose turn was before, gave no answer that is logged)"
            if self.passed_over
            else ""
        )
        checked = (
            f"{len(self.confirmed)} confirmed this list ({self.threshold} needed), and decryptors "
            "are to add up the uploads themselves"
            if params.verify_sum
            else "that what they decrypted is this sum is the server's word"
        )
        return (
            f"{len(self.survivors)} of {params.invited_count} invited clients are in the sum, "
            f"encrypted under the key {params.shared_key.fingerprint.hex()[:16]}; clients "
            f"{listed(self.revealed)} decrypted it{passed} and signed the same integers; {checked}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifiedKeySetup:
    """What the signatures of a CKKS key set-up's log prove; ids ascending.

    Attributes:
        terms: the terms that the coordinator signed.
        requests: what the coordinator signed, stage by stage.
        key: preset and fingerprint that the leader signed.
        members: clients that the key was sealed to; the first, the leader, made it.
        holders: members that acknowledged it.
    """

    terms: KeyTerms
    requests: tuple[SignedRequest, ...]
    key: SharedKey
    members: tuple[int, ...]
    holders: tuple[int, ...]

    @property
    def run_id(self) -> bytes:
        """Of the run."""
        return self.terms.run_id

    @property
    def sequence(self) -> int:
        """Of the set-up, which counts like a round."""
        return self.terms.sequence

    def describe(self) -> str:
        """One line in plain words."""
        return (
            f"sequence {self.sequence}, ckks key set-up: client {self.members[0]} made the key "
            f"{self.key.fingerprint.hex()[:16]} ({preset_of(self.key.preset).name}) for the "
            f"{len(self.members)} clients {listed(self.members)}, and {len(self.holders)} "
            "acknowledged it; each of them can read every update that it intercepts"
        )


Verified: TypeAlias = VerifiedRound | VerifiedKeySetup


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifiedRun:
    """The verified logs of one run.

    Attributes:
        rounds: in order of sequence.
        setups: of CKKS keys, in order of sequence.
        missing: sequences between the first and the last without a log: attempts that aborted, or
            rounds whose logs are withheld, which nobody can tell apart from here.
    """

    rounds: tuple[VerifiedRound, ...]
    setups: tuple[VerifiedKeySetup, ...]
    missing: tuple[int, ...]


def listed(clients: tuple[int, ...]) -> str:
    """Ids as people read them."""
    return ", ".join(map(str, clients))
