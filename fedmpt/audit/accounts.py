"""One client's ledger against what the run says of it.

Nothing that the run folder says about privacy is believed: epsilon is recomputed from charged events, and what was
sent is what the server says it summed. Every record has the fields that ``privacy.forms`` demands of its kind, with
their types and ranges: a ledger with any other was refused when it was read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmpt.audit.figures import same, same_epsilon
from fedmpt.audit.findings import Account, Finding, Kind, Upload
from fedmpt.audit.forms import ClientRow
from fedmpt.audit.records import RunRecords
from fedmpt.engine.adaptive import sums_of_a_round
from fedmpt.engine.aggregation import ATTEMPTS
from fedmpt.engine.ledgers import file_name
from privacy import (
    DPPlan,
    LedgerError,
    LedgerHead,
    LedgerHistory,
    LedgerRolledBack,
    NoiseMode,
    PLDAccountant,
    display_epsilon,
    read_ledger,
    replace_one_epsilon,
)
from privacy.budget import rounds_that_fit
from privacy.events import Event
from privacy.recompute import Recomputed, figures_of


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientAudit:
    """What one ledger gave.

    Attributes:
        account: what was spent; None where the ledger cannot be read.
        plans: that it charged in this run, in order; an honest run has one.
        epsilons: spent in this run as of each round of ``metrics.jsonl``.
        uploads: what it books as sent in this run.
        findings: what is wrong.
    """

    account: Account | None
    uploads: tuple[Upload, ...]
    findings: tuple[Finding, ...]
    plans: tuple[DPPlan, ...] = ()
    epsilons: Mapping[int, float] = field(default_factory=dict)


def audit_client(client: int, records: RunRecords, accountant: PLDAccountant) -> ClientAudit:
    """Verify one client's ledger and compare the run's records with it."""
    path = records.ledgers / file_name(client)
    try:
        history = read_ledger(path)
    except FileNotFoundError:
        missing = Finding(
            kind=Kind.LEDGER_MISSING,
            where=str(path),
            what=f"client {client} took part and has no ledger; what it spent is unknown",
        )
        return ClientAudit(account=None, uploads=(), findings=(missing,))
    except (LedgerError, OSError) as error:
        broken = Finding(kind=Kind.LEDGER_BROKEN, where=str(path), what=str(error))
        return ClientAudit(account=None, uploads=(), findings=(broken,))
    assert records.index is not None  # noqa: S101 -- without an index no client is audited
    return _ClientLedger(client, path, history, records.index.run, records).audit(accountant)


class _ClientLedger:
    """A ledger that verifies, beside the run's records."""

    def __init__(
        self, client: int, path: Path, history: LedgerHistory, run: str, records: RunRecords
    ) -> None:
        self._client = client
        self._path = path
        self._history = history
        self._run = run
        self._records = records
        self._mine = [r for r in history.records if r.get("run") == run]
        self._releases = [r for r in self._mine if r["kind"] == "release"]
        self._plans = [DPPlan.from_record(r["plan"]) for r in self._mine if r["kind"] == "plan"]
        self._events = history.events(run)
        self._findings: list[Finding] = []

    def audit(self, accountant: PLDAccountant) -> ClientAudit:
        delta = self._history.terms.delta
        run = figures_of(self._events, delta, accountant=accountant, run=self._run)
        total = figures_of(self._history.events(), delta, accountant=accountant)
        self._check_figures(run, total)
        self._check_end()
        self._check_uploads()
        account = None
        if not self._plans:
            self._find(Kind.CONTRADICTION, f"no plan of run {self._run}; another run's ledger?")
        else:
            account = self._account(self._plans[-1], run, total, accountant)
            self._check_limits(account)
            self._check_summary(account, accountant)
        return ClientAudit(
            account=account,
            uploads=tuple(self._uploads()),
            findings=tuple(self._findings),
            plans=tuple(dict.fromkeys(self._plans)),
            epsilons=self._epsilons(accountant),
        )

    def _account(
        self,
        plan: DPPlan,
        run: Recomputed,
        total: Recomputed,
        accountant: PLDAccountant,
    ) -> Account:
        terms = self._history.terms
        sent = {(r["round"], r["attempt"]) for r in self._releases}
        rounds_left = 0
        if self._events:
            rounds_left = rounds_that_fit(
                self._events[-1],
                [
                    (self._events, plan.target_epsilon),
                    (self._history.events(), terms.lifetime_epsilon),
                ],
                delta=terms.delta,
                accountant=accountant,
                at_most=plan.rounds,
            )
        return Account(
            client=self._client,
            holding=terms.holding,
            n_public=terms.n_pub,
            epsilon=run.epsilon,
            epsilon_check=run.figures.prv if run.figures is not None else None,
            target=plan.target_epsilon,
            total=total.epsilon,
            lifetime=terms.lifetime_epsilon,
            delta=terms.delta,
            claimed_delta=self._history.claimed_delta,
            replace_one=replace_one_epsilon(
                self._history.events(), terms.delta, of_record=accountant
            ),
            noise_multiplier=plan.noise_multiplier,
            sample_rate=plan.sample_rate,
            steps=run.steps,
            rounds=run.rounds,
            rounds_unsent=sum((c.round, c.attempt) not in sent for c in self._charges()),
            rounds_refused=sum(r["kind"] == "refuse" for r in self._mine),
            rounds_left=rounds_left,
            head=self._history.head,
        )

    def _epsilons(self, accountant: PLDAccountant) -> dict[int, float]:
        """Return what was spent as of each round; a round that was charged and not done is of the one it came in."""
        delta = self._history.terms.delta
        return {
            line.round: accountant.epsilon(
                tuple(charge.event for charge in self._charges() if charge.round <= line.round),
                delta,
            )
            for line in self._records.lines
        }

    def _check_figures(self, run: Recomputed, total: Recomputed) -> None:
        for part in {run.disagreement, total.disagreement} - {""}:
            self._find(Kind.ACCOUNTANTS_DISAGREE, part)
        for record in self._mine:
            if record["kind"] == "close" and not same_epsilon(record["epsilon"], run.epsilon):
                self._find(
                    Kind.WRONG_FIGURE,
                    f"its closing record says epsilon {record['epsilon']}, its charges give {run.epsilon:.6f}",
                )

    def _check_end(self) -> None:
        """The file must go on from every head that the run folder remembers."""
        if self._history.torn_bytes:
            self._find(
                Kind.LEDGER_TRUNCATED,
                f"its last {self._history.torn_bytes} bytes are half a record; the next writer cuts and books them",
            )
        for source, head in self._remembered():
            try:
                self._history.require_head(head)
            except LedgerRolledBack:
                behind = self._history.head.count < head.count
                kind = Kind.LEDGER_TRUNCATED if behind else Kind.LEDGER_REPLACED
                self._find(
                    kind,
                    f"{source} remembers record {head.count} as {head.hash[:16]}; the file has "
                    f"{self._history.head.count} records"
                    + ("" if behind else " and another one there"),
                )

    def _remembered(self) -> list[tuple[str, LedgerHead]]:
        index, claims = self._records.index, self._records.claims
        heads = [
            ("ledger.json", row.head.as_head())
            for row in (index.clients if index is not None else ())
            if row.client == self._client
        ]
        rows = claims.privacy.rows_of(self._client) if claims is not None else []
        return heads + [("summary.json", row.ledger_head.as_head()) for row in rows]

    def _check_uploads(self) -> None:
        """Every update in a sum has its charge, and no charge has more uploads than it covers."""
        charged = Counter(charge.round for charge in self._charges())
        released = {record["round"] for record in self._releases}
        for line in self._records.lines:
            number = line.round
            if self._client not in line.survivors:
                continue
            if not charged[number]:
                self._find(
                    Kind.UPLOAD_WITHOUT_CHARGE,
                    f"its update is in the sum of round {number}, which was never charged",
                )
            elif number not in released:
                self._find(
                    Kind.UPLOAD_WITHOUT_CHARGE,
                    f"its update is in the sum of round {number}, which has a charge and no booked upload",
                )
        attempts = {line.round: line.attempts for line in self._records.lines}
        sent = Counter((record["round"], record["attempt"]) for record in self._releases)
        shared = {plan.plan_hash for plan in self._plans if plan.noise is NoiseMode.SHARES}
        once = {(c.round, c.attempt) for c in self._charges() if c.plan_hash in shared}
        # further sums of a round are over what its one charge released, and lose no client
        further = sums_of_a_round(self._records.settings.method.name) - 1
        for (number, attempt), count in sorted(sent.items()):
            if (number, attempt) in once:
                if count > 1:
                    self._find(
                        Kind.SECOND_UPLOAD,
                        f"{count} uploads for charge {attempt} of round {number}: a share of noise hides one, and "
                        "every further attempt is a charge of its own",
                    )
                continue
            # an earlier charge of a round is of attempts that no line speaks of
            last = attempt == charged[number] - 1
            tried = min(attempts.get(number, ATTEMPTS), ATTEMPTS) if last else ATTEMPTS
            if count > tried + further:
                self._find(
                    Kind.SECOND_UPLOAD,
                    f"{count} uploads for charge {attempt} of round {number}, which had {tried} attempt(s)"
                    + (f" and {further} further sums" if further else ""),
                )

    def _check_limits(self, account: Account) -> None:
        for name, spent, limit in (
            ("the run", account.epsilon, account.target),
            ("all runs", account.total, account.lifetime),
        ):
            if not spent <= limit:
                self._find(
                    Kind.OVER_BUDGET,
                    f"{name} spent epsilon {display_epsilon(spent, 4)}, the limit is {limit:g}",
                )

    def _check_summary(self, account: Account, accountant: PLDAccountant) -> None:
        claims = self._records.claims
        if claims is None:
            return
        rows = claims.privacy.rows_of(self._client)
        if len(rows) != 1:
            self._find(
                Kind.CONTRADICTION,
                f"summary.json has {len(rows)} accounts of this client"
                if rows
                else "summary.json has no account of this client",
            )
        for row in rows:
            total = accountant.epsilon(self._events_before(row), self._history.terms.delta)
            for name, recomputed in (
                ("epsilon", account.epsilon),
                ("lifetime_spent", total),
            ):
                if not same_epsilon(getattr(row, name), recomputed):
                    self._find_figure(name, getattr(row, name), recomputed)
            for name, recomputed in (
                ("delta", account.delta),
                ("noise_multiplier", account.noise_multiplier),
                ("sample_rate", account.sample_rate),
                ("lifetime_epsilon", account.lifetime),
                ("steps", account.steps),
                ("rounds", account.rounds),
                ("n_public", account.n_public),
            ):
                if not same(getattr(row, name), recomputed):
                    self._find_figure(name, getattr(row, name), recomputed)

    def _events_before(self, row: ClientRow) -> tuple[Event, ...]:
        """Return what was charged, in all runs, when the run ended: later runs on the ledger add more."""
        records = self._history.records
        own = max(number for number, r in enumerate(records, start=1) if r.get("run") == self._run)
        count = max(own, row.ledger_head.count)  # it never ends before its own last record
        charges = sum(record["kind"] == "charge" for record in records[:count])
        return self._history.events()[:charges]

    def _find_figure(self, name: str, told: float, recomputed: float) -> None:
        self._find(
            Kind.WRONG_FIGURE, f"summary.json says {name} {told}, the ledger gives {recomputed}"
        )

    def _uploads(self) -> list[Upload]:
        events: dict[tuple[int, int], Event] = {
            (charge.round, charge.attempt): charge.event for charge in self._charges()
        }
        return [
            Upload(
                client=self._client,
                round=record["round"],
                attempt=record["attempt"],
                sha256=record["sha256"],
                sample_rate=events[record["round"], record["attempt"]].sample_rate,
                noise_multiplier=events[record["round"], record["attempt"]].noise_multiplier,
                steps=events[record["round"], record["attempt"]].steps,
            )
            for record in self._releases
        ]

    def _charges(self) -> list[Any]:
        return [charge for charge in self._history.charges if charge.run == self._run]

    def _find(self, kind: Kind, what: str) -> None:
        where = f"client {self._client}, {self._path.name}"
        self._findings.append(Finding(kind=kind, where=where, what=what))
