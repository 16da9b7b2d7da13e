"""The one typed configuration tree and its only defaults.

Later sources win: defaults here < TOML file (``--config``) < ``--set a.b=value`` < named options. An unknown key or a
value of the wrong type is an error that names the key. ``None`` means "chosen by a rule when the run starts"; the
run folder keeps the resolved tree, which is enough to repeat the run.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from fedmpt.errors import UsageError

Positive = Annotated[int, msgspec.Meta(ge=1)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]
Fraction = Annotated[float, msgspec.Meta(gt=0, le=1)]
Probability = Annotated[float, msgspec.Meta(ge=0, lt=1)]
Share = Annotated[float, msgspec.Meta(gt=0, lt=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]


METHOD_NAMES = (  # of fedmpt.methods.registry, here for help that must not import it
    "fedmpt",
    "dualcoop",
    "poscoop",
    "scpnet",
    "tcp",
    "fedtpg",
    "fedpgp",
    "dpfpl",
    "fedawa",
    "maple",
    "ram",
    "fedmvp",
    "coop",
    "promptfl",
    "zero-shot",
)


PromptStart = Literal["normal", "phrase"]  # N(0, 0.02), or ending in "a photo of a"


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A branch of the tree."""


class ScenesConfig(Section, frozen=True, kw_only=True):
    """The embedded data set; see docs/scenes.md."""

    train_size: Positive = 6000
    test_size: Positive = 1500
    bias: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.8  # how often an image follows its context
    resolution: Positive = 64  # pixels
    seed: Annotated[int, msgspec.Meta(ge=0)] = 0  # of the images; the experiment seed leaves them
    company: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0  # how often objects come in pairs
    sites: Positive = 12  # training image i is of site i modulo sites
    pairings: Annotated[int, msgspec.Meta(ge=1, le=19)] = 2  # sites take turns; see docs/bias.md


class CocoConfig(Section, frozen=True, kw_only=True):
    """Data in COCO's format; see docs/data.md."""

    crowd: bool = True  # an annotation of a crowd makes its class present


class VocConfig(Section, frozen=True, kw_only=True):
    """Data in VOC's format; see docs/data.md."""

    difficult: Literal["negative", "positive", "ignore"] = "negative"  # of difficult instances only
    spoken_names: bool = (
        True  # "dining table" for "diningtable"; published baselines keep the latter
    )


class MLRSNetConfig(Section, frozen=True, kw_only=True):
    """MLRSNet; see docs/data.md."""

    split: Literal["images", "categories"] = (
        "images"  # of every category a share, or the last half of the categories, for the test
    )


class DataConfig(Section, frozen=True, kw_only=True):
    """What is learnt from."""

    name: str = "scenes"
    root: str | None = None  # folder of a data set on disk
    strict: bool = False  # refuse corrupt images instead of counting them
    mask: Probability = 0.0  # share of positive training labels that is dropped (part annotation)
    mask_mode: Literal["drop_positive", "ignore"] = "drop_positive"
    mask_test: bool = False  # the test labels as well, which spoils every figure: authors-code only
    protocol: Literal["standard", "fzsl", "fgzsl"] = "standard"  # tested on unseen, or all, classes
    unseen: tuple[str, ...] | None = None  # classes kept from training; None: the data set's own
    unseen_share: Share = 0.25  # of the classes, where the data set has no list and they are drawn
    test_fraction: Share = 0.2  # of the images, where no split is given and one is drawn
    min_labels_train: Count | None = None  # of a training image; None: 1 for nuswide, else 0
    min_labels_test: Count = 0  # of a test image
    coco: CocoConfig = CocoConfig()
    voc: VocConfig = VocConfig()
    mlrsnet: MLRSNetConfig = MLRSNetConfig()
    scenes: ScenesConfig = ScenesConfig()


class BackboneConfig(Section, frozen=True, kw_only=True):
    """The frozen CLIP."""

    name: str = "tiny"
    pretrained: str | None = None
    precision: Literal["auto", "float32", "float16", "bfloat16"] = (
        "auto"  # of the frozen image tower; auto: float16 on a GPU, which is how features are kept
    )


