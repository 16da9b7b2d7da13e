"""Attacks on what leaves a client, each beside a control without protection that must succeed.

Every attack looks at what a party truly sees: under masking the server has sums only, another client has the sequence
of released models and its own updates, and whoever gets the model has its last state.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from fedmpt.audit.planted import planted_state, telling_direction
from fedmpt.audit.shadows import PrivateRounds, Seen, train_openly
from fedmpt.audit.subjects import BASE, CANDIDATES, Subject, step_at, targets_of
from fedmpt.audit.trained import TrainedStep
from fedmpt.engine.prepare import Federation
from fedmpt.learner import LocalSettings
from fedmpt.types import FloatVector
from privacy import GaussianNoise, PLDAccountant, PoissonSampler
from privacy.audit import (
    CheckResult,
    Goal,
    Trials,
    check_inversion,
    check_membership,
    check_rates,
    confidence,
    likelihood_ratios,
    not_attempted,
    take_all,
)
from privacy.audit.inversion import InversionTarget, ObservedUpdate

_INVERTED: Final = 12
_TRIALS: Final = 200
_MOST_RUNS: Final = 24
_LEAST_RUNS: Final = 12  # fewer shadows tell nothing of a single target
_PATIENCE: Final = 5.0  # times the budget, for the least number of runs
_PLANTED_TRIALS: Final = 200
_COIN_VARIANCE: Final = 0.25  # of a target's being in
_EVEN: Final = 1e-4  # in the place of noise where there is none
_GOAL_EPSILON: Final = 8.0  # what the goals below are for
RECOGNITION: Final = Goal(of="true_positive_rate", at_most=0.02, control_at_least=0.05)
PLANTING: Final = Goal(of="advantage", at_most=0.1, control_at_least=0.5)
# Without privacy, as long and as hard as makes a small client's images show.
_OPEN: Final = LocalSettings(
    optimizer="adam", momentum=0.0, weight_decay=0.0, batch_size=16, epochs=20
)
_OPEN_RATE: Final = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """Who sees what of a simulated run.

    Attributes:
        who: the party.
        index: of `fedmpt.audit.shadows.Seen.sums`.
    """

    who: str
    index: int


def views_of(federation: Federation) -> list[View]:
    """Return the parties that see sums of updates in the run, and what they see of them."""
    config, cohort = federation.config, _cohort(federation)
    if config.train.weighting == "none":
        return []  # every client trains alone
    if config.privacy.noise == "shares":
        return [View(who="the server and its colluders: sums less what they know", index=0)]
    last = min(cohort, 3) - 1  # views differ by how many other clients' noise is in them
    server = {
        "none": View(who="the server: every update", index=0),
        "masking": View(who="the server: masked sums", index=last),
        "ckks": View(who="two clients who decrypt sums", index=last),
    }
    other = View(who="another client: every model less its own update", index=max(0, last - 1))
    return [server[config.secagg.mode], other][:cohort]


def _cohort(federation: Federation) -> int:
    """Clients whose noise is in a round's model."""
    return 1 if federation.config.train.weighting == "none" else len(federation.schedule[0])


def attack_checks(
    subject: Subject,
    federation: Federation,
    accountant: PLDAccountant,
    *,
    budget_s: float = 120.0,
    runs: int = _MOST_RUNS,
) -> Iterator[CheckResult]:
    """Attack what leaves, each attack beside its control.

    Args:
        subject: what is audited.
        federation: the run.
        accountant: gives the profiles.
        budget_s: wall time for simulated runs: as many as fit are made, and at least a dozen.
        runs: largest number of simulated runs.
    """
    yield _one_update(subject, accountant)
    yield from _over_rounds(subject, federation, accountant, budget_s=budget_s, runs=runs)
    yield _planted(subject, federation, accountant)
    yield _inversion(subject, accountant)


def _one_update(subject: Subject, accountant: PLDAccountant) -> CheckResult:
    """The worst case for one step: an attacker who knows all other examples, and whether coins took them."""
    head, target = subject.head, BASE
    held = [i for i in subject.images if i != target][:BASE]
    bare = head.unprotected_sum([target])
    direction = bare / np.linalg.norm(bare)

    def protected(member: bool) -> float:
        members = [*held, target] if member else held
        noised = head.noised_sum(members, sampler=PoissonSampler(head.plan), noise=GaussianNoise())
        return float(direction @ noised)

    rows = head.rows([*held, target]).double().numpy() @ direction

    def unprotected(member: bool) -> float:
        return float(rows.sum() if member else rows[:-1].sum())

    return check_membership(
        "one update, by an insider who knows all other images",
        protected=protected,
        unprotected=unprotected,
        events=[head.plan.event(1)],
        delta=head.plan.delta,
        accountant=accountant,
        trials=_TRIALS,
    )


