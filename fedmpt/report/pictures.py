"""Cards of example images: what is there, what was predicted, and where each condition looks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from fedmpt.inference.maps import class_maps
from fedmpt.report.examples import Example
from fedmpt.report.html import Html, element, paragraph, section
from fedmpt.report.images import draw_maps, picture_uri
from fedmpt.report.plot import Bar, Limit, bar_chart

LEFT_OUT: Final = (
    "Left out (--no-images): this file holds no image and no prediction of a single image."
)
_SHOWN_SCORES: Final = 5
_CHART_WIDTH: Final = 290.0  # of the view box: a card is small


def pictures(
    examples: Sequence[Example] | None, *, data: str, threshold: float, without: str = LEFT_OUT
) -> Html:
    """Return the section of example images.

    Args:
        examples: None if the report shows none.
        data: name of the data set.
        threshold: score above which a class counts as predicted.
        without: why it shows none, in a sentence.
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
                "Maps show where the class with the highest score is seen: the brighter a patch, the more it adds to "
                "the prediction. The first mixes the conditions by their gates, on a scale of its own; the others "
                "share one scale, so a dark one adds little.",
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
    """Return the mixture's map and one a condition, each over the picture."""
    if not example.maps:
        return Html("")
    label = example.scores[0][0]
    evidence = np.stack([one.evidence for one in example.maps])  # [N, h, w]
    down, across = evidence.shape[1:]
    gate = np.array([one.gate for one in example.maps], dtype=np.float32)
    drawn = draw_maps(class_maps(evidence.reshape(len(gate), -1), gate, (down, across)))
    named = [("all conditions", "mixed by the gate", "")]
    named += [
        (one.condition, f"gate {one.gate:.3f}", f"predicts {one.score:.3f}") for one in example.maps
    ]
    maps = [
        element(
            "figure",
            element(
                "svg",
                element("title", f"where {condition} sees {label}"),
                element("use", href=f"#{picture}"),
                element("image", href=uri, width=1.0, height=1.0, class_="map"),
                viewBox="0 0 1 1",
                role="img",
                class_="picture",
            ),
            element(
                "figcaption",
                element("strong", condition),
                *(element("span", words) for words in figures),
            ),
        )
        for (condition, *figures), uri in zip(named, drawn, strict=True)
    ]
    heading = element("p", f"Where {label} is seen", class_="heading")
    return element("div", heading, element("div", *maps, class_="maps"), class_="below")
