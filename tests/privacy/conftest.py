from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from privacy import DPPlan, Ledger, LedgerTerms, PLDAccountant

REFERENCE = DPPlan(
    n_pub=250,
    target_epsilon=8.0,
    delta=1e-5,
    sample_rate=0.128,
    noise_multiplier=2.317,
    max_grad_norm=1.0,
    steps_per_round=8,
    rounds=100,
)


@pytest.fixture(scope="session")
def accountant() -> PLDAccountant:
    """One accountant for all tests: it remembers compositions."""
    return PLDAccountant()


@pytest.fixture(scope="session")
def plan_with() -> Callable[..., DPPlan]:
    """The reference plan, with some fields replaced."""

    def make(**changes: object) -> DPPlan:
        return replace(REFERENCE, **changes)  # type: ignore[arg-type]

    return make


@pytest.fixture
def terms() -> LedgerTerms:
    return LedgerTerms(holding="ward-7", n_pub=250, delta=1e-5, lifetime_epsilon=20.0)


@pytest.fixture
def ledger_path(tmp_path: Path) -> Path:
    return tmp_path / "ward-7.jsonl"


@pytest.fixture
def ledger(ledger_path: Path, terms: LedgerTerms) -> Iterator[Ledger]:
    with Ledger(ledger_path, terms=terms) as opened:
        yield opened
