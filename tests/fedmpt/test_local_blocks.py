"""What is a client's own never leaves it, survives rounds, and decides its own model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from fedmpt.clip.backbone import Backbone
from fedmpt.config import HeadConfig, MethodConfig, load_config
from fedmpt.engine.local_blocks import LocalBlocks
from fedmpt.engine.sites import Site
from fedmpt.engine.train import train
from fedmpt.methods.fedpgp import PersonalPrompts
from fedmpt.methods.prompts import encode_context, frozen_features
from fedmpt.methods.registry import build_method
from fedmpt.metrics import evaluate, mean_metrics
from fedmpt.protect import Envelope, LedgeredSession
from fedmpt.types import Update
from secagg import Update as SegmentValues


class _Silent:
    def progress(self, *_: Any) -> None: ...
    def preview(self, _: Any) -> None: ...
    def round_done(self, _: Any) -> None: ...
    def warning(self, _: str) -> None: ...


class Spied:
    """A run whose clients' uploads and trained blocks are noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.messages: list[bytes] = []
        self.values: list[SegmentValues] = []
        self.trained: list[dict[str, torch.Tensor]] = []
        self.sites: list[Site] = []
        submit, train_site = LedgeredSession.submit, Site.train

        def spy_submit(session: LedgeredSession, update: SegmentValues, context: bytes) -> Any:
            reply = submit(session, update, context)
            self.values.append(update)
            self.messages.append(reply.message)
            return reply

        def spy_train(site: Site, *arguments: Any, **options: Any) -> Update:
            update = train_site(site, *arguments, **options)
            self.sites.append(site)
            self.trained.append({name: value.clone() for name, value in site.local.items()})
            return update

        monkeypatch.setattr(LedgeredSession, "submit", spy_submit)
        monkeypatch.setattr(Site, "train", spy_train)


@pytest.fixture
def spied(monkeypatch: pytest.MonkeyPatch, shared_cache: Path) -> Spied:
    monkeypatch.setenv("FEDMPT_CACHE", str(shared_cache))
    return Spied(monkeypatch)


def _run(checkpoint: Path, folder: Path, method: str = "fedpgp", **options: Any) -> dict[str, Any]:
    base = {
        "backbone.name": f"local-dir:{checkpoint}",
        "method.name": method,
        "method.head.offset": "image-mean",
        "data.scenes.train_size": 160,
        "data.scenes.test_size": 30,
        "data.scenes.resolution": 32,
        "clients.count": 4,
        "train.rounds": 2,
        "train.lr": 0.1,
        "privacy.enabled": False,
        "device": "cpu",
    }
    given = {name.replace("__", "."): value for name, value in options.items()}
    return train(load_config(options=base | given), folder=folder, listener=_Silent())


@pytest.mark.parametrize("mode", ["none", "masking"])
def test_the_bytes_sent_have_no_room_for_a_clients_own_blocks(
    spied: Spied, shared_checkpoint: Path, tmp_path: Path, mode: str
) -> None:
    """With 16 shared tokens, FedPGP's uploads are as long as CoOp's, which has nothing of its own."""
    summary = _run(shared_checkpoint, tmp_path / "a", secagg__mode=mode, train__rounds=1)
    personal = [len(message) for message in spied.messages]
    width = 32
    assert summary["parameters"] == 16 * width
    assert {len(values.values["delta"]) for values in spied.values} == {16 * width}
    spied.messages.clear()
    _run(shared_checkpoint, tmp_path / "b", "coop", secagg__mode=mode, train__rounds=1)
    assert sorted(personal) == sorted(len(message) for message in spied.messages)


