"""A sweep's results as Markdown, and its two epsilons in words."""

from __future__ import annotations

from collections.abc import Sequence

from fedmpt.sweep.price import SweepPrice
from fedmpt.sweep.results import GAIN, METRICS, Outcome, SweepResults
from fedmpt.sweep.statistics import estimate
from privacy import display_epsilon


def to_markdown(results: SweepResults) -> str:
    """Return the page: results, paired comparisons, what it cost, what failed."""
    seeds = {row.seed for outcome in results.outcomes for row in outcome.rows}
    parts = [
        "# Sweep",
        f"Mean over {len(seeds)} seed(s) ± half of the 95% confidence interval (Student's t). Metrics in percent.",
        _results(results),
        _comparisons(results),
        "## What it cost",
        "\n".join(f"- {line}" for line in price_lines(results)),
    ]
    if results.failures:
        parts += ["## Cells that failed", "\n".join(f"- {line}" for line in failure_lines(results))]
    return "\n\n".join(part for part in parts if part) + "\n"


def price_lines(results: SweepResults) -> list[str]:
    """Return what the sweep cost its clients, in sentences, the composition before anything hypothetical."""
    lines = [line for price in results.prices for line in _price_lines(price)]
    if len(results.prices) > 1:
        lines.append(
            "Runs with another unit of privacy are priced by themselves: no figure here covers all runs together, "
            "which cost more than either."
        )
    if results.open_runs:
        covered = "these figures cover the private runs only, and " if results.prices else ""
        lines.append(
            f"{results.open_runs} run(s) trained WITHOUT differential privacy: {covered}no finite epsilon covers "
            "what everything in this folder reveals. On data that is public this is no loss."
        )
    return lines or ["Nothing was learnt from anybody's data."]


def failure_lines(results: SweepResults) -> list[str]:
    """Return one line a failed cell."""
    return [
        f"{failure.condition}, seed {failure.seed}: exit code {failure.exit_code}, {failure.reason} ({failure.log})"
        for failure in results.failures
    ]


def _price_lines(price: SweepPrice) -> list[str]:
    lines = [
        f"One run alone: epsilon {display_epsilon(price.single)} at most (unit: one {price.unit}; "
        f"delta {price.delta:g}). It holds for a run that was not chosen by looking at others.",
        f"Everything that left a client, {price.runs_on_holding} run(s) on one holding: epsilon "
        f"{display_epsilon(price.composition)}, by composition of all their steps.",
    ]
    if price.any_image is not None:
        lines.append(
            f"Seeds deal the data out anew ({price.holdings} holdings). Any one image, in whichever holding it was, "
            f"over all {price.runs} private run(s): epsilon {display_epsilon(price.any_image)} at most (RDP bound)."
        )
    chosen = price.composition if price.any_image is None else price.any_image
    lines.append(
        f"The best cell costs epsilon {display_epsilon(chosen)} as well, not that of one run: a "
        "grid trains a fixed number of candidates, the server sees sums of every candidate's updates, and the table "
        "shows them all."
    )
    if price.runs > 1:
        figures = ", ".join(
            f"{law} {display_epsilon(value)}" for law, value in price.selection.items()
        )
        lines.append(
            f"HYPOTHETICAL, not this sweep: had the number of candidates been drawn at random in secret (mean "
            f"{price.runs}) and nothing but the best model been released, epsilon by law of that number: {figures} "
            "(RDP; Papernot and Steinke, arXiv 2110.03620)."
        )
        if price.integer_noise:
            lines.append(
                "Noise of integers is counted as Gaussian above. What that leaves out of delta was bounded for each "
                "run by itself: of the figures over several runs it has not been shown to be little."
            )
    return lines


def note_lines(results: SweepResults) -> list[str]:
    """Return what the table of results does not say by itself, a sentence each."""
    return [*_share_lines(results), *_client_lines(results)]


def _client_lines(results: SweepResults) -> list[str]:
    """Return how far clients' own models lie apart, where a condition's figure is their mean."""
    lines = []
    for outcome in results.outcomes:
        ranges = [row.clients for row in outcome.rows if row.clients is not None]
        if ranges:
            low, high = (
                estimate([one[end][GAIN] for one in ranges]).mean for end in ("min", "max")
            )
            lines.append(
                f"{outcome.condition.label}: a mean over clients' own models, whose {GAIN} lies between {low:.1f} and "
                f"{high:.1f} (lowest and highest client, mean over seeds)."
            )
    return lines


def _share_lines(results: SweepResults) -> list[str]:
    """Return what the share of a gain is a share of, in a sentence; nothing where no share is shown."""
    divisors = dict.fromkeys(one.kept_of for one in results.outcomes if one.kept is not None)
    if not divisors:
        return []
    named = next(iter(divisors)) if len(divisors) == 1 else "the same settings without privacy"
    return [
        f"Gain kept: gain in mAP over zero-shot, as a share of that of {named}, with the 95% interval of the ratio "
        "(Fieller, paired by seed)."
    ]


def _results(results: SweepResults) -> str:
    with_share = any(outcome.kept is not None for outcome in results.outcomes)
    rows = [
        [
            *names_of(outcome, results.axes),
            str(len(outcome.rows)),
            _largest_epsilon(outcome),
            str(outcome.zero_shot["mAP"]),
            *(str(outcome.final[metric]) for metric in METRICS),
            str(outcome.gain["mAP"]),
            *([str(outcome.kept or "-")] if with_share else []),
        ]
        if outcome.rows
        else [*names_of(outcome, results.axes), "0", *(["-"] * (6 + with_share))]
        for outcome in results.outcomes
    ]
    header = [*_heads(results), "seeds", "epsilon spent", "zero-shot mAP"]
    heads = [*header, *METRICS, "gain in mAP", *(["gain kept"] if with_share else [])]
    return "\n\n".join([_table(heads, rows), *note_lines(results)])


def _comparisons(results: SweepResults) -> str:
    compared = [outcome for outcome in results.outcomes if outcome.against]
    if not compared:
        return ""
    rows = [
        [
            *names_of(outcome, results.axes),
            *(_signed(str(outcome.against[metric].estimate)) for metric in METRICS),
            ", ".join(f"{seed}: {d:+.1f}" for seed, d in outcome.against["mAP"].by_seed.items()),
        ]
        for outcome in compared
    ]
    title = f"## Against {results.reference}\n\nDifferences paired by seed.\n\n"
    return title + _table([*_heads(results), *METRICS, "mAP by seed"], rows)


def _heads(results: SweepResults) -> list[str]:
    return list(results.axes) or ["baseline"]


def names_of(outcome: Outcome, axes: Sequence[str]) -> list[str]:
    """Return an outcome's values of the varied settings, or the name of a baseline and nothing else."""
    baseline = outcome.condition.baseline
    values = [value for _, value in outcome.condition.settings]
    if baseline is None:
        return values
    return [baseline, *(["-"] * (len(axes) - 1))]


def _largest_epsilon(outcome: Outcome) -> str:
    if outcome.condition.baseline == "zero-shot":
        return "0"
    return "none" if outcome.epsilon is None else display_epsilon(outcome.epsilon)


def _signed(text: str) -> str:
    return text if text.startswith("-") else f"+{text}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
