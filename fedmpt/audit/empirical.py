"""``fedmpt audit RUN --empirical``: attacks on the run's own training code, model, plan and data.

The auditor rebuilds the run from its configuration, takes the plan that a client's ledger charged and the model that
was released, and drives private steps on a few of that client's examples and on crafted ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from fedmpt.audit.records import RunRecords, read_run
from fedmpt.audit.trained import CanaryMethod, Carried, Pool, TrainedStep, carried_parameters
from fedmpt.config import load_config
from fedmpt.engine.ledgers import file_name
from fedmpt.engine.prepare import Federation, Progress, prepare
from fedmpt.engine.spaces import round_sketch
from fedmpt.errors import UsageError
from fedmpt.inference.card import MODEL_FILE, read_model
from fedmpt.types import ClientId
from privacy import (
    Arithmetic,
    ClipMode,
    DPPlan,
    GaussianNoise,
    PLDAccountant,
    PoissonSampler,
    calibrate_noise_multiplier,
    read_ledger,
)
from privacy.audit import (
    CheckResult,
    check_books,
    check_canaries,
    check_inversion,
    check_mechanism,
    check_membership,
    check_one_run,
    check_replay,
    check_sampling,
    take_all,
)
from privacy.audit.inversion import InversionTarget, ObservedUpdate

_BASE: Final = 16  # real examples that a client holds in the tests
_CANDIDATES: Final = 50  # images among which inversion looks for the true one
_TARGETS: Final = 12
_TRIALS: Final = 200
_CANARIES: Final = 1000
_LOUD: Final = 8.0  # length of a canary's gradient, in units of C
_LOW_EPSILON: Final = 1.0  # a claim low enough for one run to contradict
_LOW_STEPS: Final = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What is audited.

    Attributes:
        head: the method's own head on real and crafted examples, in the run's space.
        bare: the same in text space, which gives most away without protection.
        canaries: linear canaries through the same training code.
        pool: the examples of ``head``: base, crafted, then candidates.
        crafted: which of them are crafted.
        plan: the client's charged plan.
    """

    head: TrainedStep
    bare: TrainedStep
    canaries: TrainedStep
    pool: Pool
    crafted: tuple[int, ...]
    plan: DPPlan


def audit_empirically(
    folder: Path, *, ledgers: Path | None, progress: Progress
) -> Iterator[CheckResult]:
    """Rebuild a run's client and attack its training; yields results as they come.

    Raises:
        UsageError: the run claims no privacy, or its data or ledgers are not there.
    """
    records = read_run(folder, ledgers)
    if not records.private:
        raise UsageError(f"{folder}: the run claims no privacy, so there is nothing to contradict")
    plan = charged_plan(records)
    config = load_config(file=folder / "config.toml", options={"device": "cpu"})
    federation = prepare(config, progress=progress)
    subject = make_subject(federation, plan, model=folder)
    accountant = PLDAccountant()
    yield from mechanism_checks(subject, accountant)
    yield from attack_checks(subject, accountant)


def charged_plan(records: RunRecords, client: int = 0) -> DPPlan:
    """Return the plan that a client's ledger charged last in this run.

    Raises:
        UsageError: the ledger is missing or has no plan of the run.
    """
    path = records.ledgers / file_name(client)
    if records.index is None or not path.exists():
        raise UsageError(f"{path}: not there; give its folder as --ledger")
    plans = [
        record["plan"]
        for record in read_ledger(path).records
        if record["kind"] == "plan" and record["run"] == records.index["run"]
    ]
    if not plans:
        raise UsageError(f"{path}: holds no plan of run {records.index['run']}")
    if plans[-1]["arithmetic"] != Arithmetic.FLOAT:
        raise UsageError(
            f"{records.folder}: its noise is drawn in integers, which these checks cannot take out again; the "
            "integer mechanism is tested against its exact probabilities in tests/privacy"
        )
    return _plan(plans[-1])


