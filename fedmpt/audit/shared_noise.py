"""Shared noise in the sum that is opened: real masked rounds of clients that hold nothing.

With s survivors whose shares each hold an h-th of the noise, an opened sum must have the variance `(s/h) sigma^2 C^2`,
an h-th of what the same survivors would add locally. With nothing to sum, the sum is the noise itself, its squares add
up to a chi-square variable, and the test is exact but for noise being discrete.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Final

import numpy as np
import torch

from fedmpt.engine.aggregation import Aggregation
from fedmpt.engine.prepare import Federation
from fedmpt.engine.share_terms import honest_others
from fedmpt.engine.shares import SharedNoise
from fedmpt.protect import GridEnvelope
from fedmpt.types import ClientId
from privacy import DPPlan, GaussianNoise
from privacy.audit import CheckResult, Verdict
from privacy.audit.exact import chi_square_p
from privacy.audit.verdict import MECHANISM_ALPHA, Stopwatch
from privacy.grid import share_variance
from privacy.integer import IntegerGradient
from secagg import Update as SegmentValues

_VALUES: Final = 60_000  # so many give the standard deviation to 0.3 %, the variance to 0.6 %
_MOST_ROUNDS: Final = 40
_CONTEXT: Final = bytes(32)


def check_opened_sums(federation: Federation, plan: DPPlan) -> CheckResult:
    """Open masked sums of clients without data, and test the noise in them.

    Args:
        federation: the run, whose first round's cohort takes part.
        plan: a client's charged plan, with shared noise.
    """
    watch = Stopwatch()
    rounds = SharedNoise(federation, [plan])
    envelope = GridEnvelope(layout=rounds.layout)
    cohort = federation.schedule[0]
    honest: set[int] = set()
    opened = []
    with tempfile.TemporaryDirectory() as folder:
        aggregation = Aggregation(
            config=federation.config.secagg,
            clients=len(federation.partition.clients),
            layout=rounds.layout,
            private=True,
            marks=Path(folder) / "marks",
            cohort=len(cohort),
        )

        def contribute(client: ClientId) -> SegmentValues:
            session = aggregation.sessions[client]
            counted = honest_others(session.guaranteed_honest, session.colluders)
            honest.add(counted)
            gradient = IntegerGradient(plan=plan, shapes=rounds.shapes)
            nothing = {n: torch.zeros((0, *shape)) for n, shape in rounds.shapes.items()}
            return envelope.seal(gradient.release(nothing, honest=counted))

        dimension = sum(math.prod(shape) for shape in rounds.shapes.values())
        for _ in range(min(_MOST_ROUNDS, math.ceil(_VALUES / dimension))):
            aggregate, _ = aggregation.run(
                cohort, contribute, resubmit=False, context=_CONTEXT, lost=lambda _: {}
            )
            opened.append(envelope.open_sum(aggregate))
    values = np.concatenate(opened).astype(np.float64)
    survivors, counted = len(cohort), min(honest)
    claimed = survivors * share_variance(plan.noise_multiplier, plan.grid_steps, counted)
    ratio = float(np.mean(values**2)) / claimed
    p_value = chi_square_p(ratio * len(values), len(values))
    local = sum(
        GaussianNoise().gaussian(len(values), standard_deviation=plan.noise_standard_deviation)
        for _ in range(survivors)
    )
    shared = np.sqrt(np.mean(values**2)) * plan.max_grad_norm / plan.grid_steps
    failed = not (p_value >= MECHANISM_ALPHA and honest == {plan.honest})
    words = (
        f"variance {ratio:.4f} of the claimed in sums of {survivors} clients (p {p_value:.2g}); local noise on these "
        f"clients has {float(np.std(local)) / shared:.2f} times the deviation"
    )
    if honest != {plan.honest}:
        words += f"; clients count on {sorted(honest)} shares, the charged plan on {plan.honest}"
    return CheckResult(
        check="shared noise",
        claim=f"an opened sum of {survivors} has the variance ({survivors}/{counted}) sigma^2 C^2",
        verdict=Verdict.FAIL if failed else Verdict.PASS,
        statistic=ratio,
        threshold=1.0,
        alpha=MECHANISM_ALPHA,
        tests=1,
        n=len(values),
        words=words,
        seconds=watch.seconds,
    )
