"""``fedmpt train``: one federated run."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from fedmpt.baselines import BASELINES, baseline_settings
from fedmpt.config import METHOD_NAMES, load_config

OPTIONS: dict[str, str] = {  # option -> configuration key
    "seed": "seed",
    "device": "device",
    "method": "method.name",
    "data": "data.name",
    "data_root": "data.root",
    "strict": "data.strict",
    "protocol": "data.protocol",
    "mask": "data.mask",
    "mask_mode": "data.mask_mode",
    "backbone": "backbone.name",
    "pretrained": "backbone.pretrained",
    "clients": "clients.count",
    "heterogeneity": "clients.heterogeneity",
    "partition": "clients.partition",
    "participation": "clients.participation",
    "preset": "train.preset",
    "rounds": "train.rounds",
    "local_epochs": "train.local_epochs",
    "batch_size": "train.batch_size",
    "lr": "train.lr",
    "dp_epsilon": "privacy.epsilon",
    "dp_delta": "privacy.delta",
    "dp_noise": "privacy.noise",
    "dp_unit": "privacy.unit",
    "dp_arithmetic": "privacy.arithmetic",
    "dp_space": "privacy.space",
    "dp_sketch_rank": "privacy.sketch_rank",
    "dp_lifetime": "privacy.lifetime",
    "secagg": "secagg.mode",
    "ckks_verify": "secagg.ckks_verify",
    "dropout": "secagg.dropout",
}


@click.command("train")
@click.option("--method", help=f"One of {', '.join(METHOD_NAMES)}.  [default: fedmpt]")
@click.option(
    "--baseline",
    type=click.Choice(list(BASELINES)),
    help="Train what FedMPT is compared with: nothing at all, every client alone, or one holder of all data.",
)
@click.option("--data", help="Data set.  [default: scenes, made on the spot]")
@click.option("--data-root", type=click.Path(), help="Folder of a data set on disk.")
@click.option(
    "--strict", is_flag=True, default=None, help="Refuse corrupt images instead of counting them."
)
@click.option(
    "--protocol",
    type=click.Choice(["standard", "fzsl", "fgzsl"]),
    help="Zero-shot: tested on unseen classes, or on seen and unseen ones.",
)
@click.option("--mask", type=float, help="Share of training labels to hide (part annotation).")
@click.option(
    "--mask-mode",
    type=click.Choice(["drop_positive", "ignore"]),
    help="Hidden positives become negatives, or hidden labels are ignored.",
)
@click.option(
    "--backbone", help="CLIP: tiny, an open_clip name, or local-dir:FOLDER.  [default: tiny]"
)
@click.option("--pretrained", help="Tag of open_clip or weights file for a named backbone.")
@click.option("--clients", type=int, help="Number of clients.")
@click.option(
    "--heterogeneity",
    type=float,
    help="Number of clients as a share of the classes.  [default: 0.6]",
)
@click.option(
    "--partition",
    type=click.Choice(["cluster", "label", "dirichlet", "iid", "site"]),
    help="Who holds what.",
)
@click.option("--participation", type=float, help="Share of the clients in a round.  [default: 1]")
@click.option(
    "--preset",
    type=click.Choice(["paper", "native", "authors-code"]),
    help="Training settings: the paper's one loop, or each method's own optimiser; authors-code also changes data and "
    "test as the released code does, to explain gaps, never to report.",
)
@click.option(
    "--conditions",
    "conditions_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="FedMPT's conditions: a result of `fedmpt conditions`, or a JSON list.  [default: the paper's]",
)
@click.option("--rounds", type=int, help="Rounds of the federation.")
@click.option(
    "--local-epochs",
    type=int,
    help="Passes over a client's images in a round.  [default: by preset, else 1]",
)
@click.option("--batch-size", type=int, help="Images of a local step (under DP: expected).")
@click.option("--lr", type=float, help="Largest local learning rate.")
@click.option("--dp-epsilon", type=float, help="Most epsilon a client may spend.  [default: 8]")
@click.option(
    "--dp-delta", type=float, help="Delta of the guarantee.  [default: min(1e-5, 1/(10 n))]"
)
@click.option(
    "--dp-noise",
    type=click.Choice(["local", "shares"]),
    help="All noise on every client, or shares that add up in the masked sum.  [default: local]",
)
@click.option(
    "--dp-unit",
    type=click.Choice(["example", "client"]),
    help="What is protected; `client` needs noise shares.  [default: example]",
)
@click.option(
    "--dp-arithmetic",
    type=click.Choice(["float", "integer"]),
    help="Number type of clipped gradients and noise; shares are always integers.  [default: float]",
)
@click.option(
    "--dp-space",
    type=click.Choice(["auto", "text", "sketch", "prompt"]),
    help="Where prompt gradients are clipped and noised.  [default: auto]",
)
@click.option(
    "--dp-sketch-rank", type=int, help="Directions of a prompt that `sketch` keeps.  [default: 8]"
)
@click.option(
    "--dp-lifetime",
    type=float,
    help="Most epsilon of a client over all runs on a ledger.  [default: the ledger's, else --dp-epsilon]",
)
@click.option(
    "--ledger",
    type=click.Path(path_type=Path),
    help="Folder of the clients' privacy ledgers, shared by runs that add up.  [default: in the run folder]",
)
@click.option("--no-dp", is_flag=True, help="Train without differential privacy. Says so loudly.")
@click.option(
    "--secagg",
    type=click.Choice(["masking", "ckks", "none"]),
    help="Secure aggregation.  [default: masking]",
)
@click.option(
    "--ckks-verify",
    is_flag=True,
    default=None,
    help="With --secagg ckks: clients decrypt only sums that they added up themselves.",
)
@click.option(
    "--dropout", type=float, help="Simulated probability that a client vanishes in a round."
)
@click.option(
    "--seed", type=int, help="Experiment seed (data plan, schedule, start; never secrets)."
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]))
@click.option(
    "--out", type=click.Path(path_type=Path), help="Run folder.  [default: runs/TIME-HASH]"
)
@click.option(
    "--resume",
    "stopped",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Go on with a run that was stopped, with its settings; goes with --json and --tensorboard alone.",
)
@click.option(
    "--tensorboard",
    is_flag=True,
    help="Also write the run's figures for TensorBoard, to RUN/tensorboard.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="TOML file of settings."
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any setting; see `fedmpt config`.",
)
def command(
    *,
    no_dp: bool,
    ledger: Path | None,
    out: Path | None,
    stopped: Path | None,
    tensorboard: bool,
    as_json: bool,
    config_file: Path | None,
    settings: tuple[str, ...],
    conditions_file: Path | None,
    baseline: str | None,
    **given: Any,
) -> None:
    """Tune prompts over clients, privately by default, and evaluate the result.

    Without options: FedMPT on the embedded data set with the bundled CLIP, twelve clients, differential privacy with
    epsilon 8 and secure aggregation by masking.
    """
    if stopped is not None:
        _require_alone(click.get_current_context())
    options = {OPTIONS[name]: value for name, value in given.items()}
    if no_dp:
        options["privacy.enabled"] = False
    if conditions_file is not None:
        from fedmpt.conditions.files import read_conditions

        options["method.fedmpt.conditions"] = read_conditions(conditions_file)
    if baseline is not None:
        named = [key for key, value in options.items() if value is not None]
        options |= baseline_settings(baseline, given=[*named, *settings])
    config = load_config(file=config_file, settings=settings, options=options)
    if not config.privacy.enabled:
        _require_no_privacy(given)

    # On shared cores, threads that spin while they wait stall each other for seconds.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    from fedmpt.cli.console import Console
    from fedmpt.cli.tensorboard import TensorBoard
    from fedmpt.engine.listener import Listener, Several
    from fedmpt.engine.train import resume, train

    console = Console()
    with ExitStack() as stack:
        listener: Listener = console
        if tensorboard:
            listener = Several(console, stack.enter_context(TensorBoard()))
        if stopped is not None:
            summary = resume(stopped, listener=listener)
        else:
            summary = train(config, folder=out, ledger=ledger, listener=listener)
    if as_json:
        import json

        click.echo(json.dumps(summary, indent=2))
    else:
        console.show_result(summary)


def _require_no_privacy(given: dict[str, Any]) -> None:
    """Refuse options that say how private a run is, where it is not."""
    for name, value in given.items():
        if value is not None and OPTIONS[name].startswith("privacy."):
            raise click.UsageError(
                f"--no-dp (or privacy.enabled=false) and --{name.replace('_', '-')} exclude each other: leave one of "
                "them out"
            )


def _require_alone(context: click.Context) -> None:
    """Refuse options that would change a run that is resumed."""
    for parameter in context.command.params:
        name = parameter.name or ""
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given and name not in ("stopped", "as_json", "tensorboard"):
            raise click.UsageError(
                f"--resume goes on with the run's own settings: leave {parameter.opts[0]} out"
            )
