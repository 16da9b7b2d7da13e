"""Where the ledgers of a run's clients are, whose data they are about, and whether the run fits into them.

A run keeps its ledgers in its own folder, or in a folder that several runs share (``--ledger DIR``): then every run on
the same data adds up, and a run that would exceed what is left of a client's lifetime limit is refused before it
trains. What was charged stays charged, also by runs that were killed.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from fedmpt.engine.integer_terms import claimed
from fedmpt.engine.prepare import Federation
from fedmpt.errors import BudgetSpent, UsageError
from fedmpt.runstore import make_folders, require_schema, storing
from privacy import (
    Arithmetic,
    Budget,
    BudgetExhausted,
    DPPlan,
    Event,
    Ledger,
    LedgerError,
    LedgerHistory,
    LedgerTerms,
    NoiseMode,
    PLDAccountant,
    affordable_epsilon,
    display_epsilon,
    read_ledger,
)
from privacy.grid import SET_ASIDE

INDEX_FILE: Final = "ledger.json"
INDEX_SCHEMA: Final = "fedmpt.ledger/1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ledgers:
    """The ledgers of one run.

    Attributes:
        run: name under which this run's charges are booked; unlike any other run's.
        folder: where the files are.
        carried: whether the folder outlives the run folder.
        terms: what each client's ledger is about, by client.
    """

    run: str
    folder: Path
    carried: bool
    terms: tuple[LedgerTerms, ...]

    def path(self, client: int) -> Path:
        """The ledger file of a client."""
        return self.folder / file_name(client)

    def index(self, ledgers: list[Ledger]) -> dict[str, Any]:
        """Return what the run folder keeps of them: name, place, and the heads at the start of the run."""
        return {
            "schema": INDEX_SCHEMA,
            "run": self.run,
            "folder": str(self.folder.resolve()) if self.carried else self.folder.name,
            "carried": self.carried,
            "clients": [
                {
                    "client": client,
                    "file": file_name(client),
                    "holding": ledger.terms.holding,
                    "head": head_record(ledger),
                }
                for client, ledger in enumerate(ledgers)
            ],
        }


def file_name(client: int) -> str:
    """Return the name of a client's ledger file."""
    return f"client-{client:03d}.jsonl"


def head_record(ledger: Ledger) -> dict[str, object]:
    """Return what is remembered of a ledger so that a cut or exchanged file is noticed."""
    return {"count": ledger.head.count, "hash": ledger.head.hash}


def plan_ledgers(
    federation: Federation, plans: list[DPPlan], folder: Path, *, carried: bool
) -> Ledgers:
    """Return where this run's ledgers are and on which terms; nothing is written.

    Raises:
        UsageError: a carried ledger is about other data, on other terms or of other arithmetic, or some are missing.
    """
    holding = holding_name(federation)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--ledger {folder}: is a file; give the folder of the clients' ledgers")
    on_file = _on_file(folder, len(plans)) if carried else {}
    config = federation.config.privacy
    if plans and config.lifetime is not None and config.lifetime < config.epsilon:
        raise UsageError(
            f"--dp-lifetime {config.lifetime:g}: below this run's own --dp-epsilon {config.epsilon:g}; lower that first"
        )
    terms = []
    for client, plan in enumerate(plans):
        history = on_file.get(client)
        known = None if history is None else history.terms
        if history is not None and history.runs:
            _require_arithmetic(folder / file_name(client), history, plan)
        wanted = LedgerTerms(
            holding=f"{holding}/client-{client:03d}",
            n_pub=plan.n_pub,
            delta=plan.delta,
            lifetime_epsilon=config.lifetime
            or (known.lifetime_epsilon if known is not None else config.epsilon),
            unit=plan.unit,
        )
        if known is not None and known != wanted:
            raise UsageError(_other_terms(folder / file_name(client), known, wanted, plan))
        terms.append(wanted)
    run = f"{federation.digest.hex()[:8]}-{secrets.token_hex(4)}"
    return Ledgers(run=run, folder=folder, carried=carried, terms=tuple(terms))


