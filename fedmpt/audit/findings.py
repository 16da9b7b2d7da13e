"""What an audit says about a run: findings that break a promise, and the values it read."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from privacy import LedgerHead


class Kind(StrEnum):
    """What is wrong; each kind has a test that plants it."""

    UNREADABLE = "unreadable"  # a file of the run that is not as any run writes it
    LEDGER_MISSING = "ledger-missing"
    LEDGER_BROKEN = (
        "ledger-broken"  # a line edited, removed or moved; a story that contradicts itself
    )
    LEDGER_TRUNCATED = (
        "ledger-truncated"  # it ends in a torn line, or before what the run remembers
    )
    LEDGER_REPLACED = (
        "ledger-replaced"  # a chain that verifies, but is not the one the run remembers
    )
    ACCOUNTANTS_DISAGREE = "accountants-disagree"
    OVER_BUDGET = "over-budget"
    WRONG_FIGURE = (
        "wrong-figure"  # summary, metrics, card or closing record differ from the recomputation
    )
    UPLOAD_WITHOUT_CHARGE = "upload-without-charge"
    SECOND_UPLOAD = "second-upload"  # more uploads for a charge than it covers: with shares of noise, more than one
    FORBIDDEN_VALUE = "forbidden-value"  # a number that privacy forbids to leave a client
    CONTRADICTION = (
        "contradiction"  # configuration, plans, summary, card and public logs say different things
    )
    TRANSCRIPT = "transcript"  # a recorded secure-aggregation round does not verify


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One broken promise.

    Attributes:
        kind: what is wrong.
        where: file, and client or round.
        what: the value found and the value expected.
    """

    kind: Kind
    where: str
    what: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """One message of a client that its ledger books as released.

    Attributes:
        client: who sent it.
        round: in which round, from 1.
        attempt: under which charge of that round, 0 for the first.
        sha256: digest of the bytes as sent.
        sample_rate: of the charged event.
        noise_multiplier: of the charged event.
        steps: of the charged event.
    """

    client: int
    round: int
    attempt: int
    sha256: str
    sample_rate: float
    noise_multiplier: float
    steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """What one client spent, recomputed from its ledger.

    Attributes:
        client: which client.
        holding: public name of its data.
        n_public: declared size.
        epsilon: spent in this run, by the accountant of record.
        epsilon_check: the same by the second accountant; None where it gave no figure.
        target: limit of the run.
        total: spent over all runs on this ledger.
        lifetime: limit over all runs.
        delta: of all figures, as the ledger has it.
        claimed_delta: of the claim that is proven: larger than ``delta``, where a part is set aside for integer noise.
        replace_one: spent over all runs under replace-one, another and larger figure.
        noise_multiplier: of the run's plan.
        sample_rate: of the run's plan.
        steps: charged steps of this run.
        rounds: charged rounds of this run, repeated ones included.
        rounds_unsent: charged rounds of this run whose update was never sent; spent all the same.
        rounds_refused: refusals of this run.
        rounds_left: further rounds of the plan that both limits would admit.
        head: records and last hash of the ledger.
    """

    client: int
    holding: str
    n_public: int
    epsilon: float
    epsilon_check: float | None
    target: float
    total: float
    lifetime: float
    delta: float
    claimed_delta: float
    replace_one: float
    noise_multiplier: float
    sample_rate: float
    steps: int
    rounds: int
    rounds_unsent: int
    rounds_refused: int
    rounds_left: int
    head: LedgerHead