def test_what_is_sent_does_not_change_with_what_is_kept(
    spied: Spied, shared_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sealing reads the shared blocks' update alone: other own blocks give the same values to send."""
    seal = Envelope.seal
    seen: list[tuple[SegmentValues, SegmentValues]] = []

    def twice(envelope: Envelope, update: Update) -> SegmentValues:
        first = seal(envelope, update)
        for value in spied.sites[-1].local.values():
            value.fill_(5.0)
        seen.append((first, seal(envelope, update)))
        return first

    monkeypatch.setattr(Envelope, "seal", twice)
    _run(shared_checkpoint, tmp_path / "a", train__rounds=1)
    assert len(seen) == 4
    for first, second in seen:
        assert all(np.array_equal(first.values[n], second.values[n]) for n in first.values)


def test_own_blocks_go_on_from_round_to_round_and_stay_on_the_clients_disk(
    spied: Spied, shared_checkpoint: Path, tmp_path: Path
) -> None:
    summary = _run(shared_checkpoint, tmp_path / "a")
    first, last = spied.trained[:4], spied.trained[4:]
    assert any(not torch.equal(a["left"], b["left"]) for a, b in zip(first, last, strict=True))
    assert not torch.equal(last[0]["left"], last[1]["left"])
    for client in range(4):
        kept = load_file(tmp_path / "a" / "local" / f"client-{client:03d}.safetensors")
        assert any(np.array_equal(kept["right"], blocks["right"]) for blocks in last)
    assert "left" not in load_file(tmp_path / "a" / "model.safetensors")
    assert set(summary["final_shared"]) == {"mAP", "CF1", "OF1"}
    lines = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["mAP_shared"] == summary["final_shared"]["mAP"]


def test_a_client_that_is_never_asked_keeps_the_initial_blocks(
    spied: Spied, shared_checkpoint: Path, tmp_path: Path
) -> None:
    _run(shared_checkpoint, tmp_path / "a", clients__participation=0.75, train__rounds=1)
    assert len(spied.trained) == 3
    assert len(list((tmp_path / "a" / "local").iterdir())) == 3


def test_blocks_on_disk_are_taken_up_again(tmp_path: Path) -> None:
    file = tmp_path / "own" / "client.safetensors"
    blocks = LocalBlocks({"left": torch.zeros(2)}, file)
    blocks.values["left"] = torch.tensor([1.0, 2.0])
    blocks.keep(3)
    again = LocalBlocks({"left": torch.zeros(2)}, file)
    again.take_up(3)
    assert torch.equal(again.values["left"], torch.tensor([1.0, 2.0]))


def test_blocks_of_a_round_that_the_server_did_not_commit_give_way_to_those_before(
    tmp_path: Path,
) -> None:
    def kept(done: int) -> list[float]:
        blocks = LocalBlocks({"own": torch.zeros(1)}, tmp_path / "client.safetensors")
        blocks.take_up(done)
        return blocks.values["own"].tolist()

    blocks = LocalBlocks({"own": torch.zeros(1)}, tmp_path / "client.safetensors")
    for number in (2, 5):
        blocks.values["own"] = torch.tensor([float(number)])
        blocks.keep(number)
    assert kept(6) == [5.0]
    assert kept(4) == [2.0]
    blocks.values["own"] = torch.tensor([5.0])  # the round is done again, and stopped again
    blocks.keep(5)
    assert kept(4) == [2.0]
    assert kept(1) == [0.0]
    assert list(tmp_path.iterdir()) == []


def test_the_contrast_is_that_of_two_logits_with_clips_own_prompt_as_the_target(
    backbone: Backbone,
) -> None:
    classes = ("cat", "dog", "bus")
    config = MethodConfig(name="fedpgp", head=HeadConfig(offset="image-mean"))
    method = build_method(backbone, classes, config)
    parameters = {n: v + 0.1 for n, v in method.initial_parameters(0).items()}
    personal = method.encode_text(parameters)
    shared = encode_context(backbone, backbone.text.suffixes(classes), parameters["shared"])
    frozen = frozen_features(backbone, classes)
    cosine = torch.nn.functional.cosine_similarity
    logits = torch.stack([cosine(frozen, shared), cosine(shared, personal)], dim=1) / 0.5
    expected = torch.nn.functional.cross_entropy(logits, torch.zeros(3, dtype=torch.long))
    assert torch.allclose(method.penalty(parameters, personal), expected, atol=1e-6)
    zero = parameters | {n: torch.zeros_like(parameters[n]) for n in PersonalPrompts.local_blocks}
    assert torch.allclose(method.encode_text(zero), shared, atol=1e-6)


def test_the_mean_over_clients_is_that_of_every_percentage() -> None:
    labels = np.array([[1, 0], [0, 1], [1, 1]], dtype=np.int8)
    random = np.random.default_rng(0)
    both = [evaluate(random.random((3, 2)).astype(np.float32), labels) for _ in range(2)]
    mean = mean_metrics(both)
    assert mean.mAP == pytest.approx((both[0].mAP + both[1].mAP) / 2)
    assert mean.AP[0] == pytest.approx(((both[0].AP[0] or 0) + (both[1].AP[0] or 0)) / 2)
    assert mean.classes_scored == both[0].classes_scored
