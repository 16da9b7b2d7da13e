"""Spreading the training images over simulated clients.

A `Partition` is drawn once from image features or from the *unmasked* labels, so that it does not
depend on how many labels are hidden later. The default, ``cluster``, follows the paper: k-means on
image features with one cluster a client; more clients are smaller, purer and thus more
heterogeneous.

The description (sizes, label histograms, divergence) is for the simulator's report. In a real
deployment it is data of the clients and leaves none of them.

Letters: ``n`` images, ``C`` classes, ``D`` feature width, ``S`` clients.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedmpt.data.dataset import LabelMatrix
from fedmpt.errors import UsageError
from fedmpt.seeds import generator, seed_of

Method: TypeAlias = Literal["cluster", "label", "dirichlet", "iid", "site"]
Features: TypeAlias = NDArray[np.float32] | NDArray[np.float16]  # [n, D]
Assignment: TypeAlias = NDArray[np.int64]  # [n]: client of each image

METHODS: tuple[Method, ...] = ("cluster", "label", "dirichlet", "iid", "site")
MINIMUM_SIZE = 32  # one batch
_DECLARABLE_SIZE = 10  # fewer images cannot be declared under differential privacy
_SMALLEST_SHARE = 0.5  # of an even share, where one batch is more

_RESTARTS = 10
_MAX_ITERATIONS = 100
_TINY = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Description:
    """What the clients of a partition look like.

    Attributes:
        sizes: int64 ``[S]``, images of each client.
        label_counts: int64 ``[S, C]``, positives of each client and class.
        divergence: float64 ``[S]``, Jensen-Shannon divergence in bits (0..1) between a client's
            distribution of positives over classes and that of all images; NaN for a client without
            any positive.
        moved: images that the minimum size moved away from where the method had put them.
    """

    sizes: NDArray[np.int64]
    label_counts: NDArray[np.int64]
    divergence: NDArray[np.float64]
    moved: int

    def as_dict(self) -> dict[str, int | list[int] | list[list[int]] | list[float | None]]:
        """Return the description as plain values that any JSON writer takes."""
        return {
            "sizes": self.sizes.tolist(),
            "label_counts": self.label_counts.tolist(),
            "divergence": [None if np.isnan(x) else float(x) for x in self.divergence],
            "moved": self.moved,
        }


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Partition:
    """Which training images each client holds.

    Guarantee: every index from 0 to n - 1 is in exactly one client, and no client is smaller than
        the minimum it was
    made with.

    Attributes:
        method: how it was made.
        clients: for each client its image indices, int64, ascending.
        digest: SHA-256 of everything that decided the assignment; equal digests mean equal
            assignments on one installation.
        description: sizes, label histograms and divergence.
    """

    method: Method
    clients: tuple[NDArray[np.int64], ...]
    digest: str
    description: Description

    def __len__(self) -> int:
        return len(self.clients)

    def assignment(self) -> Assignment:
        """Return the client of each image, int64 ``[n]``."""
        result = np.empty(sum(map(len, self.clients)), dtype=np.int64)
        for client, indices in enumerate(self.clients):
            result[indices] = client
        return result


def clients_for(heterogeneity: float, classes: int) -> int:
    """Return the number of clients, ``max(1, round(heterogeneity * classes))``.

    Args:
        heterogeneity: t of the paper, 0 to 1.
        classes: number of classes, at least 1.

    Raises:
        UsageError: if either is out of range.
    """
    if not 0 <= heterogeneity <= 1:
        raise UsageError(f"heterogeneity={heterogeneity}: must be from 0 to 1")
    if classes < 1:
        raise UsageError(f"classes={classes}: at least one is needed")
    return max(1, round(heterogeneity * classes))


def minimum_size(n: int, *, clients: int) -> int:
    """Return the smallest size of a client where none is given.

    One batch; where images are too few for that, half an even share, and never fewer than ten, the
    fewest whose number may be declared under differential privacy.

    Args:
        n: number of training images.
        clients: number of clients, at least 1.
    """
    return min(MINIMUM_SIZE, max(_DECLARABLE_SIZE, int(_SMALLEST_SHARE * n / clients)))


def _check(n: int, *, clients: int, minimum: int) -> None:
    if clients < 1:
        raise UsageError(f"clients={clients}: at least one is needed")
    if minimum < 1:
        raise UsageError(f"minimum client size={minimum}: at least one image is needed")
    if n < clients * minimum:
        most = n // minimum
        largest = n // clients
        smaller = f", or clients.minimum_size={largest}" if largest else ""
        remedy = (
            f"use --clients {most} or fewer (or a lower --heterogeneity){smaller}"
            if most
            else f"use more images{smaller}"
        )
        raise UsageError(
            f"clients={clients} with at least {minimum} images each need {clients * minimum} "
            f"training images, and there are {n}; {remedy}"
        )


def _normalised(rows: NDArray[np.generic]) -> NDArray[np.float32]:
    """Return rows as float32 of L2 norm 1; rows of zeros stay."""
    wide = rows.astype(np.float32)  # [n, D]
    norms = np.linalg.norm(wide, axis=1, keepdims=True)  # [n, 1]
    return np.asarray(wide / np.maximum(norms, np.float32(_TINY)), dtype=np.float32)


def _positives(labels: LabelMatrix) -> NDArray[np.int64]:
    """Return int64 ``[n, C]``: 1 where a label is positive; unknown counts as absent."""
    return np.asarray(labels == 1, dtype=np.int64)


def _square_distances(
    points: NDArray[np.float32], centres: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return squared Euclidean distances, float32 ``[n, S]``."""
    return np.asarray(
        (points**2).sum(axis=1)[:, None]
        - 2 * points @ centres.T
        + (centres**2).sum(axis=1)[None, :],
        dtype=np.float32,
    )