def _over_rounds(
    subject: Subject,
    federation: Federation,
    accountant: PLDAccountant,
    *,
    budget_s: float,
    runs: int,
) -> Iterator[CheckResult]:
    """Attacks on whole runs: the released model by shadow models, and the sequence of sums by cosines."""
    started, plan = time.perf_counter(), subject.plan
    pool, targets = targets_of(federation, subject.client)
    private = step_at(federation, plan, pool, dict(federation.initial), round_number=0)
    bare = step_at(federation, plan, pool, dict(federation.initial), bare=True)
    coins = np.random.default_rng()
    settings, lr = federation.local, federation.config.train.lr or 0.0
    if private.plan.space == bare.plan.space:  # there a parameter moves in the prompts' place
        rates = [settings.lr_multipliers.get(n, 1.0) for n in federation.method.prompt_blocks]
        carrier = dict.fromkeys(bare.method.prompt_blocks, min(rates, default=1.0))
        settings = replace(settings, lr_multipliers={**settings.lr_multipliers, **carrier})
    cohort = _cohort(federation)
    rounds = PrivateRounds(private, settings=settings, lr=lr, cohort=cohort)
    began = time.perf_counter()
    seen = [rounds.run(targets, coins)]
    one = time.perf_counter() - began
    least = min(_LEAST_RUNS, runs)
    if least * one > _PATIENCE * budget_s:
        yield not_attempted(
            "attacks on whole runs (LiRA, FedMIA)",
            f"a simulated run takes {one:.0f} s here, and at least {least} are needed; a faster machine makes them",
        )
        return
    count = min(runs, max(least, int(budget_s / one)))
    seen += [rounds.run(targets, coins) for _ in range(count - 1)]
    control = [
        train_openly(bare, targets, coins, settings=_OPEN, lr=_OPEN_RATE) for _ in range(count)
    ]
    goal = RECOGNITION if plan.target_epsilon <= _GOAL_EPSILON else None
    events = [plan.event(plan.rounds * plan.steps_per_round)]
    simulated = time.perf_counter() - started
    yield check_rates(
        "LiRA, whoever gets the model",
        protected=_by_shadow_models(private, targets, [(one.members, one.final) for one in seen]),
        unprotected=_by_shadow_models(bare, targets, control),
        events=events,
        accountant=accountant,
        goal=goal,
        seconds=simulated,
    )
    unprotected = _by_cosines_in_the_open(bare, targets, count, coins)
    views = views_of(federation)
    started = time.perf_counter()
    sizes = {view.index: rounds.clients_in_view[view.index] for view in views}
    protected = _by_cosines(private, targets, seen, sizes)
    for view in views:
        yield check_rates(
            f"FedMIA, {view.who}",
            protected=protected[view.index],
            unprotected=unprotected,
            events=events,
            accountant=accountant,
            goal=goal,
            seconds=(time.perf_counter() - started) / len(views),
        )


def _by_shadow_models(
    step: TrainedStep,
    targets: Sequence[int],
    models: Sequence[tuple[NDArray[np.bool_], FloatVector]],
) -> Trials:
    """How sure each run's last model is of each target, against how sure the other runs' models are."""
    losses = np.stack([step.losses(targets, vector=final).double().numpy() for _, final in models])
    members = np.stack([into for into, _ in models])
    return Trials(
        scores=likelihood_ratios(confidence(losses), members, online=True), members=members
    )


def _by_cosines(
    step: TrainedStep, targets: Sequence[int], seen: Sequence[Seen], views: Mapping[int, int]
) -> dict[int, Trials]:
    """How much of each target's own gradient is in what was seen, summed over the looks at a run.

    Source: FedMIA, arXiv 2402.06289: a target is accused where the cosine of updates with its gradient is larger than
    without it. Candidates' gradients have much in common, so the cosines are those of what each does not share with the
    others, as far as the noise allows (`_explained`).

    Args:
        step: the step of the simulated runs.
        targets: examples of its pool.
        seen: the runs.
        views: view -> clients whose noise is in it.
    """
    plan = step.plan
    found = np.zeros((len(views), len(seen), len(targets)))
    for run, one in enumerate(seen):
        steps = plan.rounds * plan.steps_per_round / len(one.states)
        for look, vector in enumerate(one.states):
            rows = step.rows(targets, vector=vector).double()
            for place, (view, clients) in enumerate(views.items()):
                total = torch.from_numpy(one.sums[view, look]).double()
                noise = _seen_noise(total, rows)
                if noise is None:  # too few values to see it: then as claimed
                    noise = clients * plan.noise_multiplier**2 * steps
                part = (plan.sample_rate * steps) ** 2
                found[place, run] += _explained(total[None], rows, noise=noise / part)[0]
    members = np.stack([one.members for one in seen])
    return {
        view: Trials(scores=likelihood_ratios(scores, members, online=False), members=members)
        for view, scores in zip(views, found, strict=True)
    }


def _by_cosines_in_the_open(
    step: TrainedStep, targets: Sequence[int], runs: int, coins: np.random.Generator
) -> Trials:
    """The control of `_by_cosines`: one sum a run of the members' gradients as they are."""
    rows = step.rows(targets).double()
    members = coins.random((runs, len(targets))) < 0.5
    sums = torch.from_numpy(members).double() @ rows
    scores = _explained(sums, rows, noise=_EVEN)
    return Trials(scores=likelihood_ratios(scores, members, online=False), members=members)


