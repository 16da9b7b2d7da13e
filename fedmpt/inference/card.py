"""What a tuned model says of itself: everything that is needed to use it, and what its making cost.

A run folder and a bundle hold the same two files: ``card.json``, and ``model.safetensors`` with the tuned parameters
and, under ``constant.``, the tensors they were tuned beside. The card names the digest of the tensors, so the two
cannot be mixed up.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from fedmpt.config import MethodConfig
from fedmpt.errors import UsageError
from fedmpt.methods.base import Method, Parameters

CARD_FILE: Final = "card.json"
MODEL_FILE: Final = "model.safetensors"
CONSTANT: Final = "constant."  # beginning of the names of constants in the file
_SECTIONS: Final = {"promptfl": "coop", "fedawa": "coop"}  # methods with another's settings


class BackboneCard(msgspec.Struct, frozen=True, kw_only=True):
    """The frozen CLIP that a model was tuned on.

    Attributes:
        name: as given to ``--backbone``.
        pretrained: as given to ``--pretrained``.
        fingerprint: SHA-256 of all weights and of the preprocessing; scores hold for no other.
        preprocessing: what is done to an image before the tower.
    """

    name: str
    pretrained: str | None
    fingerprint: str
    preprocessing: dict[str, Any]


class PrivacyCard(msgspec.Struct, frozen=True, kw_only=True):
    """What the tuning spent.

    Attributes:
        enabled: whether there is a guarantee at all.
        guarantee: in words: what is protected, how well, against whom.
        unit: ``example`` or ``client``.
        delta: of the guarantee; None without one.
        largest_epsilon: spent by the client that spent most.
        epsilon: spent by each client, by its number.
    """

    enabled: bool
    guarantee: str
    unit: str
    delta: float | None = None
    largest_epsilon: float | None = None
    epsilon: dict[str, float] = {}


class ThresholdCard(msgspec.Struct, frozen=True, kw_only=True):
    """A threshold of each class, chosen on data that its user declared public.

    Attributes:
        data: name of that data.
        images: their number.
        values: score above which a class is present, in the order of the classes.
    """

    data: str
    images: int
    values: list[float]


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """``card.json``.

    Attributes:
        schema: version of this file's meaning.
        fedmpt: version of the package that tuned.
        method: name and settings, every rule applied.
        classes: what it was tuned to recognise, in the order of scores.
        conditions: FedMPT's conditions; empty for other methods.
        data: name of the data set.
        seed: experiment seed; a seeded split of the data follows from it.
        rounds: of the federation.
        clients: number of clients.
        secure_aggregation: mode.
        backbone: the frozen CLIP.
        parameters: shape of each tuned tensor.
        constants: shape of each tensor that they were tuned beside.
        model_sha256: of ``model.safetensors``.
        metrics: in percent on the test split: ``tuned`` (the mean over clients where they have blocks of their own;
            ``tuned_shared`` is then the shared part alone), ``zero_shot``, ``zero_shot_class_token``.
        privacy: what it spent.
        thresholds: None for 0.5 everywhere.
        compatibility: why the metrics are no benchmark's; None where they are.
    """

    schema: Literal["fedmpt.model/1"]
    fedmpt: str
    method: MethodConfig
    classes: tuple[str, ...]
    conditions: tuple[str, ...]
    data: str
    seed: int
    rounds: int
    clients: int
    secure_aggregation: str
    backbone: BackboneCard
    parameters: dict[str, tuple[int, ...]]
    constants: dict[str, tuple[int, ...]]
    model_sha256: str
    metrics: dict[str, dict[str, float]]
    privacy: PrivacyCard
    thresholds: ThresholdCard | None = None
    compatibility: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TunedTensors:
    """The contents of ``model.safetensors``.

    Attributes:
        parameters: tuned, by name.
        constants: what they were tuned beside, by name.
    """

    parameters: Parameters
    constants: Parameters


def to_file(tensors: TunedTensors, *, method: str) -> bytes:
    """Return the contents of ``model.safetensors``."""
    named = tensors.parameters | {
        CONSTANT + name: value for name, value in tensors.constants.items()
    }
    contiguous = {name: value.detach().cpu().contiguous() for name, value in named.items()}
    return save(contiguous, metadata={"method": method})


def shapes(tensors: Parameters) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor, names ascending."""
    return {name: tuple(tensors[name].shape) for name in sorted(tensors)}


