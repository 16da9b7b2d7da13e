"""The ledger: an append-only, hash-chained, fsynced record of every event.

There is one file per data holding. It answers one question, years later and without trust in this
program: what was done to this data? Epsilon is recomputed from its events, never read from it. A
charge is on disk before secret coins are drawn, so a crash can only over-count. All fields are
public: no counts, losses, labels, norms or file names of data.

Format: canonical JSON lines `{"hash": h, "record": {...}, "signature": s}`, where
`h = SHA-256(previous h | canonical JSON of record)`, the chain starts from SHA-256 of the format's
name, and a signature, if a signer was injected, covers the format's name and `h`.

A chain cannot see that its own end was cut off: remember `head` elsewhere and check it with
`require_head`.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import math
import os
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from privacy import _validate
from privacy.accountant import Accountant, EpsilonFigures
from privacy.errors import (
    BudgetExhausted,
    ConfigurationError,
    LedgerConflict,
    LedgerCorrupt,
    LedgerError,
    LedgerLocked,
    LedgerRolledBack,
    PrivacyError,
)
from privacy.events import (
    Event,
    NeighbouringRelation,
    PrivacyUnit,
    event_from_record,
    event_to_record,
)
from privacy.plan import DPPlan, check_delta

FORMAT = "privacy-ledger/1"
_GENESIS = hashlib.sha256(FORMAT.encode()).digest()
_DISTRIBUTIONS = ("cryptography", "dp-accounting", "numpy", "opacus", "torch")
_KINDS = frozenset({"open", "plan", "charge", "release", "refuse", "recover", "close"})


class Signer(Protocol):
    """The client's identity key; it lives outside this package."""

    def sign(self, message: bytes) -> bytes:
        """A signature of `message`."""
        ...


