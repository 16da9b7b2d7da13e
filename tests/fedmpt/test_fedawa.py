"""FedAWA's weights from secure sums equal the original's, which sees every update."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from fedmpt.config import SecAggConfig
from fedmpt.engine.adaptive import AdaptiveUpdates
from fedmpt.engine.adaptive_client import AdaptiveClient
from fedmpt.engine.aggregation import Aggregation
from fedmpt.engine.sites import Site
from fedmpt.protect import Envelope
from fedmpt.strategy.fedawa import LARGEST_WEIGHT, deviation, slope, start_score, stepped_score
from fedmpt.types import ClientId, FloatVector, GlobalState, Update
from secagg import Aggregate
from secagg import Update as SegmentValues

CLIENTS, SIZE = 5, 300
LR = 0.001


def centrally(
    scores: torch.Tensor, deltas: torch.Tensor, model: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The original server: autograd over its loss, torch's Adam, all updates in hand. Returns (scores, mean)."""
    scores = scores.clone().requires_grad_()
    p = scores.softmax(0)
    mean = (p[:, None] * deltas).sum(0)
    far = (p * (deltas - mean).norm(dim=1)).sum()
    cosines = torch.nn.functional.cosine_similarity(model[None], model + deltas, dim=1)
    (far + (p * (1 - cosines)).sum()).backward()
    torch.optim.Adam([scores], lr=LR, betas=(0.5, 0.999)).step()
    new = scores.detach()
    return new, (new.softmax(0)[:, None] * deltas).sum(0)