class ClientsConfig(Section, frozen=True, kw_only=True):
    """Who holds what."""

    partition: Literal["cluster", "label", "dirichlet", "iid", "site"] = "cluster"
    heterogeneity: Fraction = 0.6  # number of clients as a share of the number of classes
    count: Positive | None = None  # number of clients; overrides heterogeneity
    alpha: PositiveFloat = 0.5  # concentration of the Dirichlet partition
    minimum_size: Positive | None = None  # of a client; None: 32, fewer where images are few
    participation: Fraction = 1.0  # share of clients in a round


class FedMPTConfig(Section, frozen=True, kw_only=True):
    """FedMPT itself; symbols as in the paper."""

    conditions: tuple[str, ...] | None = None  # None: the paper's list for the data set
    condition_tokens: Annotated[int, msgspec.Meta(ge=0)] = 4  # bc
    class_tokens: Annotated[int, msgspec.Meta(ge=0)] = 4  # bk
    adapter_rank: Annotated[int, msgspec.Meta(ge=0)] | None = (
        None  # Ds; None: 32, under DP a small one
    )
    adapter_projections: Literal["trained", "text"] | None = (
        None  # None: trained; under DP fixed by class names, around a tuned core
    )
    gate_rank: Positive | None = None  # width of the gate; None: as adapter_rank's rule
    temperature: PositiveFloat | None = None  # tau; None: the paper's, 4; under DP 3
    similarity_scale: PositiveFloat | None = (
        None  # kappa; None: the backbone's logit scale, by the spread of its cosines (docs/method.md)
    )
    transport_weight: PositiveFloat | None = None  # lambda; None: the paper's, 0.2; under DP 0.1
    transport_iterations: Positive = 10
    head: Literal["odds", "probability"] = "odds"  # see docs/method.md
    gamma_positive: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    gamma_negative: Annotated[float, msgspec.Meta(ge=0)] = 2.0
    shift: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.05  # c
    prompt_start: PromptStart = "phrase"  # of the shared tokens
    use_conditions: bool = True  # ablations of the paper's Table 4
    use_adapters: bool = True
    use_transport: bool = True
    use_gate: bool = True


class LossConfig(Section, frozen=True, kw_only=True):
    """The asymmetric loss of the methods that FedMPT is compared with."""

    gamma_positive: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    gamma_negative: Annotated[float, msgspec.Meta(ge=0)] = 2.0
    shift: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.05
    weight: PositiveFloat | None = None  # None: by how steep scores are, DualCoOp's 0.02 at 100


class HeadConfig(Section, frozen=True, kw_only=True):
    """How text features become probabilities in the methods that FedMPT is compared with."""

    pooling: PositiveFloat | None = (
        None  # scale of the softmax over patches; None: by the spread of the backbone's cosines
    )
    scale: PositiveFloat | None = (
        None  # of one text feature a class; None: a quarter of the logit scale, times pooling / 20
    )
    offset: Literal["public", "image-mean", "anchor", "none"] = "public"  # docs/methods.md


class CoOpConfig(Section, frozen=True, kw_only=True):
    """CoOp (`coop`, `promptfl`) and the clients of FedAWA."""

    tokens: Positive = 16
    start: PromptStart = "normal"


class DualCoOpConfig(Section, frozen=True, kw_only=True):
    """DualCoOp."""

    tokens: Positive = 16  # of the positive and of the negative context
    start: PromptStart = "normal"
    class_specific: bool = False  # a context of each class; unseen classes then have none


class PosCoOpConfig(Section, frozen=True, kw_only=True):
    """PositiveCoOp."""

    tokens: Positive = 16
    start: PromptStart = "normal"
    negative_start: Literal["normal", "text"] = (
        "text"  # the mean of CLIP's text features, or the published N(0, 1); docs/methods.md
    )
    positive_offset: bool = False  # the released code's learnt offset of the positive features


