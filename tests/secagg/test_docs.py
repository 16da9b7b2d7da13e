import re
from pathlib import Path

import pytest

import secagg
from secagg import FixedSegment, Layout, threshold
from secagg.cost import predict_bytes
from secagg.graph import least_window, recommended

ROOT = Path(secagg.__file__).parent.parent
PAGE = (ROOT / "docs/secagg.md").read_text()


def test_the_example_of_the_page_runs_and_gives_what_it_says():
    example = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL).group(1)
    names = {}
    exec(example, names)  # noqa: S102 - the example is ours
    result = names["result"]
    assert result.survivors == (0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11)
    assert result.sums["samples"].tolist() == [1100]
    mean = sum(result.survivors) / 100 / 11
    assert abs(result.decode_mean("delta") - mean).max() <= 1 / (2**19 - 1)


def test_every_test_the_page_names_exists():
    sources = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    cited = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(cited) > 10
    for name in cited:
        assert f"def {name}(" in sources


def test_the_sizes_of_the_page_are_the_real_ones():
    example = re.search(r"```python\n(.*?)server =", PAGE, re.DOTALL).group(1)
    names = {}
    exec(example, names)  # noqa: S102
    params, n, t = names["params"], 12, 8
    packed = params.plan.body_bytes
    sizes = [(s.down, s.up) for s in predict_bytes(params).stages.values()]
    assert sizes == [
        (260, 179),
        (132 * n + 114, 92 * (n - 1) + 148),
        (92 * (n - 1) + 2 + 116, packed + 114),
        (100 * n + 114, 111),
        (68 * t + 114, 37 * (n - 1) + 148),
    ]


def rows_of(header):
    """The cells of the table that begins with `header`, numbers without their commas."""
    table = re.search(re.escape(header) + r".*?\n\|---.*?\n(.*?)\n\n", PAGE, re.DOTALL).group(1)
    cells = [line.strip("|").replace(" ", "").split("|") for line in table.splitlines()]
    return [
        [tuple(map(int, re.findall(r"\d+", c.replace(",", "")))) for c in row[1:]] for row in cells
    ]


def sizes_of(header):
    table = re.search(re.escape(header) + r".*?\n\|---.*?\n(.*?)\n\n", PAGE, re.DOTALL).group(1)
    return [
        tuple(map(int, line.strip("|").split("|")[0].split(","))) for line in table.splitlines()
    ]


def test_the_degrees_of_the_page_are_the_recommended_ones():
    header = "| n, c | k (w), 10 % lost |"
    for (n, c), row in zip(sizes_of(header), rows_of(header), strict=True):
        for dropout, (degree, window) in zip((0.1, 0.3), row, strict=True):
            assert degree == recommended(n, c, dropout)
            assert window == least_window(n, c, degree)


def test_the_sizes_on_rings_of_the_page_are_the_real_ones(federation):
    header = "| n, c | k (w) | t |"
    layout = Layout((FixedSegment(name="x", length=100_000, clip=1.0),))
    for (n, c), (graph, t, vector, up, down) in zip(sizes_of(header), rows_of(header), strict=True):
        degree, window = graph or (0, 0)
        params = federation(n, layout=layout, colluders=c).params(graph_degree=degree)
        predicted = predict_bytes(params)
        assert (params.graph_window, threshold(n, c)) == (window, *t)
        assert params.plan.body_bytes == vector[0]
        assert predicted.up() - vector[0] == up[0]
        assert predicted.down() == pytest.approx(down[0], abs=20)  # names and ids vary a little
