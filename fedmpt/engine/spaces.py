"""Where the prompt side of a private run is clipped and noised: the rule, and the sketch of a round.

Everything here is a function of sizes, class names, released prompts and the experiment seed; no client's data.
"""

from __future__ import annotations

import msgspec
import torch

from fedmpt.config import Config
from fedmpt.errors import UsageError
from fedmpt.methods.base import Method, Parameters
from fedmpt.seeds import seed_of
from privacy import DPSpace
from privacy.sketch import Sketch, build_sketch, find_sliced

POWER_ITERATIONS = 1  # sharpen the sketch at twice its cost; docs/privacy.md has what they gain


def choose_space(config: Config, method: Method, parameters: Parameters) -> tuple[Config, str]:
    """Return the configuration with a space in place of ``auto``, and the reason in words.

    The rule is public: noise has as many coordinates as what is noised, so ``text`` is taken where the text features
    have no more values than the prompts, else ``sketch``; where a sketch does not serve, ``text``. Where a round is one
    step, a sketch serves any optimiser and method without prompts of the clients' own, for it is taken anew where the
    step has led; but it would be paid for in every step, so the rule takes ``text``.

    Args:
        config: the resolved configuration but for ``privacy.space``.
        method: the method.
        parameters: its starting parameters.

    Raises:
        UsageError: ``sketch`` with clients that have prompts of their own; or, in rounds of many steps, with an
            optimiser that is not linear in the gradient or a method whose prompts leave the sketch's directions.
    """
    if not config.privacy.enabled or not parameters:
        return config, ""
    space, reason = config.privacy.space, "as asked for"
    one_step = config.privacy.one_step_rounds
    stays = one_step or config.train.optimizer == "sgd"
    unsketchable = _why_not_sketched(
        method, alone=config.train.weighting == "none", one_step=one_step
    )
    if space == "sketch" and unsketchable:
        raise UsageError(
            f"--dp-space sketch with --method {method.name}: {unsketchable}; use --dp-space text"
        )
    if space == "sketch" and not stays:
        raise UsageError(
            f"--dp-space sketch with train.optimizer={config.train.optimizer}: the sketch holds along a few directions "
            "of the prompts, which only an optimiser that is linear in the gradient keeps to; use "
            "--set train.optimizer=sgd or --dp-space text"
        )
    if space == "auto":
        prompts = sum(parameters[name].numel() for name in method.prompt_blocks)
        with torch.no_grad():
            text = method.encode_text(parameters).numel()
        serves = stays and not one_step and not unsketchable
        space = "sketch" if serves and text > prompts else "text"
        reason = f"by rule: text features have {text:,} values, prompts {prompts:,}"
        if unsketchable:
            reason = f"by rule: {unsketchable}"
        elif one_step:
            reason = "by rule: a round is one step, for which a sketch would be built each time"
        elif not stays:
            reason = f"by rule: {config.train.optimizer} is not linear in the gradient"
    replace = msgspec.structs.replace
    return replace(config, privacy=replace(config.privacy, space=space)), reason


def _why_not_sketched(method: Method, *, alone: bool, one_step: bool) -> str:
    """Return why one sketch of the encoder does not serve all steps and clients of a round; empty if it does.

    Clients that train alone have a sketch each; in rounds of one step nothing is computed where that step leads.
    """
    if method.local_blocks and not alone:
        return "clients have prompts of their own, so that one sketch does not fit all"
    if method.has_penalty and not one_step:
        return "a term of the loss moves prompts out of the sketch's directions"
    return ""


class RoundSketches:
    """The sketches of one run's rounds, each built once however many parts of the run ask for it.

    Block weights, the shapes of shared noise and the first round all start from the same released parameters. Which
    prompts act on a slice of the text features each is found once, at the first parameters asked for.
    """

    def __init__(self, config: Config, method: Method) -> None:
        """Start without a sketch.

        Args:
            config: the configuration, its space chosen.
            method: the method.
        """
        self._config = config
        self._method = method
        self._sliced: tuple[str, ...] | None = None
        self._last: tuple[int, Sketch] | None = None  # with the round it was built for

    def at(self, parameters: Parameters, *, round_number: int) -> Sketch | None:
        """Return the sketch of a round, all clients' or one that trains alone; None where nothing is clipped in one.

        Args:
            parameters: the released parameters the round starts from.
            round_number: rounds done before; the sketch's directions are drawn anew for each.
        """
        privacy, method = self._config.privacy, self._method
        if not privacy.enabled or privacy.space != DPSpace.SKETCH.value or privacy.unit == "client":
            return None
        prompts = {name: parameters[name].detach() for name in method.prompt_blocks}
        if self._last is not None:
            number, sketch = self._last
            if number == round_number and _same(prompts, sketch.prompts):
                return sketch
        self._last = None  # two at a time would not fit where one hardly does
        if self._sliced is None:
            self._sliced = find_sliced(method.encode_text, prompts)
        sketch = build_sketch(
            method.encode_text,
            prompts,
            ranks={name: privacy.sketch_rank for name in prompts},
            sliced=self._sliced,
            public_seed=seed_of(self._config.seed, "sketch", round_number),
            power_iterations=POWER_ITERATIONS,
        )
        self._last = (round_number, sketch)
        return sketch


def round_sketch(
    config: Config, method: Method, parameters: Parameters, *, round_number: int
) -> Sketch | None:
    """Return one round's sketch, as `RoundSketches.at`, for those who ask once."""
    return RoundSketches(config, method).at(parameters, round_number=round_number)


def _same(some: Parameters, others: Parameters) -> bool:
    return all(torch.equal(value, others[name]) for name, value in some.items())