def reopen_ledgers(federation: Federation, plans: list[DPPlan], folder: Path) -> Ledgers:
    """Return the ledgers of a run that goes on, under the name it has on them; nothing is written.

    Args:
        federation: the prepared run.
        plans: every client's plan, which must be the one that was charged.
        folder: the run folder.

    Raises:
        UsageError: ledgers are missing or about something else, or a plan is not the charged one.
    """
    try:
        index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        require_schema(folder / INDEX_FILE, index["schema"], INDEX_SCHEMA)
        run, place, carried = str(index["run"]), folder / index["folder"], bool(index["carried"])
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"--resume {folder}: {INDEX_FILE} cannot be read ({error}), and with it what was spent"
        ) from error
    holding = holding_name(federation)
    terms = []
    for client, plan in enumerate(plans):
        path = place / file_name(client)
        if not path.exists():
            raise UsageError(
                f"--resume {folder}: {path} is missing; without it what that client spent would be forgotten"
            )
        history = _read(path)
        if history.terms.holding != f"{holding}/client-{client:03d}":
            raise UsageError(f"--resume {folder}: {path} is about other data")
        hashes = [
            r["plan_hash"] for r in history.records if (r["kind"], r.get("run")) == ("plan", run)
        ]
        if not hashes:
            raise UsageError(
                f"--resume {folder}: {path} knows nothing of this run: an older ledger, or another run's, is in its "
                "place; put back the one that the run wrote"
            )
        if hashes[-1] != plan.plan_hash:
            raise UsageError(
                f"--resume {folder}: the plan of client {client} is not the one on its ledger; go on with the version "
                "of FedMPT that began the run"
            )
        terms.append(history.terms)
    return Ledgers(run=run, folder=place, carried=carried, terms=tuple(terms))


def holding_name(federation: Federation) -> str:
    """Return a public name of the clients' data: equal for runs that give every client the same images.

    It is a digest of what decides who holds which training image: data set, partition, and seed and backbone where the
    partition is drawn with them. Never of images; and of nothing that only tests, hides labels or skips broken files: a
    run that differs in these sees the same images again and must add up.
    """
    config = federation.config
    data = msgspec.to_builtins(config.data)
    for name in ("strict", "mask", "mask_mode", "mask_test", "min_labels_test"):
        del data[name]
    del data["scenes"]["test_size"]
    drawn = config.clients.partition
    decisive = {
        "data": data,
        "clients": msgspec.to_builtins(config.clients) | {"participation": None},
        "seed": None if drawn == "site" else config.seed,
        "backbone": federation.backbone.fingerprint if drawn == "cluster" else None,
        "sites": len(federation.partition),
    }
    text = json.dumps(decisive, sort_keys=True)
    return f"{federation.dataset.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def require_room(ledgers: Ledgers, plans: list[DPPlan], accountant: PLDAccountant) -> None:
    """Refuse a run that would exceed the lifetime limit of a client that has a ledger already.

    The refusal is booked on the ledger of every client that has no room; nothing is charged.

    Raises:
        BudgetSpent: some client's composition of all that was charged with all that is planned exceeds its limit.
    """
    refusals: list[tuple[BudgetExhausted, int, tuple[Event, ...]]] = []
    for client, plan in enumerate(plans):
        path = ledgers.path(client)
        if not path.exists():
            continue
        with Ledger(path, terms=ledgers.terms[client]) as ledger:
            events, terms = ledger.events(), ledger.terms
            after = accountant.epsilon((*events, _all_rounds(plan)), terms.delta)
            if after <= terms.lifetime_epsilon:
                continue
            refusal = BudgetExhausted(
                limit="lifetime",
                limit_epsilon=terms.lifetime_epsilon,
                spent_epsilon=accountant.epsilon(events, terms.delta),
                epsilon_after=after,
            )
            ledger.refuse(run=ledgers.run, refusal=refusal)
            refusals.append((refusal, client, events))
    if not refusals:
        return
    refusal, client, events = max(refusals, key=lambda entry: entry[0].epsilon_after)
    affordable = affordable_epsilon(
        events,
        planned=_all_rounds(plans[client]),
        delta=plans[client].delta,
        limit_epsilon=refusal.limit_epsilon,
        accountant=accountant,
    )
    raise BudgetSpent(_no_room(ledgers.path(client), plans[client], refusal, affordable))


def require_room_in_delta(ledgers: Ledgers, plans: Sequence[DPPlan]) -> None:
    """Refuse a run whose integer noise would take more of delta than is set aside for it on a client's ledger.

    What earlier runs took counts. A ledger refuses such a plan too; here nothing is written yet.

    Args:
        ledgers: of the run's clients.
        plans: of its clients; nothing is refused where they are not of integer arithmetic.

    Raises:
        UsageError: the noise takes too much.
    """
    for client, plan in enumerate(plans):
        if plan.arithmetic is not Arithmetic.INTEGER:
            return
        lifetime, path = ledgers.terms[client].lifetime_epsilon, ledgers.path(client)
        taken = 0.0
        if path.exists():
            history = _read(path)
            own = sum(event.steps for event in history.events(ledgers.run))
            taken = history.discretisation - plan.discretisation(own, epsilon=lifetime)
        spent = plan.discretisation(plan.steps_per_round * plan.rounds, epsilon=lifetime)
        room = SET_ASIDE * plan.delta
        if taken + spent > room:
            shared = plan.noise is NoiseMode.SHARES
            option = "--dp-noise shares" if shared else "--dp-arithmetic integer"
            before = f" (earlier runs on the ledger took {taken:.2g})" if taken else ""
            raise UsageError(
                f"{option} at epsilon {lifetime:g}: that noise is discrete would take {spent:.2g} of delta "
                f"{plan.delta:.2g}{before}, more than the {room:.2g} set aside for it; use a smaller --dp-epsilon or "
                "--dp-lifetime, fewer rounds or a smaller space"
            )


