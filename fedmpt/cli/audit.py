"""``fedmpt audit``: verify a finished run."""

from __future__ import annotations

import sys
from pathlib import Path

import click

FINDINGS = 1  # exit code


@click.command("audit")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--ledger",
    type=click.Path(path_type=Path),
    help="Folder of the privacy ledgers, if they were moved.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
def command(*, run: Path, ledger: Path | None, as_json: bool) -> None:
    """Verify the run folder RUN: ledgers, epsilons, and everything that left a client.

    Exit code 0 if nothing is wrong, 1 on any finding.
    """
    from fedmpt.audit.run import audit_run
    from fedmpt.cli.audit_report import show_audit

    audit = audit_run(run, ledgers=ledger)
    show_audit(audit, stderr=as_json)
    if as_json:
        import json

        click.echo(json.dumps(audit.as_dict(), indent=2))
    if audit.findings:
        sys.exit(FINDINGS)
