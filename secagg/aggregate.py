"""The result of a round: exact integer sums, and who and what went into them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from secagg.errors import WrongLayout
from secagg.fixedpoint import Integers, dequantise
from secagg.layout import CLIP_SUFFIX, CountSegment, Layout
from secagg.params import RoundParams, Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Transcript:
    """The digests that a round's signatures rest on, and the log that they can be checked with.

    Digests are empty where a mode has none.

    Attributes:
        params: P.
        cohort: M.
        sharers: V.
        survivors: R.
        threshold: t as every client computed it; 0 in plain mode.
        log: the signatures themselves, for `secagg.transcript`; public, without update or share.
    """

    params: bytes
    cohort: bytes = b""
    sharers: bytes = b""
    survivors: bytes = b""
    threshold: int = 0
    log: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Aggregate:
    """The result of a round: exact integer sums, and who and what went into them.

    Attributes:
        params: the round's parameters.
        sums: {declared segment: int64 `[length]`}, on the grid for fixed segments.
        survivors: whose updates are in the sums, ascending.
        dropped: {id: the first stage whose reply was missing}. A client dropped at `CONFIRM` or
            `REVEAL` is a survivor all the same: its update counts.
        refusals: {id: name of the error} of those that said why they left.
        clip_counts: {fixed segment: (values below, values above)} over all survivors.
        bytes_up: {id: bytes received from it}.
        bytes_down: {id: bytes sent to it}.
        transcript: the digests of the round.
    """

    params: RoundParams
    sums: Mapping[str, Integers]
    survivors: tuple[int, ...]
    dropped: Mapping[int, Stage]
    refusals: Mapping[int, str]
    clip_counts: Mapping[str, tuple[int, int]]
    bytes_up: Mapping[int, int]
    bytes_down: Mapping[int, int]
    transcript: Transcript

    @property
    def layout(self) -> Layout:
        """What was summed."""
        return self.params.layout

    def decode_sum(self, name: str) -> NDArray[np.float64]:
        """The sum of a fixed segment in the caller's units; float64 `[length]`."""
        segment = self.layout.fixed(name)
        return dequantise(self.sums[name], segment)

    def decode_mean(self, name: str) -> NDArray[np.float64]:
        """The sum of a fixed segment divided by the number of survivors."""
        return self.decode_sum(name) / len(self.survivors)

    def decode_weighted_mean(self, name: str, weight: str) -> NDArray[np.float64]:
        """The mean of a fixed segment whose clients sent `q(w/w_max * x)` and `w` as a count.

        Args:
            name: the fixed segment.
            weight: a count segment of one value whose bound is `w_max`.

        Raises:
            WrongLayout: `weight` is not a count segment of one value.
            ZeroDivisionError: the weights sum to zero.
        """
        segment = self.layout[weight]
        if not isinstance(segment, CountSegment) or segment.length != 1:
            raise WrongLayout(f"segment {weight!r} is not a count of one value")
        total = int(self.sums[weight][0])
        if total == 0:
            raise ZeroDivisionError(f"the sum of segment {weight!r} is zero")
        return self.decode_sum(name) * (segment.bound / total)


def split_clip_counts(
    sums: Mapping[str, Integers],
) -> tuple[dict[str, Integers], dict[str, tuple[int, int]]]:
    """The declared sums, and the clip counters apart from them."""
    declared = {name: value for name, value in sums.items() if not name.endswith(CLIP_SUFFIX)}
    counts = {
        name.removesuffix(CLIP_SUFFIX): (int(value[0]), int(value[1]))
        for name, value in sums.items()
        if name.endswith(CLIP_SUFFIX)
    }
    return declared, counts
