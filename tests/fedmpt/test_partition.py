"""Partitions cover each image once, keep the minimum size, and depend on their inputs alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedmpt.data.partition import METHODS, Partition, clients_for, minimum_size, partition
from fedmpt.errors import UsageError


def blobs(n: int = 300, C: int = 6) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Features in C well separated directions, each with a label of its own and a few more."""
    random = np.random.default_rng(7)
    group = np.arange(n) % C
    features = np.eye(C, 16)[group] * 5 + random.normal(0, 0.2, (n, 16))
    labels = (random.random((n, C)) < 0.1).astype(np.int8)
    labels[np.arange(n), group] = 1
    return features.astype(np.float32), labels


def make(method: str, *, clients: int = 6, seed: int = 1, minimum: int = 8) -> Partition:
    features, labels = blobs()
    return partition(
        method,
        features=features,
        labels=labels,
        sites=np.arange(len(labels)) % max(1, clients),
        clients=clients,
        seed=seed,
        minimum=minimum,
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("clients", [1, 5, 30])
def test_every_image_is_in_exactly_one_client_of_at_least_the_minimum_size(
    method: str, clients: int
) -> None:
    result = make(method, clients=clients)
    indices = np.concatenate(result.clients)
    assert all(part.dtype == np.int64 for part in result.clients)
    np.testing.assert_array_equal(np.sort(indices), np.arange(300))
    assert len(result) == clients
    assert min(map(len, result.clients)) >= 8
    for client, part in enumerate(result.clients):
        assert (result.assignment()[part] == client).all()


@given(
    seed=st.integers(0, 2**31),
    clients=st.integers(1, 9),
    minimum=st.integers(1, 4),
    method=st.sampled_from(["label", "dirichlet", "iid"]),
    alpha=st.sampled_from([1e-3, 0.1, 1.0, 100.0]),
)
@settings(max_examples=40, deadline=None)
def test_any_labels_are_covered_once_with_the_minimum_size(
    seed: int, clients: int, minimum: int, method: str, alpha: float
) -> None:
    random = np.random.default_rng(seed)
    labels = random.integers(-1, 2, (36 + seed % 7, 3)).astype(np.int8)
    result = partition(
        method,
        features=None,
        labels=labels,
        clients=clients,
        seed=seed,
        alpha=alpha,
        minimum=minimum,
    )
    np.testing.assert_array_equal(np.sort(np.concatenate(result.clients)), np.arange(len(labels)))
    assert min(map(len, result.clients)) >= minimum


@pytest.mark.parametrize("method", METHODS)
def test_same_inputs_give_the_same_partition_and_digest(method: str) -> None:
    first, again = make(method), make(method)
    assert first.digest == again.digest
    np.testing.assert_array_equal(first.assignment(), again.assignment())


@pytest.mark.parametrize("method", METHODS)
def test_digest_changes_with_seed_clients_and_minimum(method: str) -> None:
    digests = {
        make(method, seed=seed, clients=clients, minimum=minimum).digest
        for seed, clients, minimum in [(1, 6, 8), (2, 6, 8), (1, 5, 8), (1, 6, 9)]
    }
    assert len(digests) == (3 if method == "site" else 4)  # sites are given, so no seed decides


@pytest.mark.parametrize("method", ["cluster", "iid"])
def test_partition_by_images_does_not_depend_on_masked_labels(method: str) -> None:
    features, labels = blobs()
    whole, masked = (
        partition(method, features=features, labels=used, clients=6, seed=1, minimum=8)
        for used in (labels, np.zeros_like(labels))
    )
    assert whole.digest == masked.digest
    np.testing.assert_array_equal(whole.assignment(), masked.assignment())


def test_clusters_find_groups_of_images_that_lie_apart() -> None:
    assignment = make("cluster", clients=6).assignment()
    groups = assignment.reshape(-1, 6)  # images i, i + 6, ... are of one group
    assert (groups == groups[0]).all()
    assert len(set(groups[0])) == 6


def test_clusters_do_not_depend_on_the_length_of_features() -> None:
    features, labels = blobs()
    lengths = np.random.default_rng(0).uniform(0.5, 20, (len(features), 1)).astype(np.float32)
    short, long = (
        partition("cluster", features=used, labels=labels, clients=6, seed=1, minimum=8)
        for used in (features, features * lengths)
    )
    np.testing.assert_array_equal(short.assignment(), long.assignment())


def test_clusters_of_features_in_half_precision_are_taken() -> None:
    features, labels = blobs()
    result = partition(
        "cluster",
        features=features.astype(np.float16),
        labels=labels,
        clients=6,
        seed=1,
        minimum=8,
    )
    assert result.description.moved == 0


def test_cluster_that_is_too_small_takes_the_nearest_images_of_the_largest() -> None:
    # One image far out is a cluster of its own; ten of the others are turned towards it.
    angles = np.concatenate([[1.5], np.linspace(0.1, 0.2, 10), np.zeros(20)])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    labels = np.ones((31, 1), dtype=np.int8)
    result = partition("cluster", features=features, labels=labels, clients=2, seed=0, minimum=5)
    small = min(result.clients, key=len)
    assert small.tolist() == [0, 7, 8, 9, 10]
    assert result.description.moved == 4


def test_fewer_distinct_images_than_clients_still_fill_every_client() -> None:
    labels = np.tile(np.eye(2, dtype=np.int8), (40, 1))
    result = partition("label", features=None, labels=labels, clients=8, seed=0, minimum=10)
    assert result.description.sizes.tolist() == [10] * 8


def test_independent_partition_is_even() -> None:
    sizes = make("iid", clients=7).description.sizes
    assert sizes.max() - sizes.min() <= 1


def test_more_clients_or_smaller_alpha_diverge_more() -> None:
    features, labels = blobs()

    def spread(method: str, **settings: float) -> float:
        result = partition(
            method,
            features=features,
            labels=labels,
            clients=6,
            seed=1,
            minimum=1,
            alpha=settings.get("alpha", 0.5),
        )
        return float(np.nanmean(result.description.divergence))

    assert spread("iid") < spread("dirichlet", alpha=0.1) < 1
    assert spread("dirichlet", alpha=1000) < spread("dirichlet", alpha=0.1)
    assert spread("iid") < spread("cluster")


def test_description_counts_positives_and_is_json() -> None:
    _, labels = blobs()
    description = make("cluster").description
    np.testing.assert_array_equal(description.label_counts.sum(axis=0), labels.sum(axis=0))
    assert description.sizes.sum() == len(labels)
    values = json.loads(json.dumps(description.as_dict(), allow_nan=False))
    assert values["sizes"] == description.sizes.tolist()


def test_divergence_of_one_client_is_zero_and_of_a_client_without_positives_unknown() -> None:
    assert make("iid", clients=1).description.divergence == pytest.approx([0])
    labels = np.zeros((4, 2), dtype=np.int8)
    result = partition("iid", features=None, labels=labels, clients=2, seed=0, minimum=1)
    assert result.description.as_dict()["divergence"] == [None, None]


def test_divergence_of_disjoint_halves_has_its_closed_form() -> None:
    labels = np.repeat(np.eye(2, dtype=np.int8), 20, axis=0)
    result = partition("label", features=None, labels=labels, clients=2, seed=0, minimum=1)
    # JS((1, 0), (1/2, 1/2)) = H(3/4, 1/4) - H(1/2, 1/2) / 2 bits
    expected = -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)) - 0.5
    assert result.description.divergence == pytest.approx([expected, expected])


