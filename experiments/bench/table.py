"""Printing of one benchmark: its command, where it ran, and a Markdown table."""

from __future__ import annotations

import os
from collections.abc import Sequence

from experiments.bench import BENCHMARKS


def show(name: str, header: Sequence[str], rows: Sequence[Sequence[str]], *notes: str) -> None:
    """Print a table under the command that made it; ``notes`` follow it."""
    threads = os.environ.get("OMP_NUM_THREADS", "unset")
    print(f"\n### {name}: {BENCHMARKS[name]}\n")
    print(
        f"`python -m experiments.bench {name}` ({os.cpu_count()} CPUs, OMP_NUM_THREADS {threads})\n"
    )
    for row in (header, ["---"] * len(header), *rows):
        print(f"| {' | '.join(row)} |")
    for note in notes:
        print(f"\n{note}")
    print(flush=True)
