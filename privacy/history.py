"""What a ledger says: its records, their form and chain, and how anyone verifies them.

Format: canonical JSON lines `{"hash": h, "record": {...}, "signature": s}`, where
`h = SHA-256(previous h | canonical JSON of record)`, the chain starts from SHA-256 of the format's
name, and a signature, if a signer was injected, covers the format's name and `h`.

Reading needs the file and public keys only, and changes nothing. All fields are public: no counts,
losses, labels, norms or file names of data. `privacy.ledger` is the writer.

What a record may hold is in `privacy.forms`.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from privacy import _validate
from privacy.accountant import Accountant
from privacy.errors import (
    ConfigurationError,
    LedgerConflict,
    LedgerCorrupt,
    LedgerError,
    LedgerRolledBack,
    PrivacyError,
)
from privacy.events import (
    MOST_DIVERGENCE,
    MOST_STEPS,
    Event,
    NeighbouringRelation,
    PrivacyUnit,
    divergence,
    event_from_record,
    event_to_record,
)
from privacy.forms import FORMAT, NAME, check_form, is_name
from privacy.grid import SET_ASIDE, delta_of_claim, share_variance
from privacy.plan import Arithmetic, DPPlan, check_delta

GENESIS = hashlib.sha256(FORMAT.encode()).digest()


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
        if not is_name(self.holding):
            raise ConfigurationError(f"holding={self.holding!r}: must be {NAME.expected}")
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
        integer_noise: Whether its noise is of integers, which accountants count as Gaussian.
        discretisation: What that leaves out of delta, of all charges at the lifetime epsilon; at most the part that
            is set aside (`privacy.grid.SET_ASIDE`).
        torn_bytes: Bytes after the last complete record: a write that never returned.
    """

    terms: LedgerTerms
    records: tuple[Mapping[str, Any], ...]
    hashes: tuple[str, ...]
    charges: tuple[Charge, ...]
    integer_noise: bool = False
    discretisation: float = 0.0
    torn_bytes: int = 0

    @property
    def head(self) -> LedgerHead:
        """Number of records and hash of the last one."""
        return LedgerHead(len(self.hashes), self.hashes[-1])

    @property
    def runs(self) -> tuple[str, ...]:
        """Names of all runs, in order of their first plan."""
        return tuple(dict.fromkeys(r["run"] for r in self.records if r["kind"] == "plan"))

    @property
    def claimed_delta(self) -> float:
        """Delta of the claim that is proven: above that of the terms, where a part is set aside for integer noise."""
        return delta_of_claim(self.terms.delta) if self.integer_noise else self.terms.delta

    def events(self, run: str | None = None) -> tuple[Event, ...]:
        """Charged events, of one run or of all."""
        return tuple(c.event for c in self.charges if run is None or c.run == run)

    def spent_epsilon(self, accountant: Accountant, run: str | None = None) -> float:
        """Epsilon of the composition of all charges, of one run or of all, recomputed."""
        return accountant.epsilon(self.events(run), self.terms.delta)

    def require_head(self, remembered: LedgerHead) -> None:
        """Raises `LedgerRolledBack` if the ledger does not continue from what a peer remembers."""
        require_head(self.hashes, remembered)


def read_ledger(path: Path, *, verifier: Verifier | None = None) -> LedgerHistory:
    """Reads and verifies a ledger without changing it: all that a third party needs.

    Checks the form of every line and field, the chain, the signatures if a verifier is given, that
    the records tell a consistent story (terms first, plans before charges, every charge under its
    plan's event, releases of charges only), and that accountants can answer for it in reasonable
    time. Bytes after the last newline are reported in `torn_bytes`, not read.

    Raises:
        LedgerCorrupt: Anything does not verify.
        OSError: The file cannot be read.
    """
    complete, separator, torn = path.read_bytes().rpartition(b"\n")
    if not separator:
        raise LedgerCorrupt("the ledger has no complete record; it was not created by this package")
    story = Story()
    previous = GENESIS
    hashes: list[str] = []
    for number, line in enumerate(complete.split(b"\n")):
        try:
            previous = _read_line(line, previous, verifier, story)
        except LedgerError as error:
            raise LedgerCorrupt(f"record {number} (line {number + 1}): {error}") from error
        hashes.append(previous.hex())
    if story.terms is None:
        raise LedgerCorrupt("the ledger has no terms")
    return LedgerHistory(
        story.terms,
        tuple(story.records),
        tuple(hashes),
        tuple(story.charges),
        integer_noise=any(plan.arithmetic is Arithmetic.INTEGER for plan in story.plans.values()),
        discretisation=story.discretisation,
        torn_bytes=len(torn),
    )


