"""From a target epsilon to the smallest noise multiplier.

Epsilon falls as noise grows, so the search is a bisection on a public grid of noise multipliers;
the result does not depend on the path of the search. The accountant of record decides; no
approximation enters the answer.
"""

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from privacy import _validate
from privacy.accountant import Accountant, PLDAccountant
from privacy.errors import CalibrationError
from privacy.events import Event, NeighbouringRelation, SampledGaussian

TARGET_WINDOW = 0.02  # the planned epsilon lies at most this far below the target
_TARGET_MARGIN = (
    1e-6  # composing round by round differs by less; the last planned round must be admitted
)
_GRIDS = (
    1e-3,
    1e-4,
    1e-5,
)  # noise multipliers are multiples of the first grid that meets the window
_TARGET_STEP = 0.05  # of a proposed target
_MARGIN = 1 / 8  # of the way to the bracket's nearer end; a secant misses by less
_SLOW_TRIALS = 2  # in a row that do not halve the bracket
_SMALLEST, _LARGEST = 0.2, 1e4  # outside: no useful privacy, or no useful signal


class CalibrationCache:
    """Noise multipliers already solved for, in memory and optionally in a JSON file.

    A value read from the file is only a suggestion: it is used after the accountant has confirmed
    it, so an edited or outdated file costs time, never privacy.

    Args:
        path: The file; none by default. A missing or unreadable file is an empty cache.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._confirmed: dict[str, float] = {}
        self._suggested = {} if path is None else _read(path)

    def confirmed(self, key: str) -> float | None:
        """A value solved for or confirmed in this process."""
        return self._confirmed.get(key)

    def suggested(self, key: str) -> float | None:
        """A value found in the file, to be confirmed."""
        return self._suggested.get(key)

    def store(self, key: str, noise_multiplier: float) -> None:
        """Remembers a confirmed value; the file is replaced atomically, what others added kept.

        A file that cannot be written (a full disk, a cache that others own) costs time later, and
        is no error.
        """
        self._confirmed[key] = noise_multiplier
        if self._path is None or self._suggested.get(key) == noise_multiplier:
            return
        self._suggested = {**_read(self._path), key: noise_multiplier}
        content = json.dumps(self._suggested, indent=1, sort_keys=True)
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self._path.parent, prefix=self._path.name)
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(content)
                os.replace(temporary, self._path)
            except OSError:
                os.unlink(temporary)
                raise


def calibrate_noise_multiplier(
    *,
    target_epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    relation: NeighbouringRelation = NeighbouringRelation.ADD_OR_REMOVE_ONE,
    accountant: Accountant | None = None,
    cache: CalibrationCache | None = None,
) -> float:
    """The smallest noise multiplier that keeps all planned steps within the target.

    Guarantee: the returned value's epsilon, by `accountant`, lies in
    `[target_epsilon - 0.02, target_epsilon]`.

    Args:
        target_epsilon: Upper limit, > 0.
        delta: In (0, 1).
        sample_rate: Poisson rate, in (0, 1].
        steps: All steps of all rounds, >= 1.
        relation: Neighbouring relation of the claim.
        accountant: PLD by default.
        cache: Where solved values are kept; not kept by default.

    Raises:
        ConfigurationError: A number is out of its range.
        CalibrationError: No noise multiplier between 0.2 and 10,000 has an epsilon in the window.
    """
    _validate.positive(target_epsilon=target_epsilon)
    _validate.rate(sample_rate=sample_rate)
    _validate.count(steps=steps)
    accountant = PLDAccountant() if accountant is None else accountant
    cache = CalibrationCache() if cache is None else cache
    key = json.dumps([target_epsilon, delta, sample_rate, steps, relation.value, accountant.name])

    def epsilon(noise_multiplier: float) -> float:
        event = SampledGaussian(
            sample_rate=sample_rate,
            noise_multiplier=noise_multiplier,
            steps=steps,
            relation=relation,
        )
        return accountant.epsilon([event], delta)

    def fits(noise_multiplier: float) -> bool:
        return epsilon(noise_multiplier) <= target_epsilon - _TARGET_MARGIN

    def in_window(noise_multiplier: float) -> bool:
        return (
            fits(noise_multiplier) and epsilon(noise_multiplier) >= target_epsilon - TARGET_WINDOW
        )

    known = cache.confirmed(key)
    if known is not None:
        return known
    suggestion = cache.suggested(key)
    if suggestion is not None and _SMALLEST <= suggestion <= _LARGEST and in_window(suggestion):
        cache.store(key, suggestion)
        return suggestion
    low, high = _bracket(fits)
    for grid in _GRIDS:
        found = _smallest_on_grid(epsilon, target_epsilon - _TARGET_MARGIN, low, high, grid)
        if in_window(found):
            cache.store(key, found)
            return found
        low, high = max(low, found - grid), found
    raise CalibrationError(
        f"target_epsilon={target_epsilon}: no noise multiplier has an epsilon within "
        f"{TARGET_WINDOW} below it for sample_rate={sample_rate}, steps={steps}, delta={delta}"
    )


def affordable_epsilon(
    charged: Sequence[Event],
    *,
    planned: Event,
    delta: float,
    limit_epsilon: float,
    accountant: Accountant,
) -> float:
    """The largest target, in steps of 0.05, that as many planned steps can have beside what was charged.

    Args:
        charged: What was done to the data already.
        planned: Rate and steps of what is planned; its noise multiplier is what is looked for.
        delta: At this delta.
        limit_epsilon: Limit of everything together.
        accountant: The accountant that decides.

    Returns:
        A multiple of 0.05 that fits, or 0.0 where none does.
    """

    def fits(target: float) -> bool:
        try:
            noise_multiplier = calibrate_noise_multiplier(
                target_epsilon=target,
                delta=delta,
                sample_rate=planned.sample_rate,
                steps=planned.steps,
                relation=planned.relation,
                accountant=accountant,
            )
        except CalibrationError:
            return False
        event = replace(planned, noise_multiplier=noise_multiplier)
        return accountant.epsilon((*charged, event), delta) <= limit_epsilon

    # low fits, high is beyond the limit
    low, high = 0, math.floor(limit_epsilon / _TARGET_STEP + 1e-9) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * _TARGET_STEP) else (low, middle)
    return round(low * _TARGET_STEP, 2)


def _bracket(fits: Callable[[float], bool]) -> tuple[float, float]:
    """A noise multiplier that misses the target and one, twice as large, that meets it."""
    high = 1.0
    while not fits(high):
        high *= 2
        if high > _LARGEST:
            raise CalibrationError(
                f"no noise multiplier up to {_LARGEST:g} meets the target; raise the target epsilon or take fewer steps"
            )
    low = high / 2
    while low >= _SMALLEST and fits(low):
        low, high = low / 2, low
    if low < _SMALLEST:
        raise CalibrationError(
            f"the target is met without noise worth the name (noise multiplier below {_SMALLEST}); "
            "lower the target epsilon"
        )
    return low, high


def _smallest_on_grid(
    epsilon: Callable[[float], float], limit: float, low: float, high: float, grid: float
) -> float:
    """The smallest multiple of `grid` in `(low, high]` whose epsilon is at most `limit`.

    Epsilon is close to a power of the noise multiplier, so the next trial comes from the secant in
    logarithms. It misses by little, always to the same side; a margin beyond it brings the bracket's
    far end in as well. Where two trials in a row did not halve the bracket, the next one does.
    """
    below, above = math.floor(low / grid), math.ceil(high / grid)
    loss_below, loss_above = epsilon(below * grid), epsilon(_point(above, grid))
    slow = 0
    while above - below > 1:
        width = above - below
        trial = (below + above) // 2
        if slow < _SLOW_TRIALS and loss_below > loss_above > 0:
            share = math.log(loss_below / limit) / math.log(loss_below / loss_above)
            guess = math.exp(math.log(below) + share * (math.log(above) - math.log(below)))
            margin = min(guess - below, above - guess) * _MARGIN
            beyond = guess + margin if guess - below < above - guess else guess - margin
            trial = min(above - 1, max(below + 1, round(beyond)))
        loss = epsilon(_point(trial, grid))
        if loss <= limit:
            above, loss_above = trial, loss
        else:
            below, loss_below = trial, loss
        slow = slow + 1 if 2 * (above - below) > width and slow < _SLOW_TRIALS else 0
    return _point(above, grid)


def _point(index: int, grid: float) -> float:
    """The grid point as the shortest decimal, so that a printed plan repeats it exactly."""
    return round(index * grid, 6)


def _read(path: Path) -> dict[str, float]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {key: value for key, value in content.items() if isinstance(value, float)}
