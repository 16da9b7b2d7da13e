"""Which of a sweep's results are drawn as its privacy-utility curve."""

from __future__ import annotations

from typing import Final

from fedmpt.sweep.curve import MOST_SERIES, Level, Panel, Point, Series, privacy_utility_svg
from fedmpt.sweep.results import METRICS, Outcome, SweepResults
from fedmpt.sweep.statistics import estimate

_MOST_LEVELS: Final = 4


TITLE: Final = "Privacy and utility: mAP, CF1 and OF1 over epsilon"


def curve_of(results: SweepResults) -> str | None:
    """Return the curve as an SVG file; None where there is none, see `panels_of`."""
    panels = panels_of(results)
    return privacy_utility_svg(panels, title=TITLE) if panels else None


def panels_of(results: SweepResults) -> list[Panel]:
    """Return what the curve shows, a panel a metric.

    There is nothing to show where no epsilon was varied, or where there are more series than can be told apart.
    """
    groups: dict[str, list[Outcome]] = {}
    for outcome in results.outcomes:
        if outcome.rows and outcome.condition.epsilon is not None:
            groups.setdefault(_others(outcome), []).append(outcome)
    if not 1 <= len(groups) <= MOST_SERIES:
        return []
    if len({o.condition.epsilon for some in groups.values() for o in some}) < 2:
        return []
    return [
        Panel(
            metric=f"{metric} (%)",
            series=tuple(
                Series(label=label or "private, 95% interval", points=_points(some, metric))
                for label, some in groups.items()
            ),
            levels=_levels(results, metric),
        )
        for metric in METRICS
    ]


def _others(outcome: Outcome) -> str:
    """Return the settings of a condition besides epsilon, in words."""
    return " ".join(
        f"{name}={value}"
        for name, value in outcome.condition.settings
        if name.replace("-", ".").replace("_", ".") not in ("dp.epsilon", "privacy.epsilon")
        and value != "-"
    )


def _points(outcomes: list[Outcome], metric: str) -> tuple[Point, ...]:
    points = [
        Point(
            epsilon=outcome.condition.epsilon,
            mean=outcome.final[metric].mean,
            half_width=outcome.final[metric].half_width,
        )
        for outcome in outcomes
        if outcome.condition.epsilon is not None
    ]
    return tuple(sorted(points, key=lambda point: point.epsilon))


def _levels(results: SweepResults, metric: str) -> tuple[Level, ...]:
    """Return zero-shot, the conditions without privacy, and the baselines; zero-shot is in every run."""
    frozen = [row.zero_shot[metric] for outcome in results.outcomes for row in outcome.rows]
    levels = [Level(label="zero-shot", value=estimate(frozen).mean)]
    done = [outcome for outcome in results.outcomes if outcome.rows]
    for outcome in done:
        condition = outcome.condition
        if condition.baseline not in (None, "zero-shot"):
            label = f"{condition.baseline}, non-private"
        elif condition.baseline is None and condition.epsilon is None:
            label = " ".join(part for part in ("non-private", _others(outcome)) if part)
        else:
            continue
        levels.append(Level(label=label, value=outcome.final[metric].mean))
    return tuple(levels[:_MOST_LEVELS])
