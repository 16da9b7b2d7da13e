"""Cards of example images: what is there, what was predicted, and where each condition looks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from fedmpt.report.examples import Example
from fedmpt.report.html import Html, element, paragraph, section
from fedmpt.report.images import draw_maps, picture_uri
from fedmpt.report.plot import Bar, Limit, bar_chart

_SHOWN_SCORES: Final = 5
_CHART_WIDTH: Final = 290.0  # of the view box: a card is small


def pictures(
    examples: Sequence[Example] | None, *, without: str, data: str, threshold: float
) -> Html:
    """Return the section of example images.

    Args:
        examples: None if the report shows none.
        without: why it shows none, in a sentence.
        data: name of the data set.
        threshold: score above which a class counts as predicted.
    """
    if examples is None:
        return section("examples", "Test images", paragraph(without))
    source = (
        "They are drawn by the bundled recipe; no photograph is in this file."
        if data == "scenes"
        else "They were copied into this file. Differential privacy covers training images in the model, not these: "
        "whoever gets this file gets these images; keep it with the data, or write it with --no-images."
    )
    content = [
        paragraph(
            f"The first {len(examples)} images of the test split of {data}, as the image tower sees them, with what "
            f"their labels say and the {_SHOWN_SCORES} highest scores; a tick marks a class that is there. {source}",
            kind="note",
        )
    ]
    if any(example.maps for example in examples):
        content.append(
            paragraph(
                "Maps show where each condition sees the class with the highest score: a patch is as bright as its "
                "share of the condition's own prediction is large, and the brightest patch of a map is its largest "
                "share. Gate weights mix the conditions' predictions into the score.",
                kind="note",
            )
        )
    cards = [_card(example, threshold) for example in examples]
    return section("examples", "Test images", *content, element("div", *cards, class_="cards"))


def _card(example: Example, threshold: float) -> Html:
    name = f"picture-{example.index}"
    present = ", ".join(sorted(example.present)) or "none of the classes"
    picture = element(
        "svg",
        element("title", f"test image {example.index}"),
        element("image", href=picture_uri(example.picture), width=1.0, height=1.0, id=name),
        viewBox="0 0 1 1",
        role="img",
        class_="picture",
    )
    scores = bar_chart(
        f"scores-{example.index}",
        title=f"Test image {example.index}: {present}",
        description="Scores: "
        + ", ".join(f"{c} {s:.2f}" for c, s in example.scores[:_SHOWN_SCORES]),
        series=("score",),
        bars=[
            Bar(
                label=label,
                values=(score,),
                text=f"{score:.2f}{' ✓' if label in example.present else ''}",
            )
            for label, score in example.scores[:_SHOWN_SCORES]
        ],
        maximum=1.0,
        limit=Limit(label=f"predicted above {threshold:g}", value=threshold),
        width=_CHART_WIDTH,
    )
    missed = [
        f"{label} {score:.2f}"
        for label, score in example.scores[_SHOWN_SCORES:]
        if label in example.present
    ]
    further = paragraph(f"Also present: {', '.join(missed)}.", kind="note") if missed else Html("")
    return element(
        "article",
        element("div", picture, class_="left"),
        element("div", scores, further, class_="right"),
        _maps(example, name),
        class_="card",
    )


def _maps(example: Example, picture: str) -> Html:
    """Return one map a condition, each over the picture."""
    if not example.maps:
        return Html("")
    drawn = draw_maps(np.stack([one.evidence for one in example.maps]))
    label = example.scores[0][0]
    maps = [
        element(
            "figure",
            element(
                "svg",
                element("title", f"where the condition {one.condition} sees {label}"),
                element("use", href=f"#{picture}"),
                element("image", href=uri, width=1.0, height=1.0, class_="map"),
                viewBox="0 0 1 1",
                role="img",
                class_="picture",
            ),
            element(
                "figcaption",
                element("strong", one.condition),
                element("span", f"gate {one.gate:.3f}"),
                element("span", f"predicts {one.score:.3f}"),
            ),
        )
        for one, uri in zip(example.maps, drawn, strict=True)
    ]
    heading = element("p", f"Where each condition sees {label}", class_="heading")
    return element("div", heading, element("div", *maps, class_="maps"), class_="below")