@pytest.mark.parametrize("method", METHODS)
def test_more_clients_than_images_allow_are_refused_with_the_numbers(method: str) -> None:
    with pytest.raises(UsageError, match=r"clients=38 .* 8 images each need 304 .* 300; use --cli"):
        make(method, clients=38)
    with pytest.raises(UsageError, match="there are 300; use more images"):
        make(method, clients=301, minimum=301)


def test_unknown_method_and_bad_settings_are_refused() -> None:
    _, labels = blobs()
    with pytest.raises(UsageError, match="one of cluster, label, dirichlet, iid"):
        make("random")
    with pytest.raises(UsageError, match="needs image features"):
        partition("cluster", features=None, labels=labels, clients=2, seed=0)
    with pytest.raises(UsageError, match="alpha=0"):
        partition("dirichlet", features=None, labels=labels, clients=2, seed=0, alpha=0)
    with pytest.raises(UsageError, match="clients=0"):
        make("iid", clients=0)
    with pytest.raises(UsageError, match="minimum client size=0"):
        make("iid", minimum=0)
    with pytest.raises(ValueError, match="5 features"):
        partition("cluster", features=blobs()[0][:5], labels=labels, clients=2, seed=0)


def test_number_of_clients_is_that_of_the_paper() -> None:
    levels = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
    assert [clients_for(t, 20) for t in levels] == [2, 4, 8, 12, 16, 20]
    assert [clients_for(t, 80) for t in levels] == [8, 16, 32, 48, 64, 80]
    assert [clients_for(t, 81) for t in levels] == [8, 16, 32, 49, 65, 81]
    assert clients_for(0.6, 36) == 22
    assert clients_for(0.01, 20) == 1


def test_smallest_client_is_a_batch_or_half_an_even_share_and_never_below_ten() -> None:
    assert minimum_size(6000, clients=12) == 32
    assert minimum_size(563, clients=12) == 23
    assert minimum_size(563, clients=48) == 10
    for n in range(10, 3000, 37):
        for clients in range(1, n // 10 + 1):  # as many as may be: it is always feasible
            assert minimum_size(n, clients=clients) * clients <= n


def test_refusal_names_the_most_clients_and_the_largest_minimum_that_would_do() -> None:
    _, labels = blobs()
    with pytest.raises(UsageError, match=r"--clients 30 .* clients\.minimum_size=7") as error:
        partition("iid", features=None, labels=labels, clients=40, seed=0, minimum=10)
    assert "--heterogeneity" in str(error.value)
    partition("iid", features=None, labels=labels, clients=30, seed=0, minimum=10)
    partition("iid", features=None, labels=labels, clients=40, seed=0, minimum=7)


@pytest.mark.parametrize(("heterogeneity", "classes"), [(-0.1, 20), (1.1, 20), (0.5, 0)])
def test_heterogeneity_out_of_range_is_refused(heterogeneity: float, classes: int) -> None:
    with pytest.raises(UsageError, match=r"heterogeneity=|classes="):
        clients_for(heterogeneity, classes)
