import re
from pathlib import Path

import secagg
from secagg.ckks_presets import PRESETS, SlotPlan

ROOT = Path(secagg.__file__).parent.parent
PAGE = (ROOT / "docs/secagg.md").read_text()
SECURITY = (ROOT / "SECURITY.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_ckks_example_of_the_page_runs_and_gives_what_it_says():
    names = {}
    exec(EXAMPLES[0], names)  # noqa: S102 - the examples are ours
    exec(EXAMPLES[1], names)  # noqa: S102
    assert names["result"].sums["samples"].tolist() == [1200]
    assert len(names["result"].survivors) == 12


def test_the_table_of_presets_is_the_real_one():
    for name, preset in PRESETS.items():
        per_blob = preset.body_bytes(2) - preset.body_bytes(1)
        first, second = preset.moduli
        row = (
            f"| `{name}` | {preset.degree}, {first} + {second} bits, 2^{preset.scale_bits} "
            f"| {preset.grid_bits} | {preset.largest_cohort:,} | {per_blob:,} bytes |"
        )
        assert row in PAGE


def test_the_sizes_the_page_mentions_are_the_real_ones():
    names = {}
    exec(EXAMPLES[0].split("server =")[0], names)  # noqa: S102
    size = SlotPlan.of(names["layout"], PRESETS["compact"]).body_bytes
    assert round(size / 1e3) == 284
    assert round(12 * size / 1e6, 1) == 3.4
    assert PRESETS["compact"].body_bytes(0) == 1024


def test_every_test_that_the_security_page_names_exists():
    sources = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    cited = set(re.findall(r"`(test_\w+)`", SECURITY))
    assert len(cited) > 10
    for name in cited:
        assert f"def {name}(" in sources
