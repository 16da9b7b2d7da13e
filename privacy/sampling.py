"""Poisson sampling with secret coins.

Every step draws its batch afresh: each example is in it independently with probability q. There are
no epochs, no fixed batches, no dropped last batch, and an empty batch is a batch. Shuffled or
fixed-size batches are a different mechanism with a larger epsilon and are not offered.
"""

import numpy as np
from numpy.typing import NDArray

from privacy import _validate
from privacy.plan import DPPlan
from privacy.randomness import ByteSource, InsecureSeededBytes, SystemBytes

_COIN_RANGE = 1 << 64


class PoissonSampler:
    """Draws the batches of a plan.

    Guarantee: an index is included with probability `floor(q * 2^64) / 2^64 <= q`, independently
    over indices and draws. The indices, their number and the size of the dataset are private and
    stay on the client.

    Args:
        plan: The accepted plan; it fixes the rate that is charged.
        source: Where the coins come from; the operating system by default.
    """

    def __init__(self, plan: DPPlan, source: ByteSource | None = None) -> None:
        _validate.rate(sample_rate=plan.sample_rate)
        numerator, denominator = plan.sample_rate.as_integer_ratio()
        self._threshold = numerator * _COIN_RANGE // denominator
        self._source = SystemBytes() if source is None else source

    @property
    def is_secret(self) -> bool:
        """Whether the coins are secret, as the accounting assumes."""
        return self._source.is_secret

    def draw(self, dataset_size: int) -> NDArray[np.int64]:
        """The indices of one batch, ascending, int64 `[b]`; b may be 0.

        Args:
            dataset_size: The true number of examples, >= 0. Private: the result says nothing about
                it but itself.
        """
        if self._threshold == _COIN_RANGE:
            return np.arange(dataset_size, dtype=np.int64)
        coins = np.frombuffer(self._source.read(8 * dataset_size), dtype="<u8")
        return np.flatnonzero(coins < np.uint64(self._threshold)).astype(np.int64)

    def __repr__(self) -> str:
        return type(self).__name__


def insecure_seeded_sampler(plan: DPPlan, insecure_seed: int) -> PoissonSampler:
    """A sampler whose batches can be repeated, for tests and audits. NOT private."""
    return PoissonSampler(
        plan, InsecureSeededBytes(insecure_seed=insecure_seed, purpose="sampling")
    )
