"""The audit of a run folder: ledgers, figures, and everything that left a client."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

from fedmpt.audit.accounts import FIGURE_TOLERANCE, audit_client
from fedmpt.audit.findings import Account, Finding, Kind
from fedmpt.audit.manifest import (
    METRICS_SHAPE,
    SUMMARY_SHAPE,
    Manifest,
    manifest,
    shown_key,
    strangers,
)
from fedmpt.audit.records import RunRecords, read_run
from fedmpt.audit.transcripts import TRANSCRIPTS, transcript_findings
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
    clients = [row["client"] for row in (records.index or {}).get("clients", [])]
    audits = [audit_client(client, records, accountant) for client in clients]
    accounts = tuple(audit.account for audit in audits if audit.account is not None)
    uploads = tuple(upload for audit in audits for upload in audit.uploads)
    findings = [finding for audit in audits for finding in audit.findings]
    findings += _claims(records, clients)
    if len(accounts) == len(clients):  # else what is missing has been said
        findings += _last_round(records, accounts)
    findings += transcript_findings(records)
    left = manifest(records, uploads)
    return RunAudit(
        folder=folder,
        run=records.index["run"] if records.index is not None else None,
        private=records.private,
        secagg=records.config["secagg"]["mode"],
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


def _claims(records: RunRecords, clients: list[int]) -> list[Finding]:
    """Check that configuration, summary, metrics and ledgers tell the same story about the run as a whole."""
    findings = []

    def find(kind: Kind, where: str, what: str) -> None:
        findings.append(Finding(kind=kind, where=where, what=what))

    summary = records.summary
    trained = any(line["round"] > 0 for line in records.metrics)
    if records.private and records.index is None and trained:
        find(Kind.LEDGER_MISSING, "ledger.json", "a private run without its ledgers' index")
    if not records.private and clients:
        find(Kind.CONTRADICTION, "config.toml", "says no privacy, but ledgers are kept")
    if summary is not None:
        claimed = summary["privacy"]
        if claimed["enabled"] != records.private:
            find(Kind.CONTRADICTION, "summary.json", "claims other privacy than config.toml")
        if not records.private and (claimed["target_epsilon"] or claimed["clients"]):
            find(Kind.CONTRADICTION, "summary.json", "states epsilon for a run without privacy")
        rounds = sum(line["round"] > 0 for line in records.metrics)
        if summary["rounds"] != rounds:
            find(
                Kind.CONTRADICTION,
                "summary.json",
                f"says {summary['rounds']} rounds, metrics.jsonl has {rounds}",
            )
    if records.private:
        findings += _forbidden(records)
        survivors = {c for line in records.metrics for c in line.get("survivors", [])}
        for client in sorted(survivors - set(clients)):
            find(
                Kind.UPLOAD_WITHOUT_CHARGE,
                "metrics.jsonl",
                f"client {client} is in a sum and has no ledger in the index",
            )
    return findings


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


def _last_round(records: RunRecords, accounts: tuple[Account, ...]) -> list[Finding]:
    """Check the epsilon that ``metrics.jsonl`` ends with against the ledgers."""
    if not records.private or not records.metrics or records.summary is None:
        return []
    last, spent = records.metrics[-1], [a.epsilon_shown for a in accounts if a.epsilon_shown]
    if not spent or last["round"] == 0:
        return []
    return [
        Finding(
            kind=Kind.WRONG_FIGURE,
            where=f"metrics.jsonl, round {last['round']}",
            what=f"says {name} {last.get(name)}, the ledgers give {recomputed:.6f}",
        )
        for name, recomputed in (("epsilon_min", min(spent)), ("epsilon_max", max(spent)))
        if not (
            isinstance(last.get(name), int | float)
            and abs(last[name] - recomputed) <= FIGURE_TOLERANCE
        )
    ]


def _notes(records: RunRecords, accounts: tuple[Account, ...], left: Manifest) -> list[str]:
    notes = []
    if not records.private:
        notes.append("no differential privacy is claimed: nothing bounds what the run reveals")
    if not (records.folder / TRANSCRIPTS).is_dir():
        notes.append(
            "no transcripts of secure aggregation: who was in which sum is the server's word"
        )
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
