"""What keeps tests from failing by chance: rarer false alarms of the auditor, and the same examples in every run."""

from __future__ import annotations

import pytest
from hypothesis import settings

# No deadlines, which a busy machine misses, and the same examples each time; `--hypothesis-profile=default` searches.
settings.load_profile("ci")

RARE = 1e-9


@pytest.fixture
def rare_alarms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower the level of the auditor's checks of noise and coins: at its own, 1e-5, correct code fails now and then.

    Noise and coins come from the operating system and cannot be seeded. Bugs that tests plant are far beyond 1e-9 too.
    """
    for module in (
        "privacy.audit.mechanism",
        "privacy.audit.sampling",
        "privacy.audit.canaries",
        "fedmpt.audit.shared_noise",
    ):
        monkeypatch.setattr(f"{module}.MECHANISM_ALPHA", RARE)