class SCPNetConfig(Section, frozen=True, kw_only=True):
    """SCPNet."""

    tokens: Positive = 4
    neighbours: Positive | None = None  # kept a class; None: VOC 20, COCO 62, NUS 50, else 0.75 C
    neighbour_share: Fraction = 0.2  # of a row of the propagation matrix; the rest is the class's
    self_supervision: bool = False  # between two views of an image, whose features are kept
    supervision_weight: PositiveFloat = 0.125  # of self-supervision beside the loss
    relation_weight: PositiveFloat | None = None  # in it, of relations; None: VOC 2, else 1


class TCPConfig(Section, frozen=True, kw_only=True):
    """TCP."""

    tokens: Positive = 4
    start: PromptStart = "normal"
    hidden: Positive | None = None  # of the knowledge net; None: a quarter of the joint width
    block: Positive | None = None  # before which class tokens enter; None: after two thirds
    consistency_weight: Annotated[float, msgspec.Meta(ge=0)] = 8.0


class FedTPGConfig(Section, frozen=True, kw_only=True):
    """FedTPG."""

    tokens: Positive = 4
    heads: Positive = 4


class FedPGPConfig(Section, frozen=True, kw_only=True):
    """FedPGP."""

    tokens: Positive = 16
    start: PromptStart = "normal"  # of the shared context
    rank: Positive = 4  # of a client's own context
    contrast_weight: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    contrast_temperature: PositiveFloat = 0.5


class DPFPLConfig(Section, frozen=True, kw_only=True):
    """DP-FPL."""

    tokens: Positive = 16
    start: PromptStart = "normal"  # of the shared context
    rank: Positive = 8  # of the factors through which a client's own context learns


class FedAWAConfig(Section, frozen=True, kw_only=True):
    """FedAWA's weights; its clients are CoOp's."""

    server_lr: PositiveFloat = 0.001  # of the score T of a client, one Adam step a round
    start: Literal["share", "log-share"] = "share"  # of T: share of the images, or its logarithm


class MaPLeConfig(Section, frozen=True, kw_only=True):
    """MaPLe."""

    tokens: Positive = 2
    depth: Positive | None = None  # blocks with tokens of their own; None: three quarters (9 of 12)


class RAMConfig(Section, frozen=True, kw_only=True):
    """RAM."""

    adapter_blocks: Positive | None = None  # last image blocks with adapters; None: a quarter
    image_tokens: Positive = 8
    text_blocks: Positive | None = None  # last blocks of the text tower with tokens; None: half
    text_tokens: Positive = 4
    teacher_weight: Annotated[float, msgspec.Meta(ge=0)] = 0.05  # of the teacher in training's cost
    transport_weight: PositiveFloat = 0.1
    transport_iterations: Positive = 10


class FedMVPConfig(Section, frozen=True, kw_only=True):
    """FedMVP: as published, or the smaller network that the paper's Table 5 counts."""

    variant: Literal["official", "reduced"] = "official"
    descriptors: str | None = (
        None  # of classes: JSON file, or the bundled "voc2007"; None: the data set's, else general sentences
    )
    image_tokens: Positive = 4  # official
    switch_below: Fraction | None = (
        None  # official: share of frozen CLIP's loss from which on an example tunes adapters instead
    )
    adapter_rank: Positive = 8  # of those adapters
    heads: Positive | None = None  # None: 4 official, 8 reduced
    text_tokens: Positive = 4  # reduced
    hidden: Positive = 64  # reduced
    consistency_weight: Annotated[float, msgspec.Meta(ge=0)] | None = (
        None  # None: 10/32 of an example's distance; reduced: 1 of the classes' mean distance
    )