class Verifier(Protocol):
    """Checks what a `Signer` signed."""

    def verify(self, message: bytes, signature: bytes) -> None:
        """Raises any exception unless `signature` is valid for `message`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerTerms:
    """What a data holding's ledger is about; fixed when it is created.

    Attributes:
        holding: Public name of the data holding.
        n_pub: Declared public size.
        delta: One delta for all that is ever charged.
        lifetime_epsilon: Limit over all runs, > 0. Only the site itself can raise it, with a new
            ledger format or a deliberate migration; no message of a server can.
        relation: Neighbouring relation of every claim.
        unit: Unit of privacy of every claim.

    Raises:
        ConfigurationError: A value is out of its range.
    """

    holding: str
    n_pub: int
    delta: float
    lifetime_epsilon: float
    relation: NeighbouringRelation = NeighbouringRelation.ADD_OR_REMOVE_ONE
    unit: PrivacyUnit = PrivacyUnit.EXAMPLE

    def __post_init__(self) -> None:
        _validate.count(n_pub=self.n_pub)
        _validate.positive(lifetime_epsilon=self.lifetime_epsilon)
        check_delta(self.delta, self.n_pub)

    def to_record(self) -> dict[str, object]:
        """The terms as JSON values."""
        return {
            "holding": self.holding,
            "n_pub": self.n_pub,
            "delta": float(self.delta),
            "lifetime_epsilon": float(self.lifetime_epsilon),
            "relation": self.relation.value,
            "unit": self.unit.value,
        }


@dataclass(frozen=True, slots=True)
class LedgerHead:
    """What a peer remembers of a ledger: it says nothing about the data.

    Attributes:
        count: Number of records.
        hash: Hash of the last one, hexadecimal.
    """

    count: int
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """A charge that is on disk: the licence to draw coins for one round.

    Attributes:
        run: Run it belongs to.
        round: Round, from 0.
        attempt: 0, or how often this round was charged before.
        event: What may now be done, once.
        plan_hash: Of the plan it is done under.
    """

    run: str
    round: int
    attempt: int
    event: Event
    plan_hash: str


@dataclass(frozen=True, slots=True)
class LedgerHistory:
    """The verified content of a ledger.

    Attributes:
        terms: What the ledger is about.
        records: All records, in order.
        hashes: Their hashes, hexadecimal.
        charges: All charges, in order.
        torn_bytes: Bytes after the last complete record: a write that never returned.
    """

    terms: LedgerTerms
    records: tuple[Mapping[str, Any], ...]
    hashes: tuple[str, ...]
    charges: tuple[Charge, ...]
    torn_bytes: int = 0

    @property
    def head(self) -> LedgerHead:
        """Number of records and hash of the last one."""
        return LedgerHead(len(self.hashes), self.hashes[-1])

    @property
    def runs(self) -> tuple[str, ...]:
        """Names of all runs, in order of their first plan."""
        return tuple(dict.fromkeys(r["run"] for r in self.records if r["kind"] == "plan"))

    def events(self, run: str | None = None) -> tuple[Event, ...]:
        """Charged events, of one run or of all."""
        return tuple(c.event for c in self.charges if run is None or c.run == run)

    def spent_epsilon(self, accountant: Accountant, run: str | None = None) -> float:
        """Epsilon of the composition of all charges, of one run or of all, recomputed."""
        return accountant.epsilon(self.events(run), self.terms.delta)

    def require_head(self, remembered: LedgerHead) -> None:
        """Raises `LedgerRolledBack` if the ledger does not continue from what a peer remembers."""
        _require_head(self.hashes, remembered)


def read_ledger(path: Path, *, verifier: Verifier | None = None) -> LedgerHistory:
    """Reads and verifies a ledger without changing it: all that a third party needs.

    Checks the form of every line, the chain, the signatures if a verifier is given, and that the
    records tell a consistent story (terms first, plans before charges, every charge under its
    plan's event, releases of charges only). Bytes after the last newline are reported in
    `torn_bytes`, not read.

    Raises:
        LedgerCorrupt: Anything does not verify.
        OSError: The file cannot be read.
    """
    complete, separator, torn = path.read_bytes().rpartition(b"\n")
    if not separator:
        raise LedgerCorrupt("the ledger has no complete record; it was not created by this package")
    story = _Story()
    previous = _GENESIS
    hashes: list[str] = []
    for number, line in enumerate(complete.split(b"\n")):
        try:
            previous = _read_line(line, previous, verifier, story)
        except LedgerError as error:
            raise LedgerCorrupt(f"record {number}: {error}") from error
        hashes.append(previous.hex())
    if story.terms is None:
        raise LedgerCorrupt("the ledger has no terms")
    return LedgerHistory(
        story.terms, tuple(story.records), tuple(hashes), tuple(story.charges), len(torn)
    )


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
        LedgerConflict: `terms` differ from those on file.
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
        self._lock = _lock(path)
        try:
            if not path.exists():
                _create(path, _open_record(terms), signer)
            self._resume(terms, verifier)
        except BaseException:
            self.close()
            raise

    def _resume(self, terms: LedgerTerms, verifier: Verifier | None) -> None:
        history = read_ledger(self._path, verifier=verifier)
        if history.terms != terms:
            raise LedgerConflict(
                "the terms differ from those the ledger was opened with "
                f"({history.terms.to_record()}); they are fixed for its lifetime"
            )
        self._story = _Story()
        for record in history.records:
            self._story.add(record)
        self._hashes = list(history.hashes)
        self._terms = terms
        self._file = os.open(self._path, os.O_RDWR | os.O_APPEND)
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
        _require_head(self._hashes, remembered)

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
        line, digest = _write_line(record, bytes.fromhex(self._hashes[-1]), self._signer)
        try:
            _write_all(self._file, line)
            os.fsync(self._file)
        except BaseException:
            self.close()  # what is on disk is unknown: only a fresh read may continue
            raise
        self._story.add(record)
        self._hashes.append(digest.hex())


@dataclass(slots=True)
class _Story:
    """What the records say so far; refuses a record that contradicts it."""

    terms: LedgerTerms | None = None
    records: list[Mapping[str, Any]] = field(default_factory=list)
    charges: list[Charge] = field(default_factory=list)
    attempts: Counter[tuple[str, int]] = field(default_factory=Counter)
    charged: set[tuple[str, int, int]] = field(default_factory=set)
    current_plan_hash: dict[str, str] = field(default_factory=dict)
    plan_events: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def add(self, record: Mapping[str, Any]) -> None:
        """Takes a record in.

        Raises:
            LedgerConflict: It contradicts the records before it.
        """
        self.check(record)
        self.records.append(record)
        match record["kind"]:
            case "open":
                self.terms = _terms(record)
            case "plan":
                self.current_plan_hash[record["run"]] = record["plan_hash"]
                self.plan_events[record["plan_hash"]] = record["event"]
            case "charge":
                self.attempts[record["run"], record["round"]] += 1
                self.charged.add((record["run"], record["round"], record["attempt"]))
                self.charges.append(
                    Charge(
                        run=record["run"],
                        round=record["round"],
                        attempt=record["attempt"],
                        event=event_from_record(record["event"]),
                        plan_hash=record["plan_hash"],
                    )
                )
            case _:
                pass

    def check(self, record: Mapping[str, Any]) -> None:
        """Raises `LedgerConflict` if the record contradicts the ones before it."""
        try:
            self._check(record)
        except (KeyError, TypeError, AttributeError) as error:
            raise LedgerConflict(f"a field is missing or mistyped: {error}") from None
        except LedgerError:
            raise
        except PrivacyError as error:
            raise LedgerConflict(str(error)) from error

    def _check(self, record: Mapping[str, Any]) -> None:
        kind = record["kind"]
        _require(kind in _KINDS, f"kind {kind!r} is not known to {FORMAT}")
        _require((kind == "open") == (self.terms is None), "terms come first, and once")
        match kind:
            case "open":
                _require(record["format"] == FORMAT, f"not a {FORMAT} file")
                _terms(record)
            case "plan":
                self._check_plan(record)
            case "charge":
                self._check_charge(record)
            case "release":
                key = (record["run"], record["round"], record["attempt"])
                _require(key in self.charged, "a release without its charge")
            case _:
                pass

    def _check_plan(self, record: Mapping[str, Any]) -> None:
        plan, event, terms = record["plan"], event_from_record(record["event"]), self.terms
        _require(terms is not None, "a plan before the terms")
        _require(_sha256_hex(plan) == record["plan_hash"], "the plan does not have its hash")
        for name, of_ledger in terms.to_record().items() if terms else ():
            if name in plan:
                _require(
                    plan[name] == of_ledger,
                    f"the plan's {name} {plan[name]!r} is not the ledger's {of_ledger!r}",
                )
        same = (
            event.sample_rate == plan["sample_rate"]
            and event.noise_multiplier == plan["noise_multiplier"]
            and event.steps == plan["steps_per_round"]
            and event.relation.value == plan["relation"]
            and event.unit.value == plan["unit"]
        )
        _require(same, "the event is not that of its plan")

    def _check_charge(self, record: Mapping[str, Any]) -> None:
        run, round_index = record["run"], record["round"]
        current = self.current_plan_hash.get(run)
        _require(current == record["plan_hash"], "a charge under a plan that is not the run's")
        _require(
            dict(record["event"]) == dict(self.plan_events[record["plan_hash"]]),
            "a charge whose event is not its plan's",
        )
        event_from_record(record["event"])
        valid = isinstance(round_index, int) and round_index >= 0
        _require(valid, "a round that is not an integer >= 0")
        _require(record["attempt"] == self.attempts[run, round_index], "an attempt out of order")


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


def _terms(record: Mapping[str, Any]) -> LedgerTerms:
    try:
        return LedgerTerms(
            holding=record["holding"],
            n_pub=record["n_pub"],
            delta=record["delta"],
            lifetime_epsilon=record["lifetime_epsilon"],
            relation=NeighbouringRelation(record["relation"]),
            unit=PrivacyUnit(record["unit"]),
        )
    except (ValueError, ConfigurationError) as error:
        raise LedgerConflict(f"terms: {error}") from error


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise LedgerConflict(message)


def _require_head(hashes: Sequence[str], remembered: LedgerHead) -> None:
    if len(hashes) < remembered.count:
        raise LedgerRolledBack(
            f"the ledger has {len(hashes)} records, a peer remembers {remembered.count}; "
            "a person must decide before this data is used again"
        )
    if remembered.count < 1 or hashes[remembered.count - 1] != remembered.hash:
        raise LedgerRolledBack(
            f"record {remembered.count - 1} is not the one a peer remembers; "
            "a person must decide before this data is used again"
        )


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _finite_or_null(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _sha256_hex(value: object) -> str:
    return hashlib.sha256(_canonical(value)).hexdigest()


def _signed_message(digest: bytes) -> bytes:
    return FORMAT.encode() + b"\0" + digest


def _write_line(
    record: Mapping[str, Any], previous: bytes, signer: Signer | None
) -> tuple[bytes, bytes]:
    """The line of a record, newline included, and its hash."""
    digest = hashlib.sha256(previous + _canonical(record)).digest()
    line: dict[str, Any] = {"hash": digest.hex(), "record": record}
    if signer is not None:
        line["signature"] = signer.sign(_signed_message(digest)).hex()
    return _canonical(line) + b"\n", digest


def _read_line(line: bytes, previous: bytes, verifier: Verifier | None, story: _Story) -> bytes:
    try:
        content = json.loads(line)
    except ValueError:
        raise LedgerCorrupt("not JSON") from None
    if not isinstance(content, dict) or not isinstance(content.get("record"), dict):
        raise LedgerCorrupt("not a record")
    if _canonical_or_none(content) != line:
        raise LedgerCorrupt("not in canonical form")
    record = content["record"]
    digest = hashlib.sha256(previous + _canonical(record)).digest()
    if content.get("hash") != digest.hex():
        raise LedgerCorrupt("the hash chain is broken")
    if set(content) - {"hash", "record", "signature"}:
        raise LedgerCorrupt("unknown fields")
    if verifier is not None:
        _verify_signature(content.get("signature"), digest, verifier)
    story.add(record)
    return digest


def _canonical_or_none(value: object) -> bytes | None:
    try:
        return _canonical(value)
    except ValueError:  # NaN or infinity
        return None


def _verify_signature(signature: object, digest: bytes, verifier: Verifier) -> None:
    try:
        if not isinstance(signature, str):
            raise LedgerCorrupt("not signed")
        verifier.verify(_signed_message(digest), bytes.fromhex(signature))
    except LedgerError:
        raise
    except Exception as error:
        raise LedgerCorrupt(f"the signature does not verify ({type(error).__name__})") from error


def _lock(path: Path) -> int:
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise LedgerLocked("another process has this ledger open for writing") from error
    return descriptor


def _create(path: Path, record: dict[str, Any], signer: Signer | None) -> None:
    """Creates the file with its first record, whole or not at all."""
    temporary = path.with_name(path.name + ".new")
    line, _ = _write_line(record, _GENESIS, signer)
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


def _write_all(descriptor: int, data: bytes, write: Callable[[int, bytes], int] = os.write) -> None:
    while data:
        data = data[write(descriptor, data) :]
