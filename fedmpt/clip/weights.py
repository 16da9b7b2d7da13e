"""Where a backbone's weights come from, and what they must fit before they are used.

Weights carry settings that no tensor shows: OpenAI's need another activation (QuickGELU) than the architecture's
default, and each publisher has its own preprocessing. Both are taken from what open_clip registers for the tag, from
the folder's own file, or from the kind of file (OpenAI's archives); they are assumed only where nothing tells, and
then it is said.

No file is unpickled: safetensors, state dicts restricted to tensors, and OpenAI's TorchScript archives, which torch
reads without running Python code.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from fedmpt.errors import WeightsError

OPENAI_MARKS: Final = ("input_resolution", "context_length", "vocab_size")  # of OpenAI's archives
FOLDER_CONFIG: Final = "open_clip_config.json"
_FOLDER_WEIGHTS: Final = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)
_PREPROCESSING: Final = ("mean", "std", "interpolation", "resize_mode")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Weights on this machine, and the architecture and preprocessing they are used with.

    Attributes:
        label: what the backbone is called.
        tokenizer: the name under which open_clip has its tokenizer.
        model: open_clip's configuration of the architecture.
        preprocessing: what is known of the preprocessing; the rest is open_clip's default.
        file: the weights.
    """

    label: str
    tokenizer: str
    model: dict[str, Any]
    preprocessing: dict[str, Any]
    file: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """Where the weights of a tag of open_clip are published.

    Attributes:
        page: model on the Hugging Face hub; empty if it is not there.
        files: names that the file may have on that page, best first.
        url: address of a single file; empty if there is none.
        sha256: beginning of that file's digest, in hexadecimal; empty if open_clip knows none.
    """

    page: str
    files: tuple[str, ...]
    url: str
    sha256: str

    def __str__(self) -> str:
        """Return where to fetch the file, as a clause of a sentence."""
        places = []
        if self.page:
            places.append(f"{' or '.join(self.files)} of the Hugging Face model {self.page}")
        if self.url:
            digest = f" (SHA-256 {self.sha256})" if self.sha256 else ""
            places.append(f"{self.url}{digest}")
        return ", or ".join(places)


def published(architecture: str, tag: str) -> Published:
    """Return what open_clip registers about a tag."""
    from open_clip.pretrained import get_pretrained_cfg

    registered = get_pretrained_cfg(architecture, tag)
    page, file = os.path.split(registered.get("hf_hub", ""))
    url = registered.get("url", "")
    sha256 = ""
    if "openaipublic" in url:
        sha256 = url.split("/")[-2]
    elif "mlfoundations" in url:
        sha256 = Path(url).stem.rsplit("-", 1)[-1]
    return Published(
        page=page, files=(file,) if file else _FOLDER_WEIGHTS[:2], url=url, sha256=sha256
    )


def cached(architecture: str, tag: str) -> Path | None:
    """Return where the weights of a tag already lie on this machine, as open_clip's downloads put them."""
    from huggingface_hub import try_to_load_from_cache

    known = published(architecture, tag)
    for name in known.files if known.page else ():
        found = try_to_load_from_cache(known.page, name)
        if isinstance(found, str):
            return Path(found)
    downloaded = Path.home() / ".cache" / "clip" / Path(known.url).name
    return downloaded if known.url and downloaded.is_file() else None


def find_folder(folder: Path, *, label: str) -> Source:
    """Return the weights of a folder in open_clip's format.

    Raises:
        WeightsError: the folder has no readable configuration or no weights.
    """
    path = folder / FOLDER_CONFIG
    if not path.is_file():
        raise WeightsError(
            f"--backbone {label}: no {FOLDER_CONFIG} in that folder; give a folder in open_clip's format"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        model, preprocessing = config["model_cfg"], config.get("preprocess_cfg", {})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"--backbone {label}: {path.name} cannot be read ({error})") from error
    for name in _FOLDER_WEIGHTS:
        if (folder / name).is_file():
            return Source(
                label=label,
                tokenizer=f"local-dir:{folder}",
                model=model,
                preprocessing=preprocessing,
                file=folder / name,
            )
    raise WeightsError(
        f"--backbone {label}: no weights in that folder; they are called {' or '.join(_FOLDER_WEIGHTS[:2])}"
    )


