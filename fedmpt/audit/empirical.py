"""``fedmpt audit RUN --empirical``: attacks on the run's own training code, model, plan and data.

The auditor rebuilds the run from its configuration, takes the plan that a client's ledger charged and the model that
was released, and drives private steps on a few of that client's examples and on crafted ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from fedmpt.audit.attacks import attack_checks
from fedmpt.audit.records import RunRecords, read_run
from fedmpt.audit.shared_noise import check_opened_sums
from fedmpt.audit.subjects import (
    BASE,
    CANARIES,
    Subject,
    canary_step,
    charged_plan,
    make_subject,
    worst_off,
)
from fedmpt.config import load_config
from fedmpt.engine.prepare import Progress, prepare
from fedmpt.errors import UsageError
from privacy import (
    Arithmetic,
    DPPlan,
    NoiseMode,
    PLDAccountant,
    PrivacyUnit,
    calibrate_noise_multiplier,
)
from privacy.audit import (
    CheckResult,
    check_books,
    check_canaries,
    check_mechanism,
    check_one_run,
    check_replay,
    check_sampling,
    not_attempted,
)
from privacy.grid import clip_steps_for

_LOW_EPSILON: Final = 1.0  # a claim low enough for one run to contradict
_LOW_STEPS: Final = 100


def audited_client(folder: Path, *, ledgers: Path | None, client: int | None) -> int:
    """Return the client that an audit attacks: the one named, else the one that spent most.

    Raises:
        UsageError: the run claims no privacy, has no such client, or its ledgers are not there.
    """
    records = _private_run(folder, ledgers)
    chosen = worst_off(records, PLDAccountant()) if client is None else client
    charged_plan(records, chosen)
    return chosen


def audit_empirically(
    folder: Path, *, ledgers: Path | None, client: int, progress: Progress
) -> Iterator[CheckResult]:
    """Rebuild a run's client and attack its training; yields results as they come.

    Args:
        folder: the run folder.
        ledgers: folder of its ledgers, if they were moved.
        client: which client, see `audited_client`.
        progress: hears how far reading the data is.

    Raises:
        UsageError: the run claims no privacy, has no such client, or its data or ledgers are not there.
    """
    plan, accountant = charged_plan(_private_run(folder, ledgers), client), PLDAccountant()
    config = load_config(file=folder / "config.toml", options={"device": "cpu"})
    federation = prepare(config, progress=progress)
    if plan.noise is NoiseMode.SHARES:
        yield check_opened_sums(federation, plan)
    if plan.unit is PrivacyUnit.CLIENT:
        yield check_books(plan, accountant)
        yield not_attempted(
            "replay, canaries and attacks",
            "what is protected is a client as a whole; these checks add and take out single images",
        )
        return
    subject = make_subject(federation, plan, client=client, model=folder)
    yield from mechanism_checks(subject, accountant)
    yield from one_run_checks(subject, accountant)
    yield from attack_checks(subject, federation, accountant)


def _private_run(folder: Path, ledgers: Path | None) -> RunRecords:
    records = read_run(folder, ledgers)
    if not records.private:
        raise UsageError(f"{folder}: the run claims no privacy, so there is nothing to contradict")
    return records


def mechanism_checks(subject: Subject, accountant: PLDAccountant) -> Iterator[CheckResult]:
    """Checks that can show a step to be wrong: deterministic, or exact with tiny error probabilities."""
    head, canaries = subject.head, subject.canaries
    base, crafted = list(range(BASE)), list(subject.crafted)
    loud = list(range(BASE))
    behind = [i for i, name in enumerate(canaries.examples) if not name.startswith("canary")]
    yield _named("head", check_replay(head, base=base, removed=[BASE, *crafted]))
    yield _named("canaries", check_replay(canaries, base=loud, removed=[BASE, *behind]))
    yield _named("head", check_mechanism(head, holdings=[[], base, base[:-1], base[:1]]))
    yield _named("head", check_sampling(head, members=base))
    yield check_canaries(canaries, canaries=range(200), steps=20)
    yield check_books(subject.plan, accountant)


def one_run_checks(subject: Subject, accountant: PLDAccountant) -> Iterator[CheckResult]:
    """One run with many canaries, at the claim, and at a claim low enough for one run to contradict."""
    plan = subject.plan
    yield check_one_run(
        subject.canaries,
        canaries=range(CANARIES),
        steps=plan.rounds * plan.steps_per_round,
        accountant=accountant,
        coins=np.random.default_rng(),
    )
    yield check_one_run(
        canary_step(_low_claim(plan, accountant), CANARIES),
        canaries=range(CANARIES),
        steps=_LOW_STEPS,
        accountant=accountant,
        coins=np.random.default_rng(),
    )


def _low_claim(plan: DPPlan, accountant: PLDAccountant) -> DPPlan:
    """The plan with as much noise as a claim needs that one run can contradict."""
    noise_multiplier = calibrate_noise_multiplier(
        target_epsilon=_LOW_EPSILON,
        delta=plan.delta,
        sample_rate=plan.sample_rate,
        steps=_LOW_STEPS,
        accountant=accountant,
    )
    grid = clip_steps_for(noise_multiplier, plan.honest)
    return replace(
        plan,
        noise_multiplier=noise_multiplier,
        target_epsilon=_LOW_EPSILON,
        clip_steps=grid if plan.arithmetic is Arithmetic.INTEGER else None,
    )


def _named(what: str, result: CheckResult) -> CheckResult:
    return replace(result, check=f"{result.check}, {what}")
