"""What the run cost: bytes by stage of the protocol, seconds by phase."""

from __future__ import annotations

from typing import Final

from fedmpt.report.html import Html, element, paragraph, section, table
from fedmpt.report.plot import Bar, bar_chart
from fedmpt.report.source import RunSource
from secagg.cost import predict_bytes

_FLOAT_BYTES: Final = 4
_PHASES: Final = {
    "train": "local training",
    "secagg": "aggregation",
    "evaluate": "evaluation",
}


def costs(source: RunSource) -> Html:
    """Return bytes and seconds."""
    return section(
        "costs",
        "Bytes and seconds",
        element("div", _seconds(source), element("div", *_bytes(source)), class_="charts"),
    )


def _seconds(source: RunSource) -> Html:
    summary = source.summary
    by_phase = {
        _PHASES.get(name, name): value for name, value in summary["seconds_by_phase"].items()
    }
    total = summary["seconds"]
    by_phase["everything else"] = max(0.0, total - sum(by_phase.values()))
    chart = bar_chart(
        "seconds",
        title=f"Seconds by phase, {total:.1f} in all",
        description="All clients one after the other on one machine; everything else is loading, features, planning.",
        series=("seconds",),
        bars=[
            Bar(label=name, values=(value,), text=f"{value:.1f} s")
            for name, value in by_phase.items()
        ],
        maximum=max([1e-9, *by_phase.values()]),
    )
    note = paragraph(
        "All clients, one after the other, on one machine. Times depend on data and are not covered by epsilon.",
        kind="note",
    )
    return element("div", chart, note)


def _bytes(source: RunSource) -> list[Html]:
    summary = source.summary
    if not source.cohort:
        return []
    up = summary["secagg"]["bytes_up_per_client_round"]
    uploads = sum(len(line["survivors"]) for line in source.metrics)
    model = _FLOAT_BYTES * summary["parameters"]
    text = f"A client sent {_kilobytes(up)} a round on average, {up * uploads / 1e6:.1f} MB in all rounds together."
    if not source.alone:
        text += f" With each round it also gets the model, {_kilobytes(model)} as float32."
    measured = paragraph(text)
    if not source.logs:
        return [measured]
    first = source.logs[0][1].rounds[0]
    predicted = predict_bytes(
        first.params,
        cohort=len(first.cohort),
        sharers=len(first.sharers),
        survivors=len(first.survivors),
    )
    rows = [  # a stage that asks some clients only counts for every client in part
        (stage.name.lower(), f"{share * size.up:,.0f}", f"{share * size.down:,.0f}")
        for stage, size in predicted.stages.items()
        for share in (predicted.asked.get(stage, 1.0),)
    ]
    rows.append(("in all", f"{predicted.mean_up():,.0f}", f"{predicted.mean_down():,.0f}"))
    caption = "bytes of a client in one sum of round 1, on average"
    return [measured, table(caption, ("stage", "sent", "received"), rows, numbers=True)]


def _kilobytes(size: float) -> str:
    return f"{size / 1e3:.1f} kB"
