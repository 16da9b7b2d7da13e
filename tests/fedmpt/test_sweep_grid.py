"""Which cells a grid makes, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from fedmpt.cli.train import OPTIONS
from fedmpt.errors import UsageError
from fedmpt.sweep.cells import Cell, cells_of, columns_of
from fedmpt.sweep.grid import Block, Grid, parse_axis, parse_setting, read_grid, seed_list, slice_of
from fedmpt.sweep.results import references_of


def block(*axes: str, fixed: tuple[str, ...] = (), seeds: tuple[int, ...] | None = None) -> Block:
    return Block(
        axes=tuple(parse_axis(text, OPTIONS) for text in axes),
        fixed=tuple(parse_setting(text, OPTIONS) for text in fixed),
        seeds=seeds,
    )


def cells(
    *axes: str, seeds: int = 1, fixed: tuple[str, ...] = (), baselines: tuple[str, ...] = ()
) -> list[Cell]:
    return cells_of(
        Grid(
            blocks=(block(*axes),) if axes else (),
            seeds=tuple(range(seeds)),
            fixed=tuple(parse_setting(text, OPTIONS) for text in fixed),
            baselines=baselines,
        )
    )


def labels(*blocks: Block, fixed: tuple[str, ...] = ()) -> list[str]:
    settings = tuple(parse_setting(text, OPTIONS) for text in fixed)
    found = cells_of(Grid(blocks=blocks, seeds=(0,), fixed=settings))
    return [cell.condition.label for cell in found]


@pytest.mark.parametrize(
    ("text", "key", "values"),
    [
        ("rounds=3,5", "train.rounds", (3, 5)),
        ("train.rounds=3", "train.rounds", (3,)),
        ("dp-epsilon=1,2.5", "privacy.epsilon", (1, 2.5)),
        ("dp.epsilon=8,inf", "privacy.epsilon", (8, math.inf)),
        ("dp.sketch-rank=8,16", "privacy.sketch_rank", (8, 16)),
        ("secagg=masking, ckks", "secagg.mode", ("masking", "ckks")),
        ("method.fedmpt.use_gate=true,false", "method.fedmpt.use_gate", (True, False)),
        ('method.fedmpt.conditions=["sunny"],["a", "b"]', None, (["sunny"], ["a", "b"])),
        ("pretrained=2024", "backbone.pretrained", ("2024",)),
    ],
)
def test_keys_are_paths_or_options_and_values_have_the_types_of_the_configuration(
    text: str, key: str | None, values: tuple[object, ...]
) -> None:
    axis = parse_axis(text, OPTIONS)
    assert axis.key == (key or axis.name)
    assert axis.values == values
    assert list(map(type, axis.values)) == list(map(type, values))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dp.epsilon=1,0", ["dp.epsilon=0", "> 0"]),
        ("dp.epsilon=1,many", ["dp.epsilon=many", "float"]),
        ("rounds=1.5", ["rounds=1.5", "int"]),
        ("secagg=magic", ["secagg=magic", "magic"]),
        ("speed=1", ["speed", "fedmpt config"]),
        ("rounds=", ["no values", "rounds=1,2,4"]),
        ("rounds=3,3", ["twice"]),
        ("seed=1,2", ["--seeds"]),
        ("rounds", ["key=value"]),
    ],
)
def test_what_cannot_be_used_is_refused_with_key_value_and_remedy(
    text: str, words: list[str]
) -> None:
    with pytest.raises(UsageError) as refusal:
        parse_axis(text, OPTIONS)
    assert all(word in str(refusal.value) for word in words), str(refusal.value)


def test_every_combination_and_seed_is_one_cell_of_its_own_name_and_settings() -> None:
    found = cells("dp.epsilon=1,8", "secagg=masking,none", seeds=3, fixed=("train.rounds=2",))
    assert len(found) == len({cell.name for cell in found}) == 12
    assert [cell.seed for cell in found] == [0] * 4 + [1] * 4 + [2] * 4
    first = found[0]
    assert first.config.privacy.epsilon == first.condition.epsilon == 1.0
    assert (first.config.secagg.mode, first.config.train.rounds) == ("masking", 2)
    assert first.condition.label == "dp.epsilon=1 secagg=masking"
    assert all("/" not in cell.name for cell in found)


def test_an_infinite_epsilon_is_a_run_without_privacy() -> None:
    private, without = cells("dp.epsilon=8,inf")
    assert private.config.privacy.enabled
    assert not without.config.privacy.enabled
    assert without.condition.epsilon is None
    assert without.condition.label == "dp.epsilon=inf"


def test_without_privacy_there_is_one_cell_whatever_the_privacy_settings() -> None:
    found = cells("dp.epsilon=1,inf", "dp-space=text,sketch", fixed=("privacy.clip=2.0",))
    labels = [cell.condition.label for cell in found]
    assert labels == [
        "dp.epsilon=1 dp-space=text",
        "dp.epsilon=1 dp-space=sketch",
        "dp.epsilon=inf",
    ]


def test_a_cell_is_named_by_all_of_its_settings() -> None:
    (before,) = cells("dp.epsilon=1")
    (again,) = cells("dp.epsilon=1")
    (other,) = cells("dp.epsilon=1", fixed=("train.rounds=2",))
    assert before.name == again.name != other.name


def test_baselines_have_no_privacy_and_keep_the_fixed_settings() -> None:
    found = cells(
        "dp.epsilon=1", seeds=2, baselines=("centralised", "zero-shot"), fixed=("train.rounds=2",)
    )
    central = found[0]
    assert central.condition.label == "centralised"
    assert (central.config.clients.count, central.config.secagg.mode) == (1, "none")
    assert not central.config.privacy.enabled
    assert central.config.train.rounds == 2
    assert sum(cell.condition.baseline is not None for cell in found) == 4
    with pytest.raises(UsageError, match=r"magic.*centralised"):
        cells("dp.epsilon=1", baselines=("magic",))


def test_a_file_says_the_same_as_options(tmp_path: Path) -> None:
    file = tmp_path / "grid.toml"
    file.write_text(
        'seeds = 2\nreference = "dp.epsilon=8"\n[grid]\ndp.epsilon = [8, "inf"]\n'
        'secagg = ["masking"]\n[set]\nrounds = 2\nmethod.fedmpt.use_gate = false\n'
    )
    grid = read_grid(file, OPTIONS)
    assert grid.reference == "dp.epsilon=8"
    expected = cells(
        "dp.epsilon=8,inf",
        "secagg=masking",
        seeds=2,
        fixed=("train.rounds=2", "method.fedmpt.use_gate=false"),
    )
    assert [cell.name for cell in cells_of(grid)] == [cell.name for cell in expected]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gird = 1", "unknown key gird"),
        ("seeds = 0", "how many"),
        ("seeds = [1, 1]", "different"),
        ("[grid]\nrounds = 3", "give a list"),
        ("[grid", "not valid TOML"),
        ("[grid]\nrounds = [1.5]", "rounds=1.5"),
        ("grid = 3", "table of settings"),
        ("grids = 3", r"under \[\[grids"),
        ("[grid]\nrounds = [1]\n[[grids]]\n", r"another \[\[grids"),
        ("[[grids]]\nrounds = [1]", "unknown key rounds"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "grid.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=words):
        read_grid(file, OPTIONS)


def test_a_grid_without_axes_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing to sweep over"):
        cells()


def test_seeds_are_a_number_or_a_list() -> None:
    assert seed_list(3, source="--seeds") == (0, 1, 2)
    assert seed_list([7, 5], source="file") == (7, 5)
    with pytest.raises(UsageError, match="how many"):
        seed_list(True, source="--seeds")


def test_grids_of_one_sweep_have_settings_of_their_own_that_are_told_apart() -> None:
    local = block("dp.epsilon=1,inf", "dp.space=text,sketch")
    shares = block(
        "dp.epsilon=1", fixed=("dp.space=sketch", "dp.noise=shares", "rounds=60", "lr=0.15")
    )
    assert labels(local, shares) == [
        "dp.epsilon=1 dp.space=text dp.noise=local",
        "dp.epsilon=1 dp.space=sketch dp.noise=local",
        "dp.epsilon=inf",
        "dp.epsilon=1 dp.space=sketch dp.noise=shares rounds=60 lr=0.15",
    ]


def test_a_condition_that_two_grids_make_is_run_once() -> None:
    assert labels(block("dp.epsilon=1,8,inf"), block("dp.epsilon=8,16,inf")) == [
        "dp.epsilon=1",
        "dp.epsilon=8",
        "dp.epsilon=inf",
        "dp.epsilon=16",
    ]
    assert labels(block("dp.noise=local,shares", fixed=("dp.epsilon=inf",))) == ["dp.epsilon=inf"]


def test_a_grid_without_axes_is_one_condition() -> None:
    assert labels(block(), block("rounds=3")) == ["defaults", "rounds=3"]


def test_a_grids_own_settings_and_seeds_are_stronger_than_the_sweeps() -> None:
    first = block("dp.epsilon=1", fixed=("rounds=5",))
    second = block("dp.epsilon=8", seeds=(7,))
    found = cells_of(
        Grid(
            blocks=(first, second),
            seeds=(0, 1),
            fixed=(parse_setting("rounds=2", OPTIONS),),
            baselines=("zero-shot",),
        )
    )
    assert [(cell.condition.epsilon, cell.seed, cell.config.train.rounds) for cell in found] == [
        (None, 0, 2),
        (1.0, 0, 5),
        (None, 1, 2),
        (1.0, 1, 5),
        (8.0, 7, 2),
    ]


def test_a_grid_may_be_private_in_a_sweep_that_is_not() -> None:
    private, fixed = block("dp.epsilon=1"), block("rounds=2", fixed=("dp.epsilon=4",))
    found = labels(private, fixed, block("rounds=3"), fixed=('dp.epsilon="inf"',))
    assert found == ["dp.epsilon=1", "dp.epsilon=4 rounds=2", "dp.epsilon=inf rounds=3"]


def test_a_setting_inside_one_that_is_left_to_a_rule_elsewhere_is_a_column() -> None:
    shares = block(fixed=("privacy.block_shares.adapter_core=0.5",))
    assert labels(shares, block("rounds=2")) == [
        "privacy.block_shares.adapter_core=0.5",
        "rounds=2",
    ]


def test_one_configuration_has_one_digest_however_the_grid_names_it() -> None:
    (alone,) = cells("dp.epsilon=8")
    among = cells("dp.epsilon=8", "dp.noise=local,shares")[0]
    assert alone.name != among.name
    assert alone.digest == among.digest


def test_conditions_whose_names_would_be_equal_are_refused() -> None:
    with pytest.raises(UsageError, match="differ by less than is written"):
        labels(block("lr=0.1"), block("lr=0.10000001"))


def test_a_setting_that_is_varied_and_fixed_in_one_grid_is_refused() -> None:
    with pytest.raises(UsageError, match=r"train\.rounds is varied and fixed"):
        labels(block("rounds=1,2", fixed=("train.rounds=3",)))


def test_columns_are_what_is_varied_and_what_one_grid_fixes() -> None:
    grid = Grid(
        blocks=(block("dp-epsilon=1"), block("dp.epsilon=8", fixed=("rounds=3",))),
        seeds=(0,),
        fixed=(parse_setting("dropout=0.1", OPTIONS),),
    )
    assert [(one.name, one.key) for one in columns_of(grid)] == [
        ("dp-epsilon", "privacy.epsilon"),
        ("rounds", "train.rounds"),
    ]


def test_a_file_may_hold_several_grids(tmp_path: Path) -> None:
    file = tmp_path / "grid.toml"
    file.write_text(
        'seeds = 2\n[set]\npretrained = "2024"\n'
        '[[grids]]\ngrid = { dp.epsilon = [1, "inf"] }\n'
        "[[grids]]\nseeds = [5]\n[grids.grid]\ndp.epsilon = [1]\n[grids.set]\nrounds = 60\n"
        "method.fedmpt.use_gate = false\n"
    )
    found = cells_of(read_grid(file, OPTIONS))
    assert [(cell.condition.label, cell.seed) for cell in found] == [
        *((label, seed) for seed in (0, 1) for label in (_GATED, "dp.epsilon=inf " + _OPEN)),
        ("dp.epsilon=1 rounds=60 method.fedmpt.use_gate=false", 5),
    ]
    assert {cell.config.backbone.pretrained for cell in found} == {"2024"}


_OPEN = "method.fedmpt.use_gate=true"
_GATED = "dp.epsilon=1 " + _OPEN


def references(reference: str | None) -> tuple[str, dict[str, str]]:
    grid = Grid(
        blocks=(block("method=fedmpt,coop", "dp.epsilon=8,inf"),),
        seeds=(0,),
        baselines=("zero-shot",),
        reference=reference,
    )
    found = references_of(grid, cells_of(grid))
    return found.name, dict(found.labels)


def test_a_whole_label_is_the_reference_of_all_and_a_part_of_one_finds_each_its_own() -> None:
    name, labels = references("method=coop dp.epsilon=8")
    assert set(labels.values()) == {name} == {"method=coop dp.epsilon=8"}
    assert "zero-shot" in labels
    name, labels = references("method=fedmpt")
    assert name == "method=fedmpt, all else equal"
    assert labels == {
        f"method={method} dp.epsilon={epsilon}": f"method=fedmpt dp.epsilon={epsilon}"
        for method in ("fedmpt", "coop")
        for epsilon in ("8", "inf")
    }
    name, labels = references(None)
    assert set(labels.values()) == {name} == {"method=fedmpt dp.epsilon=inf"}
    for wrong in ("method=tcp", "rounds=3", "coop"):
        with pytest.raises(UsageError, match=r"no such condition; there are: .*zero-shot"):
            references(wrong)


def sliced(grid: Grid, *only: str) -> list[Cell]:
    return cells_of(slice_of(grid, [parse_axis(text, OPTIONS) for text in only]))


def test_a_slice_has_the_cells_of_the_whole_grid_with_the_values_asked_for() -> None:
    grid = Grid(
        blocks=(
            block("dp.epsilon=1,8,inf", "secagg=none,masking"),
            block("dp.epsilon=8", fixed=("dp.noise=shares",)),
        ),
        seeds=(0, 1),
    )
    whole = {cell.digest for cell in cells_of(grid)}
    found = sliced(grid, "dp.epsilon=8,inf", "secagg=masking")
    assert {cell.digest for cell in found} < whole
    assert {(cell.config.privacy.enabled, cell.config.secagg.mode) for cell in found} == {
        (True, "masking"),
        (False, "masking"),
    }
    assert len(found) == 2 * 2
    assert len(sliced(grid, "dp.epsilon=8")) == 2 * 3
    assert len(sliced(grid, "dp.epsilon=1")) == 2 * 2  # nothing is left of the second grid
    assert {cell.digest for cell in sliced(grid)} == whole


@pytest.mark.parametrize(
    ("only", "reason"),
    [
        ("dp.epsilon=2", "has no cell with 2; it has 1, 8"),
        ("rounds=2", "does not vary this setting"),
        ("speed=2", "speed"),
    ],
)
def test_a_slice_that_the_grid_does_not_have_is_refused(only: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        sliced(Grid(blocks=(block("dp.epsilon=1,8"),), seeds=(0,)), only)
