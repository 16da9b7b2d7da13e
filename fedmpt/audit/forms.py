"""The forms of a run's files, as far as an audit reads them.

A value of another type, a field too few or a name that nobody could print is told as a finding, not met in the middle
of a comparison. Fields that no audit compares are left out; what private runs may not write is the manifest's.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeVar

import msgspec

from privacy import LedgerHead
from privacy.forms import is_name

_MOST: Final = 1 << 53  # a float holds it exactly
Count = Annotated[int, msgspec.Meta(ge=0, le=_MOST)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=_MOST)]
_Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]

T = TypeVar("T")


class Form(msgspec.Struct, frozen=True, kw_only=True):
    """An object of a run's JSON files; it may have more fields."""


class HeadForm(Form, frozen=True, kw_only=True):
    """What is remembered of a ledger."""

    count: Positive
    hash: _Digest

    def as_head(self) -> LedgerHead:
        """Return the head that this names."""
        return LedgerHead(self.count, self.hash)


class IndexRow(Form, frozen=True, kw_only=True):
    """One ledger in ``ledger.json``."""

    client: Count
    head: HeadForm


class Index(Form, frozen=True, kw_only=True):
    """``ledger.json``.

    Attributes:
        run: name under which the run is booked.
        folder: of the ledgers, from the run folder.
        carried: whether the folder outlives the run folder.
        clients: a row a ledger.
    """

    run: str
    folder: str
    carried: bool
    clients: tuple[IndexRow, ...]

    def __post_init__(self) -> None:
        for name in ("run", "folder"):
            if not is_name(getattr(self, name)):
                raise ValueError(f"{name} must be text without control characters")


class RoundLine(Form, frozen=True, kw_only=True):
    """A line of ``metrics.jsonl``; `fedmpt.engine.listener.RoundRecord` says what its fields are."""

    round: Count
    survivors: tuple[Count, ...]
    attempts: Positive
    epsilon_min: float | None
    epsilon_max: float | None


class ClientRow(Form, frozen=True, kw_only=True):
    """A client's account in ``summary.json``."""

    client: Count
    n_public: Count
    epsilon: float
    delta: float
    noise_multiplier: float
    sample_rate: float
    steps: Count
    rounds: Count
    lifetime_spent: float
    lifetime_epsilon: float
    ledger_head: HeadForm


class PrivacyClaim(Form, frozen=True, kw_only=True):
    """What ``summary.json`` says of privacy."""

    run: str | None
    enabled: bool
    target_epsilon: float | None
    delta: float | None
    unit: str
    noise: str
    protected: str
    against: str
    relation: str
    clients: tuple[ClientRow, ...]

    def rows_of(self, client: int) -> list[ClientRow]:
        """Return a client's rows; an honest summary has one."""
        return [row for row in self.clients if row.client == client]


class SecAggClaim(Form, frozen=True, kw_only=True):
    """What ``summary.json`` says of secure aggregation."""

    mode: str
    statement: str


class Summary(Form, frozen=True, kw_only=True):
    """``summary.json``."""

    rounds: Count
    clients: Count
    privacy: PrivacyClaim
    secagg: SecAggClaim


def formed(value: Any, form: type[T]) -> T:
    """Return a JSON value as its form.

    Raises:
        ValueError: it has another; the message names the place and says nothing of the value.
    """
    return msgspec.convert(value, form, strict=True)