def _round(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    deltas = 0.05 * torch.randn(CLIENTS, SIZE, generator=random, dtype=torch.float64)
    deltas *= torch.linspace(0.5, 2.0, CLIENTS)[:, None]
    scores = torch.rand(CLIENTS, generator=random, dtype=torch.float64)
    return scores, deltas, torch.randn(SIZE, generator=random, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(5))
def test_scores_from_weighted_means_equal_those_of_a_server_that_sees_all(seed: int) -> None:
    scores, deltas, model = _round(seed)
    expected, _ = centrally(scores, deltas, model)
    d, w = deltas.numpy(), model.numpy()
    p = np.exp(scores.numpy()) / np.exp(scores.numpy()).sum()
    deviations = [deviation(one, p @ d) for one in d]
    pull = sum(share * one.direction for share, one in zip(p, deviations, strict=True))
    slopes = [slope(one, own, pull, w) for one, own in zip(d, deviations, strict=True)]
    level = float(p @ slopes)
    ours = [
        stepped_score(float(score), own_slope=own, mean_slope=level, share=float(share), lr=LR)
        for score, own, share in zip(scores, slopes, p, strict=True)
    ]
    assert not np.allclose(ours, scores.numpy(), atol=LR / 2)
    assert np.allclose(ours, expected.numpy(), atol=1e-9)


class _Site:
    """Stands for a client that trained already."""

    def __init__(self, client: int, update: Update, score: float) -> None:
        self.client = ClientId(client)
        self.trained = 0
        reports = update.loss_sum is not None
        self.adaptive = AdaptiveClient(score, lr=LR, reports_loss=reports)
        self._update = update

    def train(self, state: GlobalState, *, lr: float, sketch: object) -> Update:
        del state, lr, sketch
        self.trained += 1
        return self._update


def _adaptive_round(
    folder: Path,
    sites: list[_Site],
    model: FloatVector,
    *,
    mode: str,
    lost: dict[int, str] | None = None,
) -> tuple[AdaptiveUpdates, Aggregate, list[tuple[int, ...]]]:
    """Make a round over real sums; return the rounds, the last aggregate and who was asked in each sum."""
    private = not sites[0].adaptive._reports_loss
    envelope = Envelope.of(
        size=len(model),
        config=SecAggConfig(),
        private=private,
        largest_weight=LARGEST_WEIGHT,
        largest_examples=10,
    )
    rounds = AdaptiveUpdates(envelope)
    aggregation = Aggregation(
        config=SecAggConfig(mode=mode),
        clients=len(sites),
        layout=rounds.layout,
        private=private,
        marks=folder / "marks",
        cohort=len(sites),
    )
    asked: list[tuple[int, ...]] = []
    state = GlobalState(round=0, vector=model)

    def sum_up(
        cohort: tuple[ClientId, ...],
        answer: Callable[[ClientId], SegmentValues],
        context: bytes,
        lost: Mapping[int, str],
    ) -> Aggregate:
        asked.append(tuple(cohort))
        bound = hashlib.sha256(context).digest()
        return aggregation.run(
            cohort, answer, resubmit=rounds.resubmit, context=bound, lost=lambda _: lost
        )[0]

    def contribute(client: ClientId) -> SegmentValues:
        return rounds.contribute(cast(Site, sites[client]), state, lr=0.1, sketch=None)

    first = sum_up(tuple(site.client for site in sites), contribute, b"", lost or {})
    last = rounds.complete(first, lambda who, answer, said: sum_up(who, answer, said, {}))
    return rounds, last, asked


@pytest.mark.parametrize("mode", ["none", "masking"])
def test_four_secure_sums_give_the_originals_model_up_to_quantisation(
    tmp_path: Path, mode: str
) -> None:
    scores, deltas, model = _round(0)
    expected_scores, expected = centrally(scores, deltas, model)
    sites = [
        _Site(
            k,
            Update(delta=deltas[k].numpy().astype(np.float32), weight=1, loss_sum=2.0, examples=4),
            float(scores[k]),
        )
        for k in range(CLIENTS)
    ]
    vector = model.numpy().astype(np.float32)
    rounds, aggregate, asked = _adaptive_round(tmp_path, sites, vector, mode=mode)
    assert len(asked) == rounds.sums == 4
    assert [site.trained for site in sites] == [1] * CLIENTS
    got = [site.adaptive.score for site in sites]
    assert np.allclose(got, expected_scores.numpy(), atol=1e-6)
    moved = rounds.advance(GlobalState(round=0, vector=vector), aggregate, lr=0.1, sketch=None)
    error = np.abs(moved.vector - vector - expected.numpy()).max()
    grid = LARGEST_WEIGHT / aggregate.sums["weight"][0] / (2**19 - 1)  # of a weighted mean
    assert error < CLIENTS * grid + 1e-6
    uniform = deltas.mean(0).numpy()
    assert np.abs(uniform - expected.numpy()).max() > 20 * error
    assert rounds.loss(aggregate) == pytest.approx(0.5)


@pytest.mark.parametrize("mode", ["none", "masking"])
def test_equal_updates_are_the_mean_and_leave_unequal_weights_as_they_are(
    tmp_path: Path, mode: str
) -> None:
    """What rounding leaves of a slope moves all scores the same way, so that their softmax stays."""
    random = np.random.default_rng(0)
    delta = (0.2 * random.normal(size=SIZE)).astype(np.float32)
    vector = random.normal(size=SIZE).astype(np.float32)
    before = np.array([0.1, 0.9, 0.4, 0.05, 0.7])
    sites = [
        _Site(k, Update(delta=delta, weight=1, loss_sum=2.0, examples=4), float(score))
        for k, score in enumerate(before)
    ]
    rounds, aggregate, _ = _adaptive_round(tmp_path, sites, vector, mode=mode)
    moved = rounds.advance(GlobalState(round=0, vector=vector), aggregate, lr=0.1, sketch=None)
    grid = LARGEST_WEIGHT / aggregate.sums["weight"][0] / (2**19 - 1)  # of a weighted mean
    assert np.abs(moved.vector - vector - delta).max() < CLIENTS * grid + 1e-6
    after = np.array([site.adaptive.score for site in sites])
    p, q = (np.exp(scores) / np.exp(scores).sum() for scores in (before, after))
    assert q.sum() == pytest.approx(1)
    # Two scores that move apart change it by several times this.
    assert np.abs(q - p).max() < LR / 10
    assert p.max() - p.min() > 0.1


def test_the_slope_of_an_update_that_is_the_mean_is_how_far_it_turns_the_model() -> None:
    """Without a deviation: 1 - cos(w, w + d), and no pull."""
    random = np.random.default_rng(0)
    delta, model = (random.normal(size=SIZE).astype(np.float32) for _ in range(2))
    own = deviation(delta, delta)
    assert own.length == 0
    assert not own.direction.any()
    w, d = model.astype(np.float64), delta.astype(np.float64)
    turned = 1 - w @ (w + d) / math.sqrt((w @ w) * ((w + d) @ (w + d)))
    assert turned > 0.1
    assert slope(delta, own, own.direction, model) == pytest.approx(turned)


def test_logarithmic_shares_start_at_the_weights_of_federated_averaging() -> None:
    sizes = (10, 30, 60)
    weights = [math.exp(start_score(size, 100, logarithmic=True)) for size in sizes]
    assert weights == pytest.approx([0.1, 0.3, 0.6])


def test_a_client_that_vanishes_in_the_first_sum_is_out_of_the_round(tmp_path: Path) -> None:
    """The other three sums are asked of those who are left."""
    sites = [
        _Site(k, Update(delta=np.array([0.1, -0.1, 0.2, 0.02 * k], np.float32), weight=1), 0.2)
        for k in range(CLIENTS)
    ]
    vector: FloatVector = np.ones(4, dtype=np.float32)
    _, aggregate, asked = _adaptive_round(
        tmp_path, sites, vector, mode="masking", lost={2: "share"}
    )
    assert asked == [(0, 1, 2, 3, 4)] + 3 * [(0, 1, 3, 4)]
    assert aggregate.survivors == (0, 1, 3, 4)
    assert sites[2].adaptive.score == 0.2
    assert set(aggregate.dropped) == {2}
