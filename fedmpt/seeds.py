"""Experiment randomness: one tree of seeds keyed by what a stream is for.

Everything that may be repeated (partition, initial prompts, client schedule, simulated drop-outs, order of batches
without DP) draws from a stream of this tree, so that adding a draw in one place never shifts another place. Secrets
(keys, masks, DP noise, Poisson sampling under DP) never come from here: they come from the operating system.
"""

from __future__ import annotations

import hashlib

import numpy as np


def seed_of(seed: int, *purpose: str | int) -> int:
    """Return the 63-bit seed of the stream named by ``purpose`` below the experiment seed ``seed``.

    Source: SHA-256 of the path, as NumPy's ``SeedSequence`` accepts integers of any size but no names.
    """
    path = "/".join([str(seed), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """Return the NumPy generator of the stream named by ``purpose``."""
    return np.random.default_rng(np.random.SeedSequence(seed_of(seed, *purpose)))
