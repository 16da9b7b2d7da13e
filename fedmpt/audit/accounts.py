"""One client's ledger against what the run says of it.

Nothing that the run folder says about privacy is believed: epsilon is recomputed from charged events, and what was
sent is what the server says it summed. Every record has the fields that ``privacy.forms`` demands of its kind, with
their types and ranges: a ledger with any other was refused when it was read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedmpt.audit.findings import Account, Finding, Kind, Upload
from fedmpt.audit.records import RunRecords
from fedmpt.engine.adaptive import sums_of_a_round
from fedmpt.engine.aggregation import ATTEMPTS
from fedmpt.engine.ledgers import file_name
from privacy import (
    LedgerError,
    LedgerHead,
    LedgerHistory,
    LedgerRolledBack,
    PLDAccountant,
    read_ledger,
    replace_one_epsilon,
)
from privacy.budget import rounds_that_fit
from privacy.events import Event
from privacy.recompute import Recomputed, figures_of

FIGURE_TOLERANCE: Final = 1e-4  # between a recorded epsilon and its recomputation


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientAudit:
    """What one ledger gave.

    Attributes:
        account: what was spent; None where the ledger cannot be read.
        uploads: what it books as sent in this run.
        findings: what is wrong.
    """

    account: Account | None
    uploads: tuple[Upload, ...]
    findings: tuple[Finding, ...]


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
    return _ClientLedger(client, path, history, str(records.index["run"]), records).audit(
        accountant
    )


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
        self._events = history.events(run)
        self._findings: list[Finding] = []

    def audit(self, accountant: PLDAccountant) -> ClientAudit:
        delta = self._history.terms.delta
        run = figures_of(self._events, delta, accountant=accountant, run=self._run)
        total = figures_of(self._history.events(), delta, accountant=accountant)
        self._check_figures(run, total)
        self._check_end()
        self._check_uploads()
        plan = next((r for r in reversed(self._mine) if r["kind"] == "plan"), None)
        account = None
        if plan is None:
            self._find(Kind.CONTRADICTION, f"no plan of run {self._run}; another run's ledger?")
        else:
            account = self._account(plan["plan"], run, total, accountant)
            self._check_limits(account)
            self._check_plan(plan["plan"])
            self._check_summary(account)
        return ClientAudit(
            account=account, uploads=tuple(self._uploads()), findings=tuple(self._findings)
        )

    def _account(
        self,
        plan: Mapping[str, Any],
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
                    (self._events, plan["target_epsilon"]),
                    (self._history.events(), terms.lifetime_epsilon),
                ],
                delta=terms.delta,
                accountant=accountant,
                at_most=plan["rounds"],
            )
        return Account(
            client=self._client,
            holding=terms.holding,
            n_public=terms.n_pub,
            epsilon=run.epsilon,
            epsilon_check=run.figures.prv if run.figures is not None else None,
            epsilon_shown=accountant.epsilon(self._shown(), terms.delta),
            target=plan["target_epsilon"],
            total=total.epsilon,
            lifetime=terms.lifetime_epsilon,
            delta=terms.delta,
            replace_one=replace_one_epsilon(
                self._history.events(), terms.delta, of_record=accountant
            ),
            noise_multiplier=plan["noise_multiplier"],
            sample_rate=plan["sample_rate"],
            steps=run.steps,
            rounds=run.rounds,
            rounds_unsent=sum((c.round, c.attempt) not in sent for c in self._charges()),
            rounds_refused=sum(r["kind"] == "refuse" for r in self._mine),
            rounds_left=rounds_left,
            head=self._history.head,
        )

    def _shown(self) -> tuple[Event, ...]:
        """Events of the rounds that ``metrics.jsonl`` has; a round that was charged and not done comes after them."""
        last = max((line["round"] for line in self._records.metrics), default=0)
        return tuple(charge.event for charge in self._charges() if charge.round <= last)

    def _check_figures(self, run: Recomputed, total: Recomputed) -> None:
        for part in {run.disagreement, total.disagreement} - {""}:
            self._find(Kind.ACCOUNTANTS_DISAGREE, part)
        for record in self._mine:
            if record["kind"] == "close" and not _close(record["epsilon"], run.epsilon):
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
        heads = []
        for row in (self._records.index or {}).get("clients", []):
            if row["client"] == self._client:
                heads.append(("ledger.json", LedgerHead(**row["head"])))
        row = self._summary_row()
        if row is not None and "ledger_head" in row:
            heads.append(("summary.json", LedgerHead(**row["ledger_head"])))
        return heads

    def _check_uploads(self) -> None:
        """Every update in a sum has its charge, and no charge has more uploads than attempts and further sums."""
        charged = Counter(charge.round for charge in self._charges())
        released = {record["round"] for record in self._releases}
        attempts = {}
        for line in self._records.metrics:
            number = line["round"]
            attempts[number] = line.get("attempts", 1)
            if self._client not in line.get("survivors", []):
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
        sent = Counter((record["round"], record["attempt"]) for record in self._releases)
        # further sums of a round are over what its one charge released, and lose no client
        further = sums_of_a_round(self._records.config["method"]["name"]) - 1
        for (number, attempt), count in sorted(sent.items()):
            # an earlier charge of a round is of attempts that no line speaks of
            last = attempt == charged[number] - 1
            tried = attempts.get(number, ATTEMPTS) if last else ATTEMPTS
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
                    Kind.OVER_BUDGET, f"{name} spent epsilon {spent:.4f}, the limit is {limit:g}"
                )

    def _check_plan(self, plan: Mapping[str, Any]) -> None:
        privacy = self._records.config["privacy"]
        for name, planned in (("epsilon", plan["target_epsilon"]), ("delta", plan["delta"])):
            if name in privacy and planned > privacy[name]:
                self._find(
                    Kind.CONTRADICTION,
                    f"config.toml allows {name} {privacy[name]}, the charged plan has {planned}",
                )
        for name, planned in (
            *(("clip", plan["max_grad_norm"]), ("clip_mode", plan["clip"])),
            *(("noise", plan["noise"]), ("unit", plan["unit"])),
        ):
            if name in privacy and planned != privacy[name]:
                self._find(
                    Kind.CONTRADICTION,
                    f"config.toml says {name} {privacy[name]}, the charged plan {planned}",
                )

    def _check_summary(self, account: Account) -> None:
        row = self._summary_row()
        if row is None:
            if self._records.summary is not None:
                self._find(Kind.CONTRADICTION, "summary.json has no account of this client")
            return
        for name, recomputed in (
            ("epsilon", account.epsilon),
            ("delta", account.delta),
            ("noise_multiplier", account.noise_multiplier),
            ("sample_rate", account.sample_rate),
            ("steps", account.steps),
            ("rounds", account.rounds),
            ("n_public", account.n_public),
        ):
            if not _close(row.get(name), recomputed):
                self._find(
                    Kind.WRONG_FIGURE,
                    f"summary.json says {name} {row.get(name)}, the ledger gives {recomputed}",
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

    def _summary_row(self) -> dict[str, Any] | None:
        if self._records.summary is None:
            return None
        rows: list[dict[str, Any]] = self._records.summary["privacy"]["clients"]
        return next((row for row in rows if row["client"] == self._client), None)

    def _find(self, kind: Kind, what: str) -> None:
        where = f"client {self._client}, {self._path.name}"
        self._findings.append(Finding(kind=kind, where=where, what=what))


def _close(recorded: object, recomputed: float) -> bool:
    return (
        isinstance(recorded, int | float) and abs(recorded - recomputed) <= FIGURE_TOLERANCE
    )  # a NaN is not close to anything