def _fill_small(
    assignment: Assignment,
    points: NDArray[np.float32],
    centres: NDArray[np.float32],
    *,
    minimum: int,
) -> tuple[Assignment, int]:
    """Move images until no client is smaller than ``minimum``.

    Clients that are too small are served in order of index; each takes, one at a time, from the
    client that is largest at that moment (the first of equal ones), the image nearest to its own
    centre (the first of equal ones). Centres stay where they were.

    Returns:
        The new assignment and the number of images that changed client. It ends because ``n >= S *
        minimum``: while one client is below the minimum, the largest is above it.
    """
    clients = centres.shape[0]
    result = assignment.copy()
    sizes = np.bincount(result, minlength=clients)  # [S]
    for client in np.flatnonzero(sizes < minimum):
        distances = _square_distances(points, centres[client][None])[:, 0]  # [n]
        while sizes[client] < minimum:
            donor = int(np.argmax(sizes))
            members = np.flatnonzero(result == donor)
            result[members[np.argmin(distances[members])]] = client
            sizes[donor] -= 1
            sizes[client] += 1
    return result, int((result != assignment).sum())


def _k_means(
    points: NDArray[np.float32], *, clients: int, seed: int
) -> tuple[Assignment, NDArray[np.float32]]:
    """Return assignment ``[n]`` and centres ``[S, D]`` of the best of ten k-means++ runs.

    One thread: with more, the order of additions, and with it now and then an image, depends on the
    machine's load.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    k_means = KMeans(
        n_clusters=clients,
        init="k-means++",
        n_init=_RESTARTS,
        max_iter=_MAX_ITERATIONS,
        random_state=seed_of(seed, "partition", "k-means") % 2**32,
        algorithm="lloyd",
    )
    with threadpool_limits(limits=1), warnings.catch_warnings():
        # Fewer distinct points than clusters leaves clusters empty; the minimum size fills them.
        warnings.simplefilter("ignore", ConvergenceWarning)
        k_means.fit(points)
    return (
        np.asarray(k_means.labels_, dtype=np.int64),
        np.asarray(k_means.cluster_centers_, dtype=np.float32),
    )


def _divergence(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each row's Jensen-Shannon divergence in bits from the sum of rows, ``[S]``.

    A row of zeros gives NaN.
    """
    totals = counts.sum(axis=1, keepdims=True)  # [S, 1]
    everything = counts.sum(axis=0, keepdims=True)  # [1, C]
    p = counts / np.maximum(totals, 1)  # [S, C]
    q = np.broadcast_to(everything / max(1, int(everything.sum())), p.shape)  # [S, C]
    middle = (p + q) / 2  # [S, C]

    def relative_entropy(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        ratio = np.divide(a, b, out=np.ones_like(b), where=a > 0)
        return np.asarray((a * np.log2(ratio)).sum(axis=1), dtype=np.float64)  # [S]

    value = (relative_entropy(p, middle) + relative_entropy(q, middle)) / 2  # [S]
    return np.where(totals[:, 0] > 0, np.clip(value, 0, 1), np.nan)


def _digest(
    method: Method, settings: Sequence[float], arrays: Sequence[NDArray[np.generic]]
) -> str:
    state = hashlib.sha256(f"fedmpt partition 1/{method}/{list(settings)!r}".encode())
    for array in arrays:
        state.update(f"/{array.dtype.str}{array.shape}/".encode())
        state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()


def _partition(
    method: Method,
    assignment: Assignment,
    labels: LabelMatrix,
    *,
    clients: int,
    digest: str,
    moved: int,
) -> Partition:
    members = tuple(np.flatnonzero(assignment == client) for client in range(clients))
    positives = _positives(labels)
    counts = np.stack([positives[indices].sum(axis=0) for indices in members])  # [S, C]
    return Partition(
        method=method,
        clients=members,
        digest=digest,
        description=Description(
            sizes=np.array([len(indices) for indices in members], dtype=np.int64),
            label_counts=counts,
            divergence=_divergence(counts),
            moved=moved,
        ),
    )


def _clustered(
    method: Method,
    points: NDArray[np.float32],
    labels: LabelMatrix,
    *,
    clients: int,
    seed: int,
    minimum: int,
    source: NDArray[np.generic],
) -> Partition:
    _check(len(labels), clients=clients, minimum=minimum)
    assignment, centres = _k_means(points, clients=clients, seed=seed)
    assignment, moved = _fill_small(assignment, points, centres, minimum=minimum)
    digest = _digest(method, (clients, seed, minimum), [source])
    return _partition(method, assignment, labels, clients=clients, digest=digest, moved=moved)


def cluster(
    features: Features,
    labels: LabelMatrix,
    *,
    clients: int,
    seed: int,
    minimum: int = MINIMUM_SIZE,
) -> Partition:
    """Spread images by k-means on their L2-normalised features; labels are described, not used.

    Args:
        features: float32 or float16 ``[n, D]``, one global feature an image.
        labels: int8 ``[n, C]``, for the description.
        clients: number of clusters, S.
        seed: experiment seed.
        minimum: smallest size of a client; smaller clusters take the nearest images of the largest
            ones.

    Raises:
        UsageError: if there are fewer than ``clients * minimum`` images.
        ValueError: if ``features`` and ``labels`` are of different length.

    Source: FedMPT, Heterogeneity Benchmark (one cluster a client); k-means++ and ten restarts are
    choices of this implementation.
    """
    if len(features) != len(labels):
        raise ValueError(f"{len(features)} features for {len(labels)} rows of labels")
    return _clustered(
        "cluster",
        _normalised(features),
        labels,
        clients=clients,
        seed=seed,
        minimum=minimum,
        source=features,
    )


def label(
    labels: LabelMatrix, *, clients: int, seed: int, minimum: int = MINIMUM_SIZE
) -> Partition:
    """Spread images by k-means on their L2-normalised label vectors.

    Give the labels as they are before masking. Images without a positive share the zero vector.

    Args:
        labels: int8 ``[n, C]``; unknown counts as absent.
        clients: number of clusters, S.
        seed: experiment seed.
        minimum: smallest size of a client.

    Raises:
        UsageError: if there are fewer than ``clients * minimum`` images.
    """
    return _clustered(
        "label",
        _normalised(_positives(labels)),
        labels,
        clients=clients,
        seed=seed,
        minimum=minimum,
        source=labels,
    )


def _rarest_positive(labels: LabelMatrix) -> NDArray[np.int64]:
    """Return each image's rarest positive class, the first of equal ones; C without any."""
    positives = _positives(labels)  # [n, C]
    frequency = positives.sum(axis=0)  # [C]
    rarity = np.where(positives == 1, frequency[None, :], len(labels) + 1)  # [n, C]
    latent: NDArray[np.int64] = np.where(
        positives.any(axis=1), rarity.argmin(axis=1), labels.shape[1]
    )
    return latent


def dirichlet(
    labels: LabelMatrix,
    *,
    clients: int,
    seed: int,
    alpha: float = 0.5,
    minimum: int = MINIMUM_SIZE,
) -> Partition:
    """Spread the images of each latent class over clients in Dirichlet(alpha) proportions.

    An image has several labels and the Dirichlet scheme needs one: its latent class is its rarest
    positive class in the training split, and one further class holds the images without any
    positive. Clients that come out too small take the images whose label vectors are nearest to
    their mean label vector. Give the labels as they are before masking.

    Args:
        labels: int8 ``[n, C]``; unknown counts as absent.
        clients: number of clients, S.
        seed: experiment seed.
        alpha: concentration, above 0; small values make clients differ more.
        minimum: smallest size of a client.

    Raises:
        UsageError: if ``alpha`` is not above 0 or there are fewer than ``clients * minimum``
            images.
    """
    if not (alpha > 0 and np.isfinite(alpha)):
        raise UsageError(f"alpha={alpha}: must be above 0 and finite")
    n = len(labels)
    _check(n, clients=clients, minimum=minimum)
    latent = _rarest_positive(labels)
    assignment = np.zeros(n, dtype=np.int64)
    for group in range(labels.shape[1] + 1):
        random = generator(seed, "partition", "dirichlet", group)
        shares = random.dirichlet(np.full(clients, alpha))  # [S]
        members = random.permutation(np.flatnonzero(latent == group))
        cuts = np.floor(np.cumsum(shares)[:-1] * len(members) + 0.5).astype(np.int64)
        for client, part in enumerate(np.split(members, np.minimum(cuts, len(members)))):
            assignment[part] = client
    points = _normalised(_positives(labels))  # [n, C]
    centres = np.zeros((clients, points.shape[1]), dtype=np.float32)  # [S, C]
    np.add.at(centres, assignment, points)
    sizes = np.bincount(assignment, minlength=clients)  # [S]
    centres /= np.maximum(sizes, 1)[:, None].astype(np.float32)
    assignment, moved = _fill_small(assignment, points, centres, minimum=minimum)
    digest = _digest("dirichlet", (clients, seed, minimum, alpha), [labels])
    return _partition("dirichlet", assignment, labels, clients=clients, digest=digest, moved=moved)


def iid(labels: LabelMatrix, *, clients: int, seed: int, minimum: int = MINIMUM_SIZE) -> Partition:
    """Spread images evenly at random; sizes differ by at most one.

    Args:
        labels: int8 ``[n, C]``, for the description and the number of images.
        clients: number of clients, S.
        seed: experiment seed.
        minimum: smallest size of a client.

    Raises:
        UsageError: if there are fewer than ``clients * minimum`` images.
    """
    n = len(labels)
    _check(n, clients=clients, minimum=minimum)
    assignment = np.empty(n, dtype=np.int64)
    assignment[generator(seed, "partition", "iid").permutation(n)] = np.arange(n) % clients
    digest = _digest("iid", (n, clients, seed, minimum), [])
    return _partition("iid", assignment, labels, clients=clients, digest=digest, moved=0)


def site(
    sites: NDArray[np.int64], labels: LabelMatrix, *, clients: int, minimum: int = MINIMUM_SIZE
) -> Partition:
    """Give each site's images to a client of its own; nothing is drawn.

    Args:
        sites: int64 ``[n]``, the site of each image.
        labels: int8 ``[n, C]``, for the description.
        clients: number of sites.
        minimum: smallest size of a client; a smaller site is refused.

    Raises:
        UsageError: there are other than ``clients`` sites, or a site is too small.
    """
    _check(len(labels), clients=clients, minimum=minimum)
    found, assignment = np.unique(sites, return_inverse=True)
    if len(found) != clients:
        raise UsageError(
            f"partition site: the images are of {len(found)} sites and there are {clients} clients; "
            f"use --clients {len(found)}"
        )
    sizes = np.bincount(assignment)
    if sizes.min() < minimum:
        raise UsageError(
            f"partition site: the smallest site has {sizes.min()} images and a client at least {minimum}; "
            f"use clients.minimum_size={sizes.min()}, or more images"
        )
    digest = _digest("site", (clients, minimum), [sites])
    return _partition("site", assignment, labels, clients=clients, digest=digest, moved=0)


def partition(
    method: str,
    *,
    features: Features | None,
    labels: LabelMatrix,
    sites: NDArray[np.int64] | None = None,
    clients: int,
    seed: int,
    alpha: float = 0.5,
    minimum: int = MINIMUM_SIZE,
) -> Partition:
    """Spread images over clients by the named method; see the function of that name.

    Args:
        method: one of `METHODS`.
        features: float32 or float16 ``[n, D]``; needed by ``cluster`` only.
        labels: int8 ``[n, C]``, unmasked.
        sites: int64 ``[n]``; needed by ``site`` only.
        clients: number of clients.
        seed: experiment seed.
        alpha: concentration, for ``dirichlet`` only.
        minimum: smallest size of a client.

    Raises:
        UsageError: if the method is unknown, lacks features or sites, or cannot serve so many clients.
    """
    match method:
        case "cluster":
            if features is None:
                raise UsageError(
                    "partition cluster needs image features; use label, dirichlet or iid"
                )
            return cluster(features, labels, clients=clients, seed=seed, minimum=minimum)
        case "label":
            return label(labels, clients=clients, seed=seed, minimum=minimum)
        case "dirichlet":
            return dirichlet(labels, clients=clients, seed=seed, alpha=alpha, minimum=minimum)
        case "iid":
            return iid(labels, clients=clients, seed=seed, minimum=minimum)
        case "site":
            if sites is None:
                raise UsageError(
                    "partition site: this data set does not say where images were taken; "
                    "use cluster, label, dirichlet or iid"
                )
            return site(sites, labels, clients=clients, minimum=minimum)
        case _:
            raise UsageError(f"partition {method!r}: must be one of {', '.join(METHODS)}")
