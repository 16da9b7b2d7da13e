"""What a run tells people of its privacy, against what its ledgers and its configuration give.

``summary.json`` stays with the run, ``card.json`` travels with the model, and ``metrics.jsonl`` has epsilon round by
round. The words are written out here rather than taken from the card's writer: a guarantee that somebody rewords is a
finding until somebody has judged it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from fedmpt.audit.figures import same, same_epsilon
from fedmpt.audit.findings import Account, Finding, Kind
from fedmpt.audit.forms import PrivacyClaim
from fedmpt.audit.records import RunRecords
from fedmpt.engine.share_terms import claim
from fedmpt.engine.summary import sent_in_words
from fedmpt.inference.card import CARD_FILE, PrivacyCard
from fedmpt.runstore import METRICS_FILE, SUMMARY_FILE
from privacy import NeighbouringRelation, display_epsilon

_TUNED_NOTHING = "nothing was tuned, so nothing of any image is in this model"
_NO_PRIVACY = "none: the run had no differential privacy; the model may reveal training images"


def summary_findings(records: RunRecords, accounts: Sequence[Account]) -> Iterator[Finding]:
    """Yield what the summary says of the run as a whole and ledgers and configuration do not.

    Args:
        records: the run.
        accounts: of every client whose ledger can be read.
    """
    claims, privacy = records.claims, records.settings.privacy
    if claims is None:
        return
    told = claims.privacy
    if told.enabled != records.private:
        yield _contradiction(SUMMARY_FILE, "claims other privacy than config.toml")
    if not records.private and (told.target_epsilon or told.delta or told.clients):
        yield _contradiction(SUMMARY_FILE, "states epsilon for a run without privacy")
    done = sum(line.round > 0 for line in records.lines)
    if records.lines_whole and claims.rounds != done:
        yield _contradiction(
            SUMMARY_FILE, f"says {claims.rounds} rounds, {METRICS_FILE} has {done}"
        )
    words: list[tuple[str, object, object]] = [
        ("privacy.run", told.run, records.index.run if records.index is not None else None),
        ("privacy.unit", told.unit, privacy.unit),
        ("privacy.noise", told.noise, privacy.noise),
        ("privacy.relation", told.relation, NeighbouringRelation.ADD_OR_REMOVE_ONE.value),
        ("secagg.mode", claims.secagg.mode, records.settings.secagg.mode),
        ("secagg.statement", claims.secagg.statement, sent_in_words(records.settings)),
        ("clients", claims.clients, records.clients),
    ]
    if records.private:
        protected, against = claim(records.settings, cohort=records.cohort)
        words += [
            ("privacy.protected", told.protected, protected),
            ("privacy.against", told.against, against),
        ]
    for name, found, wanted in words:
        if found != wanted:
            yield _contradiction(
                SUMMARY_FILE, f"says {name} {found!r}, configuration and ledgers give {wanted!r}"
            )
    if records.private:
        yield from _totals(told, records, accounts)
        for client in sorted({row.client for row in told.clients} - set(records.booked)):
            yield _contradiction(
                SUMMARY_FILE, f"has an account of client {client}, which has no ledger in the index"
            )


def _totals(
    told: PrivacyClaim, records: RunRecords, accounts: Sequence[Account]
) -> Iterator[Finding]:
    """Yield target and delta of the whole run that are not those of its ledgers."""
    for target in sorted({records.settings.privacy.epsilon, *(a.target for a in accounts)}):
        if not same(told.target_epsilon, target):
            yield _wrong(SUMMARY_FILE, "privacy.target_epsilon", told.target_epsilon, target)
    if accounts or not records.booked:
        deltas: list[float | None] = [*sorted({account.claimed_delta for account in accounts})]
        for delta in deltas or [None]:
            if not same(told.delta, delta):
                yield _wrong(SUMMARY_FILE, "privacy.delta", told.delta, delta)


def line_findings(
    records: RunRecords, epsilons: Mapping[int, Mapping[int, float]], *, complete: bool
) -> Iterator[Finding]:
    """Yield epsilons of ``metrics.jsonl`` that are not the least and the largest over clients as of their round.

    Args:
        records: the run.
        epsilons: as of each round, by client.
        complete: whether every client's ledger could be read; without one its part is unknown.
    """
    numbers = [line.round for line in records.lines]
    if records.lines_whole and numbers != list(range(len(numbers))):
        yield _contradiction(METRICS_FILE, f"has lines of rounds {numbers}, not one of each")
    if records.private and not (complete and (records.booked or not records.trained)):
        return
    for line in records.lines:
        spent = [own[line.round] for own in epsilons.values() if own[line.round] > 0]
        for name, told, recomputed in (
            ("epsilon_min", line.epsilon_min, min(spent, default=None)),
            ("epsilon_max", line.epsilon_max, max(spent, default=None)),
        ):
            if not same_epsilon(told, recomputed):
                yield _wrong(f"{METRICS_FILE}, round {line.round}", name, told, recomputed)


def card_findings(
    records: RunRecords, accounts: Sequence[Account], *, complete: bool
) -> Iterator[Finding]:
    """Yield what the model's card says and the run does not bear out.

    Args:
        records: the run.
        accounts: of every client whose ledger can be read.
        complete: whether these are all.
    """
    card = records.card
    if card is None:
        return
    done = sum(line.round > 0 for line in records.lines)
    for name, found, wanted in (
        ("secure_aggregation", card.secure_aggregation, records.settings.secagg.mode),
        ("rounds", card.rounds, done if records.lines_whole else card.rounds),
        ("clients", card.clients, records.clients),
        ("privacy.unit", card.privacy.unit, records.settings.privacy.unit),
    ):
        if found != wanted:
            yield _contradiction(CARD_FILE, f"says {name} {found!r}, the run gives {wanted!r}")
    private = records.private and records.trained
    if card.privacy.enabled != private:
        yield _contradiction(
            CARD_FILE,
            f"says that there is {'a' if card.privacy.enabled else 'no'} guarantee, the run that there is "
            f"{'one' if private else 'none'}",
        )
    elif private:
        if complete and accounts:
            yield from _guarantee(records, card.privacy, accounts)
    else:
        guarantee = _NO_PRIVACY if records.trained else _TUNED_NOTHING
        if card.privacy != PrivacyCard(enabled=False, guarantee=guarantee, unit=card.privacy.unit):
            yield _contradiction(CARD_FILE, "states more than that there is no guarantee, and why")


def _guarantee(
    records: RunRecords, told: PrivacyCard, accounts: Sequence[Account]
) -> Iterator[Finding]:
    spent = {str(account.client): account.epsilon for account in accounts}
    largest, delta = max(spent.values()), max(account.claimed_delta for account in accounts)
    if not same_epsilon(told.largest_epsilon, largest):
        yield _wrong(CARD_FILE, "largest_epsilon", told.largest_epsilon, largest)
    if not same(told.delta, delta):
        yield _wrong(CARD_FILE, "delta", told.delta, delta)
    for client in sorted(spent.keys() | told.epsilon.keys()):
        if not same_epsilon(told.epsilon.get(client), spent.get(client)):
            name = f"epsilon of client {client}" if client in spent else "epsilon of another client"
            yield _wrong(CARD_FILE, name, told.epsilon.get(client), spent.get(client))
    if math.isinf(largest):
        return  # there is no figure to put into words, which has been told
    protected, against = claim(records.settings, cohort=records.cohort)
    shown = {display_epsilon(largest)}
    if same_epsilon(told.largest_epsilon, largest) and told.largest_epsilon is not None:
        shown.add(display_epsilon(told.largest_epsilon))  # may round up to another hundredth
    words = {
        f"differential privacy of {protected}, against {against}: epsilon {epsilon} at delta {delta:g} in this run, "
        f"for adding or removing one {records.settings.privacy.unit}"
        for epsilon in shown
    }
    if told.guarantee not in words:
        yield _contradiction(
            CARD_FILE, f"promises {told.guarantee!r}, the ledgers give {sorted(words)[0]!r}"
        )


def _contradiction(where: str, what: str) -> Finding:
    return Finding(kind=Kind.CONTRADICTION, where=where, what=what)


def _wrong(where: str, name: str, told: float | None, recomputed: float | None) -> Finding:
    return Finding(
        kind=Kind.WRONG_FIGURE,
        where=where,
        what=f"says {name} {_shown(told)}, the ledgers give {_shown(recomputed)}",
    )


def _shown(figure: float | None) -> str:
    return "none" if figure is None else repr(figure)
