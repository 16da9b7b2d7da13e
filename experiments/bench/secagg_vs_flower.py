"""Our masking beside Flower's own SecAgg+, in turn in one process on the same vectors.

python -m experiments.bench.secagg_vs_flower         # minutes
python -m experiments.bench.secagg_vs_flower --long  # also 100 clients with all shares on Flower: minutes more

What a figure holds:

Masking stage of a client, the one in the middle. Ours: shares opened; values quantised, masked, packed; signed,
    encoded. Flower: its mod (shares opened; values quantised, masked, made bytes), without the training function.
Server. Ours: all calls of its session, and the mean. Flower: its workflow, less the time spent in the grid; the
    strategy keeps the mean at no cost.
Server after the last upload. Ours: closing the upload stage and what follows. Flower: what follows the grid's return of
    the masked vectors; their sum is made here, since none is handed over before.
Whole round: all clients and the server, one after the other.
Bytes up. Ours: all messages of a client as handed to a transport. Flower: all replies of a node, each as one Protocol
    Buffers message; no time is counted for writing that.

Ours includes checks that Flower has not (signatures, a confirmed list of survivors), in every figure. Processor time is
that of the process, all threads. Both have the same threshold. Flower's clients have its largest weight, where its
rounding is finest, unless another is said.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from types import ModuleType

from experiments.bench import dropouts, ours
from experiments.bench.comparison import HEADER, MISSING, Target, alternate, row, timed
from experiments.bench.rounds import Case, Measured, Runner
from experiments.bench.table import show
from secagg import ConfigurationError, Stage

REPETITIONS = 5
TEN = Case(clients=10, length=800_000, threshold=7)
THREE_LOST = replace(TEN, lost=dict.fromkeys((1, 4, 7), "upload"))
HUNDRED = Case(clients=100, length=100_000, threshold=67)
FEW_SHARES = replace(HUNDRED, shares=21, threshold=11)
RING = replace(HUNDRED, colluders=5, degree=(30, 6))
MANY = Case(clients=500, length=100_000, lost=dict.fromkeys(range(0, 450, 3), "upload"))
Rows = list[list[str]]


def load_flower() -> ModuleType | None:
    """The harness of the peer, or None where it is not installed."""
    if find_spec("flwr") is None:
        print("flwr is not installed, so only our column is measured: pip install -e '.[bench]'")
        return None
    from experiments.bench import flower

    return flower


def peer_of(flower: ModuleType | None, **options: float) -> Runner | None:
    """Flower's runner; a client lost at our `upload` is lost where it collects masked vectors."""
    if flower is None:
        return None

    def run(case: Case, inputs: object) -> Measured:
        lost = {client: "collect_masked_vectors" for client in case.lost}
        return flower.run(replace(case, lost=lost), inputs, **options)

    return run


def ten_clients(flower: ModuleType | None) -> Rows:
    """T1 to T3, and the error of T7."""
    run = partial(alternate, own=ours.run, repetitions=REPETITIONS)
    own, peer = run(TEN, peer=peer_of(flower))
    fine = Target(text="<= 1.9e-6", at_most=1.9e-6)
    rows = [
        *timed(
            "T1 masking stage of a client",
            own,
            peer,
            lambda one: one.client,
            cpu=Target(text="<= 15, ratio >= 5", at_most=15, ratio=5),
        ),
        *timed(
            "T2 server",
            own,
            peer,
            lambda one: one.server,
            cpu=Target(text="<= 50, ratio >= 4.8", at_most=50, ratio=4.8),
        ),
        *timed(
            "T2 server after the last upload",
            own,
            peer,
            lambda one: one.after,
            cpu=Target(text="<= 15", at_most=15),
        ),
        row(
            "T3 bytes up a client",
            *_each(own, peer, lambda one: median(one.up.values())),
            ".0f",
            Target(text="<= 2.45e6, ratio >= 2.56", at_most=2.45e6, ratio=1 / 0.39),
        ),
        row(
            "T7 error of the mean, Flower clips at 8",
            *_each(own, peer, lambda one: one.error),
            ".2e",
            fine,
        ),
    ]
    for what, options in (
        ("Flower clips at 8, weight 100 of 1,000", {"weight": 100}),
        ("Flower clips at 1 as we do", {"clip": 1.0}),
    ):
        own, peer = alternate(TEN, ours.run, peer_of(flower, **options), repetitions=1)
        errors = _each(own, peer, lambda one: one.error)
        rows.append(row(f"T7 error of the mean, {what}", *errors, ".2e", fine))
    own, peer = run(THREE_LOST, peer=peer_of(flower))
    rows += timed(
        "T2 server, 3 of 10 lost at upload",
        own,
        peer,
        lambda one: one.server,
        cpu=Target(text="<= 50, ratio >= 10", at_most=50, ratio=10),
    )
    rows += timed(
        "T2 server after the last upload, 3 of 10 lost",
        own,
        peer,
        lambda one: one.after,
        cpu=Target(text="<= 30", at_most=30),
    )
    return rows


