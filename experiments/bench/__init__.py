"""Benchmarks of what the project claims about cost; every figure is measured where it is printed.

python -m experiments.bench                 # all of them
python -m experiments.bench prefix masking  # some
"""

BENCHMARKS = {
    "prefix": "prefix-shared prompt encoding against encoding whole sentences",
    "masking": "what masking costs in a round, and what it changes in the model",
    "clients": "seconds a round and peak memory at 12 and 100 clients",
}
