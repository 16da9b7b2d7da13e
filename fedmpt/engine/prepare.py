"""From a configuration to everything a run needs, in memory or memory-mapped; nothing is trained yet.

Whatever can be wrong with what the user gave is found here, before a run folder exists.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec
import torch
from torch import Tensor

from fedmpt.clip.backbone import Backbone, load_backbone, resolve_device
from fedmpt.config import Config, to_toml
from fedmpt.data.class_names import NUS_CONCEPTS
from fedmpt.data.dataset import Dataset, LabelMatrix, Split
from fedmpt.data.digests import protocol_digests
from fedmpt.data.features import Encoded, FeatureBank, cache_directory, open_or_fill
from fedmpt.data.masking import mask_labels, mask_test_labels
from fedmpt.data.partition import Partition, clients_for, minimum_size, partition
from fedmpt.data.registry import load_dataset
from fedmpt.engine.authors_code import as_released
from fedmpt.engine.block_rates import block_rates
from fedmpt.engine.declared import public_sizes
from fedmpt.engine.defaults import resolve, resolve_scale
from fedmpt.engine.local_blocks import split_blocks
from fedmpt.engine.share_terms import check_shares
from fedmpt.engine.spaces import RoundSketches, choose_space
from fedmpt.engine.steps import hold_back_local, match_steps, slow_few
from fedmpt.errors import UsageError
from fedmpt.learner import ClientData, LocalSettings
from fedmpt.methods.base import Method, Parameters
from fedmpt.methods.cosine_scale import cosine_scale
from fedmpt.methods.fedmvp import descriptions
from fedmpt.methods.registry import build_method, check_method
from fedmpt.methods.zero_shot import ZeroShot
from fedmpt.seeds import generator
from fedmpt.strategy.fedawa import LARGEST_SCORE
from fedmpt.types import ClientId, ParameterSpec
from secagg.ckks_presets import PRESETS
from secagg.policy import MIN_MASKED_CLIENTS


class Progress(Protocol):
    """Hears how far a long step is."""

    def progress(self, label: str, done: int, total: int) -> None:
        """``done`` of ``total`` images of the step ``label`` are ready."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Federation:
    """A run before its first round.

    Attributes:
        config: the resolved configuration.
        dataset: the data set.
        backbone: the frozen CLIP.
        method: the method over the classes that are trained on.
        scorer: the method over the classes that are tested on; the same unless a zero-shot protocol holds some out.
        zero_shot: the frozen CLIP over the classes that are tested on.
        train_bank: features of the training split.
        test_bank: features of the test split.
        train_inputs: what the method trains on: the same features, or pixels.
        test_inputs: what it is evaluated on.
        partition: who holds which training images.
        train_labels: int8 ``[n, C]``, after masking.
        initial: starting parameters.
        spec: layout of those that clients share.
        schedule: the cohort of every round, public and independent of the method.
        digest: of configuration, frozen model and classes.
        space_reason: why gradients are clipped where they are; empty without privacy.
        sketches: of the text encoder, round by round, for the space of that name.
        protocol_digests: of all that the benchmark fixes, by name; independent of the method.
    """

    config: Config
    dataset: Dataset
    backbone: Backbone
    method: Method
    scorer: Method
    zero_shot: ZeroShot
    train_bank: FeatureBank
    test_bank: FeatureBank
    train_inputs: FeatureBank
    test_inputs: FeatureBank
    partition: Partition
    train_labels: LabelMatrix
    initial: Parameters
    spec: ParameterSpec
    schedule: tuple[tuple[ClientId, ...], ...]
    digest: bytes
    space_reason: str
    sketches: RoundSketches
    protocol_digests: dict[str, str]

    @property
    def alone(self) -> bool:
        """Whether every client trains by itself, and nothing is averaged."""
        return self.config.train.weighting == "none"

    @property
    def tuned_values(self) -> int:
        """Number of values that are tuned together, or, where clients train alone, by each of them."""
        return (
            sum(value.numel() for value in self.initial.values()) if self.alone else self.spec.size
        )

    @property
    def test_labels(self) -> LabelMatrix:
        """Labels of the test split, int8 ``[n, C]``."""
        return self.dataset.test.labels

    @property
    def local(self) -> LocalSettings:
        """The local optimiser."""
        train = self.config.train
        if (
            train.optimizer is None
            or train.batch_size is None
            or train.momentum is None
            or train.weight_decay is None
            or train.local_epochs is None
        ):
            raise UsageError("training settings must be resolved")
        return LocalSettings(
            optimizer=train.optimizer,
            momentum=train.momentum,
            weight_decay=train.weight_decay,
            batch_size=train.batch_size,
            epochs=train.local_epochs,
            lr_multipliers=train.lr_multipliers
            if train.lr_unit == "one"
            else block_rates(self.initial, train.lr_multipliers),
        )

    def client_data(self, client: ClientId) -> ClientData:
        """Return what a client holds."""
        rows = self.partition.clients[client]
        return ClientData(bank=self.train_inputs, rows=rows, labels=self.train_labels[rows])

    def rounds_of(self, client: ClientId) -> int:
        """Return in how many rounds a client is scheduled."""
        return sum(client in cohort for cohort in self.schedule)