def make_subject(federation: Federation, plan: DPPlan, *, model: Path | None) -> Subject:
    """Return the steps to be audited: of client 0, at the released model, on its charged plan, in the run's space."""
    method = federation.method
    if method.pixel_shape is not None:
        raise UsageError(
            f"{method.name} reads pixels; the checks need a method that reads features"
        )
    parameters = dict(federation.initial)
    if model is not None and (model / MODEL_FILE).exists():
        _, tensors = read_model(model)
        device = federation.backbone.device
        parameters |= {name: value.to(device) for name, value in tensors.parameters.items()}
    data = federation.client_data(ClientId(0))
    rows = np.arange(min(len(data), _BASE + _CANDIDATES))
    pool = crafted_pool(data.bank.patches(data.rows[rows]).astype(np.float16), data.labels[rows])
    sketch = round_sketch(federation.config, method, parameters, round_number=plan.rounds)
    bare = TrainedStep(Carried(method), carried_parameters(method, parameters), pool, plan)
    head = bare if sketch is None else TrainedStep(method, parameters, pool, plan, sketch=sketch)
    crafted = tuple(i for i, name in enumerate(pool.names) if not name.startswith("image"))
    return Subject(
        head=head,
        bare=bare,
        canaries=canary_step(plan, _CANARIES),
        pool=pool,
        crafted=crafted,
        plan=plan,
    )


def canary_step(plan: DPPlan, count: int) -> TrainedStep:
    """Return orthogonal canaries, and five crafted examples behind them, through the training code."""
    one_hot = np.eye(count, dtype=np.float16) * np.float16(_LOUD * plan.max_grad_norm)
    crafted = np.stack(
        [
            one_hot[0],  # a duplicate
            -one_hot[0],
            np.full(count, 60.0),  # points at all others, far longer than C
            1000 * one_hot[1],
            np.full(count, np.inf),
        ]
    ).astype(np.float16)
    names = (
        *(f"canary {index}" for index in range(count)),
        *("a duplicate", "an opposite", "a long one", "a canary times 1000", "a non-finite one"),
    )
    patches = np.concatenate([one_hot, crafted])[:, None]  # [n, 1, D]
    pool = Pool(names=names, patches=patches, labels=np.zeros((len(names), 1), dtype=np.int8))
    method = CanaryMethod(count)
    return TrainedStep(method, method.initial_parameters(0), pool, plan)


def mechanism_checks(subject: Subject, accountant: PLDAccountant) -> Iterator[CheckResult]:
    """Checks that can show a step to be wrong: deterministic, or exact with tiny error probabilities."""
    head, canaries = subject.head, subject.canaries
    base, crafted = list(range(_BASE)), list(subject.crafted)
    loud = list(range(_BASE))
    behind = [i for i, name in enumerate(canaries.examples) if not name.startswith("canary")]
    yield _named("head", check_replay(head, base=base, removed=[_BASE, *crafted]))
    yield _named("canaries", check_replay(canaries, base=loud, removed=[_BASE, *behind]))
    yield _named("head", check_mechanism(head, holdings=[[], base, base[:-1], base[:1]]))
    yield _named("head", check_sampling(head, members=base))
    yield check_canaries(canaries, canaries=range(200), steps=20)
    yield check_books(subject.plan, accountant)


def attack_checks(subject: Subject, accountant: PLDAccountant) -> Iterator[CheckResult]:
    """Attacks on what leaves, each with its control."""
    plan = subject.plan
    yield check_one_run(
        subject.canaries,
        canaries=range(_CANARIES),
        steps=plan.rounds * plan.steps_per_round,
        accountant=accountant,
        coins=np.random.default_rng(),
    )
    yield check_one_run(
        canary_step(_low_claim(plan, accountant), _CANARIES),
        canaries=range(_CANARIES),
        steps=_LOW_STEPS,
        accountant=accountant,
        coins=np.random.default_rng(),
    )
    for name, others in (
        ("the server without masking: one update", []),
        ("the server with masking: a sum of three", [1, 2]),
        ("another client: the released model less its own update", [1]),
    ):
        yield _membership(subject, name, others, accountant)
    yield _inversion(subject, accountant)


