"""One client's local training, private or not: from the released state and own data to an `Update`.

Clients are stateless between rounds: a fresh optimiser starts from the broadcast parameters each time. Losses are
summed over a batch (the paper's Eq. 12 has no divisor), so a gradient is a mean times the public batch size.

Dimensions: ``b`` examples of a chunk, ``M`` patches, ``D`` width, ``C`` classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmpt.data.dataset import LabelMatrix
from fedmpt.data.features import FeatureBank
from fedmpt.errors import RunError
from fedmpt.methods.base import Method, Parameters
from fedmpt.types import GlobalState, ParameterSpec, Update
from privacy import Arithmetic, DPPlan, DPSpace, NoiseSource, PoissonSampler
from privacy.dpsgd import PrivateGradient, StepHistory
from privacy.integer import GridRelease, IntegerGradient, LocalIntegerGradient
from privacy.jacobian import TEXT_BLOCK, PromptSpace, Space, TextSpace
from privacy.noise import IntegerNoise
from privacy.sketch import Sketch, SketchSpace


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientData:
    """What one client holds: rows of the feature bank and their labels.

    Attributes:
        bank: features of the whole training split, memory-mapped.
        rows: int64 ``[n]``, this client's rows of the bank.
        labels: int8 ``[n, C]``.
    """

    bank: FeatureBank
    rows: NDArray[np.int64]
    labels: LabelMatrix

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, positions: NDArray[np.int64], device: torch.device) -> tuple[Tensor, Tensor]:
        """Return patches float32 ``[b, M, D]`` and labels int8 ``[b, C]`` of some own examples."""
        patches = torch.from_numpy(self.bank.patches(self.rows[positions]))
        return patches.to(device), torch.from_numpy(self.labels[positions]).to(device)


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalSettings:
    """The local optimiser.

    Attributes:
        optimizer: ``sgd``, ``adam`` or ``adamw``.
        momentum: of SGD.
        weight_decay: L2 penalty, data-free.
        lr_multipliers: block -> factor of its learning rate, where that is not 1.
        batch_size: images of a step; under DP the public expected number.
        epochs: passes over the data in a round, without DP (under DP the plan fixes the steps).
    """

    optimizer: str
    momentum: float
    weight_decay: float
    batch_size: int
    epochs: int
    lr_multipliers: Mapping[str, float] = field(default_factory=dict)


def train(
    method: Method,
    spec: ParameterSpec,
    state: GlobalState,
    data: ClientData,
    *,
    settings: LocalSettings,
    lr: float,
    weight: int,
    device: torch.device,
    order: np.random.Generator,
    local: Parameters | None = None,
) -> Update:
    """Train without privacy.

    Args:
        method: the method.
        spec: layout of the parameters.
        state: the broadcast state; not changed.
        data: this client's data.
        settings: the local optimiser.
        lr: this round's learning rate.
        weight: this client's weight in the average.
        device: where to compute.
        order: shuffles the examples.
        local: this client's own blocks; replaced by the trained ones, and no part of the update.

    Returns:
        The update with summed loss and number of examples seen.
    """
    parameters = _leaves(spec, state, device, local)
    optimizer = make_optimizer(parameters, settings, lr)
    loss_sum, seen = 0.0, 0
    for positions in _epochs(len(data), settings, order):
        patches, labels = data.take(positions, device)
        text = method.encode_text(parameters)
        loss = method.example_losses(parameters, text, patches, labels).sum()
        loss_sum += float(loss.detach())
        if method.has_penalty:
            loss = loss + method.penalty(parameters, text)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        seen += len(positions)
    _keep(parameters, local)
    delta = spec.flatten(parameters) - state.vector
    return Update(delta=delta, weight=weight, loss_sum=loss_sum, examples=seen)


def train_privately(
    method: Method,
    spec: ParameterSpec,
    state: GlobalState,
    data: ClientData,
    *,
    settings: LocalSettings,
    lr: float,
    weight: int,
    device: torch.device,
    plan: DPPlan,
    sampler: PoissonSampler,
    noise: NoiseSource,
    history: StepHistory,
    sketch: Sketch | None = None,
    prompt_chunk: int = 1,
    local: Parameters | None = None,
    grid_noise: IntegerNoise | None = None,
) -> Update:
    """Train with DP-SGD; call it only for a round that is charged already.

    Guarantee: the update is post-processing of ``plan.steps_per_round`` releases, each a Poisson-subsampled Gaussian
    mechanism over this client's examples (add or remove one; unit: one example). Every number besides the releases is
    public: batch size, denominator, steps and weight come from the plan, none from ``len(data)``.

    Args:
        method: the method; its score and loss treat every example alone.
        spec: layout of the parameters.
        state: the broadcast state; not changed.
        data: this client's data.
        settings: the local optimiser; ``epochs`` is not used.
        lr: this round's learning rate.
        weight: this client's public weight in the average.
        device: where to compute.
        plan: the accepted plan.
        sampler: draws the batches, with secret coins.
        noise: where noise comes from, in float arithmetic.
        history: counts the noised steps over rounds.
        sketch: of the encoder at ``state``, public and the same for all clients; for the ``sketch`` space.
        prompt_chunk: examples a backward pass, in the ``prompt`` space.
        local: this client's own blocks; replaced by the trained ones, and no part of the update.
        grid_noise: where noise comes from in integer arithmetic; the operating system by default.

    Returns:
        The update. It carries no loss and no count of examples: those would be further releases.

    Raises:
        privacy.StepError: the steps made are not those charged.
    """
    parameters = _leaves(spec, state, device, local)
    optimizer = make_optimizer(parameters, settings, lr)
    space = make_space(plan.space, method, sketch=sketch, prompt_chunk=prompt_chunk)
    head = _head(method, space, parameters)
    shapes = released_shapes(method, space, parameters)
    gradient: PrivateGradient | LocalIntegerGradient = (
        LocalIntegerGradient(plan=plan, shapes=shapes, noise=grid_noise, history=history)
        if plan.arithmetic is Arithmetic.INTEGER
        else PrivateGradient(plan=plan, shapes=shapes, noise=noise, history=history, device=device)
    )
    for step in range(plan.steps_per_round):
        if step > 0:  # the first step's told the shapes
            head = _head(method, space, parameters)
        *chunks, last = _chunks(sampler.draw(len(data)), method.examples_per_chunk)
        for positions in chunks:
            gradient.accumulate(_rows(method, space, head, *data.take(positions, device)))
        released = gradient.release(_rows(method, space, head, *data.take(last, device)))
        released |= space.to_prompt_gradient(released)
        for name, value in parameters.items():
            value.grad = released[name] * plan.expected_batch_size
        if method.has_penalty:  # it touches no data and needs no noise; .grad accumulates
            method.penalty(parameters, method.encode_text(parameters)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    gradient.finish()
    _keep(parameters, local)
    return Update(delta=spec.flatten(parameters) - state.vector, weight=weight)


def query_privately(
    method: Method,
    spec: ParameterSpec,
    state: GlobalState,
    data: ClientData,
    *,
    device: torch.device,
    plan: DPPlan,
    sampler: PoissonSampler,
    gradient: IntegerGradient,
    honest: int,
    sketch: Sketch | None = None,
    prompt_chunk: int = 1,
) -> GridRelease:
    """Make the one step of a round whose noise the clients share; call it only for a charged round.

    Guarantee: as `privacy.integer.IntegerGradient`; nothing but the sum over contributors may be opened.

    Args:
        method: the method; its score and loss treat every example alone.
        spec: layout of the parameters.
        state: the broadcast state; not changed.
        data: this client's data.
        device: where to compute.
        plan: the accepted plan.
        sampler: draws the batch, with secret coins.
        gradient: clips, rounds and noises; made for `released_shapes`.
        honest: contributors whose shares are counted on in this round's sum.
        sketch: of the encoder at ``state``; for the ``sketch`` space.
        prompt_chunk: examples a backward pass, in the ``prompt`` space.
    """
    parameters = spec.unflatten(state.vector, device)
    space = make_space(plan.space, method, sketch=sketch, prompt_chunk=prompt_chunk)
    head = _head(method, space, parameters)
    *chunks, last = _chunks(sampler.draw(len(data)), method.examples_per_chunk)
    for positions in chunks:
        gradient.accumulate(_rows(method, space, head, *data.take(positions, device)))
    release = gradient.release(_rows(method, space, head, *data.take(last, device)), honest=honest)
    gradient.finish()
    return release


def released_shapes(
    method: Method, space: Space, parameters: Parameters
) -> dict[str, tuple[int, ...]]:
    """Return the blocks a private step releases: those of the space, and every other tensor as it is."""
    prompts = {name: parameters[name] for name in method.prompt_blocks}
    others = {name: tuple(v.shape) for name, v in parameters.items() if name not in prompts}
    return others | space.block_shapes(prompts)


def make_space(
    name: DPSpace, method: Method, *, sketch: Sketch | None = None, prompt_chunk: int = 1
) -> Space:
    """Return the space that a plan names, over a method's text encoder.

    Args:
        name: which one.
        method: the method.
        sketch: of the round, for ``sketch``.
        prompt_chunk: examples a backward pass, for ``prompt``.

    Raises:
        RunError: ``sketch`` without a sketch.
    """
    if name is DPSpace.PROMPT:
        return PromptSpace(method.encode_text, chunk=prompt_chunk)
    if name is DPSpace.TEXT:
        return TextSpace(method.encode_text)
    if sketch is None:
        raise RunError("the plan clips in a sketch, but the round came without one")
    return SketchSpace(sketch)


def make_optimizer(
    parameters: Parameters, settings: LocalSettings, lr: float
) -> torch.optim.Optimizer:
    """Return the local optimiser; every block is a group of its own, with its own learning rate."""
    groups = [
        {"params": [value], "lr": lr * settings.lr_multipliers.get(name, 1.0)}
        for name, value in parameters.items()
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=lr, momentum=settings.momentum, weight_decay=settings.weight_decay
        )
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=lr, weight_decay=settings.weight_decay)


def predict(method: Method, parameters: Parameters, bank: FeatureBank) -> NDArray[np.float32]:
    """Return the scores of all images of a bank: float32 ``[n, C]``."""
    with torch.no_grad():
        text = method.encode_text(parameters)
        scores = [
            method.score(parameters, text, torch.from_numpy(bank.patches(rows)).to(text.device))
            for rows in _chunks(np.arange(len(bank)), method.examples_per_chunk)
        ]
        result: NDArray[np.float32] = torch.cat(scores).cpu().numpy()
    return result


def per_example_gradients(
    method: Method, head: Parameters, patches: Tensor, labels: Tensor
) -> Parameters:
    """Return the gradient of every example's own loss in every head tensor: name -> ``[b, *shape]``."""
    if len(patches) == 0:  # an empty Poisson batch is a step like any other
        return {name: value.new_zeros((0, *value.shape)) for name, value in head.items()}

    def loss_of_one(values: Parameters, image: Tensor, label: Tensor) -> Tensor:
        others = {name: value for name, value in values.items() if name != TEXT_BLOCK}
        text = values[TEXT_BLOCK]
        losses = method.example_losses(others, text, image.unsqueeze(0), label.unsqueeze(0))
        return losses.squeeze(0)

    gradients = torch.func.vmap(torch.func.grad(loss_of_one), in_dims=(None, 0, 0))(
        head, patches, labels
    )
    return dict(gradients)


