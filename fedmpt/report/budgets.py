"""What each client spent of its privacy budget, and how far the figure reaches."""

from __future__ import annotations

import math
from typing import Final

from fedmpt.audit.findings import Account
from fedmpt.report.html import Html, bullets, element, folded, paragraph, section, table
from fedmpt.report.plot import Bar, Limit, bar_chart
from fedmpt.report.source import RunSource
from privacy import display_epsilon

_MOST_CLIENTS: Final = 60  # drawn; above, those that spent most


def budgets(source: RunSource) -> Html:
    """Return the budgets of all clients, recomputed from their ledgers."""
    accounts = source.audit.accounts
    if not source.private:
        text = "This run claims no differential privacy: there is no budget, and nothing bounds what it reveals."
        return section("privacy", "Privacy budget", paragraph(text))
    if not source.cohort:
        text = "No training image was used, so nothing was spent."
        return section("privacy", "Privacy budget", paragraph(text))
    if not accounts:
        text = "No ledger could be read, so what the clients spent is not known from here."
        return section("privacy", "Privacy budget", paragraph(text))
    return section(
        "privacy",
        "Privacy budget",
        paragraph(
            "Recomputed from what each client's ledger charged, not copied from the run's own figures.",
            kind="note",
        ),
        element("div", _bars(accounts), _reach(source), class_="charts"),
        folded("All clients as a table", _table(accounts)),
    )


def _bars(accounts: tuple[Account, ...]) -> Html:
    shown = accounts
    if len(accounts) > _MOST_CLIENTS:
        most = sorted(accounts, key=lambda account: -account.epsilon)[:_MOST_CLIENTS]
        shown = tuple(sorted(most, key=lambda account: account.client))
    target = max(account.target for account in accounts)
    finite = [account.epsilon for account in shown if math.isfinite(account.epsilon)]
    scope = "every client" if shown is accounts else f"the {len(shown)} clients that spent most"
    return bar_chart(
        "budgets",
        title=f"Epsilon spent in this run by {scope}",
        description=f"One bar a client; the largest is {display_epsilon(max(finite, default=0.0))}, "
        f"the limit is {target:g}.",
        series=("spent",),
        bars=[
            Bar(
                label=f"client {account.client}",
                values=(account.epsilon if math.isfinite(account.epsilon) else None,),
                text=f"{_figure(account.epsilon)} of {account.target:g}",
            )
            for account in shown
        ],
        maximum=1.05 * max([target, *finite]),
        limit=Limit(label=f"limit {target:g}", value=target),
    )


def _table(accounts: tuple[Account, ...]) -> Html:
    return table(
        f"epsilon at delta {accounts[0].claimed_delta:g}; images are declared sizes",
        ("client", "images", "spent", "limit", "all runs", "lifetime", "noise", "rate", "steps"),
        [
            (
                str(account.client),
                str(account.n_public),
                _figure(account.epsilon),
                f"{account.target:g}",
                _figure(account.total),
                f"{account.lifetime:g}",
                f"{account.noise_multiplier:.3f}",
                f"{account.sample_rate:.3f}",
                str(account.steps),
            )
            for account in accounts
        ],
        numbers=True,
    )


def _reach(source: RunSource) -> Html:
    """Return what the figure does not say by itself."""
    privacy, accounts = source.config["privacy"], source.audit.accounts
    integers = privacy["noise"] == "shares" or privacy["arithmetic"] == "integer"
    other = max(account.replace_one for account in accounts)
    points = [
        "Neighbouring data sets differ by one record added or removed. If one is replaced instead, another and "
        f"larger figure holds: {_figure(other)} for all runs on a ledger, which by the other count have spent "
        f"{_figure(max(account.total for account in accounts))}."
        + (" That larger figure counts noise of integers as Gaussian." if integers else ""),
        "The figure is for all that one client contributes."
        if privacy["unit"] == "client"
        else "The figure is for one image. A person with several images, or with images at several clients, has the "
        "sum.",
        "Declared sizes, participation and class names count as public.",
    ]
    if privacy["arithmetic"] == "float" and privacy["noise"] == "local":
        points.append(
            "Noise and clipping ran in ordinary floating point: the proof is about real numbers, and attacks on the "
            "low bits of floating-point noise are not defended against."
        )
    if privacy["noise"] == "shares":
        points.append(
            "Each client added a share of the noise only: the figure holds against "
            f"{source.summary['privacy']['against']}."
        )
    if any(account.epsilon_check is None and account.rounds for account in accounts):
        points.append("The second accountant gave no figure for some clients.")
    return bullets(points)


def _figure(epsilon: float) -> str:
    return display_epsilon(epsilon) if math.isfinite(epsilon) else "none"
