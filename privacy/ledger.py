"""The ledger: an append-only, hash-chained, fsynced record of every event.

There is one file per data holding. It answers one question, years later and without trust in this
program: what was done to this data? Epsilon is recomputed from its events, never read from it. A
charge is on disk before secret coins are drawn, so a crash can only over-count.

A chain cannot see that its own end was cut off: remember `head` elsewhere and check it with
`require_head`.
"""

import contextlib
import fcntl
import functools
import hashlib
import math
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from privacy.accountant import Accountant, EpsilonFigures
from privacy.errors import BudgetExhausted, LedgerConflict, LedgerError, LedgerLocked
from privacy.events import Event, event_to_record
from privacy.forms import FORMAT
from privacy.history import (
    GENESIS,
    Charge,
    LedgerHead,
    LedgerTerms,
    Signer,
    Story,
    Verifier,
    read_ledger,
    require_head,
    write_line,
)
from privacy.plan import DPPlan

_DISTRIBUTIONS = ("cryptography", "dp-accounting", "numpy", "opacus", "torch")


class Ledger:
    """The one writer of a ledger; a context manager that holds its lock.

    Args:
        path: The file; created with `terms` where absent. Its folder must exist.
        terms: What the data holding's ledger is about; must equal those on file.
        signer: Signs every record, if given.
        verifier: Checks the signatures on file, if given.

    Raises:
        LedgerLocked: Another process, or another object, holds it.
        LedgerCorrupt: The file does not verify. A torn last line is no corruption: it is cut, and
            recorded.
        LedgerConflict: `terms` differ from those on file, or no accountant could answer for them.
    """

    def __init__(
        self,
        path: Path,
        *,
        terms: LedgerTerms,
        signer: Signer | None = None,
        verifier: Verifier | None = None,
    ) -> None:
        self._path = path
        self._signer = signer
        self._file = -1
        self._lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock(self._lock, path)
            if not path.exists():
                opening = _open_record(terms)
                Story().check(opening)
                _create(path, opening, signer)
            self._resume(terms, verifier)
        except BaseException:
            self.close()
            raise

    def _resume(self, terms: LedgerTerms, verifier: Verifier | None) -> None:
        self._file = os.open(self._path, os.O_RDWR | os.O_APPEND)
        _lock(self._file, self._path)  # also here: somebody may have removed the lock file
        history = read_ledger(self._path, verifier=verifier)
        if history.terms != terms:
            raise LedgerConflict(
                "the terms differ from those the ledger was opened with "
                f"({history.terms.to_record()}); they are fixed for its lifetime"
            )
        self._story = Story()
        for record in history.records:
            self._story.add(record)
        self._hashes = list(history.hashes)
        self._terms = terms
        if history.torn_bytes:
            size = os.fstat(self._file).st_size - history.torn_bytes
            os.ftruncate(self._file, size)
            os.fsync(self._file)
            self._append({"kind": "recover", "cut_at_byte": size, "cut_bytes": history.torn_bytes})

    @property
    def terms(self) -> LedgerTerms:
        """What the ledger is about."""
        return self._terms

    @property
    def head(self) -> LedgerHead:
        """Number of records and hash of the last one, to be remembered by peers."""
        return LedgerHead(len(self._hashes), self._hashes[-1])

    @property
    def charges(self) -> tuple[Charge, ...]:
        """All charges, in order."""
        return tuple(self._story.charges)

    def events(self, run: str | None = None) -> tuple[Event, ...]:
        """Charged events, of one run or of all."""
        return tuple(c.event for c in self._story.charges if run is None or c.run == run)

    def spent_epsilon(self, accountant: Accountant, run: str | None = None) -> float:
        """Epsilon of the composition of all charges, of one run or of all, recomputed."""
        return accountant.epsilon(self.events(run), self._terms.delta)

    def require_head(self, remembered: LedgerHead) -> None:
        """Raises `LedgerRolledBack` if the ledger does not continue from what a peer remembers."""
        require_head(self._hashes, remembered)

    def accept_plan(self, run: str, plan: DPPlan) -> None:
        """Records the plan of a run; nothing is written where it is the run's current plan already.

        Raises:
            LedgerConflict: The plan's size, delta, relation or unit are not the ledger's.
        """
        if self._story.current_plan_hash.get(run) == plan.plan_hash:
            return
        self._append(
            {
                "kind": "plan",
                "run": run,
                "plan": plan.to_record(),
                "plan_hash": plan.plan_hash,
                "event": event_to_record(plan.round_event()),
                "software": software_versions(),
            }
        )

    def charge(self, *, run: str, round_index: int, plan: DPPlan) -> Charge:
        """Charges one round; on return it is on disk, and only then may coins be drawn.

        A round that is charged again (after a crash) is a further charge.

        Raises:
            LedgerConflict: The plan is not the run's current plan.
        """
        attempt = self._story.attempts[run, round_index]
        self._append(
            {
                "kind": "charge",
                "run": run,
                "round": round_index,
                "attempt": attempt,
                "event": event_to_record(plan.round_event()),
                "plan_hash": plan.plan_hash,
            }
        )
        return self._story.charges[-1]

    def release(self, charge: Charge, payload: bytes) -> None:
        """Records the hash of the bytes about to be sent.

        The same noised payload may be sent again, freshly masked: a further release, no new charge.

        Raises:
            LedgerConflict: The charge is not on this ledger.
        """
        self._append(
            {
                "kind": "release",
                "run": charge.run,
                "round": charge.round,
                "attempt": charge.attempt,
                "sha256": hashlib.sha256(payload).hexdigest(),
            }
        )

    def refuse(self, *, run: str, refusal: BudgetExhausted) -> None:
        """Records that an event was refused, and why."""
        self._append(
            {
                "kind": "refuse",
                "run": run,
                "limit": refusal.limit,
                "limit_epsilon": float(refusal.limit_epsilon),
                "spent_epsilon": _finite_or_null(refusal.spent_epsilon),
                "epsilon_after": _finite_or_null(refusal.epsilon_after),
            }
        )

    def close_run(self, run: str, figures: EpsilonFigures) -> None:
        """Records the final figures of a run. They inform; nobody need trust them."""
        self._append(
            {
                "kind": "close",
                "run": run,
                "epsilon": figures.epsilon,
                "delta": figures.delta,
                "prv": figures.prv,
                "rdp": figures.rdp,
                "cross_check": figures.cross_check,
                "accountants": list(figures.accountants),
            }
        )

    def close(self) -> None:
        """Gives the file and its lock back."""
        for name in ("_file", "_lock"):
            descriptor = getattr(self, name)
            if descriptor >= 0:
                setattr(self, name, -1)
                os.close(descriptor)

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _append(self, record: dict[str, Any]) -> None:
        if self._file < 0:
            raise LedgerError("the ledger is closed; open it again")
        self._story.check(record)
        line, digest = write_line(record, bytes.fromhex(self._hashes[-1]), self._signer)
        try:
            _write_all(self._file, line)
            os.fsync(self._file)
        except BaseException:
            self.close()  # what is on disk is unknown: only a fresh read may continue
            raise
        self._story.add(record)
        self._hashes.append(digest.hex())


def software_versions() -> dict[str, str]:
    """Versions of what computes, and a hash over this package's source."""
    return dict(_software_versions())


@functools.cache
def _software_versions() -> Mapping[str, str]:
    versions = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for source in sorted(folder.rglob("*.py")):
        content = source.read_bytes()
        digest.update(f"{source.relative_to(folder).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return {**versions, "privacy": digest.hexdigest()}


def _open_record(terms: LedgerTerms) -> dict[str, Any]:
    return {
        "kind": "open",
        "format": FORMAT,
        **terms.to_record(),
        "software": software_versions(),
    }


def _finite_or_null(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise LedgerLocked(
            f"{path}: another process has this ledger open for writing; wait until its run has ended, or end it"
        ) from error


def _create(path: Path, record: dict[str, Any], signer: Signer | None) -> None:
    """Creates the file with its first record, whole or not at all."""
    temporary = path.with_name(path.name + ".new")
    line, _ = write_line(record, GENESIS, signer)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        _write_all(descriptor, line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