@dataclass(slots=True)
class Story:
    """What the records say so far; refuses a record that contradicts it."""

    terms: LedgerTerms | None = None
    records: list[Mapping[str, Any]] = field(default_factory=list)
    charges: list[Charge] = field(default_factory=list)
    attempts: Counter[tuple[str, int]] = field(default_factory=Counter)
    charged: set[tuple[str, int, int]] = field(default_factory=set)
    current_plan_hash: dict[str, str] = field(default_factory=dict)
    plan_events: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    plans: dict[str, DPPlan] = field(default_factory=dict)
    steps: int = 0
    divergence: float = 0.0
    discretisation: float = 0.0

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
                self.plans[record["plan_hash"]] = DPPlan.from_record(record["plan"])
            case "charge":
                event = event_from_record(record["event"])
                self.steps += event.steps
                self.divergence += divergence(event)
                self.discretisation += self._discretisation(record["plan_hash"], event.steps)
                self.attempts[record["run"], record["round"]] += 1
                self.charged.add((record["run"], record["round"], record["attempt"]))
                self.charges.append(
                    Charge(
                        run=record["run"],
                        round=record["round"],
                        attempt=record["attempt"],
                        event=event,
                        plan_hash=record["plan_hash"],
                    )
                )
            case _:
                pass

    def check(self, record: Mapping[str, Any]) -> None:
        """Raises `LedgerConflict` if the record is malformed or contradicts the ones before it."""
        try:
            self._check(record)
        except LedgerError:
            raise
        except PrivacyError as error:
            raise LedgerConflict(str(error)) from error

    def _check(self, record: Mapping[str, Any]) -> None:
        check_form(record)
        kind = record["kind"]
        if kind == "open":
            _require(self.terms is None, "terms come first, and once")
            _terms(record)
            return
        if self.terms is None:
            raise LedgerConflict("terms come first, and once")
        match kind:
            case "plan":
                self._check_plan(record, self.terms)
            case "charge":
                self._check_charge(record)
            case "release":
                key = (record["run"], record["round"], record["attempt"])
                _require(key in self.charged, "a release without its charge")
            case "close":
                _require(record["run"] in self.current_plan_hash, "the end of a run without a plan")
                _require(record["delta"] == self.terms.delta, "figures at another delta")
            case _:
                pass

    def _check_plan(self, record: Mapping[str, Any], terms: LedgerTerms) -> None:
        plan = DPPlan.from_record(record["plan"])
        _require(
            plan.to_record() == record["plan"],
            "the plan's expected batch is not its rate times its size",
        )
        _require(_sha256_hex(record["plan"]) == record["plan_hash"], "the plan has another hash")
        for name, of_ledger in terms.to_record().items():
            of_plan = record["plan"].get(name, of_ledger)  # a plan names no holding and no lifetime
            _require(
                of_plan == of_ledger,
                f"the plan's {name} {of_plan!r} is not the ledger's {of_ledger!r}",
            )
        _require(
            event_to_record(plan.round_event()) == record["event"],
            "the event is not that of its plan",
        )
        for other in self.plans.values():
            _require(
                plan.arithmetic is other.arithmetic,
                f"the plan's noise is of {plan.arithmetic} arithmetic, that of earlier plans of {other.arithmetic}: "
                "their claims differ in delta, so each has ledgers of its own",
            )
        steps = plan.rounds * plan.steps_per_round
        if plan.clip_steps is not None:  # a grid too coarse for the proof has no epsilon
            share_variance(plan.noise_multiplier, plan.clip_steps, plan.honest)
            check_delta(delta_of_claim(terms.delta), terms.n_pub)
            self._require_room(plan.discretisation(steps, epsilon=terms.lifetime_epsilon), terms)
        _require_reach(steps, plan.rounds * divergence(plan.round_event()), "the plan's rounds")

    def _check_charge(self, record: Mapping[str, Any]) -> None:
        run, round_index = record["run"], record["round"]
        current = self.current_plan_hash.get(run)
        _require(current == record["plan_hash"], "a charge under a plan that is not the run's")
        _require(
            record["event"] == self.plan_events[record["plan_hash"]],
            "a charge whose event is not its plan's",
        )
        _require(record["attempt"] == self.attempts[run, round_index], "an attempt out of order")
        event = event_from_record(record["event"])
        if self.terms is not None:
            self._require_room(self._discretisation(current, event.steps), self.terms)
        _require_reach(
            self.steps + event.steps, self.divergence + divergence(event), "the ledger's charges"
        )

    def _discretisation(self, plan_hash: str | None, steps: int) -> float:
        """What integer noise of further steps under a known plan adds to delta, at the lifetime epsilon."""
        if self.terms is None or plan_hash is None:
            return 0.0
        return self.plans[plan_hash].discretisation(steps, epsilon=self.terms.lifetime_epsilon)

    def _require_room(self, further: float, terms: LedgerTerms) -> None:
        room = SET_ASIDE * terms.delta
        _require(
            self.discretisation + further <= room,
            f"noise of integers would take {self.discretisation + further:.2g} of delta {terms.delta:.2g} at the "
            f"lifetime epsilon {terms.lifetime_epsilon:g}, where {room:.2g} is set aside for it; use fewer rounds, a "
            "smaller space, or ledgers with a smaller lifetime",
        )