def _head(method: Method, space: Space, parameters: Parameters) -> Parameters:
    """Return what an example's loss is differentiated in: text features, and all that is no prompt."""
    prompts = {name: parameters[name] for name in method.prompt_blocks}
    others = {name: v.detach() for name, v in parameters.items() if name not in prompts}
    return others | {TEXT_BLOCK: space.encode(prompts)}


def _rows(
    method: Method, space: Space, head: Parameters, patches: Tensor, labels: Tensor
) -> Parameters:
    """Return the per-example gradients of every released block."""
    rows = per_example_gradients(method, head, patches, labels)
    return rows | space.rows(rows.pop(TEXT_BLOCK))


def _leaves(
    spec: ParameterSpec, state: GlobalState, device: torch.device, local: Parameters | None
) -> Parameters:
    own = {name: value.detach().clone() for name, value in (local or {}).items()}
    values = spec.unflatten(state.vector, device) | own
    return {name: value.requires_grad_() for name, value in values.items()}


def _keep(parameters: Parameters, local: Parameters | None) -> None:
    for name in local or {}:
        local[name] = parameters[name].detach()  # type: ignore[index]


def _epochs(
    n: int, settings: LocalSettings, order: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Yield shuffled batches; the last of an epoch may be smaller."""
    for _ in range(settings.epochs):
        shuffled = order.permutation(n)
        for start in range(0, n, settings.batch_size):
            yield shuffled[start : start + settings.batch_size]


def _chunks(positions: NDArray[np.int64], largest: int) -> list[NDArray[np.int64]]:
    """Split positions into chunks of at most ``largest``; an empty array is one empty chunk."""
    count = max(1, math.ceil(len(positions) / largest))
    return np.array_split(positions, count)
