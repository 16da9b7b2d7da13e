"""The grid of the utility experiment, without running any of it."""

from __future__ import annotations

from experiments.utility import cells, interval, options
from fedmpt.config import load_config


def test_without_privacy_there_is_one_cell_a_seed_whatever_the_spaces() -> None:
    found = cells(["8", "inf"], ["text", "sketch"], ["local"], [0, 1])
    assert len(found) == 2 * (2 + 1)
    assert ("inf", "-", "-", 1) in found


def test_every_cell_is_a_valid_configuration() -> None:
    for cell in cells(["1", "inf"], ["prompt", "text", "sketch"], ["local"], [3]):
        config = load_config(options=options(cell))
        assert config.seed == 3
        assert config.privacy.enabled == (cell[0] != "inf")


def test_the_interval_is_students() -> None:
    assert interval([1.0, 2.0, 3.0]) == "2.0 ± 2.5"  # 4.30 * 1 / sqrt(3)
    assert interval([1.0]) == "1.0"
