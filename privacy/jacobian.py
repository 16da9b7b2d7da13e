"""Where the prompt side of a step is clipped and noised.

One frozen, deterministic encoder f serves all examples: prompts p become text features T = f(p),
and no example touches f. The gradient of an example in the prompts is `J^T dL_i/dT`, J = dT/dp. A
space says what is clipped and noised in place of it:

| space | vector of an example | passes through the encoder in a step |
|---|---|---|
| `text` | `dL_i/dT` | one forward, one backward |
| `prompt` | `J^T dL_i/dT`, exactly | one forward, b backward |
| `sketch` | `S U^T dL_i/dT`, J close to `U S V^T` (`privacy.sketch`) | none; some once a round |

Guarantee (late Jacobian): the privacy of a step depends on the release only. J is a function of
released values, so whatever is done with the released gradient afterwards is post-processing; a
wrong J costs utility, never privacy. Conditions: the encoder draws no randomness from data, has no
batch statistics, and depends on `prompts` alone.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch

from privacy.errors import ConfigurationError, GradientShapeError, StepError
from privacy.plan import DPSpace

Tensors = dict[str, torch.Tensor]
Encoder = Callable[[Tensors], torch.Tensor]  # prompts -> T, differentiable, no data

TEXT_BLOCK = "text"

# Letters: b examples of a batch (0 or more).


class Space(Protocol):
    """One way to release the prompt gradient.

    A step calls `encode`, then `rows` for each chunk of the batch, then `to_prompt_gradient`.
    `block_shapes` costs no pass through the encoder once `encode` was called.
    """

    @property
    def name(self) -> DPSpace:
        """Which space of the plan this is."""
        ...

    def block_shapes(self, prompts: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
        """Shapes of the blocks that are clipped and noised, for `PrivateGradient`."""
        ...

    def encode(self, prompts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Text features T at these prompts, detached: the point to differentiate the head at."""
        ...

    def rows(self, text_gradients: torch.Tensor) -> Tensors:
        """Per-example rows of the released blocks.

        Args:
            text_gradients: `dL_i/dT`, float32 `[b, *T.shape]`, at the T of the last `encode`.

        Returns:
            Block -> float32 `[b, *shape]`.
        """
        ...

    def to_prompt_gradient(self, released: Mapping[str, torch.Tensor]) -> Tensors:
        """The prompt gradient of a released step: post-processing.

        Ends the step that `encode` began.

        Args:
            released: Block -> float32 `[*shape]`, what `PrivateGradient.release` returned; other
                blocks are ignored.

        Returns:
            Prompt name -> float32, shaped like the prompt.
        """
        ...


class EncoderGraph:
    """Prompts as leaves, and T as a function of them, kept for one step."""

    def __init__(self, encoder: Encoder, prompts: Mapping[str, torch.Tensor]) -> None:
        self.leaves = {name: value.detach().requires_grad_() for name, value in prompts.items()}
        with torch.enable_grad():
            self.text = encoder(self.leaves)  # T
        if not self.text.requires_grad:
            raise ConfigurationError("the encoder's output does not depend on the prompts")

    def pull_back(self, cotangent: torch.Tensor, *, keep: bool, batched: bool = False) -> Tensors:
        """`J^T cotangent` by prompt name; one more leading dimension where `batched`."""
        gradients = torch.autograd.grad(
            self.text,
            list(self.leaves.values()),
            grad_outputs=cotangent,
            retain_graph=keep,
            is_grads_batched=batched,
            allow_unused=True,
        )
        lead = cotangent.shape[:1] if batched else ()
        return {
            name: leaf.new_zeros((*lead, *leaf.shape)) if gradient is None else gradient
            for (name, leaf), gradient in zip(self.leaves.items(), gradients, strict=True)
        }


