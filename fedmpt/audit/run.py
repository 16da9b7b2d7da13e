"""The audit of a run folder: ledgers, figures, and everything that left a client."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

from fedmpt.audit.accounts import audit_client
from fedmpt.audit.claims import card_findings, line_findings, summary_findings
from fedmpt.audit.findings import Account, Finding, Kind
from fedmpt.audit.manifest import (
    METRICS_SHAPE,
    SUMMARY_SHAPE,
    Manifest,
    manifest,
    shown_key,
    strangers,
)
from fedmpt.audit.plans import counted_on_by, plan_findings
from fedmpt.audit.records import RunRecords, read_run
from fedmpt.audit.transcripts import transcript_findings
from fedmpt.engine.ledgers import INDEX_FILE
from fedmpt.runstore import METRICS_FILE, SUMMARY_FILE
from privacy import PLDAccountant

AUDIT_SCHEMA: Final = "fedmpt.audit/1"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunAudit:
    """What an audit found.

    Attributes:
        folder: the run folder.
        run: name under which the run is booked; None without privacy.
        private: whether the run claims differential privacy.
        secagg: how updates were summed.
        accounts: what every client spent.
        manifest: everything that left.
        findings: broken promises; none for a clean run.
        notes: what a reader should know, and what was not checked.
    """

    folder: Path
    run: str | None
    private: bool
    secagg: str
    accounts: tuple[Account, ...]
    manifest: Manifest
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the audit as JSON values."""
        return {
            "schema": AUDIT_SCHEMA,
            "folder": str(self.folder),
            "run": self.run,
            "private": self.private,
            "secagg": self.secagg,
            "clean": not self.findings,
            "findings": [asdict(finding) for finding in self.findings],
            "notes": list(self.notes),
            "clients": [_account(account) for account in self.accounts],
            "manifest": {
                "items": [asdict(item) for item in self.manifest.items],
                "uploads": [asdict(upload) for upload in self.manifest.uploads],
            },
        }


def audit_run(folder: Path, *, ledgers: Path | None = None) -> RunAudit:
    """Verify a run from its folder and its ledgers; nothing is changed.

    Args:
        folder: the run folder.
        ledgers: folder of the ledgers, if they are no longer where the run left them.

    Raises:
        UsageError: this is no run folder.
    """
    records = read_run(folder, ledgers)
    accountant = PLDAccountant()
    audits = {client: audit_client(client, records, accountant) for client in records.booked}
    accounts = tuple(audit.account for audit in audits.values() if audit.account is not None)
    complete = len(accounts) == len(audits)  # else what is missing has been told
    uploads = tuple(upload for audit in audits.values() for upload in audit.uploads)
    plans = {client: audit.plans for client, audit in audits.items()}
    lifetimes = {account.client: account.lifetime for account in accounts}
    epsilons = {account.client: audits[account.client].epsilons for account in accounts}
    findings = list(records.malformed)
    findings += [finding for audit in audits.values() for finding in audit.findings]
    findings += plan_findings(records, plans, lifetimes)
    if records.books_known:  # else nothing of what is claimed can be borne out
        findings += _books(records)
        findings += summary_findings(records, accounts)
        findings += line_findings(records, epsilons, complete=complete)
        findings += card_findings(records, accounts, complete=complete)
    if records.private:
        findings += _forbidden(records)
    findings += transcript_findings(records, honest=counted_on_by(plans))
    left = manifest(records, uploads)
    return RunAudit(
        folder=folder,
        run=records.index.run if records.index is not None else None,
        private=records.private,
        secagg=records.settings.secagg.mode,
        accounts=accounts,
        manifest=left,
        findings=tuple(findings),
        notes=tuple(_notes(records, accounts, left)),
    )


def _account(account: Account) -> dict[str, Any]:
    """Return an account as JSON values; an epsilon that no two accountants agree on is null."""
    values = asdict(account)
    return {
        name: None if isinstance(value, float) and math.isinf(value) else value
        for name, value in values.items()
    }


def _books(records: RunRecords) -> Iterator[Finding]:
    """Yield where it is not the clients in the sums whose ledgers the index names, each once."""
    index, booked = records.index, records.booked
    if records.private and index is None and records.trained:
        what = "a private run without its ledgers' index"
        yield Finding(kind=Kind.LEDGER_MISSING, where=INDEX_FILE, what=what)
    if not records.private and booked:
        what = "says no privacy, but ledgers are kept"
        yield Finding(kind=Kind.CONTRADICTION, where="config.toml", what=what)
    if index is not None and len(index.clients) != len(booked):
        what = "names the ledger of a client twice"
        yield Finding(kind=Kind.CONTRADICTION, where=INDEX_FILE, what=what)
    if records.private:
        survivors = {client for line in records.lines for client in line.survivors}
        for client in sorted(survivors - set(booked)):
            what = f"client {client} is in a sum and has no ledger in the index"
            yield Finding(kind=Kind.UPLOAD_WITHOUT_CHARGE, where=METRICS_FILE, what=what)


def _forbidden(records: RunRecords) -> list[Finding]:
    """Look for all that a private run does not write in ``metrics.jsonl`` and ``summary.json``."""
    found = []
    for number, line in enumerate(records.metrics, start=1):
        where = f"{METRICS_FILE}, line {number}"
        found += [(where, key) for key in strangers(line, METRICS_SHAPE)]
    summary = records.summary or {}
    found += [(SUMMARY_FILE, key) for key in strangers(summary, SUMMARY_SHAPE)]
    found += [(SUMMARY_FILE, f"final_AP.{shown_key(key)}") for key in _no_class(records)]
    return [
        Finding(
            kind=Kind.FORBIDDEN_VALUE,
            where=where,
            what=f"holds {key}: private runs write nothing like it there, and no charge covers it",
        )
        for where, key in dict.fromkeys(found)
    ]


def _no_class(records: RunRecords) -> list[str]:
    """Return the first key among the scores by class that is no class's.

    Names of classes are anybody's choice, but their scores are those of the last line of ``metrics.jsonl``, in order.
    """
    scores = (records.summary or {}).get("final_AP")
    last = records.metrics[-1].get("AP") if records.metrics else None
    if not isinstance(scores, dict) or not isinstance(last, list):
        return []
    pairs = zip_longest(scores.items(), last[: len(scores)])
    return [key for (key, value), score in pairs if value != score][:1]


def _notes(records: RunRecords, accounts: tuple[Account, ...], left: Manifest) -> list[str]:
    notes = []
    if not records.private:
        notes.append("no differential privacy is claimed: nothing bounds what the run reveals")
    if records.summary is None:
        notes.append("no summary.json: the run was interrupted; what it charged stays spent")
    unsent = [account.client for account in accounts if account.rounds_unsent]
    if unsent:
        notes.append(f"charged without sending, spent all the same: clients {unsent}")
    alone = [a.client for a in accounts if a.epsilon_check is None and a.rounds]
    if alone:
        notes.append(f"the second accountant gave no figure for clients {alone}")
    notes += [
        f"{item.name}: {item.why}" for item in left.items if item.kind in ("stays", "unknown")
    ]
    return notes
