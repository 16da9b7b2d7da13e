"""The checks that logs of every kind have in common: who signed what, and who may be on a list."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from secagg.attendance import Terms
from secagg.digests import confirm_statement, request_statement, upload_statement
from secagg.errors import (
    Malformed,
    TooFewReplies,
    TooFewSurvivors,
    UnknownIdentity,
    UnsupportedSuite,
    ViewMismatch,
    WrongRound,
)
from secagg.keys import verify
from secagg.messages import ConfirmRow, SurvivorRow, from_table
from secagg.params import PROTOCOL_VERSION, SUITE, Stage
from secagg.participant import SignedRequest
from secagg.roster import Roster
from secagg.views import Survivors


class Versioned(Terms, Protocol):
    """Terms that say what they are written in."""

    @property
    def version(self) -> int:
        """Of the structure and of the wire."""

    @property
    def suite(self) -> int:
        """Set of primitives."""


class LogChecker:
    """Checks what one log says against the roster.

    Args:
        terms: parameters of the round, or terms of the key set-up.
        requests: the coordinator's signatures.
        roster: whose signatures count.

    Raises:
        UnsupportedSuite: of a version or suite that this code does not verify.
        WrongRound: made under another roster.
    """

    def __init__(self, terms: Versioned, requests: Sequence[bytes], roster: Roster) -> None:
        if terms.version != PROTOCOL_VERSION or terms.suite != SUITE:
            raise UnsupportedSuite(f"version {terms.version}, suite {terms.suite:#06x}")
        if terms.roster_digest != roster.digest:
            raise WrongRound("the log was made under another roster: compare fingerprints")
        self._digest = terms.digest
        self._requests = requests
        self._roster = roster
        self.invited = terms.invited_ids(roster)

    def signature(self, client: int, signature: bytes, statement: bytes) -> None:
        """Returns if the client was invited and signed the statement."""
        if client not in self.invited:
            raise UnknownIdentity(f"client {client} was not invited")
        verify(self._roster.key_of(client), signature, statement, author=f"client {client}")

    def requests(self, *stages: tuple[Stage, bytes]) -> tuple[SignedRequest, ...]:
        """What the coordinator signed, once it has signed these digests and no others."""
        found = self._requests
        if len(found) != len(stages):
            raise Malformed(f"{len(found)} requests: {len(stages)} expected in this mode")
        for (stage, stage_digest), signature in zip(stages, found, strict=True):
            statement = request_statement(self._digest, stage, stage_digest)
            author = f"the coordinator ({stage.name})"
            verify(self._roster.coordinator, signature, statement, author=author)
        return tuple(
            SignedRequest(stage_digest, signature)
            for (_, stage_digest), signature in zip(stages, found, strict=True)
        )

    def uploads(
        self, table: bytes, view: bytes, allowed: Collection[int], least: int
    ) -> dict[int, bytes]:
        """{survivor: digest of its upload}, each signed under this view."""
        rows = from_table(SurvivorRow, table)
        for row in rows:
            self.signature(
                row.client, row.signature, upload_statement(view, row.client, row.upload)
            )
        uploads = {row.client: row.upload for row in rows}
        check_listed(uploads, allowed, "a survivor", "dealt no shares")
        if len(uploads) < least:
            raise TooFewSurvivors(f"{len(uploads)} survivors, {least} required")
        return uploads

    def confirmed(self, table: bytes, survivors: Survivors, needed: int) -> tuple[int, ...]:
        """The survivors that signed this very list."""
        rows = from_table(ConfirmRow, table)
        statement = confirm_statement(survivors.digest)
        for row in rows:
            self.signature(row.client, row.signature, statement)
        ids = tuple(row.client for row in rows)
        check_listed(ids, survivors.ids, "a client that confirmed", "is not a survivor")
        if len(ids) < needed:
            raise TooFewReplies(f"{len(ids)} confirmations, {needed} required")
        return ids


def check_listed(ids: Iterable[int], allowed: Collection[int], who: str, why_not: str) -> None:
    """Returns if everybody on a list may be on it.

    Raises:
        ViewMismatch: somebody may not.
    """
    strangers = set(ids) - set(allowed)
    if strangers:
        raise ViewMismatch(f"client {min(strangers)}, listed as {who}, {why_not}")