def prepare(config: Config, *, progress: Progress) -> Federation:
    """Load data and backbone, fill the feature bank and plan who does what when.

    Raises:
        UsageError: something the user gave cannot be used; the message names it and the remedy.
    """
    check_method(config.method.name)
    config = as_released(config)
    device = resolve_device(config.device)
    dataset = load_data(config, progress)
    backbone = load_backbone(
        config.backbone.name,
        pretrained=config.backbone.pretrained,
        device=device,
        precision=config.backbone.precision,
    )
    given = frozenset(config.train.lr_multipliers)
    rate_asked = config.train.lr is not None or config.train.preset is not None
    config = resolve(config, data_name=dataset.name, images=len(dataset.train))
    config = resolve_scale(config, logit_scale=backbone.logit_scale, pooling=cosine_scale(backbone))
    method = build_method(backbone, dataset.classes, config.method)
    if config.train.weighting == "none":
        _check_alone(config, method)
    if config.privacy.enabled and config.privacy.noise == "shares":
        _check_shareable(method)
    if method.aggregation == "fedawa" and config.train.weighting == "size":
        raise UsageError(
            f"train.weighting=size with --method {method.name}: its weights are learnt, starting from the clients' "
            "sizes; leave weighting at uniform"
        )
    if method.aggregation == "fedawa":
        _check_score_room(config)
    initial = method.initial_parameters(config.seed)
    if config.train.weighting == "none":
        method.local_blocks = tuple(sorted(initial))
    clients = _client_count(config, dataset)
    if initial:  # nothing to tune, no rounds
        _require_cohort(config, clients)
    schedule = _schedule(config, clients)
    train_bank = feature_bank(backbone, dataset.train, "training features", progress)
    test_bank = feature_bank(backbone, dataset.test, "test features", progress)
    parts = _partition(config, dataset, train_bank)
    masked = mask_labels(
        dataset, probability=config.data.mask, mode=config.data.mask_mode, seed=config.seed
    )
    config, space_reason = choose_space(config, method, initial)
    config = match_steps(config, method, initial, given=given)
    config = hold_back_local(config, method, initial, given=given)
    if config.privacy.enabled and initial:
        declared = sum(public_sizes(config, parts))
        config = slow_few(config, declared=declared, asked=rate_asked)
    return Federation(
        config=config,
        dataset=dataset,
        backbone=backbone,
        method=method,
        scorer=method if dataset.held_out is None else method.for_classes(dataset.scored),
        zero_shot=ZeroShot(backbone, dataset.scored, config.method.head),
        train_bank=train_bank,
        test_bank=test_bank,
        train_inputs=input_bank(
            backbone, method, dataset.train, "training images", progress, features=train_bank
        ),
        test_inputs=input_bank(
            backbone, method, dataset.test, "test images", progress, features=test_bank
        ),
        partition=parts,
        train_labels=masked.train.labels,
        initial=initial,
        spec=ParameterSpec.of(split_blocks(method, initial)[0]),
        schedule=schedule if initial else (),
        digest=_digest(config, backbone, dataset.classes),
        space_reason=space_reason,
        sketches=RoundSketches(config, method),
        protocol_digests=protocol_digests(
            dataset, masked=masked.train.labels, partition=parts, schedule=schedule
        ),
    )


