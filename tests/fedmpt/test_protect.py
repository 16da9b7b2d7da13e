"""What a round's uploads are bound to."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from fedmpt.protect import round_context
from fedmpt.types import GlobalState
from privacy.sketch import Sketch, build_sketch

STATE = GlobalState(round=3, vector=np.arange(6, dtype=np.float32))
RUN = bytes(32)


@pytest.fixture(scope="module")
def sketch() -> Sketch:
    random = torch.Generator().manual_seed(0)
    frozen = torch.randn(6, 8, generator=random)
    prompts = {"context": torch.randn(4, 6, generator=random)}
    return build_sketch(
        lambda p: torch.tanh(p["context"] @ frozen),
        prompts,
        ranks={"context": 3},
        sliced=(),
        public_seed=1,
    )


def test_whoever_was_shown_another_model_rate_run_or_sketch_is_bound_to_another_context(
    sketch: Sketch,
) -> None:
    bent = copy.deepcopy(sketch)
    bent.factors["context"].right[0, 0, 0] += 1e-3
    moved = GlobalState(round=3, vector=STATE.vector + np.float32(1e-3))
    later = GlobalState(round=4, vector=STATE.vector)
    contexts = [
        round_context(STATE, lr=0.1, run_digest=RUN),
        round_context(STATE, lr=0.1, run_digest=RUN, sketch=sketch),
        round_context(STATE, lr=0.1, run_digest=RUN, sketch=bent),
        round_context(STATE, lr=0.2, run_digest=RUN),
        round_context(STATE, lr=0.1, run_digest=b"\1" * 32),
        round_context(moved, lr=0.1, run_digest=RUN),
        round_context(later, lr=0.1, run_digest=RUN),
    ]
    assert {len(one) for one in contexts} == {32}
    assert len(set(contexts)) == len(contexts)
    again = round_context(STATE, lr=0.1, run_digest=RUN, sketch=copy.deepcopy(sketch))
    assert again == contexts[1]
