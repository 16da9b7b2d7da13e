"""The configuration tree: precedence, refusal, and the round trip through TOML."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmpt.config import Config, load_config, to_toml
from fedmpt.errors import UsageError


def test_privacy_and_masking_are_on_by_default() -> None:
    config = load_config()
    assert config == Config()
    assert config.privacy.enabled
    assert config.privacy.epsilon == 8
    assert config.secagg.mode == "masking"


def test_options_win_over_settings_and_settings_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("seed = 1\n[train]\nrounds = 1\nlr = 0.1\n")
    config = load_config(
        file=file,
        settings=["train.rounds=2", "train.lr=0.2"],
        options={"train.lr": 0.3, "seed": None},
    )
    assert (config.seed, config.train.rounds, config.train.lr) == (1, 2, 0.3)


def test_a_written_configuration_reads_back_the_same(tmp_path: Path) -> None:
    config = load_config(
        settings=[
            "method.fedmpt.conditions=['a', 'b \"quoted\"']",
            "train.rounds=3",
            "data.root=x\\y",
        ]
    )
    file = tmp_path / "run.toml"
    file.write_text(to_toml(config))
    assert load_config(file=file) == config


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("privacy.epsilon=0", "privacy.epsilon"),
        ("privacy.epsilon=-1", "privacy.epsilon"),
        ("privacy.epslion=1", "epslion"),
        ("train.rounds=many", "train.rounds"),
        ("clients.participation=1.5", "clients.participation"),
        ("secagg.mode=open", "secagg.mode"),
        ("nothing=1", "nothing"),
        ("seed.x=1", "seed"),
    ],
)
def test_an_unknown_key_or_a_bad_value_is_refused_by_name(setting: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        load_config(settings=[setting])


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("privacy.epsilon=-1", "privacy.epsilon = -1: Expected"),
        ("train.optimizer=swift", "train.optimizer = 'swift': Invalid"),
        ("train.roundz=3", "train: Object contains unknown field `roundz`"),
        ("train=3", "train = 3: Expected"),
        ("privacy.declared_sizes=[500, 7]", "privacy.declared_sizes[1]: Expected"),
        ("privacy.epsilon=inf", "privacy.epsilon = inf: must be a finite number; to train without"),
        ("train.lr_multipliers.gate_up=nan", "train.lr_multipliers.gate_up = nan: must be"),
    ],
)
def test_what_is_refused_is_told_with_its_key_and_value_first(setting: str, told: str) -> None:
    with pytest.raises(UsageError) as error:
        load_config(settings=[setting])
    assert str(error.value).startswith(f"configuration: {told}")


def test_a_setting_without_a_value_is_refused_with_the_form() -> None:
    with pytest.raises(UsageError, match="key=value"):
        load_config(settings=["train.rounds"])


@pytest.mark.parametrize("content", ["= nonsense", "seed = 'text'"])
def test_a_bad_file_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(content)
    with pytest.raises(UsageError):
        load_config(file=file)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.toml"):
        load_config(file=tmp_path / "nowhere.toml")