def plan_clients(config: Config, *, progress: Progress) -> tuple[Dataset, Partition]:
    """Return the data set and its partition as `prepare` makes them; a backbone is loaded only to cluster images.

    Raises:
        UsageError: something the user gave cannot be used.
    """
    config = as_released(config)
    dataset = load_data(config, progress)
    bank = None
    if config.clients.partition == "cluster":
        backbone = load_backbone(
            config.backbone.name,
            pretrained=config.backbone.pretrained,
            device=resolve_device(config.device),
            precision=config.backbone.precision,
        )
        bank = feature_bank(backbone, dataset.train, "training features", progress)
    return dataset, _partition(config, dataset, bank)


def _check_shareable(method: Method) -> None:
    """Raise a `UsageError` if a method needs more of a client's update than a share of the noise covers."""
    if method.local_blocks:
        raise UsageError(
            f"--dp-noise shares with --method {method.name}: its clients tune blocks of their own, and what they "
            "learn there would hold a share of the noise only; use --dp-noise local"
        )
    if method.aggregation == "fedawa":
        raise UsageError(
            f"--dp-noise shares with --method {method.name}: its weights come from several sums over each client's "
            "own update, which holds a share of the noise only; use --dp-noise local"
        )


def _check_score_room(config: Config) -> None:
    """Raise a `UsageError` if FedAWA's scores could pass the largest that weights are told apart up to."""
    rate, rounds = config.method.fedawa.server_lr, config.train.rounds or 0
    room = LARGEST_SCORE - 1  # a score starts at 1 or below, and moves by the rate a round
    if rate * rounds > room:
        raise UsageError(
            f"method.fedawa.server_lr={rate:g} over {rounds} rounds: scores could move by {rate * rounds:g}, and "
            f"weights are told apart up to {room:g}; use at most {room / rounds:.2g}"
        )


def _check_alone(config: Config, method: Method) -> None:
    """Raise a `UsageError` if what is asked for needs clients that do not train alone."""
    if method.aggregation == "fedawa":
        raise UsageError(
            f"train.weighting=none with --method {method.name}: its weights of an average are all there is to it; use "
            "--method coop, which its clients train"
        )
    if config.privacy.enabled and config.privacy.noise == "shares":
        raise UsageError(
            "--dp-noise shares where clients train alone: shares add up in a sum, and there is none; use --dp-noise "
            "local"
        )


def load_data(config: Config, progress: Progress) -> Dataset:
    """Return the data set of a configuration.

    Raises:
        UsageError: it is unknown or cannot be read.
    """
    data = as_released(config).data
    dataset = load_dataset(
        data,
        seed=config.seed,
        progress=lambda done, total: progress.progress("image files", done, total),
    )
    if data.mask_test:
        dataset = mask_test_labels(dataset, probability=data.mask, seed=config.seed)
    return dataset


def _client_count(config: Config, dataset: Dataset) -> int:
    """Return the number of clients; heterogeneity counts the classes trained on, on NUS-WIDE its concepts."""
    classes = len(dataset.classes)
    if dataset.name == "nuswide":  # 925 seen tags would make hundreds of clients
        classes = min(classes, len(NUS_CONCEPTS))
    return config.clients.count or clients_for(config.clients.heterogeneity, classes)


def _partition(config: Config, dataset: Dataset, bank: FeatureBank | None) -> Partition:
    clients = _client_count(config, dataset)
    return partition(
        config.clients.partition,
        features=bank.global_features() if bank is not None else None,
        labels=dataset.train.labels,
        sites=dataset.train.sites,
        clients=clients,
        seed=config.seed,
        alpha=config.clients.alpha,
        minimum=config.clients.minimum_size or minimum_size(len(dataset.train), clients=clients),
    )