class TextSpace:
    """Clips and noises the gradient in text features; crosses the encoder once, after the noise.

    Args:
        encoder: Prompts -> T.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._graph: EncoderGraph | None = None
        self._shape: tuple[int, ...] | None = None

    @property
    def name(self) -> DPSpace:
        """`text`."""
        return DPSpace.TEXT

    def block_shapes(self, prompts: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
        """One block, shaped like T; a forward pass unless a step was begun before."""
        if self._shape is None:
            self._shape = _text_shape(self._encoder, prompts)
        return {TEXT_BLOCK: self._shape}

    def encode(self, prompts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """T, detached; the graph behind it is kept for `to_prompt_gradient`."""
        self._graph = EncoderGraph(self._encoder, prompts)
        self._shape = tuple(self._graph.text.shape)
        return self._graph.text.detach()

    def rows(self, text_gradients: torch.Tensor) -> Tensors:
        """The gradients as they are."""
        _check_rows(text_gradients, _begun(self._graph).text)
        return {TEXT_BLOCK: text_gradients.detach()}

    def to_prompt_gradient(self, released: Mapping[str, torch.Tensor]) -> Tensors:
        """One backward pass through the encoder."""
        graph, self._graph = _begun(self._graph), None
        return graph.pull_back(released[TEXT_BLOCK], keep=False)


class PromptSpace:
    """Clips and noises exact per-example prompt gradients.

    Every example costs one backward pass through the encoder.

    Args:
        encoder: Prompts -> T.
        chunk: Examples per backward pass; above 1 the passes are vectorised, which takes memory in
            proportion and, on a CPU, gains nothing.
    """

    def __init__(self, encoder: Encoder, *, chunk: int = 1) -> None:
        if chunk < 1:
            raise ConfigurationError(f"chunk={chunk}: must be >= 1")
        self._encoder = encoder
        self._chunk = chunk
        self._graph: EncoderGraph | None = None

    @property
    def name(self) -> DPSpace:
        """`prompt`."""
        return DPSpace.PROMPT

    def block_shapes(self, prompts: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
        """One block per prompt tensor, of its name and shape."""
        return {name: tuple(value.shape) for name, value in prompts.items()}

    def encode(self, prompts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """T, detached; the graph behind it is kept for `rows`."""
        self._graph = EncoderGraph(self._encoder, prompts)
        return self._graph.text.detach()

    def rows(self, text_gradients: torch.Tensor) -> Tensors:
        """`J^T dL_i/dT` of every example."""
        graph = _begun(self._graph)
        _check_rows(text_gradients, graph.text)
        gradients = text_gradients.detach()  # [b, *T.shape]
        found: dict[str, list[torch.Tensor]] = {
            name: [leaf.new_zeros((0, *leaf.shape))] for name, leaf in graph.leaves.items()
        }
        for some in torch.split(gradients, self._chunk) if len(gradients) else ():
            if self._chunk == 1:
                part = graph.pull_back(some[0], keep=True)
                part = {name: value[None] for name, value in part.items()}  # [1, *shape]
            else:
                part = graph.pull_back(some, keep=True, batched=True)  # [chunk, *shape]
            for name, value in part.items():
                found[name].append(value)
        return {name: torch.cat(values) for name, values in found.items()}  # [b, *shape]

    def to_prompt_gradient(self, released: Mapping[str, torch.Tensor]) -> Tensors:
        """The released blocks as they are."""
        graph, self._graph = _begun(self._graph), None
        return {name: released[name] for name in graph.leaves}


def make_space(name: DPSpace, encoder: Encoder) -> Space:
    """The space a plan names.

    Raises:
        ConfigurationError: The space needs more than an encoder.
    """
    if name is DPSpace.TEXT:
        return TextSpace(encoder)
    if name is DPSpace.PROMPT:
        return PromptSpace(encoder)
    raise ConfigurationError(f"space={name}: needs a sketch; see privacy.sketch.build_sketch")


def _text_shape(encoder: Encoder, prompts: Mapping[str, torch.Tensor]) -> tuple[int, ...]:
    with torch.no_grad():
        return tuple(encoder({name: value.detach() for name, value in prompts.items()}).shape)


def _begun(graph: EncoderGraph | None) -> EncoderGraph:
    if graph is None:
        raise StepError("call encode at the start of every step")
    return graph


def _check_rows(text_gradients: torch.Tensor, text: torch.Tensor) -> None:
    if text_gradients.dim() == 0 or text_gradients.shape[1:] != text.shape:
        raise GradientShapeError(
            f"text gradients: rows of shape {tuple(text_gradients.shape[1:])}, "
            f"must be {tuple(text.shape)}"
        )
