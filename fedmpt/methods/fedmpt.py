"""FedMPT: condition prompts, residual adapters, condition-guided optimal transport and a gate over conditions.

For condition n a prompt reads ``[bc learnt tokens of n] [condition word(s)] [bk shared learnt tokens] [class] .``
and each image patch f is adapted to the condition, ``h_n = f + W_up W_down f``. With class probabilities of patches
``S = softmax_c(kappa cos / tau)`` and a transport plan P between patches and classes at cost ``1 - S``, a condition
predicts ``psi_n,c = C sum_m P_mc S_mc``, and the gate mixes conditions by the mean patch feature.

Dimensions: ``B`` images, ``N`` conditions, ``C`` classes, ``M`` patches, ``D`` joint width, ``W`` text width,
``R`` adapter rank, ``G`` gate rank.

Source: FedMPT, arXiv 2605.28347, section 4 (Eq. 5-13). Where the printed equations contradict each other or cannot
train, docs/method.md says what is implemented and why.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from fedmpt.clip.backbone import Backbone
from fedmpt.clip.text import normalise
from fedmpt.conditions.published import DEFAULT_CONDITIONS
from fedmpt.config import FedMPTConfig
from fedmpt.errors import UsageError
from fedmpt.methods.adapter_basis import AdapterBasis, adapter_basis, to_blocks, to_cores
from fedmpt.methods.base import Method, Parameters
from fedmpt.methods.losses import PROBABILITY_FLOOR, asymmetric_loss
from fedmpt.methods.prompts import fresh_tokens, frozen_features, start_tokens
from fedmpt.methods.transport import transport_plan
from fedmpt.seeds import seed_of

TEMPERATURE: Final = 4.0  # tau and lambda of the paper
TRANSPORT_WEIGHT: Final = 0.2
SMALLEST_SQUARE: Final = 1e-6  # an adapted patch is never taken to be shorter than 0.001


class FedMPT(Method):
    """The method for one backbone and one list of classes.

    Tunable parameters: ``condition_tokens`` ``[N, bc, W]``, ``class_tokens`` ``[bk, W]``, ``adapter_down``
    ``[N, D, R]``, ``adapter_up`` ``[N, R, D]``, ``gate_down`` ``[D, G]``, ``gate_up`` ``[G, N]``. Up-projections start
    at zero: at the start adapters are the identity and the gate is uniform. With ``adapter_projections = "text"``,
    ``adapter_common`` ``[R, O]`` and ``adapter_core`` ``[N - 1, R, O]``, which stand for one core a condition between
    fixed projections (`fedmpt.methods.adapter_basis`), take the place of the adapters' two tensors.
    """

    name = "fedmpt"

    def __init__(
        self,
        backbone: Backbone,
        classes: tuple[str, ...],
        settings: FedMPTConfig,
        conditions: tuple[str, ...] = DEFAULT_CONDITIONS,
        *,
        basis: AdapterBasis | None = None,
    ) -> None:
        """Fix what no training changes.

        Args:
            backbone: the frozen CLIP.
            classes: scored classes, at least two: with one class the class softmax is constant.
            settings: resolved settings (ranks given).
            conditions: condition phrases, one or more; ignored when ``use_conditions`` is off.
            basis: for ``adapter_projections = "text"``, the projections that were tuned with; None computes them
                from ``classes``.

        Raises:
            UsageError: fewer than two classes, no condition, or unresolved ranks.
        """
        if len(classes) < 2:
            raise UsageError(
                f"{len(classes)} class: FedMPT normalises over classes, so at least 2 are needed"
            )
        if settings.adapter_rank is None or settings.gate_rank is None:
            raise UsageError("adapter_rank and gate_rank must be numbers before a method is built")
        if not conditions:
            raise UsageError(
                "an empty list of conditions: give at least one, or use_conditions=false"
            )
        self.classes = classes
        self.conditions = conditions if settings.use_conditions else ("",)
        self.settings = settings
        self._backbone = backbone
        self._adapters = settings.use_adapters and settings.adapter_rank > 0
        self._basis: AdapterBasis | None = None
        if self._adapters and settings.adapter_projections == "text":
            features = frozen_features(backbone, classes)
            self._basis = basis or adapter_basis(features, settings.adapter_rank)
        self._gate = settings.use_gate and len(self.conditions) > 1
        self._scale = (settings.similarity_scale or backbone.logit_scale) / (
            settings.temperature or TEMPERATURE
        )
        self._transport_weight = settings.transport_weight or TRANSPORT_WEIGHT
        self._prior = math.log(2 / max(1, len(classes) - 2))  # log-odds of 2 / C
        self._suffixes = backbone.text.suffixes(classes)
        self._words = [backbone.text.words(word) for word in self.conditions]
        self.prompt_blocks = tuple(
            name
            for name, length in (
                ("condition_tokens", settings.condition_tokens if settings.use_conditions else 0),
                ("class_tokens", settings.class_tokens),
            )
            if length
        )

    def initial_parameters(self, seed: int) -> Parameters:
        """Return the starting parameters of the experiment seed ``seed``."""
        settings, text, width = self.settings, self._backbone.text, self._backbone.width
        count = len(self.conditions)
        random = torch.Generator().manual_seed(seed_of(seed, "initial-parameters"))
        values: Parameters = {}
        if "condition_tokens" in self.prompt_blocks:
            shape = (count, settings.condition_tokens, text.width)
            values["condition_tokens"] = fresh_tokens(random, *shape)
        if "class_tokens" in self.prompt_blocks:
            values["class_tokens"] = start_tokens(
                self._backbone, random, settings.class_tokens, settings.prompt_start
            )
        if self._adapters:
            rank = settings.adapter_rank or 0
            spread = 1 / math.sqrt(width)
            if self._basis is None:
                values["adapter_down"] = spread * torch.randn(count, width, rank, generator=random)
                values["adapter_up"] = torch.zeros(count, rank, width)
            else:
                values |= to_blocks(self._basis.start(count, random))
        if self._gate:
            rank = settings.gate_rank or 0
            spread = 1 / math.sqrt(width)
            values["gate_down"] = spread * torch.randn(width, rank, generator=random)
            values["gate_up"] = torch.zeros(rank, count)
        return {name: value.to(self._backbone.device) for name, value in values.items()}

    def encode_text(self, parameters: Parameters) -> Tensor:
        """Encode all N x C prompts; differentiable in the prompt blocks.

        Returns:
            float32 ``[N * C, D]`` of unit length, conditions outermost.
        """
        prefixes = []
        for index, words in enumerate(self._words):
            parts = [self._backbone.text.start]
            if "condition_tokens" in parameters:
                parts.append(parameters["condition_tokens"][index])
            parts.append(words)
            if "class_tokens" in parameters:
                parts.append(parameters["class_tokens"])
            prefixes.append(torch.cat(parts))
        features = self._backbone.text.encode(prefixes, self._suffixes)  # [N, C, D]
        return normalise(features).flatten(0, 1)

    def score(self, parameters: Parameters, text: Tensor, patches: Tensor) -> Tensor:
        """Return the mixed probabilities ``P'`` (Eq. 11): ``[B, C]`` in [0, 1]."""
        psi = self.conditional_scores(parameters, text, patches)  # [B, N, C]
        mixed = (self.gate_weights(parameters, patches).unsqueeze(-1) * psi).sum(dim=1)
        if self.settings.head == "probability":
            return mixed
        # The same order of scores within a class; 0.5 where a class has twice the share that chance gives it.
        return torch.sigmoid(torch.logit(mixed, eps=PROBABILITY_FLOOR) - self._prior)

    def conditional_scores(self, parameters: Parameters, text: Tensor, patches: Tensor) -> Tensor:
        """Return each condition's prediction ``psi``: ``[B, N, C]`` in [0, 1]."""
        return self.evidence(parameters, text, patches).sum(dim=-2)

    def evidence(self, parameters: Parameters, text: Tensor, patches: Tensor) -> Tensor:
        """Return what each patch adds to each condition's prediction: ``[B, N, M, C]``, at least 0.

        Its sum over patches is ``psi``; laid out on the grid of patches it is a map of where a class was seen.
        """
        logits = self._scaled_cosines(parameters, text, patches)  # [B, N, M, C]
        probabilities = logits.softmax(dim=-1)  # over classes: see docs/method.md on Eq. 7
        with torch.no_grad():
            marginal = logits.amax(dim=-1).softmax(dim=-1)  # [B, N, M], Eq. 8
            if self.settings.use_transport:
                plan = transport_plan(
                    1 - probabilities,
                    marginal,
                    regularisation=self._transport_weight,
                    iterations=self.settings.transport_iterations,
                )
                weights = plan * len(self.classes)  # column c sums to 1: the plan given class c
            else:
                weights = marginal.unsqueeze(-1)
        evidence: Tensor = weights * probabilities
        return evidence

    def gate_weights(self, parameters: Parameters, patches: Tensor) -> Tensor:
        """Return the weights of conditions (Eq. 11), rows summing to 1: ``[B, N]``."""
        if not self._gate:
            count = len(self.conditions)
            return patches.new_full((patches.shape[0], count), 1 / count)
        pooled = patches.mean(dim=1)  # [B, D]
        return (pooled @ parameters["gate_down"] @ parameters["gate_up"]).softmax(dim=-1)

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return the asymmetric loss of each example (Eq. 12): ``[B]``."""
        return asymmetric_loss(
            scores,
            labels,
            gamma_positive=self.settings.gamma_positive,
            gamma_negative=self.settings.gamma_negative,
            shift=self.settings.shift,
        )

    def constants(self) -> Parameters:
        """Return the fixed projections ``adapter_down`` ``[D, R]`` and ``adapter_out`` ``[O, D]``, if there are any."""
        if self._basis is None:
            return {}
        return {"adapter_down": self._basis.down, "adapter_out": self._basis.out}

    def with_constants(self, constants: Parameters) -> FedMPT:
        """Return the same method with the fixed projections that it was tuned with."""
        if not constants:
            return self
        down, out = constants["adapter_down"], constants["adapter_out"]
        basis = AdapterBasis(down=down, out=out, text_count=down.shape[1])
        return FedMPT(self._backbone, self.classes, self.settings, self.conditions, basis=basis)

    def for_classes(self, classes: tuple[str, ...]) -> FedMPT:
        """Return the method for other classes; softmax and transport run over exactly those."""
        return FedMPT(self._backbone, classes, self.settings, self.conditions, basis=self._basis)

    def _scaled_cosines(self, parameters: Parameters, text: Tensor, patches: Tensor) -> Tensor:
        """Return ``kappa cos / tau`` between adapted patches and prompts: ``[B, N, M, C]``.

        An adapted patch ``h = f + a W_up`` with ``a = f W_down`` (Eq. 6 with a residual) is never formed: its products
        follow from those of f, which cost a D-th of the memory.
        """
        count, width = len(self.conditions), patches.shape[-1]
        products = self._by_condition(patches @ text.T)  # [B, N, M, C]
        if not self._adapters:
            return self._scale * products
        if self._basis is None:
            down, up = parameters["adapter_down"], parameters["adapter_up"]  # [N, D, R], [N, R, D]
        else:
            down = self._basis.down.expand(count, -1, -1)
            up = to_cores(parameters) @ self._basis.out
        features = text.reshape(count, -1, width)  # [N, C, D]
        bent = self._by_condition(patches @ down.transpose(0, 1).flatten(1))  # a: [B, N, M, R]
        along = self._by_condition(patches @ up.flatten(0, 1).T)  # W_up f: [B, N, M, R]
        products = products + bent @ (up @ features.mT)  # [B, N, M, C]
        squared = (bent * (2 * along + bent @ (up @ up.mT))).sum(-1)  # [B, N, M]
        squared = squared + patches.square().sum(-1).unsqueeze(1)
        lengths = squared.clamp(min=SMALLEST_SQUARE).sqrt()  # |h|
        cosines: Tensor = products / lengths.unsqueeze(-1)
        return self._scale * cosines

    def _by_condition(self, flat: Tensor) -> Tensor:
        """Split ``[B, M, N * k]`` by condition: ``[B, N, M, k]``."""
        parts = flat.reshape(*flat.shape[:-1], len(self.conditions), -1)  # [B, M, N, k]
        return parts.transpose(1, 2)
