"""Epsilon of a ledger from its file alone, by two accountants: what a third party runs.

    python -m privacy.recompute client-000.jsonl ...
    python -m privacy.recompute --json client-000.jsonl

Nothing that the file says about epsilon is believed: the chain is verified, the charged events are
composed anew by dp-accounting (PLD) and by Opacus (PRV). Exit code 0 if every ledger verifies and
both accountants agree, 1 otherwise, 2 for wrong use. A ledger that is malformed, or that would keep
an accountant busy for long, does not verify (`privacy.history`). A torn last line, and a total above
the lifetime limit, are printed and leave the exit code as it is: figures can be trusted all the same.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from privacy.accountant import (
    PRV_EPSILON_ERROR,
    Accountant,
    EpsilonFigures,
    PLDAccountant,
    PRVAccountant,
    RDPAccountant,
    cross_checked,
    replace_one_epsilon,
)
from privacy.display import display_epsilon
from privacy.errors import AccountingError, PrivacyError
from privacy.events import Event, PrivacyUnit
from privacy.history import LedgerHistory, Verifier, read_ledger

_MOST_POINTS = 3e7  # of PRV's grid: two minutes and 5 GB
_PRV_SHARE = 1000  # Opacus sets delta / 1000 aside for PRV's own errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Recomputed:
    """What some charges of a ledger amount to.

    Attributes:
        run: Name of the run; None for all runs together.
        rounds: Charged rounds, interrupted and repeated ones included.
        steps: Charged steps.
        figures: Epsilon by two accountants; None where they disagree.
        disagreement: What they disagree about; empty where they agree.
    """

    run: str | None
    rounds: int
    steps: int
    figures: EpsilonFigures | None
    disagreement: str = ""

    @property
    def epsilon(self) -> float:
        """The figure of record, or infinity where there is none."""
        return float("inf") if self.figures is None else self.figures.epsilon


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerFigures:
    """A verified ledger and what was spent.

    Attributes:
        history: Its content.
        runs: Each run by itself, in order.
        total: All charges together: what was spent of the data holding's lifetime limit.
        replace_one: PLD epsilon of all charges under replace-one, a separate and larger figure.
    """

    history: LedgerHistory
    runs: tuple[Recomputed, ...]
    total: Recomputed
    replace_one: float


def recompute(
    path: Path, *, accountant: Accountant | None = None, verifier: Verifier | None = None
) -> LedgerFigures:
    """Verifies a ledger and recomputes what was spent, from the file and public keys only.

    Args:
        path: The ledger file; it is not changed.
        accountant: The accountant of record, PLD by default; share one object between ledgers.
        verifier: Checks signatures, if the ledger is signed.

    Raises:
        LedgerCorrupt: The file does not verify.
        OSError: It cannot be read.
    """
    accountant = PLDAccountant() if accountant is None else accountant
    history = read_ledger(path, verifier=verifier)
    delta = history.terms.delta
    events = history.events()
    return LedgerFigures(
        history=history,
        runs=tuple(
            figures_of(history.events(run), delta, accountant=accountant, run=run)
            for run in history.runs
        ),
        total=figures_of(events, delta, accountant=accountant),
        replace_one=replace_one_epsilon(events, delta, of_record=accountant),
    )


def figures_of(
    events: Sequence[Event], delta: float, *, accountant: Accountant, run: str | None = None
) -> Recomputed:
    """Epsilon of charged events by two accountants; a disagreement is reported, not raised."""
    steps = sum(event.steps for event in events)
    try:
        figures = cross_checked(events, delta, of_record=accountant, check=_PRVInReach())
    except AccountingError as error:
        return Recomputed(
            run=run, rounds=len(events), steps=steps, figures=None, disagreement=str(error)
        )
    return Recomputed(run=run, rounds=len(events), steps=steps, figures=figures)


class _PRVInReach:
    """PRV where it answers within minutes; its grid grows with epsilon and the root of all steps.

    A ledger that nobody honest wrote may ask for any grid. Beyond, RDP stands in, as where PRV fails.
    """

    def __init__(self) -> None:
        self._prv, self._rdp = PRVAccountant(), RDPAccountant()

    @property
    def name(self) -> str:
        return self._prv.name

    def epsilon(self, events: Sequence[Event], delta: float) -> float:
        share = delta / _PRV_SHARE
        steps = sum(event.steps for event in events)
        # as in Opacus: the domain reaches as far as RDP says, at a mesh that keeps the error
        reach = 2 * (self._rdp.epsilon(events, share / 4) + 3)
        mesh = PRV_EPSILON_ERROR / math.sqrt(max(1, steps) * math.log(12 / share) / 2)
        if not reach / mesh <= _MOST_POINTS:
            raise AccountingError(f"{self.name} would need {reach / mesh:.1g} points")
        return self._prv.epsilon(events, delta)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m privacy.recompute",
        description="Recompute epsilon from privacy ledgers alone, by two accountants.",
    )
    parser.add_argument("ledgers", nargs="+", type=Path, metavar="LEDGER")
    parser.add_argument("--json", action="store_true", help="print one JSON array")
    options = parser.parse_args(arguments)
    accountant = PLDAccountant()
    rows: list[dict[str, object]] = []
    failed = False
    for path in options.ledgers:
        try:
            result = recompute(path, accountant=accountant)
        except (PrivacyError, OSError) as error:
            rows.append({"ledger": str(path), "error": str(error)})
            failed = True
            continue
        parts = [*result.runs, result.total]
        failed = failed or any(part.disagreement for part in parts)
        rows.append(_as_json(path, result))
        if not options.json:
            _print(path, result)
    if options.json:
        print(json.dumps(rows, indent=2))
    for row in rows:
        if "error" in row:
            print(f"{row['ledger']}: {row['error']}", file=sys.stderr)
    return 1 if failed else 0


def _as_json(path: Path, result: LedgerFigures) -> dict[str, object]:
    return {
        "ledger": str(path),
        "terms": result.history.terms.to_record(),
        "integer_noise": result.history.integer_noise,
        "discretisation": result.history.discretisation,
        "claimed_delta": result.history.claimed_delta,
        "head": asdict(result.history.head),
        "torn_bytes": result.history.torn_bytes,
        "runs": [asdict(part) for part in result.runs],
        "total": asdict(result.total),
        "replace_one_epsilon": result.replace_one if math.isfinite(result.replace_one) else None,
    }


_COUNTED: Final = {PrivacyUnit.EXAMPLE: "examples", PrivacyUnit.CLIENT: "clients"}


def _print(path: Path, result: LedgerFigures) -> None:
    terms = result.history.terms
    print(
        f"{path}: {terms.holding}, about {terms.n_pub} {_COUNTED[terms.unit]}; epsilon at delta {terms.delta:g}, "
        f"{terms.relation.value} {terms.unit.value}, lifetime limit {terms.lifetime_epsilon:g}"
    )
    for part in (*result.runs, result.total):
        name = "all runs" if part.run is None else part.run
        spent = part.disagreement or _spent(part)
        over = part is result.total and math.inf > part.epsilon > terms.lifetime_epsilon
        limit = f"; OVER ITS LIMIT of {terms.lifetime_epsilon:g}" if over else ""
        print(f"  {name}: {part.rounds} rounds, {part.steps} steps, {spent}{limit}")
    replaced = display_epsilon(result.replace_one) if math.isfinite(result.replace_one) else "none"
    print(f"  replace-one (another relation): {replaced}")
    if result.history.integer_noise:
        print(
            f"  INTEGER NOISE is counted as Gaussian, which leaves out at most {result.history.discretisation:.1g} of "
            f"delta up to the lifetime limit: its claim is at delta {result.history.claimed_delta:g}; for replace-one "
            "nothing was set aside"
        )
    if result.history.torn_bytes:
        print(
            f"  TORN: the last {result.history.torn_bytes} bytes are half a record, which is not counted; the next "
            "writer cuts and books them"
        )


def _spent(part: Recomputed) -> str:
    figures = part.figures
    if figures is None:
        return "no figure"
    second = "" if figures.prv is None else f", PRV {display_epsilon(figures.prv, 4)}"
    return f"PLD {display_epsilon(figures.epsilon, 4)}{second}, cross-check {figures.cross_check}"


if __name__ == "__main__":
    sys.exit(main())
