"""What the audit of the run found, everything that left a client, and what attacks showed."""

from __future__ import annotations

from fedmpt.report.attacks import attacks
from fedmpt.report.html import Html, bullets, element, folded, paragraph, section, table
from fedmpt.report.source import RunSource


def checks(source: RunSource) -> Html:
    """Return findings, notes and the release manifest."""
    audit = source.audit
    if audit.findings:
        verdict = element(
            "ul",
            *(
                element(
                    "li",
                    element("strong", finding.kind.value),
                    f" in {finding.where}: {finding.what}",
                )
                for finding in audit.findings
            ),
            class_="findings",
        )
    elif audit.private:
        verdict = paragraph("No findings: every epsilon was recomputed and confirmed.", kind="good")
    else:
        verdict = paragraph(
            "No findings. No privacy is claimed, so there was no epsilon to confirm."
        )
    content = [verdict]
    if audit.notes:
        content += [
            paragraph("Good to know, and what is to be kept with the data:"),
            bullets(audit.notes),
        ]
    rows = [(item.name, item.kind, item.why) for item in audit.manifest.items]
    title = "what is in the run folder and what was sent, and which of it may leave"
    left = table(title, ("what", "class", "why"), rows)
    content.append(folded("Everything that left a client or lies in the run folder", left))
    content.append(
        paragraph(
            "The same, and the digest of every upload, from ",
            element("code", "fedmpt audit RUN --json"),
            ".",
            kind="note",
        )
    )
    return section("audit", "Audit", *content, attacks(source))