class MethodConfig(Section, frozen=True, kw_only=True):
    """Which method, and its settings."""

    name: str = "fedmpt"
    fedmpt: FedMPTConfig = FedMPTConfig()
    loss: LossConfig = LossConfig()
    head: HeadConfig = HeadConfig()
    coop: CoOpConfig = CoOpConfig()
    dualcoop: DualCoOpConfig = DualCoOpConfig()
    poscoop: PosCoOpConfig = PosCoOpConfig()
    scpnet: SCPNetConfig = SCPNetConfig()
    tcp: TCPConfig = TCPConfig()
    fedtpg: FedTPGConfig = FedTPGConfig()
    fedpgp: FedPGPConfig = FedPGPConfig()
    dpfpl: DPFPLConfig = DPFPLConfig()
    fedawa: FedAWAConfig = FedAWAConfig()
    maple: MaPLeConfig = MaPLeConfig()
    ram: RAMConfig = RAMConfig()
    fedmvp: FedMVPConfig = FedMVPConfig()


class TrainConfig(Section, frozen=True, kw_only=True):
    """The federated loop and the local optimiser. None: by preset, else by rule with and without privacy."""

    preset: Literal["paper", "native", "authors-code"] | None = None  # docs/methods.md, paper.md
    rounds: Positive | None = None
    local_epochs: Positive | None = None  # None: by preset, else 1
    batch_size: Positive | None = None
    lr: PositiveFloat | None = None  # maximum of the cosine schedule over rounds
    optimizer: Literal["sgd", "adam", "adamw"] | None = None
    momentum: Annotated[float, msgspec.Meta(ge=0, lt=1)] | None = None  # of SGD
    weight_decay: Annotated[float, msgspec.Meta(ge=0)] | None = None
    lr_unit: Literal["one", "block"] | None = (
        None  # of `lr`: 1, or each block's root mean square at the start; docs/methods.md has the rule
    )
    lr_multipliers: dict[str, PositiveFloat] = {}  # blocks whose learning rate is not `lr`
    weighting: Literal["uniform", "size", "none"] = (
        "uniform"  # Eq. 13, or Eq. 4 of the paper; none: nothing is averaged, clients train alone
    )


class PrivacyConfig(Section, frozen=True, kw_only=True):
    """Differential privacy of single examples; on by default."""

    enabled: bool = True
    epsilon: PositiveFloat = 8.0
    delta: Annotated[float, msgspec.Meta(ge=1e-11, lt=1)] | None = None  # None: min(1e-5, 1/(10 n))
    declared_sizes: tuple[Annotated[int, msgspec.Meta(ge=10)], ...] | None = (
        None  # images of every client, as made public; None: true sizes rounded down to tens
    )
    lifetime: PositiveFloat | None = (
        None  # over all runs on a ledger; None: the ledger's, else epsilon
    )
    noise: Literal["local", "shares"] = "local"  # all of it on every client, or in the sum only
    unit: Literal["example", "client"] = "example"  # what is protected; a client needs shares
    arithmetic: Literal["float", "integer"] = "float"  # of query and noise; shares are integers
    clip: Annotated[float, msgspec.Meta(ge=1e-6, le=1e6)] | None = (
        None  # joint L2 norm C of an example's weighted gradient
    )
    clip_mode: Literal["flat", "normalise"] = "normalise"
    space: Literal["auto", "text", "sketch", "prompt"] = (
        "auto"  # where examples are clipped and noised; auto: see docs/privacy.md
    )
    sketch_rank: Positive = 8  # of each factor of the sketch: what is noised of the prompts
    block_shares: dict[str, PositiveFloat] | None = (
        None  # factors of the clip budget's shares; None: by rule
    )
    block_weights: dict[str, PositiveFloat] = {}  # blocks named here; the others by rule
    prompt_chunk: Positive = 8  # examples a backward product in `prompt` space

    @property
    def one_step_rounds(self) -> bool:
        """Whether a private round is one step of the server, on the sum of all clients' clipped gradients."""
        return self.noise == "shares" and self.unit == "example"


class SecAggConfig(Section, frozen=True, kw_only=True):
    """Secure aggregation; on by default."""

    mode: Literal["masking", "ckks", "none"] = "masking"
    bits: Annotated[int, msgspec.Meta(ge=8, le=24)] = 20
    clip: PositiveFloat = 1.0  # largest magnitude of one coordinate of an update
    ckks_preset: Literal["compact", "wide", "wide44"] | None = None  # None: the smallest that fits
    ckks_verify: bool = False  # whether clients decrypt only sums that they added up themselves
    dropout: Probability = 0.0  # simulated probability that a client vanishes in a round


