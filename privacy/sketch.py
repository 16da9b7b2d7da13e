"""A low-rank public sketch of the encoder's Jacobian: few coordinates, so little noise.

At the start of a round everyone knows the released prompts p_t. From them and a public seed, and
from nothing else, the Jacobian of the frozen encoder is approximated by `U S V^T` of rank R. Within
the round the encoder is replaced by its linearisation: prompts `p = p_t + V z`, text features `T(z)
= T_t + U S z`. The gradient of an example in z is `S U^T dL_i/dT`: R numbers to clip and noise
instead of all of T or p, and no pass through the encoder.

Guarantee: as for every space (`privacy.jacobian`), the privacy of a step depends on the release
only. A poor sketch costs accuracy.

Each prompt tensor has a factor of its own. Prompts that act on one slice of T each (tokens of one
condition) form a block-diagonal Jacobian, whose slices are sketched together; prompts that act on
all of T (shared tokens) are one slice.

Source: randomised range finder and SVD, Halko, Martinsson and Tropp, arXiv 0909.4061, algorithms
4.4 and 5.1.
"""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from privacy import _validate
from privacy.errors import ConfigurationError, GradientShapeError
from privacy.jacobian import Encoder, EncoderGraph, Tensors
from privacy.plan import DPSpace

# Letters: b examples, G slices of a factor, t entries of T and k of the prompt in a slice, R rank.

_LEAST_MOVE = 1e-4  # of the length of T; float32 tells less than that from rounding badly


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """The sketch `U S V^T` of the Jacobian in one prompt tensor.

    Attributes:
        left: U, float32 `[G, t, R]`, orthonormal columns.
        singular: S, float32 `[G, R]`, descending, >= 0.
        right: V, float32 `[G, k, R]`, orthonormal columns.
    """

    left: torch.Tensor
    singular: torch.Tensor
    right: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Sketch:
    """The encoder's linearisation at released prompts; public.

    Attributes:
        prompts: p_t, by name.
        text: T_t.
        factors: One for each prompt tensor, by name.
    """

    prompts: Tensors
    text: torch.Tensor
    factors: dict[str, Factor]

    @property
    def digest(self) -> str:
        """SHA-256 over names, shapes and values, hexadecimal: equal for all clients of a round."""
        digest = hashlib.sha256()
        for name in sorted(self.prompts):
            factor = self.factors[name]
            parts = (self.prompts[name], factor.left, factor.singular, factor.right)
            _absorb(digest, name, *parts)
        _absorb(digest, "", self.text)
        return digest.hexdigest()


def build_sketch(
    encoder: Encoder,
    prompts: Mapping[str, torch.Tensor],
    *,
    ranks: Mapping[str, int],
    sliced: Collection[str] = (),
    public_seed: int,
    power_iterations: int = 1,
    relative_step: float = 0.05,
) -> Sketch:
    """Sketches the Jacobian of `encoder` at `prompts`. No data is involved.

    Costs, for each factor, `R` forward passes and `R` backward passes, and as many again for each
    power iteration.

    Args:
        encoder: Prompts -> T.
        prompts: The round's released prompts, float32.
        ranks: Rank of each prompt tensor's factor, for each slice; cut to the largest possible.
        sliced: Names of prompts whose entry n along the first axis acts on the n-th of as many equal
            parts of T only; `find_sliced` tells them.
        public_seed: Known to everyone; the same for all clients of a round.
        power_iterations: Each sharpens the sketch towards the largest singular values.
        relative_step: Of the forward differences, in units of the prompts' root mean square. They
            only find a range; what is found is then factorised exactly.

    Raises:
        ConfigurationError: A rank is missing or not positive, or T does not fall into as many
            equal parts as a sliced prompt has entries.
    """
    if set(ranks) != set(prompts):
        raise ConfigurationError(f"ranks={sorted(ranks)}: must name exactly {sorted(prompts)}")
    if not set(sliced) <= set(prompts):
        raise ConfigurationError(f"sliced={sorted(sliced)}: must be among {sorted(prompts)}")
    _validate.count(**{f"rank of {name}": rank for name, rank in ranks.items()})
    if power_iterations < 0:
        raise ConfigurationError(f"power_iterations={power_iterations}: must be >= 0")
    _validate.positive(relative_step=relative_step)
    generator = torch.Generator().manual_seed(public_seed)
    graph = EncoderGraph(encoder, prompts)
    factors = {
        name: _factor(
            encoder,
            graph,
            name,
            rank=ranks[name],
            slices=_slices(graph, name, name in sliced),
            generator=generator,
            power_iterations=power_iterations,
            relative_step=relative_step,
        )
        for name in sorted(prompts)
    }
    return Sketch(
        prompts={name: value.detach().clone() for name, value in prompts.items()},
        text=graph.text.detach(),
        factors=factors,
    )


