"""Whole runs with a small random CLIP: what is promised of the run folder, of budgets and of sums."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from fedmpt.audit.run import audit_run
from fedmpt.config import load_config
from fedmpt.engine.aggregation import Aggregation
from fedmpt.engine.listener import Preview, RoundRecord
from fedmpt.engine.train import resume, train
from fedmpt.errors import UsageError
from fedmpt.methods.registry import METHODS
from privacy import (
    Admission,
    Budget,
    BudgetExhausted,
    Charge,
    PLDAccountant,
    PRVAccountant,
    read_ledger,
)
from secagg import KeyEpoch, RoundAborted, transcript
from secagg.ckks_scheme import SecretKey
from secagg.errors import MarginExceeded
from tests.fedmpt.conftest import SmallRun


class Recorder:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.previews: list[Preview] = []
        self.rounds: list[RoundRecord] = []
        self.warnings: list[str] = []

    def progress(self, label: str, done: int, total: int) -> None:
        del label, done, total

    def preview(self, preview: Preview) -> None:
        self.previews.append(preview)

    def round_done(self, record: RoundRecord) -> None:
        self.rounds.append(record)

    def warning(self, text: str) -> None:
        self.warnings.append(text)


class Runner:
    """Runs small federations with a shared backbone and cache."""

    def __init__(self, checkpoint: Path, folder: Path) -> None:
        self._checkpoint = checkpoint
        self._folder = folder
        self.listener = Recorder()
        self.count = 0

    def __call__(self, **options: Any) -> tuple[dict[str, Any], Path]:
        self.count += 1
        out = self._folder / f"run-{self.count}"
        config = load_config(
            options={
                "backbone.name": f"local-dir:{self._checkpoint}",
                "data.scenes.train_size": 240,
                "data.scenes.test_size": 60,
                "data.scenes.resolution": 32,
                "clients.count": 5,
                "train.rounds": 2,
                "device": "cpu",
            }
            | {name.replace("__", "."): value for name, value in options.items()}
        )
        return train(config, folder=out, listener=self.listener), out


@pytest.fixture
def run(
    tmp_path: Path, shared_checkpoint: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Runner:
    monkeypatch.setenv("FEDMPT_CACHE", str(shared_cache))
    return Runner(shared_checkpoint, tmp_path)


def _model(folder: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    tensors = load_file(folder / "model.safetensors")
    return np.concatenate([tensors[name].ravel() for name in sorted(tensors)])


def test_a_private_run_leaves_a_complete_folder_and_a_summary_with_the_promised_fields(
    run: Runner,
) -> None:
    summary, folder = run()
    assert summary["schema"] == "fedmpt.summary/1"
    for field in ("method", "data", "backbone", "seed", "rounds", "seconds"):
        assert summary[field] is not None
    for part in ("zero_shot", "final"):
        assert set(summary[part]) == {"mAP", "CF1", "OF1"}
    assert summary["privacy"]["target_epsilon"] == 8
    assert {"client", "n_public", "epsilon", "noise_multiplier", "sample_rate", "steps"} <= set(
        summary["privacy"]["clients"][0]
    )
    assert {"mode", "bytes_up_per_client_round", "seconds", "dropped"} <= set(summary["secagg"])
    assert json.loads((folder / "summary.json").read_text()) == summary
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [0, 1, 2]
    written = tomllib.loads((folder / "config.toml").read_text())
    assert written["train"]["rounds"] == 2
    assert written["train"]["lr"] > 0
    assert len(list((folder / "ledger").glob("*.jsonl"))) == 5
    assert load_file(folder / "model.safetensors")


@pytest.mark.parametrize("mode", ["masking", "none", "ckks"])
def test_anybody_can_verify_the_public_logs_in_the_run_folder(
    run: Runner, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = run(secagg__mode=mode, privacy__enabled=False)
    logs = sorted(map(str, (folder / "transcripts").glob("*.bin")))
    setups = ["key-setup.bin"] if mode == "ckks" else []
    assert [Path(log).name for log in logs] == [*setups, "round-0001.bin", "round-0002.bin"]
    assert transcript.main([*logs, "--roster", str(folder / "roster.json")]) == 0
    assert "Verified: 2 round(s)" in capsys.readouterr().out


def test_the_ledger_alone_gives_every_clients_epsilon_by_two_accountants(run: Runner) -> None:
    summary, folder = run(privacy__epsilon=2.0)
    for account in summary["privacy"]["clients"]:
        history = read_ledger(folder / "ledger" / f"client-{account['client']:03d}.jsonl")
        spent = history.spent_epsilon(PLDAccountant())
        assert spent == pytest.approx(account["epsilon"], abs=1e-6)
        assert 0 < spent <= 2.0
        assert history.spent_epsilon(PRVAccountant()) == pytest.approx(spent, abs=0.05)
        assert sum(event.steps for event in history.events()) == account["steps"]


def test_every_charge_is_followed_by_the_digest_of_what_was_sent(run: Runner) -> None:
    _, folder = run()
    for ledger in sorted((folder / "ledger").glob("*.jsonl")):
        kinds = [record["kind"] for record in read_ledger(ledger).records]
        assert kinds == ["open", "plan", "charge", "release", "charge", "release", "close"]


GRID = 1.0 / (2**19 - 1)  # of a mean update: clip 1, 20 bits
ONE_ROUND: dict[str, Any] = {"privacy__enabled": False, "train__rounds": 1}
# Rounding is stochastic with secret coins, in every mode: after one round two runs differ by less than a grid step
# each; later rounds train from there and may amplify the difference.


@pytest.mark.parametrize("mode", ["masking", "ckks"])
def test_protected_sums_give_the_model_of_a_plain_sum_up_to_quantisation(
    run: Runner, mode: str
) -> None:
    (_, protected), (_, plain) = (
        run(**ONE_ROUND, secagg__mode=mode),
        run(**ONE_ROUND, secagg__mode="none"),
    )
    assert np.abs(_model(protected) - _model(plain)).max() <= 2 * GRID
    assert np.abs(_model(plain)).max() > 0.01


@pytest.mark.parametrize("verify", [False, True])
def test_a_private_run_with_ckks_sends_what_its_preview_says(run: Runner, verify: bool) -> None:
    summary, _ = run(secagg__mode="ckks", secagg__ckks_verify=verify)
    (preview,) = run.listener.previews
    assert preview.bytes_up == pytest.approx(summary["secagg"]["bytes_up_per_client_round"])
    assert preview.setup_bytes is not None
    assert "any one client can read every update" in summary["secagg"]["statement"]
    assert ("assumed to follow" in preview.statement) is not verify
    assert preview.statement == summary["secagg"]["statement"]


def test_a_run_with_ckks_survives_drop_outs(run: Runner) -> None:
    summary, _ = run(
        secagg__mode="ckks", secagg__dropout=0.15, clients__count=7, train__rounds=3, seed=3
    )
    assert summary["secagg"]["dropped"] > 0
    assert any(len(record.survivors) < 7 for record in run.listener.rounds[1:])


def test_a_sum_off_the_grid_stops_the_run_without_a_second_attempt(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def decrypt(key: object, blobs: list[bytes]) -> None:
        asked.append(blobs)
        raise MarginExceeded("off the grid")

    share_key = Aggregation._share_key

    def share(self: Aggregation, preset: str | None) -> KeyEpoch:
        epoch = share_key(self, preset)  # its probe decrypts
        monkeypatch.setattr(SecretKey, "decrypt", decrypt)
        return epoch

    monkeypatch.setattr(Aggregation, "_share_key", share)
    with pytest.raises(MarginExceeded) as told:
        run(secagg__mode="ckks")
    assert not hasattr(told.value, "__notes__")  # more clients would not help
    assert len(asked) == 2  # the two decryptors of the one attempt


def test_a_run_with_drop_outs_sums_over_the_survivors(run: Runner) -> None:
    summary, _ = run(secagg__dropout=0.15, clients__count=7, train__rounds=4, seed=3)
    assert summary["secagg"]["dropped"] > 0
    assert any(len(record.survivors) < 7 for record in run.listener.rounds[1:])


def test_a_client_that_dropped_before_training_is_not_charged(run: Runner) -> None:
    summary, _ = run(secagg__dropout=0.15, clients__count=7, train__rounds=4, seed=3)
    trained = {account["client"]: account["rounds"] for account in summary["privacy"]["clients"]}
    early = [
        client
        for record in run.listener.rounds
        if record.attempts == 1
        for client, stage in record.dropped
        if stage in ("advertise", "share")
    ]
    assert early
    for client in set(early):
        assert trained[client] <= 4 - early.count(client)


def test_a_round_that_too_few_finish_aborts_the_run_and_says_that_a_resumed_one_would_too(
    run: Runner, tmp_path: Path
) -> None:
    with pytest.raises(RoundAborted) as told:
        run(secagg__dropout=0.95)
    (note,) = told.value.__notes__
    assert "round 1 needs at least 4 of its 5 clients" in note
    assert "--dropout 0.95" in note
    assert not [text for text in run.listener.warnings if "--resume" in text]
    with pytest.raises(RoundAborted):
        resume(tmp_path / "run-1", listener=run.listener)


def test_a_round_that_clients_really_left_says_how_many_are_needed_and_how_to_go_on(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            "fedmpt.engine.loop.simulated_losses", lambda *_, **__: {0: "upload", 1: "upload"}
        )
        with pytest.raises(RoundAborted) as told:
            run(privacy__enabled=False)
    (note,) = told.value.__notes__
    assert "round 1 needs at least 4 of its 5 clients" in note
    assert f"`fedmpt train --resume {tmp_path / 'run-1'}`" in note
    assert resume(tmp_path / "run-1", listener=run.listener)["rounds"] == 2


def test_a_ledger_is_refused_where_nothing_would_be_booked_on_it(
    small_run: SmallRun, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"ledger: a run without privacy.*leave --ledger out"):
        small_run(tmp_path / "run", tmp_path / "ledger", privacy__enabled=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("admitted", [0, 1])
def test_a_run_whose_clients_have_spent_their_budgets_ends_with_that_reason(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, admitted: int
) -> None:
    charge = Budget.charge

    def admit_some_rounds(budget: Budget, round_index: int) -> tuple[Charge, Admission]:
        if round_index > admitted:
            raise BudgetExhausted(
                limit="lifetime", limit_epsilon=1, spent_epsilon=0.9, epsilon_after=1.1
            )
        return charge(budget, round_index)

    monkeypatch.setattr(Budget, "charge", admit_some_rounds)
    if admitted:
        summary, _ = run()
        assert summary["rounds"] == 1
        assert "ends after 1 of 2 rounds" in run.listener.warnings.pop()
        assert audit_run(tmp_path / "run-1").findings == ()
    else:  # there is nothing that a summary could be of
        with pytest.raises(BudgetExhausted, match="lifetime epsilon 1"):
            run()
    assert len(run.listener.warnings) == 5
    lines = (tmp_path / "run-1" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [0, 1][: admitted + 1]


def test_the_same_seed_gives_the_same_plan_but_never_the_same_noise(run: Runner) -> None:
    first, first_folder = run()
    second, second_folder = run()
    assert first["partition_digest"] == second["partition_digest"]
    assert first["zero_shot"] == second["zero_shot"]
    assert not np.array_equal(_model(first_folder), _model(second_folder))


def test_without_privacy_the_same_seed_gives_the_same_model_up_to_quantisation(
    run: Runner,
) -> None:
    (_, first), (_, second) = run(**ONE_ROUND), run(**ONE_ROUND)
    assert np.abs(_model(first) - _model(second)).max() <= 2 * GRID


def test_loss_is_reported_without_privacy_and_never_with_it(run: Runner) -> None:
    run()
    assert all(record.train_loss is None for record in run.listener.rounds)
    run.listener.rounds.clear()
    run(privacy__enabled=False)
    assert all(record.train_loss is not None for record in run.listener.rounds[1:])


def test_partial_participation_charges_only_the_rounds_of_the_schedule(run: Runner) -> None:
    summary, _ = run(clients__participation=0.6, train__rounds=4, seed=2)
    for account in summary["privacy"]["clients"]:
        assert account["rounds"] <= 4
        assert account["epsilon"] <= 8
    assert sum(account["rounds"] for account in summary["privacy"]["clients"]) == 4 * 3


def test_an_existing_run_folder_is_refused_and_left_as_it_is(run: Runner, tmp_path: Path) -> None:
    folder = tmp_path / "run-1"
    folder.mkdir()
    (folder / "precious").write_text("kept")
    with pytest.raises(UsageError, match="exists already"):
        run()
    assert [path.name for path in folder.iterdir()] == ["precious"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clients__count": 10_000}, "10000"),
        ({"clients__count": 2, "clients__minimum_size": 10}, "at least 3"),
        (
            {"clients__count": 2, "clients__minimum_size": 10, "secagg__mode": "ckks"},
            "ckks hides an update among at least 3",
        ),
        (
            {"clients__count": 2, "clients__minimum_size": 10, "privacy__noise": "shares"},
            "or --dp-noise local with --secagg none",
        ),
        ({"secagg__ckks_verify": True}, "need ckks"),
        ({"secagg__ckks_preset": "wide"}, "need ckks"),
        ({"privacy__delta": 0.01}, "1/\\(10 n\\)"),
        ({"privacy__space": "sketch", "train__optimizer": "adam"}, "linear in the gradient"),
    ],
)
def test_a_federation_that_cannot_be_is_refused_before_a_folder_exists(
    run: Runner, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run(**options)
    assert not (tmp_path / "run-1").exists()


def test_what_the_preview_projects_is_what_is_spent_and_sent(run: Runner) -> None:
    summary, _ = run()
    (preview,) = run.listener.previews
    spent = [account["epsilon"] for account in summary["privacy"]["clients"]]
    assert preview.planned_epsilons is not None
    assert preview.planned_epsilons == pytest.approx((min(spent), max(spent)), abs=1e-6)
    assert preview.bytes_up == summary["secagg"]["bytes_up_per_client_round"]


def test_the_preview_tells_the_delta_of_the_claim_with_what_integer_noise_takes(
    run: Runner,
) -> None:
    summary, folder = run(
        privacy__arithmetic="integer",
        privacy__epsilon=1.0,
        privacy__delta=1e-5,
        train__rounds=1,
    )
    (preview,) = run.listener.previews
    planned = read_ledger(folder / "ledger" / "client-000.jsonl").terms.delta
    assert planned < 0.995e-5  # or this shows nothing
    assert preview.delta == summary["privacy"]["delta"] == pytest.approx(1e-5, rel=1e-9)


@pytest.mark.parametrize(
    ("options", "clipped"),
    [({}, "text space ("), ({"privacy__unit": "client"}, "parameter space (the change that")],
)
def test_the_preview_says_what_is_clipped(
    run: Runner, options: dict[str, Any], clipped: str
) -> None:
    shared = {"privacy__noise": "shares", "privacy__delta": 1e-3, "train__rounds": 1}
    run(clients__count=5, **shared, **options)
    (preview,) = run.listener.previews
    assert preview.space is not None
    assert preview.space.startswith(clipped)
    of_clients = "privacy__unit" in options
    # what a plan for clients declares is their number, and must not be shown as one of images
    assert (preview.clients, len(preview.sizes)) == (5, 0 if of_clients else 5)
    drowned = [text for text in run.listener.warnings if "times as long as the longest" in text]
    assert len(drowned) == of_clients


def _protocol(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "protocol.json").read_text())
    return record


def test_the_benchmark_is_the_same_whatever_the_method_settings_and_privacy(run: Runner) -> None:
    shared: dict[str, Any] = {"data__mask": 0.5, "clients__participation": 0.6, "seed": 4}
    first, first_folder = run(**shared)
    others: list[dict[str, Any]] = [
        {
            "privacy__enabled": False,
            "train__lr": 0.003,
            "train__batch_size": 7,
            "method__fedmpt__use_conditions": False,
            "secagg__mode": "none",
        },
        {"method__name": "coop", "privacy__enabled": False},
        {"method__name": "zero-shot", "privacy__enabled": False},
    ]
    for options in others:
        other, folder = run(**shared, **options)
        assert other["protocol_digests"] == first["protocol_digests"]
        assert _protocol(folder) == _protocol(first_folder)
    preview = run.listener.previews[0]
    assert preview.protocol_digests == first["protocol_digests"]
    assert "50% of positive labels dropped" in preview.data
    # positive control: another seed is another benchmark, except for the images of `scenes`
    third, _ = run(**{**shared, "seed": 5})
    same = {
        name
        for name, digest in third["protocol_digests"].items()
        if digest == first["protocol_digests"][name]
    }
    assert same == {"classes", "train", "test"}


def test_masking_changes_the_mask_and_neither_clients_nor_the_test(run: Runner) -> None:
    whole, _ = run(train__rounds=1, privacy__enabled=False)
    masked, folder = run(train__rounds=1, privacy__enabled=False, data__mask=0.9)
    changed = {
        name
        for name, digest in whole["protocol_digests"].items()
        if digest != masked["protocol_digests"][name]
    }
    assert changed == {"mask"}
    assert whole["zero_shot"] == masked["zero_shot"]
    assert _protocol(folder)["mask"] == {"probability": 0.9, "mode": "drop_positive"}


def test_ignored_labels_reach_no_gradient(run: Runner) -> None:
    """With nearly every label hidden nearly nothing is learnt; as false negatives they would teach."""
    options: dict[str, Any] = {**ONE_ROUND, "data__mask": 0.995}
    (_, ignored), (_, dropped) = run(**options, data__mask_mode="ignore"), run(**options)
    assert run.listener.rounds[1].train_loss is not None
    losses = [record.train_loss for record in run.listener.rounds if record.round == 1]
    assert losses[0] is not None
    assert losses[1] is not None
    assert losses[0] < 0.1 * losses[1]
    assert not np.array_equal(_model(ignored), _model(dropped))


@pytest.mark.parametrize(("protocol", "scored"), [("fzsl", 12), ("fgzsl", 32)])
def test_a_zero_shot_run_tunes_on_seen_classes_and_scores_exactly_the_protocols(
    run: Runner, protocol: str, scored: int
) -> None:
    summary, folder = run(data__protocol=protocol, privacy__enabled=False)
    record = _protocol(folder)
    assert (len(record["classes"]), len(record["scored"])) == (20, scored)
    assert list(summary["final_AP"]) == record["scored"]
    assert set(summary["final_top_k"]) == {"CF1_top3", "OF1_top3", "CF1_top5", "OF1_top5"}
    assert summary["protocol"] == protocol
    assert record["source"] == "the unseen classes of scenes"
    assert f"tested on {scored}" in run.listener.previews[0].data
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(len(line["AP"]) == scored for line in lines)


def test_scores_of_unseen_classes_are_those_of_the_method_over_just_these(
    run: Runner, shared_checkpoint: Path
) -> None:
    """Recomputed from the saved model: the class softmax runs over the unseen classes alone."""
    from fedmpt.engine.prepare import prepare
    from fedmpt.learner import predict
    from fedmpt.methods.fedmpt import FedMPT
    from fedmpt.metrics import evaluate

    summary, folder = run(data__protocol="fzsl", privacy__enabled=False)
    config = load_config(file=folder / "config.toml")
    federation = prepare(config, progress=run.listener)
    method = federation.method
    assert isinstance(method, FedMPT)
    over_unseen = FedMPT(
        federation.backbone, federation.dataset.scored, method.settings, method.conditions
    )
    parameters = {
        name: torch.from_numpy(value)
        for name, value in load_file(folder / "model.safetensors").items()
    }
    scores = predict(over_unseen, parameters, federation.test_bank)
    metrics = evaluate(scores, federation.test_labels)
    assert metrics.mAP == pytest.approx(summary["final"]["mAP"])


def test_partition_is_saved_as_an_assignment_of_every_image(run: Runner) -> None:
    _, folder = run(train__rounds=1)
    record = json.loads((folder / "partition.json").read_text())
    assert len(record["assignment"]) == 240
    assert np.bincount(record["assignment"]).tolist() == record["sizes"]


# TCP injects tokens between blocks of the text tower, and this one has a single block.
@pytest.mark.parametrize("method", sorted(set(METHODS) - {"tcp"}))
def test_every_method_is_scored_on_unseen_classes(run: Runner, method: str) -> None:
    summary, folder = run(
        method__name=method,
        data__protocol="fzsl",
        data__scenes__train_size=80,
        clients__count=3,
        train__rounds=1,
        privacy__enabled=False,
    )
    assert len(summary["final_AP"]) == 12
    assert 0 < summary["final"]["mAP"] < 100
    assert _protocol(folder)["digests"] == summary["protocol_digests"]
