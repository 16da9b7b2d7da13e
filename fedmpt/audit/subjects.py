"""What an empirical audit attacks: a client's training step, at the model that was released, on its charged plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmpt.audit.records import RunRecords
from fedmpt.audit.stand_ins import (
    CARRIER,
    CanaryMethod,
    Carried,
    Pool,
    Unpenalised,
    carried_parameters,
)
from fedmpt.audit.trained import TrainedStep
from fedmpt.engine.ledgers import file_name
from fedmpt.engine.prepare import Federation
from fedmpt.engine.spaces import round_sketch
from fedmpt.errors import UsageError
from fedmpt.inference.card import MODEL_FILE, read_model
from fedmpt.methods.base import Parameters
from fedmpt.types import ClientId
from privacy import (
    DPPlan,
    DPSpace,
    PLDAccountant,
    read_ledger,
)

BASE: Final = 16  # real examples that a client holds in the tests
CANDIDATES: Final = 50  # images among which inversion looks for the true one
TARGETS: Final = 96  # images whose membership attacks on whole runs tell
CANARIES: Final = 1000
_LOUD: Final = 8.0  # length of a canary's gradient, in units of C


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
        client: which client.
        prepared: whether examples are what the method prepares of pixels, in place of features.
    """

    head: TrainedStep
    bare: TrainedStep
    canaries: TrainedStep
    pool: Pool
    crafted: tuple[int, ...]
    plan: DPPlan
    client: int = 0
    prepared: bool = False

    @property
    def images(self) -> tuple[int, ...]:
        """The examples that are images of the client as they are."""
        return tuple(i for i in range(len(self.pool.names)) if i not in set(self.crafted))


def worst_off(records: RunRecords, accountant: PLDAccountant) -> int:
    """Return the client that spent most in this run; the first of equals.

    Raises:
        UsageError: no ledger of the run is there.
    """
    spent: dict[int, float] = {}
    for client in records.booked:
        path = records.ledgers / file_name(client)
        if path.exists():
            history = read_ledger(path)
            run = records.index.run if records.index is not None else None
            spent[client] = accountant.epsilon(history.events(run), history.terms.delta)
    if not spent:
        raise UsageError(
            f"{records.ledgers}: holds no ledger of the run; give its folder as --ledger"
        )
    return max(spent, key=lambda client: spent[client])


def charged_plan(records: RunRecords, client: int) -> DPPlan:
    """Return the plan that a client's ledger charged last in this run.

    Raises:
        UsageError: the run has no such client, or its ledger is missing or has no plan of the run.
    """
    known = records.booked
    if records.index is not None and client not in known:
        raise UsageError(
            f"--client {client}: the run has no such client; it has {min(known)} to {max(known)}"
        )
    path = records.ledgers / file_name(client)
    if records.index is None or not path.exists():
        raise UsageError(f"{path}: not there; give its folder as --ledger")
    plans = [
        record["plan"]
        for record in read_ledger(path).records
        if record["kind"] == "plan" and record["run"] == records.index.run
    ]
    if not plans:
        raise UsageError(f"{path}: holds no plan of run {records.index.run}")
    return DPPlan.from_record(plans[-1])


def released_parameters(federation: Federation, model: Path | None) -> Parameters:
    """Return the parameters at the model that was released in a folder; those at the start where none was."""
    parameters = dict(federation.initial)
    if model is not None and (model / MODEL_FILE).exists():
        _, tensors = read_model(model)
        device = federation.backbone.device
        parameters |= {name: value.to(device) for name, value in tensors.parameters.items()}
    return parameters


def make_subject(
    federation: Federation, plan: DPPlan, *, client: int, model: Path | None
) -> Subject:
    """Return the steps to be audited: of one client, at the released model, on its charged plan, in the run's space."""
    config, method = federation.config, federation.method
    parameters = released_parameters(federation, model)
    data = federation.client_data(ClientId(client))
    rows = np.arange(min(len(data), BASE + CANDIDATES))
    pool = crafted_pool(
        data.bank.patches(data.rows[rows]).astype(np.float16), data.labels[rows], client=client
    )
    bare = step_at(federation, plan, pool, parameters, bare=True)
    in_text = DPSpace(config.privacy.space) is DPSpace.TEXT
    return Subject(
        head=bare if in_text else step_at(federation, plan, pool, parameters),
        bare=bare,
        canaries=canary_step(plan, CANARIES),
        pool=pool,
        crafted=tuple(i for i, name in enumerate(pool.names) if not name.startswith("image")),
        plan=plan,
        client=client,
        prepared=method.pixel_shape is not None,
    )


def step_at(
    federation: Federation,
    plan: DPPlan,
    pool: Pool,
    parameters: Parameters,
    *,
    bare: bool = False,
    round_number: int | None = None,
) -> TrainedStep:
    """Return a private step at some parameters.

    Args:
        federation: the run.
        plan: the claim.
        pool: the examples.
        parameters: the state, of the run's method.
        bare: whether to clip and noise in text space whatever the run's space is.
        round_number: rounds done before, of which the sketch depends; all by default.
    """
    config, method = federation.config, federation.method
    space = DPSpace(config.privacy.space)
    if bare or space is DPSpace.TEXT:
        if CARRIER not in parameters:
            parameters = carried_parameters(method, parameters)
        return TrainedStep(Carried(method), parameters, pool, plan)
    number = plan.rounds if round_number is None else round_number
    return TrainedStep(
        Unpenalised(method),
        parameters,
        pool,
        plan,
        space=space,
        sketch=round_sketch(config, method, parameters, round_number=number),
        prompt_chunk=config.privacy.prompt_chunk,
    )


def targets_of(federation: Federation, client: int) -> tuple[Pool, tuple[int, ...]]:
    """Return images of a client, which a simulated run has or has not, as a pool, and their places in it."""
    data = federation.client_data(ClientId(client))
    rows = np.arange(min(len(data), TARGETS))
    pool = Pool(
        names=tuple(f"image {row}" for row in rows),
        patches=data.bank.patches(data.rows[rows]).astype(np.float16),
        labels=data.labels[rows],
    )
    return pool, tuple(range(len(rows)))


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


def crafted_pool(
    patches: NDArray[np.float16], labels: NDArray[np.int8], *, client: int = 0
) -> Pool:
    """Return base images, one target, crafted examples, and the remaining images."""
    ordinary = BASE + 1
    if len(patches) < ordinary + 1:
        raise UsageError(
            f"client {client} has {len(patches)} images; an audit needs {ordinary + 1}"
        )
    last = patches[BASE]
    crafted = {
        "a duplicate": (patches[0], labels[0]),
        "patches times 1000": (last * np.float16(1000), labels[BASE]),
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