def find_sliced(encoder: Encoder, prompts: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """Names of the prompts whose entry n along the first axis acts on the n-th part of T only.

    Looks at one random cotangent for each part: as many backward passes as there are parts. No data
    is involved, and a wrong answer would cost accuracy alone.

    Args:
        encoder: Prompts -> T.
        prompts: Float32, by name.
    """
    graph = EncoderGraph(encoder, prompts)
    cotangent = torch.randn(graph.text.shape, generator=torch.Generator().manual_seed(0))
    cotangent = cotangent.to(graph.text)
    return tuple(
        name
        for name, leaf in graph.leaves.items()
        if _divides(leaf, graph.text)
        and leaf.shape[0] > 1
        and all(
            _stays_within(graph, name, cotangent, part=part, parts=leaf.shape[0])
            for part in range(leaf.shape[0])
        )
    )


def _stays_within(
    graph: EncoderGraph, name: str, cotangent: torch.Tensor, *, part: int, parts: int
) -> bool:
    """Whether one part of T has a gradient in the prompt's entry of the same number only."""
    size = len(cotangent) // parts
    masked = torch.zeros_like(cotangent)
    masked[part * size : (part + 1) * size] = cotangent[part * size : (part + 1) * size]
    gradient = graph.pull_back(masked, keep=True)[name]
    touched = gradient.reshape(parts, -1).any(dim=1).nonzero().flatten().tolist()
    return touched in ([], [part])


class SketchSpace:
    """Clips and noises the gradient in the sketch's coordinates z.

    It serves one round, around the prompts its sketch was built at, with an optimiser that is
    linear in the gradient (others leave the span of V: what they do outside is lost on T within the
    round).

    Args:
        sketch: Of this round.
    """

    def __init__(self, sketch: Sketch) -> None:
        self._sketch = sketch

    @property
    def name(self) -> DPSpace:
        """`sketch`."""
        return DPSpace.SKETCH

    def block_shapes(self, prompts: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
        """One block of coordinates `[G, R]` per prompt tensor, of its name."""
        self._check(prompts)
        return {name: tuple(f.singular.shape) for name, f in self._sketch.factors.items()}

    def coordinates(self, prompts: Mapping[str, torch.Tensor]) -> Tensors:
        """The z of each prompt tensor, `[G, R]`: all that a round moves, a function of releases."""
        self._check(prompts)
        found = {}
        for name, factor in self._sketch.factors.items():
            moved = prompts[name].detach() - self._sketch.prompts[name]
            moved = moved.reshape(factor.right.shape[0], -1)  # [G, k]
            found[name] = torch.einsum("gkr,gk->gr", factor.right, moved)  # [G, R]
        return found

    def prompts_at(self, coordinates: Mapping[str, torch.Tensor]) -> Tensors:
        """Prompts `p_t + V z`; the inverse of `coordinates` on the span of V."""
        return {
            name: start + self._along(name, coordinates[name])
            for name, start in self._sketch.prompts.items()
        }

    def encode(self, prompts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The linearised T at these prompts."""
        text = self._sketch.text.clone()
        for name, z in self.coordinates(prompts).items():
            factor = self._sketch.factors[name]
            moved = torch.einsum("gtr,gr->gt", factor.left, factor.singular * z)  # [G, t]
            text += moved.reshape(text.shape)
        return text

    def rows(self, text_gradients: torch.Tensor) -> Tensors:
        """`S U^T dL_i/dT` of every example, `[b, G, R]` for each factor."""
        if text_gradients.dim() == 0 or text_gradients.shape[1:] != self._sketch.text.shape:
            raise GradientShapeError(
                f"text gradients: rows of shape {tuple(text_gradients.shape[1:])}, "
                f"must be {tuple(self._sketch.text.shape)}"
            )
        found = {}
        for name, factor in self._sketch.factors.items():
            slices, entries, _ = factor.left.shape
            gradients = text_gradients.detach().reshape(-1, slices, entries)  # [b, G, t]
            found[name] = factor.singular * torch.einsum(
                "bgt,gtr->bgr", gradients, factor.left
            )  # [b, G, R]
        return found

    def to_prompt_gradient(self, released: Mapping[str, torch.Tensor]) -> Tensors:
        """`V` times the released gradient in z."""
        return {name: self._along(name, released[name]) for name in self._sketch.factors}

    def drift(self, encoder: Encoder, prompts: Mapping[str, torch.Tensor]) -> float:
        """How far the linearisation has left the encoder, relative to how far the round went.

        0 at the round's start, and where T moved by less than 1e-4 of its length: little but rounding would be seen.
        A function of released values; logging it, or stopping on it, is post-processing.
        """
        self._check(prompts)
        with torch.no_grad():
            true = encoder({name: value.detach() for name, value in prompts.items()})
            went = (true - self._sketch.text).norm()
            missed = (true - self.encode(prompts)).norm()
        return float(missed / went) if went > _LEAST_MOVE * true.norm() else 0.0

    def _along(self, name: str, coordinates: torch.Tensor) -> torch.Tensor:
        right = self._sketch.factors[name].right
        moved = torch.einsum("gkr,gr->gk", right, coordinates)  # [G, k]
        return moved.reshape(self._sketch.prompts[name].shape)

    def _check(self, prompts: Mapping[str, torch.Tensor]) -> None:
        expected = {name: tuple(value.shape) for name, value in self._sketch.prompts.items()}
        if {name: tuple(value.shape) for name, value in prompts.items()} != expected:
            raise GradientShapeError(f"prompts are not those of the sketch: {expected}")


def _factor(
    encoder: Encoder,
    graph: EncoderGraph,
    name: str,
    *,
    rank: int,
    slices: int,
    generator: torch.Generator,
    power_iterations: int,
    relative_step: float,
) -> Factor:
    leaf = graph.leaves[name]
    entries = leaf.numel() // slices
    rank = min(rank, entries, graph.text.numel() // slices)
    directions = torch.randn((slices, entries, rank), generator=generator).to(leaf)  # [G, k, R]
    basis = _orthonormal(_push(encoder, graph, name, directions, relative_step))  # [G, t, R]
    for _ in range(power_iterations):
        directions = _orthonormal(_pull(graph, name, basis))  # [G, k, R]
        basis = _orthonormal(_push(encoder, graph, name, directions, relative_step))
    projected = _pull(graph, name, basis).transpose(1, 2).double()  # Q^T J, [G, R, k]
    inner, singular, right = torch.linalg.svd(projected, full_matrices=False)
    return Factor(
        left=(basis.double() @ inner).to(leaf.dtype),  # [G, t, R]
        singular=singular.to(leaf.dtype),  # [G, R]
        right=right.transpose(1, 2).contiguous().to(leaf.dtype),  # [G, k, R]
    )


def _push(
    encoder: Encoder,
    graph: EncoderGraph,
    name: str,
    directions: torch.Tensor,
    relative_step: float,
) -> torch.Tensor:
    """`J` times the directions `[G, k, R]` by forward differences, `[G, t, R]`."""
    leaf = graph.leaves[name].detach()
    slices, _, rank = directions.shape
    scale = float(leaf.square().mean().sqrt()) or 1.0
    size = directions.square().mean((1, 2), keepdim=True).sqrt()  # [G, 1, 1]
    step = relative_step * scale * directions / size  # [G, k, R]; only the span matters
    base = {other: value.detach() for other, value in graph.leaves.items()}
    columns = []
    with torch.no_grad():
        for r in range(rank):
            moved = leaf + step[:, :, r].reshape(leaf.shape)
            difference = encoder({**base, name: moved}) - graph.text
            columns.append(difference.reshape(slices, -1))  # [G, t]
    return torch.stack(columns, dim=2)  # [G, t, R]


def _pull(graph: EncoderGraph, name: str, basis: torch.Tensor) -> torch.Tensor:
    """`J^T` times the basis `[G, t, R]` by backward passes, exact, `[G, k, R]`."""
    slices, _, rank = basis.shape
    columns = [
        graph.pull_back(basis[:, :, r].reshape(graph.text.shape), keep=True)[name].reshape(
            slices, -1
        )  # [G, k]
        for r in range(rank)
    ]
    return torch.stack(columns, dim=2)  # [G, k, R]


def _orthonormal(columns: torch.Tensor) -> torch.Tensor:
    orthonormal: torch.Tensor = torch.linalg.qr(columns.double())[0]
    return orthonormal.to(columns.dtype)


def _slices(graph: EncoderGraph, name: str, is_sliced: bool) -> int:
    if not is_sliced:
        return 1
    leaf, text = graph.leaves[name], graph.text
    if not _divides(leaf, text):
        raise ConfigurationError(
            f"prompt {name!r}: its first axis {tuple(leaf.shape)[:1]} does not cut that of T, "
            f"{tuple(text.shape)[:1]}, into equal parts"
        )
    return int(leaf.shape[0])


def _divides(leaf: torch.Tensor, text: torch.Tensor) -> bool:
    return min(leaf.dim(), text.dim()) > 0 and text.shape[0] % leaf.shape[0] == 0


def _absorb(digest: "hashlib._Hash", name: str, *tensors: torch.Tensor) -> None:
    digest.update(f"{name} {[tuple(tensor.shape) for tensor in tensors]}\n".encode())
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
