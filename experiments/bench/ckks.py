"""CKKS sums at 800,000 values and ten clients, beside the parameters that NVFlare gives TenSEAL, and a whole run.

One client's work is timed with its own key, the server's with the keyless context, all in one process and one thread.
Columns take turns in the same process. NVFlare's column is TenSEAL with the context that its provisioning makes by
default (`nvflare/lighter/impl/he.py`: N 8192, primes 60, 40, 40, scale 2^40, symmetric), on floats, without NVFlare
around it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import tenseal

from experiments.bench.federation import run
from experiments.bench.table import show
from secagg import FixedSegment, Layout
from secagg.ckks_presets import PRESETS, SlotPlan
from secagg.ckks_scheme import CiphertextSum, SecretKey, library_version

VALUES = 800_000
CLIENTS = 10
REPETITIONS = 3
ROUNDS = 3
PEER_DEGREE, PEER_PRIMES, PEER_SCALE = 8192, [60, 40, 40], 2.0**40
SEGMENT = FixedSegment(name="delta", length=VALUES, clip=1.0, bits=20, count_clips=False)


@dataclass(slots=True)
class Times:
    """Seconds of one step: (CPU, wall) for each repetition."""

    readings: list[tuple[float, float]]

    def cell(self) -> str:
        """Medians, with the range of CPU seconds."""
        cpu = [reading[0] for reading in self.readings]
        wall = median(reading[1] for reading in self.readings)
        return f"{median(cpu):.4f} ({min(cpu):.4f} to {max(cpu):.4f}); wall {wall:.4f}"


class Column:
    """One system: the times of its steps, bytes of an upload, and what its sum is worth."""

    def __init__(self) -> None:
        self.times: dict[str, Times] = {}
        self.upload = 0
        self.error = 0.0
        self.margin = ""

    def timed(self, step: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function and keep what it took."""
        cpu, wall = time.process_time(), time.perf_counter()
        result = function(*arguments)
        reading = (time.process_time() - cpu, time.perf_counter() - wall)
        self.times.setdefault(step, Times([])).readings.append(reading)
        return result

    def primitives(self, context: Any, chunks: list[list[float]]) -> None:
        """The same steps in both columns, on one client's vector."""
        vectors = self.timed("encrypt", _encrypt, context, chunks)
        blobs = self.timed("serialise", _serialise, vectors)
        parsed = self.timed("parse", _parse, context, blobs)
        self.timed("add", _add, parsed, vectors)


class Ours(Column):
    """Integers on a grid, two primes."""

    def __init__(self, preset: str) -> None:
        super().__init__()
        self.plan = SlotPlan.of(Layout((SEGMENT,)), PRESETS[preset])
        self.key = SecretKey.generate(PRESETS[preset])

    def round(self, inputs: list[np.ndarray]) -> None:
        """Sum all clients once, as a round does, and time the pieces."""
        total = CiphertextSum(self.plan.preset)
        for grid in inputs:
            blobs = self.key.encrypt(self.plan.to_slots({"delta": grid}))
            total.add(blobs)
        self.upload = len(self.plan.frame(blobs) or b"")
        summed = total.to_blobs()
        decrypted = self.timed("decrypt the sum", self.key.decrypt, summed)
        sums = self.plan.from_slots(decrypted, len(inputs))["delta"]
        self.error = float(np.abs(sums - np.sum(inputs, axis=0)).max())
        self.margin = self._margin(summed)
        chunks = (self.plan.to_slots({"delta": inputs[0]}) / self.plan.preset.grid).tolist()
        self.primitives(self.key._context, chunks)

    def _margin(self, blobs: list[bytes]) -> str:
        """The margin in standard deviations of the error, which only a benchmark looks at."""
        raw = np.array([vector.decrypt() for vector in _parse(self.key._context, blobs)])
        raw *= self.plan.preset.grid
        error = raw - np.rint(raw)
        return f"{0.25 / error.std():.1f} (sd {error.std():.2e}, largest {np.abs(error).max():.3f})"