def find_architecture(architecture: str, pretrained: str | None) -> Source:
    """Return the weights of an architecture that open_clip knows, fetching them if need be.

    Args:
        architecture: for example ``ViT-B-16``.
        pretrained: a tag of open_clip (``openai``), a weights file, or ``TAG=FILE`` for a file that was fetched by
            hand.

    Raises:
        WeightsError: the architecture, tag or file does not exist, or a download is not possible.
    """
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    if architecture not in open_clip.list_models():
        raise WeightsError(
            f"--backbone {architecture}: unknown; use tiny, local-dir:FOLDER or an architecture of "
            "open_clip such as ViT-B-16"
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if pretrained is None:
        raise WeightsError(
            f"--backbone {architecture} without --pretrained would have random weights; give one of: "
            f"{', '.join(tags) or 'a weights file'}"
        )
    tag, equals, path = pretrained.partition("=")
    if tag in tags and equals:
        file = _given_file(architecture, tag, Path(path))
    elif pretrained in tags:
        file = _downloaded(architecture, tag)
    elif Path(pretrained).is_file():
        tag, file = _tag_of(architecture, tags, Path(pretrained)), Path(pretrained)
    else:
        raise WeightsError(
            f"--pretrained {pretrained}: neither a tag that open_clip knows for {architecture} nor a file"
        )
    model = open_clip.get_model_config(architecture)
    registered = get_pretrained_cfg(architecture, tag) if tag else {}
    if registered.get("quick_gelu"):
        model["quick_gelu"] = True
    return Source(
        label=f"{architecture}/{tag or file.name}",
        tokenizer=architecture,
        model=model,
        preprocessing={key: registered[key] for key in _PREPROCESSING if key in registered},
        file=file,
    )


def _given_file(architecture: str, tag: str, file: Path) -> Path:
    if not file.is_file():
        raise WeightsError(
            f"--pretrained {tag}={file}: no such file; fetch {published(architecture, tag)}"
        )
    known = published(architecture, tag)
    if known.sha256 and file.name == Path(known.url).name:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if not digest.startswith(known.sha256):
            raise WeightsError(
                f"--pretrained {tag}={file}: its SHA-256 is {digest}, that of the published file begins with "
                f"{known.sha256}; fetch it again"
            )
    return file


def _downloaded(architecture: str, tag: str) -> Path:
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg

    try:
        return Path(download_pretrained(get_pretrained_cfg(architecture, tag)))
    except Exception as error:  # the hub and urllib raise their own kinds
        raise WeightsError(
            f"--backbone {architecture} --pretrained {tag}: the weights are not on this machine and could not be "
            f"downloaded ({first_line(error)}). Where there is a connection fetch {published(architecture, tag)}; "
            f"copy it to this machine, to any folder, and give it with --pretrained {tag}=FILE"
        ) from error


def _tag_of(architecture: str, tags: list[str], file: Path) -> str:
    """Return the tag that a file without one belongs to; empty, with a warning, if nothing tells."""
    if is_archive(file) and "openai" in tags:
        return "openai"
    for tag in tags:
        known = published(architecture, tag)
        if known.sha256 and tag != "openai" and Path(known.url).name == file.name:
            return tag
    _log.warning(
        "--pretrained %s: the file does not say how images were prepared for it; the defaults of %s are assumed. "
        "Give TAG=FILE for published weights, or a folder with %s (local-dir:FOLDER)",
        file.name,
        architecture,
        FOLDER_CONFIG,
    )
    return ""


def is_archive(file: Path) -> bool:
    """Return whether a file is a TorchScript archive, as OpenAI publishes its weights."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(Path(name).name == "constants.pkl" for name in archive.namelist())


def load_model(source: Source) -> nn.Module:
    """Return the architecture with the weights, on the CPU, its ``visual.preprocess_cfg`` set.

    Raises:
        WeightsError: the file cannot be read, or is of another architecture; the message names the first tensor that
            does not fit.
    """
    from open_clip.transform import PreprocessCfg

    model = _build(source)
    state = _read(source, model)
    _require_fit(source, expected=model.state_dict(), found=state)
    model.load_state_dict(state)
    visual: Any = model.visual
    visual.preprocess_cfg = {
        **asdict(PreprocessCfg()),
        **source.preprocessing,
        "size": visual.image_size,
    }
    return model


def _build(source: Source) -> nn.Module:
    from open_clip.model import CLIP, CustomTextCLIP

    config = copy.deepcopy(source.model)
    try:
        if "multimodal_cfg" in config or "hf_model_name" in config["text_cfg"]:
            raise WeightsError(
                f"{source.label}: its text tower is not CLIP's own; prompts are tuned on causal CLIP text towers: "
                "choose another --backbone"
            )
        if "timm_model_name" in config["vision_cfg"]:
            raise WeightsError(
                f"{source.label}: the image tower is not a vision transformer with patch tokens; choose a ViT backbone"
            )
        kind = CustomTextCLIP if config.pop("custom_text", False) else CLIP
        model: nn.Module = kind(**config)
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise WeightsError(
            f"{source.label}: no architecture that open_clip can build ({first_line(error)})"
        ) from error
    return model


def _read(source: Source, model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a weights file under open_clip's names."""
    from open_clip.convert import convert_state_dict
    from open_clip.factory import load_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    try:
        if is_archive(source.file):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the format is old
                archive: Any = torch.jit.load(source.file, map_location="cpu")  # type: ignore[no-untyped-call]
            state = dict(archive.state_dict())
        else:
            state = dict(load_state_dict(str(source.file), weights_only=True))
        state = dict(convert_state_dict(model, state))
        if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
            state = dict(convert_to_custom_text_state_dict(state))
    except Exception as error:  # safetensors, torch and zipfile each raise their own kinds
        raise WeightsError(
            f"the weights of backbone {source.label} could not be loaded ({type(error).__name__}: "
            f"{first_line(error)}); the file may be truncated, or not one of tensors alone: fetch it again"
        ) from error
    for mark in OPENAI_MARKS:
        state.pop(mark, None)
    scale = state.get("logit_scale")
    if isinstance(scale, Tensor):
        state["logit_scale"] = scale.reshape(())
    return state


def _require_fit(
    source: Source, *, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> None:
    """Raise unless both have the same tensors of the same shapes."""
    name = source.label.partition("/")[0]
    for key, tensor in expected.items():
        if key not in found:
            difference = f"{name} has a tensor {key} {list(tensor.shape)}, which the file lacks"
        elif found[key].shape != tensor.shape:
            difference = (
                f"{key} is {list(found[key].shape)} in the file and {list(tensor.shape)} in {name}"
            )
        else:
            continue
        raise WeightsError(_misfit(source, difference))
    extra = next((key for key in found if key not in expected), None)
    if extra is not None:
        raise WeightsError(_misfit(source, f"the file has a tensor {extra}, which {name} lacks"))


def _misfit(source: Source, difference: str) -> str:
    return (
        f"backbone {source.label}: {source.file.name} is of another architecture: {difference}; "
        "give the architecture that the weights are of, or other weights"
    )


def first_line(error: Exception) -> str:
    """Return the beginning of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
