"""Seconds a round and peak memory with few and with many clients.

Every federation runs in a fresh process, and this one loads neither torch nor data: Linux counts the memory of the
process that started another into its peak.
"""

from __future__ import annotations

import resource
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import fmean

from experiments.bench.table import show

COUNTS = (12, 100)
ROUNDS = 2


def measure(clients: int) -> list[str]:
    """Run a federation and return its column of the table; to be called in a fresh process."""
    from experiments.bench.federation import run

    done = run(
        clients__count=clients,
        clients__minimum_size=32,
        clients__partition="iid",
        train__rounds=ROUNDS,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts KiB
    phases = {name: fmean(phase[name] for phase in done.phases) for name in done.phases[0]}
    return [
        f"{fmean(done.wall):.2f} ({', '.join(f'{wall:.2f}' for wall in done.wall)})",
        f"{fmean(done.cpu):.2f}",
        *(f"{phases[name]:.2f}" for name in ("train", "secagg", "evaluate")),
        f"{fmean(done.wall) / clients:.3f}",
        f"{peak:.0f}",
        f"{done.summary['secagg']['bytes_up_per_client_round'] / 1024:.1f}",
    ]


def main() -> None:
    columns = []
    for clients in COUNTS:
        with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as child:
            columns.append(child.submit(measure, clients).result())
    names = (
        "wall s a round (each)",
        "CPU s a round",
        "of wall: train",
        "of wall: secagg",
        "of wall: evaluate",
        "wall s a round and client",
        "peak resident MiB",
        "KiB up a client and round",
    )
    show(
        "clients",
        ("means over rounds", *(f"{clients} clients" for clients in COUNTS)),
        [list(row) for row in zip(names, *columns, strict=True)],
        f"iid partition of the default data, {ROUNDS} rounds, privacy and masking on, all clients in one process.",
    )


if __name__ == "__main__":
    main()
