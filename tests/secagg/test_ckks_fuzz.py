"""SEAL's parser meets damaged ciphertexts in a process of its own: it may refuse, never crash."""

import subprocess
import sys

import pytest

SCRIPT = """
import random, sys
import numpy as np
from secagg.ckks_presets import PRESETS
from secagg.ckks_scheme import CiphertextSum, SecretKey
from secagg.errors import BadKey, Malformed, MarginExceeded

draw = random.Random(int(sys.argv[1]))
preset = PRESETS["wide"]
key = SecretKey.generate(preset)
good = key.encrypt(np.zeros((1, preset.slots), np.int64))[0]
data = key.to_bytes()


def damaged(blob):
    blob = bytearray(blob)
    if draw.random() < 0.3:
        del blob[draw.randrange(len(blob)) :]
    if draw.random() < 0.2:
        place = draw.randrange(len(blob) + 1)
        blob[place:place] = draw.randbytes(draw.randrange(64))
    for _ in range(draw.choice((1, 1, 2, 8, 64))):
        if blob:
            near = draw.random() < 0.5  # the headers are in the first bytes
            blob[draw.randrange(min(len(blob), 160) if near else len(blob))] ^= draw.randrange(1, 256)
    return bytes(blob)


refused = 0
for _ in range(int(sys.argv[2])):
    blob = damaged(good)
    try:
        total = CiphertextSum(preset)
        total.add([good])
        total.add([blob])
        key.decrypt(total.to_blobs())
    except (Malformed, MarginExceeded):
        refused += 1
    if draw.random() < 0.1:
        try:
            SecretKey.from_bytes(damaged(data), preset)
        except BadKey:
            pass
# getrusage would report the parent's peak where it is higher: a child starts with it
status = open("/proc/self/status").read() if sys.platform == "linux" else "VmHWM: 0 kB"
peak = int(status.split("VmHWM:")[1].split()[0]) // 1024
print(refused, peak)
"""


def run(seed, count):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(seed), str(count)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    refused, peak = map(int, done.stdout.split())
    assert refused > count / 4
    assert peak < 600  # MiB


def test_damaged_ciphertexts_and_keys_are_refused_or_harmless():
    run(0, 150)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_many_damaged_ciphertexts_and_keys_are_refused_or_harmless(seed):
    run(seed, 1000)