def _membership(
    subject: Subject, name: str, others: list[int], accountant: PLDAccountant
) -> CheckResult:
    """A view that sums the target's client with other clients; all others' examples are known to the attacker."""
    head, target = subject.head, _BASE
    images = [i for i, n in enumerate(subject.pool.names) if n.startswith("image") and i != target]
    holdings = [images[k * _BASE // 2 : (k + 1) * _BASE // 2] for k in range(3)]
    bare = head.unprotected_sum([target])
    direction = bare / np.linalg.norm(bare)

    def protected(member: bool) -> float:
        total = 0.0
        for client in (0, *others):
            held = holdings[client] + ([target] if member and client == 0 else [])
            noised = head.noised_sum(held, sampler=PoissonSampler(head.plan), noise=GaussianNoise())
            total += float(direction @ noised)
        return total

    def unprotected(member: bool) -> float:
        total = 0.0
        for client in (0, *others):
            held = holdings[client] + ([target] if member and client == 0 else [])
            total += float(direction @ head.unprotected_sum(held))
        return total

    return check_membership(
        name,
        protected=protected,
        unprotected=unprotected,
        events=[head.plan.event(1)],
        delta=head.plan.delta,
        accountant=accountant,
        trials=_TRIALS,
    )


def _inversion(subject: Subject, accountant: PLDAccountant) -> CheckResult:
    """Inversion of updates of a single example, which is surely in the batch: the worst case."""
    head, pool = subject.head, subject.pool
    images = [i for i, name in enumerate(pool.names) if name.startswith("image")][:_CANDIDATES]
    candidates = torch.from_numpy(pool.patches[images]).float()
    start = candidates.mean(0)
    targets = []
    for truth in range(min(_TARGETS, len(images))):
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
                describe=lambda patches: patches.mean(0),  # a gradient does not tell patches' order
                candidates=candidates,
                truth=truth,
            )
        )
    event = replace(head.plan.event(1), sample_rate=1.0)
    return check_inversion(targets, events=[event], accountant=accountant)


def crafted_pool(patches: NDArray[np.float16], labels: NDArray[np.int8]) -> Pool:
    """Return base images, one target, crafted examples, and the remaining images."""
    ordinary = _BASE + 1
    if len(patches) < ordinary + 1:
        raise UsageError(f"client 0 has {len(patches)} images; an audit needs {ordinary + 1}")
    last = patches[_BASE]
    crafted = {
        "a duplicate": (patches[0], labels[0]),
        "patches times 1000": (last * np.float16(1000), labels[_BASE]),
        "every class labelled": (last, np.ones_like(labels[0])),
        "no class labelled": (last, np.zeros_like(labels[0])),
        "every label unknown": (last, -np.ones_like(labels[0])),
        "non-finite patches": (np.full_like(last, np.inf), labels[0]),
    }
    rest = len(patches) - ordinary
    names = (
        *(f"image {i}" for i in range(ordinary)),
        *crafted,
        *(f"image {ordinary + i}" for i in range(rest)),
    )
    extra_patches = np.stack([entry[0] for entry in crafted.values()])
    extra_labels = np.stack([entry[1] for entry in crafted.values()])
    return Pool(
        names=names,
        patches=np.concatenate([patches[:ordinary], extra_patches, patches[ordinary:]]),
        labels=np.concatenate([labels[:ordinary], extra_labels, labels[ordinary:]]).astype(np.int8),
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
    return replace(plan, noise_multiplier=noise_multiplier, target_epsilon=_LOW_EPSILON)


def _plan(record: Mapping[str, Any]) -> DPPlan:
    """The plan of a ledger's record, as far as the mechanism goes."""
    return DPPlan(
        n_pub=record["n_pub"],
        target_epsilon=record["target_epsilon"],
        delta=record["delta"],
        sample_rate=record["sample_rate"],
        noise_multiplier=record["noise_multiplier"],
        max_grad_norm=record["max_grad_norm"],
        steps_per_round=record["steps_per_round"],
        rounds=record["rounds"],
        block_weights=tuple(record["block_weights"].items()),
        clip=ClipMode(record["clip"]),
    )


def _named(what: str, result: CheckResult) -> CheckResult:
    return replace(result, check=f"{result.check}, {what}")
