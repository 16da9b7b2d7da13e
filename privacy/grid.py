"""The public numbers of integer arithmetic: how fine the grid is, and how much noise goes on it.

The clip norm C is K = `clip_steps` steps of the grid. The noise of a released sum has a standard
deviation of `s0 = sigma K` steps; each of the `honest` contributors whose noise is counted on adds
a discrete Gaussian of variance `ceil((s0^2 + 1/12) / honest)`.

Why a Gaussian accountant may be used: rounding a Gaussian of variance s0^2 is post-processing of a
Gaussian release, and the discrete Gaussian of variance `s0^2 + 1/12` is within total variation
`5e-4 / s0^4` a coordinate of it. A sum of discrete Gaussians is pointwise within a factor of
`1 + 10 h exp(-pi^2 s^2)` of one, s being a share's deviation: 1 to more digits than a float has at
the grids allowed here. `discretisation_delta` adds this up; it is set aside from delta.

Source: Canonne, Kamath and Steinke, arXiv 2004.00010; Kairouz, Liu and Steinke, arXiv 2102.06387.
"""

import math
from typing import Final

from privacy import _validate
from privacy.errors import ConfigurationError

TYPICAL_SHARE_DEVIATION: Final = 8000  # grid steps: fine, and within the fast exact sampler
LEAST_DEVIATION: Final = 1 << 10  # of the sum's noise, for the argument above
NOISE_REACH: Final = 13  # deviations; a value beyond is drawn again (mass below 1e-37)
SET_ASIDE: Final = 0.01  # of a claim's delta, for noise being discrete
_LARGEST_EXPONENT: Final = 700.0  # e to a larger power is no float
_VARIATION: Final = 5e-4  # times s0^-4: computed total variation of one coordinate, rounded up


def clip_steps_for(noise_multiplier: float, honest: int) -> int:
    """K such that a share of noise has a standard deviation of about 8000 grid steps.

    Args:
        noise_multiplier: sigma of the sum, > 0.
        honest: contributors whose shares are counted on; 1 where a client adds all noise itself.
    """
    _validate.positive(noise_multiplier=noise_multiplier)
    _validate.count(honest=honest)
    return max(1, math.floor(TYPICAL_SHARE_DEVIATION * math.sqrt(honest) / noise_multiplier))


def share_variance(noise_multiplier: float, clip_steps: int, honest: int) -> int:
    """The integer variance of one contributor's noise, in squared grid steps.

    Args:
        noise_multiplier: sigma of the sum.
        clip_steps: K.
        honest: contributors whose shares are counted on in the sum this contribution goes into; 1
            where a client adds all noise itself.

    Raises:
        ConfigurationError: the grid is too coarse for a Gaussian accountant.
    """
    _validate.positive(noise_multiplier=noise_multiplier)
    _validate.count(clip_steps=clip_steps, honest=honest)
    deviation = noise_multiplier * clip_steps
    if deviation < LEAST_DEVIATION:
        raise ConfigurationError(
            f"clip_steps={clip_steps}: noise of {deviation:.0f} grid steps is too coarse; "
            f"at least {LEAST_DEVIATION} are needed"
        )
    return math.ceil((deviation**2 + 1 / 12) / honest)


def noise_bound(variance: int) -> int:
    """The public bound of one value of noise, in grid steps."""
    return NOISE_REACH * (math.isqrt(variance) + 1)


def discretisation_delta(
    *, noise_multiplier: float, clip_steps: int, target_epsilon: float, values: int
) -> float:
    """What integer noise adds to delta at an epsilon.

    Args:
        noise_multiplier: sigma.
        clip_steps: K.
        target_epsilon: the epsilon of the claim.
        values: noised values released over all steps.
    """
    if target_epsilon > _LARGEST_EXPONENT:
        return math.inf
    deviation = noise_multiplier * clip_steps
    return (1 + math.exp(target_epsilon)) * _VARIATION * deviation**-4 * values


def delta_of_plans(delta: float) -> float:
    """The delta that plans of integer noise are made for, of a claim's `delta`; rounded to 12 digits."""
    return float(f"{delta * (1 - SET_ASIDE):.12g}")


def delta_of_claim(planned: float) -> float:
    """The delta of the claim that plans of integer noise for `planned` prove: undoes `delta_of_plans`."""
    return float(f"{planned / (1 - SET_ASIDE):.15g}")
