"""Running a table and writing it, with all that its reader must know."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedmpt.engine.authors_code import compatibility_note
from fedmpt.errors import RunError, StorageError, UsageError
from fedmpt.runstore import write_whole
from fedmpt.sweep.run import Command, Failure, Watcher, run_cells, train_command
from fedmpt.tables.compare import Comparison, compare
from fedmpt.tables.estimate import PROBES, Estimate, estimate_table, probes
from fedmpt.tables.measure import measure
from fedmpt.tables.plan import AUTHORS_CODE, TablePlan
from fedmpt.tables.render import to_csv, to_latex, to_markdown

MARKDOWN: Final = "table.md"
CSV: Final = "table.csv"
LATEX: Final = "table.tex"


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchResult:
    """A written table.

    Attributes:
        comparison: its figures.
        facts: what its reader must know.
        markdown: the table, with the facts.
        folder: of its files.
        failures: runs that did not finish.
    """

    comparison: Comparison
    facts: tuple[str, ...]
    markdown: str
    folder: Path
    failures: tuple[Failure, ...]


def probe_table(
    plan: TablePlan,
    folder: Path,
    *,
    jobs: int,
    watcher: Watcher,
    command: Command = train_command,
) -> tuple[Estimate, list[Failure]]:
    """Run what is needed to say how long a table takes, and say it; probes that were run before are not run again.

    Args:
        plan: the table's runs.
        folder: of the runs.
        jobs: processes at a time.
        watcher: told what happens.
        command: what runs a probe.

    Raises:
        UsageError: not one probe could run, because of what was given.
        RunError: not one probe could run, for another reason.
    """
    found = probes(plan, folder)
    failures = []
    if found:
        _make(folder)
        failures = run_cells(found, folder / PROBES, jobs=jobs, watcher=watcher, command=command)
    if found and len(failures) == len(found):
        first = failures[0]
        kind = UsageError if first.exit_code == UsageError.exit_code else RunError
        raise kind(f"no method of this table can run here: {first.reason} (log: {first.log})")
    return estimate_table(plan, folder, found), failures


def run_table(
    name: str,
    plan: TablePlan,
    folder: Path,
    *,
    jobs: int,
    watcher: Watcher,
    beside: str | None = None,
    command: Command = train_command,
) -> BenchResult:
    """Run what of a table is not finished, and write it from all that is.

    Args:
        name: of the table; its files are in a folder of this name.
        plan: its runs.
        folder: of the runs; tables that share it share runs.
        jobs: processes at a time.
        watcher: told what happens.
        beside: data set whose published figures are shown where none are of the data used.
        command: what runs a cell.

    Raises:
        UsageError: the folder cannot be written, another process works in it, or ``beside`` cannot be shown.
        StorageError: the table cannot be written.
    """
    compare(plan, {}, beside=beside)  # before hours of work, not after
    failures = run_cells(plan.cells, folder, jobs=jobs, watcher=watcher, command=command)
    comparison = compare(plan, measure(plan, folder), beside=beside)
    facts = facts_of(comparison, failures)
    markdown = to_markdown(comparison, facts)
    target = folder / table_folder(name, plan)
    _make(target)
    for file, text in (
        (MARKDOWN, markdown),
        (CSV, to_csv(comparison, table=Path(name).stem)),
        (LATEX, to_latex(comparison, facts)),
    ):
        write_whole(target / file, text.encode())
    return BenchResult(
        comparison=comparison,
        facts=tuple(facts),
        markdown=markdown,
        folder=target,
        failures=tuple(failures),
    )


def table_folder(name: str, plan: TablePlan) -> str:
    """Return the name of the folder of a table's files; other presets, slices, parts and settings have others."""
    request = plan.request
    chosen = [sorted(request.rows), sorted(request.columns), sorted(request.settings)]
    parts = [
        Path(name).stem,
        request.preset or "",
        "quick" if request.quick else "",
        "part" if request.rows or request.columns else "",
        "changed" if request.settings else "",
        hashlib.sha256(json.dumps(chosen).encode()).hexdigest()[:8] if any(chosen) else "",
    ]
    return "-".join(filter(None, parts))


def facts_of(comparison: Comparison, failures: Sequence[Failure]) -> list[str]:
    """Return what a reader of the table must know, a sentence each."""
    plan, request = comparison.plan, comparison.plan.request
    cells = plan.cells
    facts = [_compatibility(plan), *_changes(plan)]
    weights = f" ({request.pretrained})" if request.pretrained else ""
    preset = request.chosen_preset or "none, the project's own rules"
    facts.append(
        f"Measured on {request.data} with {request.backbone}{weights}, {len(plan.seeds)} seed(s), preset: {preset}."
    )
    if plan.definition.kind != "significance" and len(plan.seeds) > 1:
        facts.append("Mean over seeds ± half of the 95% confidence interval (Student's t).")
    facts.append(_published(comparison))
    if plan.definition.kind in ("metrics", "significance"):
        facts.append(_thresholds(plan))
    facts += plan.definition.notes
    if failures:
        facts.append(
            f"INCOMPLETE: {len(failures)} of {len(cells)} runs failed; their cells lack seeds."
        )
    return [fact for fact in facts if fact]


def _compatibility(plan: TablePlan) -> str:
    note = compatibility_note(plan.cells[0].config)
    if note is None:
        notes = {compatibility_note(cell.config) for cell in plan.cells} - {None}
        note = next((one for one in notes if one is not None), None)
    return f"{note}." if note else ""


def _changes(plan: TablePlan) -> list[str]:
    request, changes = plan.request, []
    if request.quick:
        changes.append(
            "QUICK SLICE: two rounds, few images where they are made on the spot, outer columns; figures show that "
            "everything runs and nothing more."
        )
    if request.rows:
        changes.append("Rows were chosen; the table has more.")
    if request.columns:
        changes.append("Columns were chosen; the table has more.")
    if request.settings:
        changes.append(f"Settings changed by hand: {', '.join(request.settings)}.")
    config = plan.cells[0].config
    if config.privacy.enabled:
        changes.append(
            f"Trained with differential privacy, epsilon {config.privacy.epsilon:g}; nothing published was."
        )
    return changes


def _published(comparison: Comparison) -> str:
    definition, data = comparison.definition, comparison.plan.request.data
    if definition.published is None:
        return "No printed figures belong to this table."
    if comparison.published_data is None:
        return f"Nothing was published on {data}: there is no figure to compare with."
    if not comparison.comparable:
        return (
            f"In brackets what the paper prints for {comparison.published_data}, other data with another backbone: the "
            "shape can be compared, the values cannot."
        )
    return "In parentheses what the paper prints (arXiv 2605.28347), and measured less printed."


def _thresholds(plan: TablePlan) -> str:
    if plan.request.chosen_preset == AUTHORS_CODE:
        return "CF1 is the classes' mean F1; it and OF1 are at the best of nine thresholds ON THE TEST SET, optimistic."
    return (
        "CF1 and OF1 are at a threshold of 0.5. The CSV has them also at the best threshold on the test set "
        "(optimistic), which is how the paper's released code scores."
    )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"--out {folder}: cannot be created ({error.strerror})") from error
