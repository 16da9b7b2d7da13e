"""The grids that ship can be read, every cell is a run that is accepted, and what they compare with is among them."""

from __future__ import annotations

from pathlib import Path

import pytest

import experiments
from fedmpt.cli.train import OPTIONS
from fedmpt.config import METHOD_NAMES
from fedmpt.engine.defaults import resolve
from fedmpt.sweep.cells import cells_of
from fedmpt.sweep.grid import read_grid
from fedmpt.sweep.results import references_of

FILES = sorted(  # tables of the paper have a test of their own, tests/fedmpt/test_tables.py
    file
    for file in (Path(experiments.__file__).parent / "grids").glob("*.toml")
    if not file.name.startswith(("table", "figure"))
)
COMPARED = set(METHOD_NAMES) - {"coop", "promptfl", "zero-shot", "dpfpl"}  # the paper's, and FedMPT


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_cell_resolves_and_the_reference_is_one_of_them(file: Path) -> None:
    grid = read_grid(file, OPTIONS)
    cells = cells_of(grid)
    for cell in cells:
        resolve(cell.config, data_name=cell.config.data.name)
    compared = references_of(grid, cells).labels
    assert {cell.condition.label for cell in cells if cell.condition.baseline is None} == set(
        compared
    ) - set(grid.baselines)


def test_the_small_grid_has_all_ten_methods_beside_fedmpt_with_and_without_privacy() -> None:
    (file,) = (file for file in FILES if file.stem == "methods_small")
    cells = cells_of(read_grid(file, OPTIONS))
    assert len(cells) == 11 * 3 * 2 * 3
    for private in (True, False):
        found = {c.config.method.name for c in cells if c.config.privacy.enabled == private}
        assert found == COMPARED
