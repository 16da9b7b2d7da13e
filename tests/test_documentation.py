"""Pages name tests as the evidence for what they claim: a test that was renamed or dropped is noticed here."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ["SECURITY.md", "docs/privacy.md", "docs/secagg.md"]


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_a_page_names_exists(page: str) -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / page).read_text()))
    existing: set[str] = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        existing |= set(re.findall(r"def (test_\w+)\(", file.read_text()))
    assert named
    assert named <= existing
