from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import experiments.bench
from experiments.bench import ours
from experiments.bench.comparison import Target, row, timed
from experiments.bench.rounds import Case, Span, error_of
from experiments.bench.secagg_attacks import ATTACKS, TESTS

BENCH = Path(experiments.bench.__file__).parent
CASE = Case(clients=4, length=50)


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_attack_has_its_tests_here_and_its_counterpart_on_the_peer() -> None:
    here = set().union(*map(functions, TESTS.glob("test_*.py")))
    there = functions(BENCH / "flower_attacks.py")
    for attack in ATTACKS:
        assert attack.tests
        assert {f"test_{name}" for name in (*attack.tests, attack.control) if name} <= here
        assert attack.peer in there


@pytest.mark.parametrize(
    ("own", "peer", "verdict"),
    [
        (9.0, 50.0, "yes"),
        (9.0, 40.0, "figure yes, ratio no"),
        (9.0, None, "yes, ratio not measured"),
        (11.0, 99.0, "no"),
    ],
)
def test_a_target_is_reached_only_with_its_figure_and_its_ratio(
    own: float, peer: float | None, verdict: str
) -> None:
    assert Target(text="", at_most=10, ratio=5).verdict(own, peer) == verdict


def test_a_figure_without_a_target_has_no_verdict() -> None:
    assert row("x", [2.0, 1.0, 9.0], [4.0], ".0f", Target(text="-"))[1:] == [
        "2 (1 to 9)",
        "4 (once)",
        "2.0",
        "-",
        "-",
    ]


def test_our_rounds_are_measured_at_every_participant() -> None:
    inputs = CASE.inputs(seed=0)
    measured = ours.run(CASE, inputs)
    assert measured.survivors == (0, 1, 2, 3)
    assert set(measured.masking) == set(measured.up) == {0, 1, 2, 3}
    for span in (measured.client, measured.clients, measured.server, measured.after):
        assert span.cpu > 0
        assert span.wall > 0
    assert measured.after.wall < measured.server.wall < measured.round.wall
    assert measured.error is not None
    assert measured.error <= 1 / (2**19 - 1)
    names = [line[0] for line in timed("x", [measured], [], lambda one: one.server)]
    assert names == ["x, CPU ms", "x, wall ms"]


def test_the_error_is_that_of_the_survivors_mean() -> None:
    inputs = {0: np.float32([1, 2]), 1: np.float32([3, 4]), 2: np.float32([9, 9])}
    assert error_of(np.array([2.0, 3.5]), inputs, (0, 1)) == 0.5


def test_our_sum_is_exact_also_when_a_client_is_lost() -> None:
    case = replace(CASE, lost={1: "upload"})
    assert ours.is_exact(case, case.inputs(seed=0))


def test_spans_add_and_subtract() -> None:
    assert Span(3, 4) - Span(1, 1) + Span(0, 2) == Span(2, 5)