class Peer(Column):
    """NVFlare's context in TenSEAL: floats, three primes."""

    def __init__(self) -> None:
        super().__init__()
        self.context = tenseal.context(
            tenseal.SCHEME_TYPE.CKKS,
            poly_modulus_degree=PEER_DEGREE,
            coeff_mod_bit_sizes=PEER_PRIMES,
            encryption_type=tenseal.ENCRYPTION_TYPE.SYMMETRIC,
            n_threads=1,
        )
        self.context.global_scale = PEER_SCALE

    def round(self, inputs: list[np.ndarray]) -> None:
        """Sum all clients once, and time the pieces."""
        total: list[Any] = []
        for grid in inputs:
            chunks = _chunks(grid / SEGMENT.grid_max, PEER_DEGREE // 2)
            vectors = _encrypt(self.context, chunks)
            total = _add(total, vectors) if total else vectors
        blobs = _serialise(total)
        self.upload = sum(map(len, blobs))
        decrypted = self.timed("decrypt the sum", _decrypt, self.context, blobs)
        steps = decrypted * SEGMENT.grid_max - np.sum(inputs, axis=0)
        self.error = float(np.abs(steps).max())
        self.margin = "floats, released with their error"
        self.primitives(self.context, _chunks(inputs[0] / SEGMENT.grid_max, PEER_DEGREE // 2))


def _chunks(values: np.ndarray, slots: int) -> list[list[float]]:
    return [values[i : i + slots].tolist() for i in range(0, len(values), slots)]


def _encrypt(context: Any, chunks: list[list[float]]) -> list[Any]:
    return [tenseal.ckks_vector(context, chunk) for chunk in chunks]


def _serialise(vectors: list[Any]) -> list[bytes]:
    return [vector.serialize() for vector in vectors]


def _parse(context: Any, blobs: list[bytes]) -> list[Any]:
    return [tenseal.ckks_vector_from(context, blob) for blob in blobs]


def _add(total: list[Any], parts: list[Any]) -> list[Any]:
    for one, other in zip(total, parts, strict=True):
        one.add_(other)
    return total


def _decrypt(context: Any, blobs: list[bytes]) -> np.ndarray:
    return np.concatenate([vector.decrypt() for vector in _parse(context, blobs)])


def main() -> None:
    random = np.random.default_rng(0)
    limit = SEGMENT.grid_max
    inputs = [random.integers(-limit, limit + 1, VALUES) for _ in range(CLIENTS)]
    ours = {name: Ours(name) for name in ("compact", "wide")}
    peer = Peer()
    columns = [*ours.values(), peer]
    for _ in range(REPETITIONS):
        for column in columns:
            column.round(inputs)
    steps = ("encrypt", "serialise", "parse", "add", "decrypt the sum")
    show(
        "ckks",
        ("quantity", *(f"`{name}`" for name in ours), "NVFlare's parameters"),
        [
            ["upload, MB", *(f"{column.upload / 1e6:.2f}" for column in columns)],
            ["times float32", *(f"{column.upload / 4 / VALUES:.1f}" for column in columns)],
            *([f"{step}, CPU s", *(c.times[step].cell() for c in columns)] for step in steps),
            ["largest error of the sum, grid steps", *(f"{c.error:.1e}" for c in columns)],
            ["margin, standard deviations", *(column.margin for column in columns)],
        ],
        f"{VALUES:,} values of 20 bits, {CLIENTS} clients, TenSEAL {library_version()}; medians of {REPETITIONS} "
        "repetitions with their range; the error is that of the released sum.",
    )
    _whole_runs()


def _whole_runs() -> None:
    rows = []
    runs = {
        mode: run(train__rounds=ROUNDS, secagg__mode=mode) for mode in ("none", "ckks", "masking")
    }
    for mode, done in runs.items():
        seconds = done.summary["seconds_by_phase"]
        rows.append(
            [
                mode,
                f"{sum(done.cpu):.2f}",
                f"{sum(done.cpu) / sum(runs['none'].cpu):.2f}",
                f"{sum(done.wall):.2f}",
                f"{seconds['secagg']:.2f}",
                f"{done.summary['secagg']['bytes_up_per_client_round'] / 1e3:.1f}",
            ]
        )
    show(
        "ckks",
        ("whole run", "CPU s", "times none", "wall s", "secagg s", "kB up a client and round"),
        rows,
        f"{runs['ckks'].summary['clients']} clients, {ROUNDS} rounds, {runs['ckks'].summary['parameters']:,} values, "
        "privacy on; from the first round to the last, data and key set-up left out.",
    )


if __name__ == "__main__":
    main()
