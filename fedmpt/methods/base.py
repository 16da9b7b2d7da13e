"""What a method is to the training loop, the accountant and the server.

Prompt tuning of a frozen CLIP splits into a part that no example touches (the text features, made once a step) and a
part per example (scores and loss). Per-example gradients, and with them differential privacy, concern the second part
only; the first is crossed afterwards.

Dimensions: ``B`` images, ``M`` patches, ``C`` classes, ``D`` width, ``P`` text features of the method's own layout.
"""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias

from torch import Tensor

Parameters: TypeAlias = dict[str, Tensor]


class Method(Protocol):
    """One method of multi-label prompt tuning, for one backbone and one list of classes.

    Guarantees that implementations give: `score`, `loss` and `example_losses` treat every example alone; they are pure
    and may be mapped by ``torch.func.vmap``; permuting patches leaves scores as they are, unless the method looks at
    pixels.

    Attributes:
        name: as given to ``--method``.
        classes: the scored classes, in label order.
        prompt_blocks: names of the parameters that only `encode_text` reads; the others are read by `score`.
        local_blocks: names of the parameters that are each client's own: never sent, kept over rounds.
        pixel_shape: (patches, values of a patch) of what `prepare_images` is given; None for methods that take nothing
            of an image but the frozen tower's features of its patches.
        prepared_as: what `prepare_images` makes, in words that name all it depends on besides the backbone.
        examples_per_chunk: examples whose gradients are held at a time under privacy.
        has_penalty: whether the loss has a term that no example touches.
        aggregation: how clients' updates become the next global state.
    """

    name: str
    classes: tuple[str, ...]
    prompt_blocks: tuple[str, ...]
    local_blocks: tuple[str, ...] = ()
    pixel_shape: tuple[int, int] | None = None
    prepared_as: str = "pixels"
    examples_per_chunk: int = 64
    has_penalty: bool = False
    aggregation: Literal["fedavg", "fedawa"] = "fedavg"

    def initial_parameters(self, seed: int) -> Parameters:
        """Return the named tunable tensors, float32, as every client and the server start with them."""
        ...

    def prepare_images(self, pixels: Tensor) -> Tensor:
        """Return what training and scoring take of images, ``[B, M, Q] -> [B, rows, values]``; no training changes it.

        It is computed once an image and kept in a bank; only methods with a ``pixel_shape`` are asked.
        """
        return pixels

    def encode_text(self, parameters: Parameters) -> Tensor:
        """Return the text features ``[P, D]`` of unit length; differentiable in the prompt blocks.

        A method whose image side takes more from the prompts than text features packs all of it into one vector.
        """
        ...

    def score(self, parameters: Parameters, text: Tensor, patches: Tensor) -> Tensor:
        """Return probabilities ``[B, C]`` of patches ``[B, M, .]`` or prepared images, with `encode_text`'s result."""
        ...

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each example: ``[B]`` for scores and labels ``[B, C]``."""
        ...

    def example_losses(
        self, parameters: Parameters, text: Tensor, patches: Tensor, labels: Tensor
    ) -> Tensor:
        """Return what training minimises, of each example: ``[B]``."""
        return self.loss(self.score(parameters, text, patches), labels)

    def penalty(self, parameters: Parameters, text: Tensor) -> Tensor:
        """Return a term of the loss that no example touches, a scalar added once a step where ``has_penalty``.

        It costs no privacy: it depends on parameters and class names alone.
        """
        del parameters
        return text.new_zeros(())

    def constants(self) -> Parameters:
        """Return tensors made of backbone and classes that no training changes and parameters were tuned beside.

        They belong to a tuned model: computed again elsewhere, another linear algebra may give others.
        """
        return {}

    def with_constants(self, constants: Parameters) -> Method:
        """Return the same method beside what `constants` gave when it was tuned."""
        del constants
        return self

    def for_classes(self, classes: tuple[str, ...]) -> Method:
        """Return the same method with the same parameters for other classes, for example unseen ones."""
        ...