def write_line(
    record: Mapping[str, Any], previous: bytes, signer: Signer | None
) -> tuple[bytes, bytes]:
    """The line of a record, newline included, and its hash."""
    digest = hashlib.sha256(previous + _canonical(record)).digest()
    line: dict[str, Any] = {"hash": digest.hex(), "record": record}
    if signer is not None:
        line["signature"] = signer.sign(_signed_message(digest)).hex()
    return _canonical(line) + b"\n", digest


def _read_line(line: bytes, previous: bytes, verifier: Verifier | None, story: Story) -> bytes:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):  # not JSON, or nested without end
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
    if not isinstance(content.get("signature", ""), str):
        raise LedgerCorrupt("a signature that is no text")
    if verifier is not None:
        _verify_signature(content.get("signature"), digest, verifier)
    story.add(record)
    return digest


def _canonical_or_none(value: object) -> bytes | None:
    try:
        return _canonical(value)
    except (ValueError, RecursionError):  # NaN or infinity
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


def _signed_message(digest: bytes) -> bytes:
    return FORMAT.encode() + b"\0" + digest


def _terms(record: Mapping[str, Any]) -> LedgerTerms:
    """The terms of an opening record that has its form."""
    return LedgerTerms(
        holding=record["holding"],
        n_pub=record["n_pub"],
        delta=record["delta"],
        lifetime_epsilon=record["lifetime_epsilon"],
        relation=NeighbouringRelation(record["relation"]),
        unit=PrivacyUnit(record["unit"]),
    )


def _require_reach(steps: int, order_two: float, whose: str) -> None:
    """Raises `LedgerConflict` for a composition that would keep an accountant busy for long."""
    if steps > MOST_STEPS or not order_two <= MOST_DIVERGENCE:
        raise LedgerConflict(
            f"{whose} are {steps} steps with a Rényi divergence of {order_two:.3g} at order 2: must be at most "
            f"{MOST_STEPS} and {MOST_DIVERGENCE:g}, or accountants take minutes to hours; no calibrated plan has more"
        )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise LedgerConflict(message)


def require_head(hashes: Sequence[str], remembered: LedgerHead) -> None:
    """Raises `LedgerRolledBack` unless the chain of `hashes` continues from a remembered head."""
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


def _sha256_hex(value: object) -> str:
    return hashlib.sha256(_canonical(value)).hexdigest()