class EvaluationConfig(Section, frozen=True, kw_only=True):
    """When the model is scored on the test split; the start and the last round always are."""

    every: Positive = 1  # rounds; of the others metrics.jsonl has a line without metrics


class Config(Section, frozen=True, kw_only=True):
    """Everything that decides a run."""

    seed: Annotated[int, msgspec.Meta(ge=0)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: DataConfig = DataConfig()
    backbone: BackboneConfig = BackboneConfig()
    clients: ClientsConfig = ClientsConfig()
    method: MethodConfig = MethodConfig()
    train: TrainConfig = TrainConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    secagg: SecAggConfig = SecAggConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


def load_config(
    *, file: Path | None = None, settings: Iterable[str] = (), options: dict[str, Any] | None = None
) -> Config:
    """Build the configuration from its sources.

    Args:
        file: a TOML file, or None.
        settings: texts ``a.b=value`` with a TOML value (bare words are texts).
        options: dotted key -> value of named options; None values are "not given".

    Raises:
        UsageError: a file that cannot be read, an unknown key, or a value of the wrong type or range.
    """
    tree: dict[str, Any] = {}
    if file is not None:
        tree = _read_toml(file)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(
                f"--set {setting}: write it as key=value, for example --set train.rounds=10"
            )
        _put(tree, key.strip(), _parse_value(text.strip()))
    for key, value in (options or {}).items():
        if value is not None:
            _put(tree, key, value)
    _require_finite(tree)
    try:
        return msgspec.convert(tree, Config, strict=True)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"configuration: {_named(error, tree)}; `fedmpt config` lists every key with its default"
        ) from error


def to_toml(config: Config) -> str:
    """Return the configuration as TOML; keys that are left to a rule appear as comments."""
    lines: list[str] = []
    _write_table(msgspec.to_builtins(config), (), lines)
    return "\n".join(lines) + "\n"


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {file}: {error.strerror}; give a readable TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {file}: not valid TOML ({error})") from error


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *branches, leaf = key.split(".")
    for branch in branches:
        tree = tree.setdefault(branch, {})
        if not isinstance(tree, dict):
            raise UsageError(f"configuration key {key}: {branch} is a value, not a section")
    tree[leaf] = value


def _require_finite(tree: Any, path: tuple[str, ...] = ()) -> None:
    """Raise a `UsageError` naming the first number that is infinite or none, which no key can be."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            _require_finite(value, (*path, str(key)))
    elif isinstance(tree, float) and not math.isfinite(tree):
        key = ".".join(path)
        remedy = "; to train without privacy, use --no-dp" if key == "privacy.epsilon" else ""
        raise UsageError(f"configuration: {key} = {tree}: must be a finite number{remedy}")


def _named(error: msgspec.ValidationError, tree: Any) -> str:
    """Return the error with the key and its value first, where it tells of a key."""
    reason, at, path = str(error).partition(" - at `$.")
    if not at:
        return str(error)
    key = path.rstrip("`")
    for part in key.split("."):
        if not isinstance(tree, dict) or part not in tree:  # an item of a list
            return f"{key}: {reason}"
        tree = tree[part]
    return f"{key}: {reason}" if isinstance(tree, dict) else f"{key} = {tree!r}: {reason}"


def _write_table(table: dict[str, Any], path: tuple[str, ...], lines: list[str]) -> None:
    values = {key: value for key, value in table.items() if not isinstance(value, dict)}
    if path and values:
        lines.extend(["", f"[{'.'.join(path)}]"])
    for key, value in values.items():
        by_rule = value is None
        lines.append(f"# {key} is chosen by a rule" if by_rule else f"{key} = {_toml_value(value)}")
    for key, value in table.items():
        if isinstance(value, dict):
            _write_table(value, (*path, key), lines)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return msgspec.json.encode(value).decode()  # a JSON string is a TOML basic string
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    return repr(value)