def feature_bank(backbone: Backbone, split: Split, label: str, progress: Progress) -> FeatureBank:
    """Return the features of a split, from the cache where they were computed before."""

    def encode(pixels: list[Tensor]) -> Encoded:
        patches, whole = backbone.encode_pixels(torch.stack(pixels))
        return patches.cpu().numpy(), whole.cpu().numpy()

    kind = "" if backbone.precision == "float32" else f"{backbone.precision}, "
    return _filled(backbone, split, encode, kind=kind, label=label, progress=progress)


def input_bank(
    backbone: Backbone,
    method: Method,
    split: Split,
    label: str,
    progress: Progress,
    *,
    features: FeatureBank,
) -> FeatureBank:
    """Return a bank of what a method takes of images: ``features``, or what it prepares itself."""
    if method.pixel_shape is None:
        return features

    @torch.no_grad()
    def encode(pixels: list[Tensor]) -> Encoded:
        patches = backbone.image_tower.patchify(torch.stack(pixels)).to(backbone.device)
        prepared = method.prepare_images(patches).cpu().numpy()
        return prepared, prepared.mean(axis=1)

    kind = f"{method.prepared_as}, "
    return _filled(backbone, split, encode, kind=kind, label=label, progress=progress)


def _filled(
    backbone: Backbone,
    split: Split,
    encode: Callable[[list[Tensor]], Encoded],
    *,
    kind: str,
    label: str,
    progress: Progress,
) -> FeatureBank:
    return open_or_fill(
        cache_directory(),
        backbone=backbone.fingerprint,
        preprocessing=f"{kind}with the backbone",  # whose fingerprint covers it
        split=split,
        prepare=backbone.preprocess,
        encode=encode,
        progress=lambda done, total: progress.progress(label, done, total),
    )


def _cohort_size(config: Config, clients: int) -> int:
    return max(1, int(config.clients.participation * clients))


def _require_cohort(config: Config, clients: int) -> None:
    size = _cohort_size(config, clients)
    _check_secagg(config, clients, cohort=size)
    check_shares(config, cohort=size)


def _schedule(config: Config, clients: int) -> tuple[tuple[ClientId, ...], ...]:
    """Draw the cohort of every round, from the seed alone, so that every method sees the same."""
    size = _cohort_size(config, clients)
    random = generator(config.seed, "schedule")
    return tuple(
        tuple(ClientId(int(c)) for c in sorted(random.choice(clients, size=size, replace=False)))
        for _ in range(config.train.rounds or 0)
    )


def _check_secagg(config: Config, clients: int, *, cohort: int) -> None:
    mode, preset = config.secagg.mode, config.secagg.ckks_preset
    if mode != "none" and cohort < MIN_MASKED_CLIENTS:
        bare = (
            "--dp-noise local with --secagg none"
            if config.privacy.noise == "shares"
            else "--secagg none"
        )
        raise UsageError(
            f"{cohort} of {clients} clients in a round: {mode} hides an update among at least "
            f"{MIN_MASKED_CLIENTS}; use more clients, a larger --participation, or {bare}"
        )
    if mode != "ckks" and (config.secagg.ckks_verify or preset is not None):
        raise UsageError(f"--secagg {mode}: --ckks-verify and secagg.ckks_preset need ckks")
    if preset is not None and clients > PRESETS[preset].largest_cohort:
        raise UsageError(
            f"secagg.ckks_preset={preset}: adds up at most {PRESETS[preset].largest_cohort} "
            f"clients, {clients} are there; use wide"
        )


def _digest(config: Config, backbone: Backbone, classes: tuple[str, ...]) -> bytes:
    text = to_toml(config) + backbone.fingerprint + msgspec.json.encode(classes).decode()
    if config.method.name == "fedmvp" and config.method.fedmvp.variant == "official":
        # The name of a file of descriptors does not tell its words.
        words = descriptions(classes, config.method.fedmvp.descriptors)
        text += msgspec.json.encode(words).decode()
    return hashlib.sha256(text.encode()).digest()