def hundred_clients(flower: ModuleType | None, *, long: bool) -> Rows:
    """T4: our complete graph against all shares and against 21; our ring against 21 shares.

    Each of our clients verifies every signature itself, as real ones do; the rows "shared checks" let the clients of
    this one process verify each signature once between them, as the in-process engine does.
    """
    complete = Target(text="<= 4000, ratio >= 60", at_most=4000, ratio=60)
    ring = Target(text="<= 3000, ratio >= 7", at_most=3000, ratio=7)
    own, _ = alternate(HUNDRED, ours.run, None, repetitions=3)
    all_shares = alternate(HUNDRED, ours.run, peer_of(flower), repetitions=1)[1] if long else []
    few = peer_of(flower)
    few_shares = [few(FEW_SHARES, FEW_SHARES.inputs(i)) for i in range(2)] if few else []
    rows = timed(
        "T4 whole round, 100 x 100k, complete; Flower all shares",
        own,
        all_shares,
        lambda one: one.round,
        wall=complete,
    )
    if flower and not long:
        for one in rows:
            one[2] = f"{MISSING}, use --long"
    rows += timed(
        "whole round, 100 x 100k, complete; Flower 21 shares, threshold 11",
        own,
        few_shares,
        lambda one: one.round,
    )
    name = "T4 whole round, 100 x 100k, ring of 30; Flower 21 shares, threshold 11"
    try:
        own, _ = alternate(RING, ours.run, None, repetitions=3)
    except ConfigurationError as error:
        return [*rows, [name, f"{MISSING}: {error}", MISSING, "-", ring.text, "-"]]
    rows += timed(name, own, few_shares, lambda one: one.round, wall=ring)
    shared = partial(ours.run, cache=True)
    for what, case, peer, wall in (
        ("complete, shared checks; Flower all shares", HUNDRED, all_shares, complete),
        ("ring of 30, shared checks; Flower 21 shares, threshold 11", RING, few_shares, ring),
    ):
        own, _ = alternate(case, shared, None, repetitions=3)
        rows += timed(
            f"T4 whole round, 100 x 100k, {what}",
            own,
            peer,
            lambda one: one.round,
            wall=wall,
        )
    return rows


def many_clients() -> Rows:
    """T6: our server only; clients share verified signatures, since their time is not reported."""
    own, _ = alternate(MANY, partial(ours.run, cache=True), None, repetitions=1)
    return timed(
        "T6 server, 500 x 100k, 150 lost at upload",
        own,
        [],
        lambda one: one.server,
        cpu=Target(text="<= 8000", at_most=8000),
    )


def exactness(flower: ModuleType | None) -> Rows:
    """T5 and the first half of T7."""
    case = Case(clients=10, length=100_000, threshold=7)
    inputs = case.inputs(seed=3)
    own = ours.is_exact(case, inputs)
    peer = MISSING if flower is None else _yes(flower.is_exact(case, inputs))
    survived = dropouts.finished(ours.run, [stage.name.lower() for stage in Stage])
    theirs = (
        MISSING
        if flower is None
        else dropouts.summary(dropouts.finished(flower.run, flower.STAGES))
    )
    return [
        ["T7 sum exact, bit for bit", _yes(own), peer, "-", "yes", _yes(own)],
        [
            f"T5 rounds that end exactly, any 1 or 2 of {dropouts.CLIENTS} lost at a stage, "
            f"threshold {dropouts.THRESHOLD}",
            dropouts.summary(survived),
            theirs,
            "-",
            "100%",
            _yes(dropouts.share(survived) == 1),
        ],
    ]


def _each(
    own: list[Measured], peer: list[Measured], pick: Callable[[Measured], float | None]
) -> tuple[list[float | None], list[float | None]]:
    return [pick(one) for one in own], [pick(one) for one in peer]


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _processor() -> str:
    """The name Linux gives the processor, or the architecture."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.bench.secagg_vs_flower")
    parser.add_argument("--long", action="store_true", help="100 clients with all shares on Flower")
    long: bool = parser.parse_args().long
    flower = load_flower()
    rows = [
        *ten_clients(flower),
        *hundred_clients(flower, long=long),
        *many_clients(),
        *exactness(flower),
    ]
    packages = [name for name in ("numpy", "cryptography", "flwr") if find_spec(name)]
    show(
        "secagg_vs_flower",
        HEADER,
        rows,
        f"{_processor()}; Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in packages)
        + f"; medians of {REPETITIONS} alternated repetitions (100 clients: ours 3, Flower 2; 'once' as said) and "
        "their range. All clients and the server in one process.",
    )


if __name__ == "__main__":
    main()
