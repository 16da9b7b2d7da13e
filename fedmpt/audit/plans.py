"""The plans that clients charged against the configuration that the run says it had.

A plan decides what a charge means: how vectors are bounded, how often an image is drawn, and on whose noise a sum
counts. Each number is derived anew from ``config.toml`` and the declared sizes, as the engine does before it trains.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedmpt.audit.figures import same
from fedmpt.audit.findings import Finding, Kind
from fedmpt.audit.records import RunRecords
from fedmpt.engine.ledgers import file_name
from fedmpt.engine.share_terms import check_shares, counted_on, equal_rates
from fedmpt.errors import UsageError
from privacy import DPPlan, NoiseMode, PrivacyUnit


def plan_findings(
    records: RunRecords, plans: Mapping[int, Sequence[DPPlan]], lifetimes: Mapping[int, float]
) -> list[Finding]:
    """Return where charged plans are not those of the configuration.

    Args:
        records: the run.
        plans: every client's, in order; all of them must be what the configuration asks for.
        lifetimes: limit of each client's ledger over all runs.
    """
    findings = []
    for client, own in plans.items():
        where = f"client {client}, {file_name(client)}"
        told = [
            f"config.toml {said}, the charged plan has {found}"
            for plan in own
            for said, found in _Wanted(records, client, plan).differences()
        ]
        told += _lifetime(records, lifetimes[client]) if client in lifetimes else []
        findings += [
            Finding(kind=Kind.CONTRADICTION, where=where, what=what) for what in dict.fromkeys(told)
        ]
    findings += [
        Finding(kind=Kind.CONTRADICTION, where="config.toml", what=what)
        for what in _of_all(records, plans)
    ]
    return findings


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the configuration asks of one plan of a client."""

    records: RunRecords
    client: int
    plan: DPPlan

    def differences(self) -> Iterator[tuple[str, object]]:
        """Yield what the configuration says, and what the plan has in its place."""
        plan, privacy = self.plan, self.records.settings.privacy
        for name, limit, planned in (
            ("epsilon", privacy.epsilon, plan.target_epsilon),
            ("delta", privacy.delta, plan.delta),
        ):
            if limit is not None and planned > limit:
                yield f"allows {name} {limit}", planned
        shares = privacy.noise == "shares"
        for name, said, found in (
            ("clip_mode", privacy.clip_mode, plan.clip.value),
            ("noise", privacy.noise, plan.noise.value),
            ("unit", privacy.unit, plan.unit.value),
            ("arithmetic", "integer" if shares else privacy.arithmetic, plan.arithmetic.value),
            ("space", privacy.space, plan.space.value),
        ):
            if said not in (found, "auto"):
                yield f"says {name} {said}", found
        if not same(plan.max_grad_norm, privacy.clip or 1.0):
            yield f"says clip {privacy.clip or 1.0}", plan.max_grad_norm
        yield from self._weights()
        yield from self._sizes()
        yield from self._steps()
        yield from self._rounds()
        if shares and plan.honest > counted_on(self.records.cohort):
            yield (
                f"invites {self.records.cohort} clients to a round, so {counted_on(self.records.cohort)} shares of "
                "noise can be counted on",
                f"{plan.honest}",
            )

    def _weights(self) -> Iterator[tuple[str, object]]:
        if self.plan.unit is PrivacyUnit.CLIENT:
            return
        planned = dict(self.plan.block_weights)
        for name, weight in self.records.settings.privacy.block_weights.items():
            if not same(planned.get(name), weight):
                yield f"says a weight of {weight} for {name}", planned.get(name)

    def _sizes(self) -> Iterator[tuple[str, object]]:
        declared = self.records.settings.privacy.declared_sizes
        size = None if declared is None else dict(enumerate(declared)).get(self.client, 0)
        if self.plan.unit is PrivacyUnit.CLIENT:
            size = self.records.clients  # the unit is a client, and so many there are
        if size is not None and self.plan.n_pub != size:
            yield f"says a size of {size}", self.plan.n_pub

    def _steps(self) -> Iterator[tuple[str, object]]:
        """Yield steps a round and rate that are not those of the batch and the declared size."""
        plan, train = self.plan, self.records.settings.train
        if plan.noise is NoiseMode.SHARES:
            return  # one step, which the plan itself demands; its rate depends on all clients
        if train.batch_size is None or train.local_epochs is None:
            yield "says no train.batch_size or no train.local_epochs", plan.steps_per_round
            return
        rate = min(1.0, train.batch_size / plan.n_pub)
        if not same(plan.sample_rate, rate):
            yield f"says batches of {train.batch_size}, a rate of {rate}", plan.sample_rate
        steps = max(1, round(train.local_epochs * plan.n_pub / train.batch_size))
        if plan.steps_per_round != steps:
            yield f"gives {steps} steps a round", plan.steps_per_round

    def _rounds(self) -> Iterator[tuple[str, object]]:
        """Yield a number of rounds that no schedule of the configuration has."""
        rounds = self.records.settings.train.rounds
        if rounds is None:
            yield "says no train.rounds", self.plan.rounds
        elif self.plan.rounds > rounds or (
            self.records.cohort == self.records.clients and self.plan.rounds != rounds
        ):
            yield f"says {rounds} rounds", self.plan.rounds


def _lifetime(records: RunRecords, lifetime: float) -> list[str]:
    """Return what is wrong with a ledger's limit; one that outlives its runs is fixed by the first."""
    privacy = records.settings.privacy
    carried = records.index is not None and records.index.carried
    limit = privacy.lifetime or (None if carried else privacy.epsilon)
    if limit is None or same(lifetime, limit):
        return []
    return [f"config.toml says a lifetime limit of {limit:g}, the ledger {lifetime:g}"]


def _of_all(records: RunRecords, plans: Mapping[int, Sequence[DPPlan]]) -> Iterator[str]:
    """Yield what only all clients' plans together show, where their noise goes into one sum."""
    if not records.private or not plans:
        return
    try:
        check_shares(records.settings, cohort=records.cohort)
    except UsageError as error:
        yield f"asks for what no run may do: {error}"
    last = {client: own[-1] for client, own in plans.items() if own}
    shared = {c: plan for c, plan in last.items() if plan.noise is NoiseMode.SHARES}
    if not shared:
        return
    alike = {(p.noise_multiplier, p.clip_steps, p.honest, p.max_grad_norm) for p in shared.values()}
    if len(alike) > 1:
        yield "shares of noise go into one sum, and the charged plans differ in noise, grid, clip or honest clients"
    if len(shared) < records.clients or records.settings.privacy.unit == "client":
        return  # a ledger that cannot be read has been told; a client's rate is 1, which its plan demands
    batch_size = records.settings.train.batch_size
    if batch_size is None:
        yield "says no train.batch_size"
        return
    sizes = [plan.n_pub for plan in shared.values()]
    for (client, plan), batch in zip(shared.items(), equal_rates(sizes, batch_size), strict=True):
        rate = min(1.0, batch / plan.n_pub)
        if not same(plan.sample_rate, rate):
            yield (
                f"says batches of {batch_size} on average, a rate of {rate} of client {client}, whose charged plan has "
                f"{plan.sample_rate}"
            )


def counted_on_by(plans: Mapping[int, Sequence[DPPlan]]) -> int:
    """Return the largest number of shares of noise that a charged plan counts on; 1 where no noise is shared."""
    return max((plan.honest for own in plans.values() for plan in own), default=1)