def open_budgets(
    ledgers: Ledgers, plans: list[DPPlan], *, stack: ExitStack, accountant: PLDAccountant
) -> list[tuple[Ledger, Budget]]:
    """Open every client's ledger and budget; the ledgers close with ``stack``."""
    with storing(ledgers.folder):
        make_folders(ledgers.folder)
    opened = []
    for client, plan in enumerate(plans):
        ledger = stack.enter_context(Ledger(ledgers.path(client), terms=ledgers.terms[client]))
        budget = Budget(ledger=ledger, run=ledgers.run, plan=plan, accountant=accountant)
        opened.append((ledger, budget))
    return opened


def _on_file(folder: Path, clients: int) -> dict[int, LedgerHistory]:
    """Return what the ledgers that exist say; a client whose ledger vanished would start anew, so it may not."""
    histories = {
        client: _read(folder / file_name(client))
        for client in range(clients)
        if (folder / file_name(client)).exists()
    }
    missing = sorted(set(range(clients)) - set(histories))
    if missing and any(history.charges for history in histories.values()):
        raise UsageError(
            f"--ledger {folder}: {file_name(missing[0])} is missing while other clients' ledgers hold charges; without "
            "it what that client spent would be forgotten. Restore the file, or give another folder for other data"
        )
    return histories


def _require_arithmetic(path: Path, history: LedgerHistory, plan: DPPlan) -> None:
    """Refuse to book integer noise beside noise of real numbers: their claims differ in delta."""
    if history.integer_noise == (plan.arithmetic is Arithmetic.INTEGER):
        return
    if history.integer_noise:
        old, new, remedy = "integers", "real numbers", "add --dp-arithmetic integer"
    else:
        shares = plan.noise is NoiseMode.SHARES
        old, new = "real numbers", "integers"
        remedy = "use --dp-noise local" if shares else "leave --dp-arithmetic integer out"
    raise UsageError(
        f"--ledger: {path} is about runs with noise of {old}, this run's is of {new}, and their claims differ in "
        f"delta: {remedy}"
    )


def _read(path: Path) -> LedgerHistory:
    """Read a ledger; what is wrong with it is told with its path."""
    try:
        return read_ledger(path)
    except LedgerError as error:
        raise type(error)(
            f"{path}: {error}; put back the file as its last run left it: what was spent cannot be told from this one"
        ) from error


def _all_rounds(plan: DPPlan) -> Event:
    return plan.event(plan.rounds * plan.steps_per_round)


def _other_terms(path: Path, known: LedgerTerms, wanted: LedgerTerms, plan: DPPlan) -> str:
    delta = claimed(known.delta, plan.arithmetic)
    old, new = known.to_record(), wanted.to_record()
    name = next(name for name in ("unit", *old) if old[name] != new[name])
    remedy = {
        "holding": "it is about other data, or the same dealt out differently (data set, partition, number of clients, "
        "--seed). Deal them out as before, so that the limit holds over both runs; with another folder the images that "
        "both saw have lost what both spent, which no ledger then says",
        "n_pub": "the declared size is fixed for the ledger's life; declare it again "
        "(--set privacy.declared_sizes=[...], every client's), however many images there are now",
        "delta": f"give --dp-delta {delta!r}",
        "lifetime_epsilon": "only the site can raise it, with a new ledger; leave --dp-lifetime out",
    }.get(name, "it is fixed for the ledger's life")
    return (
        f"--ledger: {path} was opened with {name} {old[name]}, this run has {new[name]}: {remedy}"
    )


def _no_room(path: Path, plan: DPPlan, refusal: BudgetExhausted, affordable: float) -> str:
    remedy = (
        f"give at most --dp-epsilon {affordable:g}, or fewer rounds"
        if affordable > 0
        else "nothing more may be learnt from this data"
    )
    return (
        f"--ledger: {path.stem} has spent epsilon {display_epsilon(refusal.spent_epsilon)} of its lifetime "
        f"{refusal.limit_epsilon:g}; this run (epsilon {plan.target_epsilon:g}) would bring it to "
        f"{display_epsilon(refusal.epsilon_after)}. Nothing was trained; {remedy}"
    )
