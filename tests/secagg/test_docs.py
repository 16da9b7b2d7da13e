import re
from pathlib import Path

import secagg
from secagg.cost import predict_bytes

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
