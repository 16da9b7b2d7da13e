import ast
from pathlib import Path

import pytest

import secagg
from secagg import errors

SOURCES = sorted(Path(secagg.__file__).parent.glob("*.py"))


def test_every_public_name_exists_and_is_listed_in_order():
    assert sorted(secagg.__all__) == secagg.__all__
    for name in secagg.__all__:
        assert hasattr(secagg, name)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_no_module_imports_pickle_or_seeded_randomness(source):
    names = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    forbidden = {"pickle", "random", "marshal", "shelve", "numpy.random"}
    assert not names & forbidden
    assert {name for name in names if name.startswith("random.")} <= {"random.SystemRandom"}


def test_every_error_has_one_base_and_every_refusal_code_is_unique():
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    ]
    assert all(issubclass(kind, secagg.SecAggError) for kind in kinds)
    codes = list(errors.REFUSAL_CODES.values())
    assert len(set(codes)) == len(codes)


def test_the_drawing_of_the_error_tree_names_every_error():
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, Exception):
            assert name in errors.__doc__
