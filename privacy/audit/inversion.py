"""Gradient inversion: the example behind one update, searched for by matching gradients.

The attacker knows the model and the labels, and looks for an input whose gradient points where the update points.
What it finds is compared with a list of candidates, the true one among them; picking the true one counts as success.
Under the claim an attacker with k equally likely candidates succeeds with probability at most
`min over x of e^x / k + delta(x)`.
Unprotected updates must give examples away more often than that, else nothing was learnt.

Source: Zhu et al., arXiv 1906.08935; cosine matching, Geiping et al., arXiv 2003.14053.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from privacy.accountant import PLDAccountant
from privacy.audit.exact import lower_limit
from privacy.audit.membership import largest_rate
from privacy.audit.verdict import ATTACK_ALPHA, CheckResult, Stopwatch, Verdict
from privacy.events import Event

_ITERATIONS = 80
_RATE = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedUpdate:
    """An update as the attacker sees it, and what he knows of how it was made.

    Attributes:
        update: Of a step on one example alone, flat.
        gradient_of: Input -> the update it would make without protection, flat, differentiable.
    """

    update: torch.Tensor
    gradient_of: Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class InversionTarget:
    """One example to be reconstructed.

    Attributes:
        protected: What is sent with privacy.
        unprotected: What would be sent without: the control.
        start: Where the search starts; public.
        describe: Input -> what the gradient can tell of it, for comparing inputs.
        candidates: `[k, *input]`, inputs it may be.
        truth: Index of the true one.
    """

    protected: ObservedUpdate
    unprotected: ObservedUpdate
    start: torch.Tensor
    describe: Callable[[torch.Tensor], torch.Tensor]
    candidates: torch.Tensor
    truth: int


def check_inversion(
    targets: Sequence[InversionTarget], *, events: Sequence[Event], accountant: PLDAccountant
) -> CheckResult:
    """Attacks protected and unprotected updates of the same examples.

    Args:
        targets: Examples, each with its updates; the same number of candidates for all.
        events: What one update was charged.
        accountant: Gives the profile.
    """
    watch = Stopwatch()
    count, candidates = len(targets), len(targets[0].candidates)
    found = {"protected": 0, "unprotected": 0}
    likeness = {"protected": 0.0, "unprotected": 0.0}
    for target in targets:
        for name, observed in (
            ("protected", target.protected),
            ("unprotected", target.unprotected),
        ):
            picked, cosine = _invert(target, observed)
            found[name] += picked == target.truth
            likeness[name] += cosine / count
    limit = largest_rate(accountant, events, 1 / candidates)
    lower = lower_limit(found["protected"], count, ATTACK_ALPHA)
    control = found["unprotected"] / count
    if lower > limit:
        verdict, words = Verdict.FAIL, "more than the claim allows"
    elif lower_limit(found["unprotected"], count, ATTACK_ALPHA) <= limit:
        verdict, words = (
            Verdict.INCONCLUSIVE,
            "without privacy the attack does not exceed the claim either",
        )
    else:
        verdict, words = Verdict.PASS, "within the claim"
    return CheckResult(
        check="gradient inversion",
        claim=f"one of {candidates} candidates is picked right with probability at most {limit:.3f}",
        verdict=verdict,
        statistic=found["protected"] / count,
        threshold=limit,
        alpha=ATTACK_ALPHA,
        tests=1,
        n=count,
        words=f"picks {found['protected']} of {count} right (likeness {likeness['protected']:.2f}), without "
        f"privacy {found['unprotected']} ({likeness['unprotected']:.2f}): {words}",
        control=control,
        proves=False,
        seconds=watch.seconds,
    )


def _invert(target: InversionTarget, observed: ObservedUpdate) -> tuple[int, float]:
    """The candidate nearest to what gradient matching finds, and its cosine with the truth."""
    direction = observed.update / observed.update.norm()
    guess = target.start.clone().requires_grad_()
    optimizer = torch.optim.Adam([guess], lr=_RATE)
    for _ in range(_ITERATIONS):
        gradient = observed.gradient_of(guess)
        loss = 1 - gradient @ direction / gradient.norm().clamp_min(1e-12)
        (guess.grad,) = torch.autograd.grad(loss, [guess])
        optimizer.step()
    known = torch.stack([target.describe(candidate).flatten() for candidate in target.candidates])
    found = target.describe(guess.detach()).flatten()
    likeness = torch.nn.functional.cosine_similarity(
        known - known.mean(0), (found - known.mean(0))[None]
    )
    return int(np.argmax(likeness.numpy())), float(likeness[target.truth])