def settings_of(method: str) -> tuple[str, ...]:
    """Return the parts of a method's configuration that decide its scores; the others are other methods'."""
    return ("name", "loss", "head", _SECTIONS.get(method, method))


def card_text(card: Card) -> str:
    """Return the contents of ``card.json``."""
    record = msgspec.to_builtins(card)
    kept = settings_of(card.method.name)
    record["method"] = {key: record["method"][key] for key in kept if key in record["method"]}
    return msgspec.json.format(msgspec.json.encode(record), indent=2).decode() + "\n"


def read_model(folder: Path) -> tuple[Card, TunedTensors]:
    """Read a run folder or a bundle.

    Raises:
        UsageError: a file is missing, of another version or damaged, or the two do not belong together.
    """
    card = read_card(folder)
    try:
        data = (folder / MODEL_FILE).read_bytes()
    except OSError as error:
        raise UsageError(
            f"{folder}: {MODEL_FILE} cannot be read ({error.strerror}); copy the folder again"
        ) from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != card.model_sha256:
        raise UsageError(
            f"{folder}: {MODEL_FILE} has SHA-256 {digest[:16]}..., its card names {card.model_sha256[:16]}...: the two "
            "do not belong together, or one is damaged; copy the folder again"
        )
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise UsageError(f"{folder}: {MODEL_FILE} is no safetensors file ({error})") from error
    constants = {
        name.removeprefix(CONSTANT): value
        for name, value in tensors.items()
        if name.startswith(CONSTANT)
    }
    parameters = {name: value for name, value in tensors.items() if not name.startswith(CONSTANT)}
    if shapes(parameters) != card.parameters or shapes(constants) != card.constants:
        raise UsageError(
            f"{folder}: the tensors are not those that the card lists; copy the folder again"
        )
    return card, TunedTensors(parameters=parameters, constants=constants)


def read_card(folder: Path) -> Card:
    """Read ``card.json`` of a run folder or a bundle.

    Raises:
        UsageError: it is missing or cannot be used.
    """
    path = folder / CARD_FILE
    if not path.is_file():
        hint = (
            "every client trained alone, the run did not end, or an earlier version made it"
            if (folder / "config.toml").is_file()
            else "give what `fedmpt train --out` or `fedmpt export --out` made"
        )
        raise UsageError(f"{folder}: holds no tuned model (no {CARD_FILE}): {hint}")
    try:
        return msgspec.json.decode(path.read_bytes(), type=Card)
    except (OSError, msgspec.DecodeError) as error:
        raise UsageError(
            f"{path}: cannot be used ({error}); was it made by another version of fedmpt?"
        ) from error


def fitting_parameters(method: Method, tensors: TunedTensors, local: Path | None) -> Parameters:
    """Return the parameters that the method scores with.

    Blocks that each client keeps to itself are in no shared model: they are those of ``local``, a client's own file, or
    zero, which is how the shared part is evaluated.

    Raises:
        UsageError: the tensors are not what the method tunes, or ``local`` does not fit.
    """
    fresh = method.initial_parameters(0)
    own = {name: torch.zeros_like(fresh[name]) for name in method.local_blocks}
    if local is not None:
        own = _local_blocks(local, own, method=method.name)
    expected = {name: shape for name, shape in shapes(fresh).items() if name not in own}
    found = shapes(tensors.parameters)
    if expected != found:
        raise UsageError(
            f"the tensors {found} are not those of {method.name}, {expected}: model and backbone do not fit "
            "together, or another version of fedmpt tuned it"
        )
    return tensors.parameters | own


def _local_blocks(file: Path, expected: Parameters, *, method: str) -> Parameters:
    if not expected:
        raise UsageError(f"--local {file}: clients of {method} keep no blocks of their own")
    try:
        found = load(file.read_bytes())
    except (OSError, SafetensorError) as error:
        raise UsageError(f"--local {file}: cannot be read ({error})") from error
    if shapes(found) != shapes(expected):
        raise UsageError(f"--local {file}: holds {shapes(found)}, not {shapes(expected)}")
    return found
