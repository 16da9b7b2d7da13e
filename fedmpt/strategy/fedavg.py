"""Federated averaging.

Source: McMahan et al., arXiv 1602.05629; FedMPT Eq. 13 (uniform over participants) and Eq. 4 (by size).
"""

from __future__ import annotations

import numpy as np

from fedmpt.errors import RunError
from fedmpt.types import FloatVector, GlobalState


def fedavg(state: GlobalState, mean_delta: FloatVector) -> GlobalState:
    """Add the (weighted) mean of the participants' updates to the global state.

    Raises:
        RunError: the mean holds a value that is not finite; the state is left as it was.
    """
    if not np.isfinite(mean_delta).all():
        raise RunError(
            f"round {state.round + 1}: the mean update is not finite; lower --lr and start again"
        )
    return GlobalState(round=state.round + 1, vector=state.vector + mean_delta)
