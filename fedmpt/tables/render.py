"""A comparison as Markdown, CSV and LaTeX.

Markdown and LaTeX have a table a metric where there are several columns, and one table with the metrics as columns
elsewhere. A cell reads ``58.8 ± 0.3 (90.13, -31.3)``: mean, half of its 95% interval over seeds, the published figure,
and the difference. A published figure of other data is in brackets, ``[90.13]``, without difference.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fedmpt.tables.compare import Comparison, Entry
from fedmpt.tables.measure import OPTIMISTIC

FIELDS: Final = (
    *("table", "data", "preset", "quick", "row", "column"),
    *("metric", "seeds", "measured", "half_width"),
    *("published", "published_data", "difference", "note"),
)
_HEADS: Final = {
    "total_parameters_M": "parameters (M)",
    "tunable_parameters_M": "tunable (M)",
    "ms_per_iteration": "ms a step",
}
_DIGITS: Final = {"total_parameters_M": 3, "tunable_parameters_M": 3}
_MARK: Final = "*"


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """One rectangle of a rendered table.

    Attributes:
        title: what its figures are; empty where its columns say so.
        corner: head of the first column.
        rows: heads of rows.
        columns: heads of the other columns.
        entries: by row, each by column; None where there is no such figure.
    """

    title: str
    corner: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    entries: tuple[tuple[Entry | None, ...], ...]


def sections(comparison: Comparison) -> list[Section]:
    """Return a comparison cut into rectangles that fit a page."""
    entries, metrics = comparison.entries, comparison.metrics
    rows, columns = comparison.rows, comparison.columns
    if len(rows) > 1 and len(columns) > 1:
        return [
            Section(
                title=metric,
                corner="",
                rows=rows,
                columns=columns,
                entries=tuple(tuple(entries.get((r, c, metric)) for c in columns) for r in rows),
            )
            for metric in metrics
        ]
    heads = tuple(_HEADS.get(metric, metric) for metric in metrics)
    if len(columns) > 1:
        found = tuple(tuple(entries.get((rows[0], c, m)) for m in metrics) for c in columns)
        return [Section(title="", corner=rows[0], rows=columns, columns=heads, entries=found)]
    found = tuple(tuple(entries.get((r, columns[0], m)) for m in metrics) for r in rows)
    return [Section(title="", corner="", rows=rows, columns=heads, entries=found)]


def to_markdown(comparison: Comparison, facts: Sequence[str]) -> str:
    """Return the table as Markdown.

    Args:
        comparison: the table.
        facts: sentences that a reader needs, one a line.
    """
    parts = [f"# {comparison.definition.title}", "\n".join(f"- {fact}" for fact in facts)]
    for section in sections(comparison):
        if section.title:
            parts.append(f"## {section.title}")
        lines = [(section.corner, *section.columns), ("---",) * (len(section.columns) + 1)]
        for row, found in zip(section.rows, section.entries, strict=True):
            lines.append((row, *(_cell(entry, comparison) for entry in found)))
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    marked = _marked_notes(comparison)
    if marked:
        parts.append("\n".join(f"- {_MARK} {note}" for note in marked))
    return "\n\n".join(parts) + "\n"


def to_latex(comparison: Comparison, facts: Sequence[str]) -> str:
    """Return the table for LaTeX with the package booktabs; what Markdown lists before and after it are comments."""
    parts = [f"% {line}" for line in (comparison.definition.title, *facts)]
    for section in sections(comparison):
        parts.append(rf"\begin{{tabular}}{{l{'r' * len(section.columns)}}}")
        parts.append(r"\toprule")
        if section.title:
            parts.append(
                rf"\multicolumn{{{len(section.columns) + 1}}}{{l}}{{{_escape(section.title)}}} \\"
            )
        parts.append(_latex_line((section.corner, *section.columns)))
        parts.append(r"\midrule")
        for row, found in zip(section.rows, section.entries, strict=True):
            parts.append(_latex_line((row, *(_cell(entry, comparison) for entry in found))))
        parts += [r"\bottomrule", r"\end{tabular}", ""]
    parts += [f"% {_MARK} {note}" for note in _marked_notes(comparison)]
    return "\n".join(parts).rstrip() + "\n"


def to_records(comparison: Comparison, *, table: str) -> list[dict[str, str | int | float | None]]:
    """Return a record a figure, with the fields of `FIELDS`; None where there is nothing to say."""
    return [
        {
            "table": table,
            "data": comparison.plan.request.data,
            "preset": comparison.plan.request.chosen_preset,
            "quick": comparison.plan.request.quick,
            "row": entry.row,
            "column": entry.column,
            "metric": entry.metric,
            "seeds": entry.measured.count if entry.measured is not None else 0,
            "measured": entry.measured.mean if entry.measured is not None else None,
            "half_width": entry.measured.half_width if entry.measured is not None else None,
            "published": entry.published,
            "published_data": comparison.published_data if entry.published is not None else None,
            "difference": entry.difference,
            "note": entry.note or None,
        }
        for entry in comparison
    ]


def to_csv(comparison: Comparison, *, table: str) -> str:
    """Return a line a figure, those at optimistic thresholds included."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    for record in to_records(comparison, table=table):
        writer.writerow({key: _csv_value(value) for key, value in record.items()})
    return text.getvalue()


def _cell(entry: Entry | None, comparison: Comparison) -> str:
    if entry is None:
        return ""
    show = _formatter(entry)
    measured = "-"
    if entry.measured is not None:
        measured = show(entry.measured.mean)
        if entry.measured.half_width is not None:
            measured += f" ± {show(entry.measured.half_width)}"
    if comparison.published_data is None:
        return measured
    if entry.published is None:
        return f"{measured} (not published)"
    printed = _printed(entry) + (_MARK if entry.note else "")
    if not entry.comparable:
        return f"{measured} [{printed}]"
    difference = entry.difference
    return (
        f"{measured} ({printed})"
        if difference is None
        else f"{measured} ({printed}, {_signed(show(difference))})"
    )


def _formatter(entry: Entry) -> Callable[[float], str]:
    if entry.row.startswith("p-value"):
        return "{:.2g}".format
    digits = _DIGITS.get(entry.metric, 1)
    if entry.row.startswith("Cliff"):
        digits = 3
    if entry.row.startswith("SD of"):
        digits = 2

    def fixed(value: float) -> str:
        return f"{round(value, digits) + 0.0:.{digits}f}"  # no minus before a zero

    return fixed


def _printed(entry: Entry) -> str:
    """Return a published figure with the digits that it was printed with."""
    value = entry.published or 0.0
    if entry.row.startswith("p-value"):
        return f"{value:.4g}"
    return f"{value:.3f}" if entry.row.startswith("Cliff") else f"{value:.2f}"


def _marked_notes(comparison: Comparison) -> list[str]:
    notes: dict[str, list[str]] = {}
    for entry in comparison:
        if entry.note and entry.metric not in OPTIMISTIC:
            place = " ".join(filter(None, (entry.row, entry.column)))
            notes.setdefault(entry.note, []).append(place)
    return [f"{'; '.join(dict.fromkeys(places))}: {note}" for note, places in notes.items()]


def _signed(text: str) -> str:
    return text if text.startswith("-") else f"+{text}"


def _csv_value(value: str | int | float | None) -> str | int:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else value


_LATEX: Final[Mapping[str, str]] = {
    **{"\\": r"\textbackslash{}", "±": r"$\pm$"},
    **{character: "\\" + character for character in "%&_#$"},
}


def _escape(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _latex_line(texts: Sequence[str]) -> str:
    return " & ".join(_escape(text) for text in texts) + r" \\"
