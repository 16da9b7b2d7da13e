"""An audit as people read it."""

from __future__ import annotations

from collections import Counter

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedmpt.audit.findings import Account
from fedmpt.audit.run import RunAudit
from privacy import display_epsilon
from privacy.audit import CheckResult, Verdict


def show_audit(audit: RunAudit, *, stderr: bool) -> None:
    """Print the audit of a run's records.

    Args:
        audit: what was found.
        stderr: whether standard output is taken by machine output.
    """
    console = Console(stderr=stderr, highlight=False)
    if audit.accounts:
        console.print(_accounts(audit.accounts))
    console.print(_manifest(audit))
    for note in audit.notes:
        console.print(f"note: {escape(note)}", soft_wrap=True)
    for finding in audit.findings:
        console.print(
            f"[bold red]FINDING[/] {escape(f'{finding.kind}: {finding.where}: {finding.what}')}",
            soft_wrap=True,
        )
    if audit.findings:
        console.print(
            f"[bold red]{len(audit.findings)} finding(s)[/] in {escape(str(audit.folder))}"
        )
    else:
        claim = "every epsilon recomputed and confirmed" if audit.private else "no privacy claimed"
        console.print(f"no findings in {escape(str(audit.folder))}: {claim}", soft_wrap=True)


def show_check(result: CheckResult, *, stderr: bool) -> None:
    """Print one empirical check."""
    colour = {Verdict.PASS: "green", Verdict.FAIL: "bold red", Verdict.INCONCLUSIVE: "yellow"}
    Console(stderr=stderr, highlight=False).print(
        f"[{colour[result.verdict]}]{result.verdict.upper():<12}[/] {escape(f'{result.check}: {result.words}')} "
        f"({result.seconds:.0f} s)",
        soft_wrap=True,
    )


def show_verdict(verdict: Verdict, *, client: int, stderr: bool) -> None:
    """Print what all checks together say of a client's training."""
    words = {
        Verdict.PASS: "no violation found; checks can refute a claim, the proofs in docs/privacy.md support it",
        Verdict.FAIL: "[bold red]the training does not do what its ledger says[/]",
        Verdict.INCONCLUSIVE: "nothing was shown either way",
    }
    Console(stderr=stderr, highlight=False).print(
        f"empirical audit of client {client}: {words[verdict]}", soft_wrap=True
    )


def _accounts(accounts: tuple[Account, ...]) -> Table:
    table = Table(
        title=f"spent epsilon at delta {accounts[0].claimed_delta:g}, recomputed from the ledgers",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 0),
    )
    for column in (
        *("client", "images", "spent", "check", "all runs"),
        *("noise", "rate", "steps", "rounds", "refused", "left"),
    ):
        table.add_column(column, justify="right")
    for a in accounts:
        table.add_row(
            str(a.client),
            str(a.n_public),
            f"{_figure(a.epsilon)}/{a.target:g}",
            "-" if a.epsilon_check is None else _figure(a.epsilon_check),
            f"{_figure(a.total)}/{a.lifetime:g}",
            f"{a.noise_multiplier:.3f}",
            f"{a.sample_rate:.3f}",
            str(a.steps),
            str(a.rounds),
            str(a.rounds_refused),
            str(a.rounds_left),
        )
    return table


def _figure(epsilon: float) -> str:
    return display_epsilon(epsilon) if epsilon < float("inf") else "none"


def _manifest(audit: RunAudit) -> Table:
    table = Table(
        title="what is in the run folder and what was sent, and which of it may leave",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    for column in ("what", "class", "why"):
        table.add_column(column)
    for item in audit.manifest.items:
        table.add_row(escape(item.name), item.kind, escape(item.why))
    sent = Counter(upload.client for upload in audit.manifest.uploads)
    if sent:
        counts = ", ".join(f"{client}: {count}" for client, count in sorted(sent.items()))
        table.caption = f"booked uploads by client: {counts}; digests: --json"
    return table
