"""Clients that train alone: each as it would by itself, in as many steps as a federation makes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from fedmpt.audit.run import audit_run
from fedmpt.config import load_config
from fedmpt.engine.prepare import Federation, prepare
from fedmpt.engine.sites import Site
from fedmpt.engine.train import resume
from fedmpt.errors import UsageError
from fedmpt.inference.card import read_card
from fedmpt.learner import train
from fedmpt.protect import LedgeredSession
from fedmpt.report.write import Choices, write_report
from fedmpt.seeds import generator
from fedmpt.types import ClientId, GlobalState, ParameterSpec
from secagg import Update as SegmentValues
from tests.fedmpt.conftest import Silence, SmallRun

ALONE = {"train__weighting": "none", "secagg__mode": "none"}


@pytest.fixture(scope="module")
def alone_run(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run without privacy, of CoOp, whose clients trained alone."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    small_run(folder, privacy__enabled=False, method__name="coop", **ALONE)
    return folder


@pytest.fixture(scope="module")
def alone_privately(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a private run of FedMPT whose clients trained alone."""
    folder = tmp_path_factory.mktemp("alone") / "private"
    small_run(folder, privacy__space="sketch", **ALONE)
    return folder


def trained_by_hand(federation: Federation, client: ClientId) -> dict[str, Any]:
    """Train one client over all rounds, on all blocks as one vector, as if there were no other."""
    config, method = federation.config, federation.method
    spec = ParameterSpec.of(federation.initial)
    state = GlobalState(round=0, vector=spec.flatten(federation.initial))
    rounds = len(federation.schedule)
    for number in range(1, rounds + 1):
        update = train(
            method,
            spec,
            state,
            federation.client_data(client),
            settings=federation.local,
            lr=0.5 * (config.train.lr or 0) * (1 + math.cos(math.pi * (number - 1) / rounds)),
            weight=1,
            device=torch.device("cpu"),
            order=generator(config.seed, "batches", client, number),
        )
        state = GlobalState(round=number, vector=state.vector + update.delta)
    return {name: value.numpy() for name, value in spec.unflatten(state.vector).items()}


def test_every_client_ends_where_it_would_without_the_others(
    alone_run: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDMPT_CACHE", str(shared_cache))
    federation = prepare(load_config(file=alone_run / "config.toml"), progress=Silence())
    for client in range(4):
        kept = load_file(alone_run / "local" / f"client-{client:03d}.safetensors")
        expected = trained_by_hand(federation, ClientId(client))
        assert kept.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(kept[name], value, rtol=1e-4, atol=1e-6)
        assert any(not np.array_equal(kept[n], v.numpy()) for n, v in federation.initial.items())


def test_the_figures_are_the_mean_over_clients_between_the_worst_and_the_best(
    alone_run: Path,
) -> None:
    summary = json.loads((alone_run / "summary.json").read_text())
    worst, best = summary["final_clients"]["min"], summary["final_clients"]["max"]
    for name, value in summary["final"].items():
        assert worst[name] <= value <= best[name]
    last = json.loads((alone_run / "metrics.jsonl").read_text().splitlines()[-1])
    assert len(last["mAP_clients"]) == 4
    assert fmean(last["mAP_clients"]) == pytest.approx(last["mAP"])
    assert (min(last["mAP_clients"]), max(last["mAP_clients"])) == (worst["mAP"], best["mAP"])
    assert last["mAP_shared"] is None


def test_nothing_of_a_model_is_sent(
    small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[SegmentValues] = []
    submit = LedgeredSession.submit

    def spy(session: LedgeredSession, update: SegmentValues, context: bytes) -> Any:
        sent.append(update)
        return submit(session, update, context)

    monkeypatch.setattr(LedgeredSession, "submit", spy)
    summary = small_run(tmp_path / "a", **ALONE | {"train__rounds": 1})
    assert [set(update.values) for update in sent] == [{"weight"}] * 4
    assert "nothing of any model is sent" in summary["secagg"]["statement"]


def test_alone_a_client_makes_and_spends_what_it_does_in_a_federation(
    alone_privately: Path, private_run: Path
) -> None:
    def accounts(folder: Path) -> list[tuple[Any, ...]]:
        clients = json.loads((folder / "summary.json").read_text())["privacy"]["clients"]
        return [(c["steps"], c["noise_multiplier"], round(c["epsilon"], 6)) for c in clients]

    assert accounts(alone_privately) == accounts(private_run)
    assert audit_run(alone_privately).findings == ()


def test_there_is_no_common_model_and_every_page_says_so(
    alone_privately: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDMPT_CACHE", str(shared_cache))
    assert not (alone_privately / "model.safetensors").exists()
    with pytest.raises(UsageError, match="every client trained alone"):
        read_card(alone_privately)
    page = write_report(alone_privately, Choices(), progress=Silence()).read_text()
    assert "There is no common model" in page
    assert "Every client trained alone" in page
    worst = json.loads((alone_privately / "summary.json").read_text())["final_clients"]["min"]
    assert "lowest of a client" in page
    assert f"{worst['mAP']:.1f}" in page
    assert "nothing of any model is sent" in page
    assert "every client&#x27;s noised update" not in page


def test_a_stopped_run_goes_on_with_what_every_client_kept(
    alone_run: Path,
    small_run: SmallRun,
    tmp_path: Path,
    shared_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FEDMPT_CACHE", str(shared_cache))
    folder = tmp_path / "stopped"
    keep = Site.keep

    def power_cut(site: Site, number: int) -> None:
        keep(site, number)
        if number == 2 and site.client == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Site, "keep", power_cut)
        with pytest.raises(KeyboardInterrupt):
            small_run(folder, privacy__enabled=False, method__name="coop", **ALONE)
    resume(folder, listener=Silence())
    for client in range(4):
        name = f"local/client-{client:03d}.safetensors"
        assert (folder / name).read_bytes() == (alone_run / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method__name": "fedawa"}, "--method coop"),
        ({"privacy__noise": "shares", "secagg__mode": "masking"}, "--dp-noise local"),
    ],
)
def test_what_needs_others_is_refused(
    small_run: SmallRun, tmp_path: Path, options: dict[str, str], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        small_run(tmp_path / "a", **ALONE | options)
    assert not (tmp_path / "a").exists()