def _explained(sums: torch.Tensor, rows: torch.Tensor, *, noise: float) -> NDArray[np.float64]:
    """What each gradient's direction has in each sum, when all explain it together: the best linear guess of coins.

    Args:
        sums: float64 ``[S, d]``.
        rows: gradients, float64 ``[n, d]``.
        noise: variance of a value of a sum, in units of a member's expected part in it.

    Returns:
        float64 ``[S, n]``.
    """
    units = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
    even = max(_EVEN, noise / _COIN_VARIANCE) * torch.eye(len(units), dtype=torch.float64)
    solved = torch.linalg.solve(units @ units.T + even, units @ sums.T)  # [n, S]
    result: NDArray[np.float64] = solved.T.numpy()
    return result


def _seen_noise(total: torch.Tensor, rows: torch.Tensor) -> float | None:
    """The variance of a sum's values that no gradient explains: its noise, which need not be what was claimed.

    Args:
        total: float64 ``[d]``.
        rows: gradients, float64 ``[n, d]``.

    Returns:
        The variance; None where fewer than half of the values are left over.
    """
    count, size = rows.shape
    if size < 2 * count:
        return None
    basis = torch.linalg.qr(rows.T)[0]  # [d, n]
    left = total - basis @ (basis.T @ total)
    return float(left.square().sum()) / (size - count)


def _planted(subject: Subject, federation: Federation, accountant: PLDAccountant) -> CheckResult:
    """One round from a planted state, with the target in the data and without it, many times."""
    started, plan = time.perf_counter(), subject.plan
    views = views_of(federation)
    if not views:
        return not_attempted(
            "PromptMIA", "every client trains alone: no server sends a model or gets an update"
        )
    target, held = BASE, [i for i in subject.images if i != BASE][:BASE]
    parameters = planted_state(subject.head, target=target, others=held)
    step = step_at(federation, plan, subject.pool, parameters, round_number=0)
    direction = telling_direction(step, target=target, others=held)
    settings, lr = federation.local, federation.config.train.lr or 0.0
    view = views[0].index
    bare = step.rows([*held, target]).double().numpy() @ direction  # [n + 1]
    random = np.random.default_rng()
    protected = np.zeros((_PLANTED_TRIALS, 2))
    unprotected = np.zeros((_PLANTED_TRIALS, 2))
    cohort = _cohort(federation)
    rounds = PrivateRounds(step, settings=settings, lr=lr, cohort=cohort)
    for trial in range(_PLANTED_TRIALS):
        for place, extra in enumerate(([], [target])):
            some = random.random(len(held)) < 0.5  # the attacker guesses what else is held
            members = [i for i, into in zip(held, some, strict=True) if into] + extra
            seen, _ = rounds.round(step.state.vector, members, 0)
            protected[trial, place] = direction @ seen[view]
            unprotected[trial, place] = bare[:-1][some].sum() + (bare[-1] if extra else 0.0)
    members_of = np.tile([False, True], (_PLANTED_TRIALS, 1))
    return check_rates(
        "PromptMIA, a server that plants parameters: one round",
        protected=Trials(scores=protected, members=members_of),
        unprotected=Trials(scores=unprotected, members=members_of),
        events=[plan.round_event()],
        accountant=accountant,
        goal=PLANTING if plan.target_epsilon <= _GOAL_EPSILON else None,
        seconds=time.perf_counter() - started,
    )


def _inversion(subject: Subject, accountant: PLDAccountant) -> CheckResult:
    """Inversion of updates of a single example, which is surely in the batch: the worst case."""
    head, pool = subject.head, subject.pool
    images = list(subject.images)[:CANDIDATES]
    candidates = torch.from_numpy(pool.patches[images]).float()
    start = candidates.mean(0)
    describe = _whole if subject.prepared else _mean_patch
    targets = []
    for truth in range(min(_INVERTED, len(images))):
        labels = torch.from_numpy(pool.labels[images[truth]])
        noised = head.noised_sum(
            [images[truth]], sampler=take_all(head.plan), noise=GaussianNoise()
        )
        bare = subject.bare.unprotected_sum([images[truth]])
        targets.append(
            InversionTarget(
                protected=ObservedUpdate(
                    update=torch.from_numpy(noised).float(),
                    gradient_of=partial(head.gradient, labels=labels),
                ),
                unprotected=ObservedUpdate(
                    update=torch.from_numpy(bare).float(),
                    gradient_of=partial(subject.bare.gradient, labels=labels),
                ),
                start=start,
                describe=describe,
                candidates=candidates,
                truth=truth,
            )
        )
    event = replace(head.plan.event(1), sample_rate=1.0)
    return check_inversion(targets, events=[event], accountant=accountant)


def _mean_patch(patches: torch.Tensor) -> torch.Tensor:
    """What a gradient tells of features: not their order."""
    return patches.mean(0)


def _whole(prepared: torch.Tensor) -> torch.Tensor:
    """What a gradient tells of what a method prepares of pixels: all of it, rows in their places."""
    return prepared
