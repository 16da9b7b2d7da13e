"""Runs benchmarks by name, each in a process of its own, so that none inflates the memory or threads of the next."""

from __future__ import annotations

import argparse
import subprocess
import sys

from experiments.bench import BENCHMARKS


def main(arguments: list[str] | None = None) -> int:
    """Run the named benchmarks, or all; returns 1 if any failed."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(["benchmarks:", *(f"  {n:17} {text}" for n, text in BENCHMARKS.items())]),
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks to run; default: all")
    names: list[str] = parser.parse_args(arguments).names
    if unknown := [name for name in names if name not in BENCHMARKS]:
        parser.error(f"unknown benchmark {', '.join(unknown)}; choose from {', '.join(BENCHMARKS)}")
    failed = False
    for name in names or BENCHMARKS:
        command = [sys.executable, "-m", f"experiments.bench.{name}"]
        failed |= subprocess.run(command, check=False).returncode != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
