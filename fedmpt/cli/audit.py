"""``fedmpt audit``: verify a finished run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

FINDINGS = 1  # exit code

ledger_option = click.option(
    "--ledger",
    type=click.Path(path_type=Path),
    help="Folder of the privacy ledgers, if they were moved.",
)


@click.command("audit")
@click.argument("run", type=click.Path(path_type=Path))
@ledger_option
@click.option(
    "--empirical",
    is_flag=True,
    help="Also attack the run's training code, model and plan; takes minutes, and the data must be there.",
)
@click.option(
    "--client",
    type=click.IntRange(min=0),
    help="Whose training --empirical attacks; the client that spent most by default.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
def command(
    *, run: Path, ledger: Path | None, empirical: bool, client: int | None, as_json: bool
) -> None:
    """Verify the run folder RUN: ledgers, epsilons, and everything that left a client.

    With --empirical, what the attacks found is also kept in RUN/audit-empirical.json, for `fedmpt report`.

    Exit code 0 if nothing is wrong, 1 on any finding or failed check.
    """
    if client is not None and not empirical:
        raise click.UsageError("--client: says whom --empirical attacks; give that too")
    from fedmpt.audit.run import audit_run
    from fedmpt.cli.audit_report import show_audit

    audit = audit_run(run, ledgers=ledger)
    show_audit(audit, stderr=as_json)
    report = audit.as_dict()
    if empirical:
        report["empirical"] = _attack(run, ledger, client, stderr=as_json)
        report["clean"] = report["clean"] and report["empirical"]["verdict"] != "fail"
    if as_json:
        import json

        click.echo(json.dumps(report, indent=2, allow_nan=False))
    if not report["clean"]:
        sys.exit(FINDINGS)


def _attack(run: Path, ledger: Path | None, client: int | None, *, stderr: bool) -> dict[str, Any]:
    """Run the empirical checks, show each as it ends, keep them, and return them as JSON values."""
    import time

    from fedmpt.audit.empirical import audit_empirically, audited_client
    from fedmpt.audit.saved import save_audit
    from fedmpt.cli.audit_report import show_check, show_verdict
    from fedmpt.cli.console import Console
    from privacy.audit import overall

    started = time.perf_counter()
    chosen = audited_client(run, ledgers=ledger, client=client)
    results = []
    for result in audit_empirically(run, ledgers=ledger, client=chosen, progress=Console()):
        show_check(result, stderr=stderr)
        results.append(result)
    show_verdict(overall(results), client=chosen, stderr=stderr)
    return save_audit(run, client=chosen, results=results, seconds=time.perf_counter() - started)
