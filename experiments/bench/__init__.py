"""Benchmarks of what the project claims about cost; every figure is measured where it is printed.

python -m experiments.bench                 # all of them
python -m experiments.bench prefix masking  # some
"""

BENCHMARKS = {
    "calibration": "finding the noise of the default federation, cold and cached",
    "prefix": "prefix-shared prompt encoding against encoding whole sentences",
    "masking": "what masking costs in a round, and what it changes in the model",
    "secagg_vs_flower": "our masking beside Flower's SecAgg+: time, bytes, error, dropouts",
    "secagg_attacks": "the same attacks against our masking and against Flower's SecAgg+",
    "ckks": "CKKS sums beside NVFlare's parameters in TenSEAL, and a whole run beside the plain one",
    "methods": "a training step of every method at the shape of ViT-B/16",
    "dp_step": "a private step of every space beside one without privacy: time and memory",
    "scale": "training from a feature bank on disk: peak memory beside its size and beside holding it",
    "clients": "seconds a round and peak memory at 12 and 100 clients",
}
