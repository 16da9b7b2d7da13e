"""What each party of the run could read, as `docs/secagg.md` and `docs/privacy.md` promise it."""

from __future__ import annotations

from typing import Final

from fedmpt.report.html import Html, bullets, folded, join, paragraph, section, table
from fedmpt.report.source import RunSource
from secagg.threshold import default_colluders, threshold
from secagg.verified import VerifiedRun

_SHOWN_ROUNDS: Final = 200


def aggregation_statement(source: RunSource) -> str:
    """Return who could read updates, in a sentence or two."""
    statement: str = source.summary["secagg"]["statement"]
    if source.audit.secagg != "masking" or source.alone:
        return statement
    needed, colluders = _tolerated(source)
    return (
        f"{statement} A round needs {needed} of {source.cohort} clients, and up to {colluders} of them may help the "
        "server."
    )


def parties(source: RunSource) -> Html:
    """Return the table of who could read what, and what the public logs of the rounds prove."""
    if not source.cohort:
        return section(
            "parties",
            "Who could read what",
            paragraph("Nothing was tuned, so no client sent anything."),
        )
    if source.alone:
        return section(
            "parties",
            "Who could read what",
            paragraph(aggregation_statement(source)),
            _logs(source),
        )
    return section(
        "parties",
        "Who could read what",
        table("what each party could read", ("party", "could read"), _rows(source)),
        paragraph(
            "All sites of this run were simulated by one process. The table says what the same protocol shows to whom "
            "when each party runs on a machine of its own.",
            kind="note",
        ),
        _logs(source),
    )


def _tolerated(source: RunSource) -> tuple[int, int]:
    """Return how many clients a masked round needs, and how many may help the server."""
    colluders = default_colluders(source.cohort)
    return threshold(source.cohort, colluders), colluders


def _rows(source: RunSource) -> list[tuple[str, str]]:
    others = "what the server publishes: the tuned model of each round"
    if source.audit.secagg == "ckks":
        others = (
            "the sum of each round, which two of them decrypt; every upload that they can intercept"
        )
    return [
        ("each client", "its own images and its own update"),
        *_server_rows(source),
        ("other clients", others),
        ("outsider on the network, under TLS", "sizes and times of messages"),
        (
            "whoever gets the tuned model",
            "what epsilon allows to be learnt of a training image"
            if source.private
            else "whatever the model reveals of training images: nothing bounds it",
        ),
    ]


def _server_rows(source: RunSource) -> list[tuple[str, str]]:
    """Return what the server could read: following the protocol, lying, and with clients that help it."""
    noised = "noised " if source.private else ""
    every = f"every client's {noised}update"
    honest = f"the {noised}sum of each round, who took part, when"
    if source.audit.secagg == "none":
        return [("server", f"{every}, who took part, when")]
    if source.audit.secagg == "ckks":
        verified = source.config["secagg"]["ckks_verify"]
        lying = "the same" if verified else f"{every}, by having it decrypted as the sum"
        return [
            ("server that follows the protocol", honest),
            ("server that lies, drops and replays", lying),
            ("server with any one client", every),
        ]
    needed, colluders = _tolerated(source)
    return [
        ("server that follows the protocol", honest),
        ("server that lies, drops and replays", "the same, or the round aborts"),
        (
            f"such a server with up to {colluders} clients",
            f"the {noised}sum less these clients' own updates, over at least {needed - colluders} others",
        ),
    ]


def _logs(source: RunSource) -> Html:
    if not source.logs:
        return paragraph(source.logs_missing, kind="note")
    return join([_stretch(source, *one) for one in source.logs])


def _stretch(source: RunSource, first: int, logs: VerifiedRun) -> Html:
    """Return what the logs of rounds prove that were summed under one roster."""
    rounds = [line["round"] for line in source.metrics if line["round"] >= first][
        : len(logs.rounds) // source.sums
    ]
    text = f"The public logs of {len(rounds)} round(s) verify: every signature fits what it was given for."
    if len(source.logs) > 1:
        span = f"Rounds {rounds[0]} to {rounds[-1]}" if len(rounds) > 1 else f"Round {rounds[0]}"
        text = f"{span}, with keys of their own. {text}"
    if logs.missing:
        text += (
            f" Without a log: attempts {', '.join(map(str, logs.missing))}, aborted or withheld."
        )
    of_sums = [number for number in rounds for _ in range(source.sums)]
    described = zip(of_sums, logs.rounds, strict=True)
    lines = [f"Round {number}: {one.describe()}." for number, one in described]
    setups = [f"Key: {setup.describe()}." for setup in logs.setups]
    return folded(text, bullets(setups + lines[:_SHOWN_ROUNDS]))
