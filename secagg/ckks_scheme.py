"""The one place where TenSEAL is used: keys, encryption, addition and decryption of slots.

Symmetric encryption: all clients hold the key anyway, and its error is a fifth of that of public-key
encryption. Contexts hold no public, relinearisation or Galois keys. Keys and encryption randomness
come from SEAL's own generator, which it seeds from the operating system for every context; they
cannot be fixed for a test. TenSEAL is imported when the first context is made and not before.

A ciphertext from outside is parsed only after its author's signature and its length are verified:
SEAL's parser accepts most single-bit changes, so it must never be the one that judges.

Source: Cheon et al., ASIACRYPT 2017, in TenSEAL/SEAL; rounding off the error before anything is
released: Li and Micciancio, EUROCRYPT 2021 (ePrint 2020/1533), ePrint 2024/853.
"""

from __future__ import annotations

import importlib.metadata
from functools import lru_cache
from typing import Any

import numpy as np

from secagg.ckks_presets import Preset
from secagg.errors import BadKey, Malformed, MarginExceeded
from secagg.ring import Integers

_MARGIN = 0.25  # of a grid step; half a step would round to a neighbour


def library_version() -> str:
    """The version of TenSEAL, part of a key's terms: what it serialises is not portable."""
    return importlib.metadata.version("tenseal")


class SecretKey:
    """A context with the secret key, for clients.

    Args:
        context: the TenSEAL context.
        preset: the parameters it was made with.
    """

    __slots__ = ("_context", "preset")

    def __init__(self, context: Any, preset: Preset) -> None:
        self._context = context
        self.preset = preset

    @classmethod
    def generate(cls, preset: Preset) -> SecretKey:
        """A fresh key."""
        return cls(_new_context(preset), preset)

    @classmethod
    def from_bytes(cls, data: bytes, preset: Preset) -> SecretKey:
        """The key in `data`, once its parameters are exactly those of `preset` and it works.

        Everything but the secret key is compared with a context made here, byte for byte: degree,
        primes, scale, the kind of encryption, and that there are no further keys. Then a probe is
        encrypted and decrypted.

        Raises:
            BadKey: it does not load, is of other parameters, or does not decrypt its own probe.
        """
        import tenseal

        try:
            context = tenseal.context_from(data, n_threads=1)
            private = context.is_private() and context.has_secret_key()
            same = private and _without_key(context) == _without_key(_public_context(preset))
        except (ValueError, RuntimeError, MemoryError) as error:
            raise BadKey("the shared key does not load") from error
        if not same:
            raise BadKey(f"the shared key has other parameters than preset {preset.name!r}")
        key = cls(context, preset)
        probe = np.linspace(-preset.grid, preset.grid, preset.slots).astype(np.int64)
        try:
            returned = key.decrypt(key.encrypt(probe[None]))
        except (ValueError, RuntimeError, MarginExceeded) as error:
            raise BadKey("the shared key does not decrypt what it encrypts") from error
        if not np.array_equal(returned[0], probe):
            raise BadKey("the shared key does not decrypt what it encrypts")
        return key

    def to_bytes(self) -> bytes:
        """Context and secret key, to be sealed to a client at once."""
        return _serialise(self._context, secret=True)

    def encrypt(self, slots: Integers) -> list[bytes]:
        """One serialised ciphertext for each row of `slots`: int64 `[blobs, N/2]`, |s| <= 2^g."""
        import tenseal

        scaled = slots * (1.0 / self.preset.grid)
        return [tenseal.ckks_vector(self._context, row.tolist()).serialize() for row in scaled]

    def decrypt(self, blobs: list[bytes]) -> Integers:
        """The integers under verified ciphertexts: int64 `[blobs, N/2]`, exact.

        The decrypted numbers hold the encryption error, which must not be released; only their
        nearest integers leave this function, and only if all are unmistakable.

        Raises:
            Malformed: a blob is no ciphertext of these parameters.
            MarginExceeded: a number lies a quarter of a step or more from the grid.
        """
        rows = np.empty((len(blobs), self.preset.slots), np.float64)
        for row, blob in zip(rows, blobs, strict=True):
            row[:] = _parse(self._context, blob, self.preset).decrypt()
        rows *= self.preset.grid
        nearest = np.rint(rows)
        if not np.abs(rows - nearest).max() < _MARGIN:  # also where a number is NaN
            raise MarginExceeded(
                "a decrypted sum does not lie on the grid: the shared key must not be used again"
            )
        return nearest.astype(np.int64)

    def __repr__(self) -> str:
        return "SecretKey"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a SecretKey cannot be pickled")


class CiphertextSum:
    """A running sum of encrypted vectors, kept without any key.

    Memory is that of one vector: an upload is parsed, added and dropped.
    """

    def __init__(self, preset: Preset) -> None:
        self._preset = preset
        self._sum: list[Any] = []

    def parse(self, blobs: list[bytes]) -> list[Any]:
        """The ciphertexts of one vector.

        Raises:
            Malformed: a blob is no ciphertext of these parameters.
        """
        context = _public_context(self._preset)
        return [_parse(context, blob, self._preset) for blob in blobs]

    def add(self, blobs: list[bytes]) -> None:
        """Adds one vector; if it does not parse, nothing is added.

        Raises:
            Malformed: a blob is no ciphertext of these parameters.
        """
        self.add_parsed(self.parse(blobs))

    def add_parsed(self, parsed: list[Any]) -> None:
        """Adds one vector, in place; an error on the way leaves a sum of no meaning."""
        if not self._sum:
            self._sum = parsed
            return
        for total, part in zip(self._sum, parsed, strict=True):
            total.add_(part)

    def to_blobs(self) -> list[bytes]:
        """The serialised sum."""
        return [total.serialize() for total in self._sum]


def _new_context(preset: Preset) -> Any:
    import tenseal

    context = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS,
        poly_modulus_degree=preset.degree,
        coeff_mod_bit_sizes=list(preset.moduli),
        encryption_type=tenseal.ENCRYPTION_TYPE.SYMMETRIC,
        n_threads=1,
    )
    context.global_scale = 2.0**preset.scale_bits
    return context


@lru_cache(maxsize=8)
def _public_context(preset: Preset) -> Any:
    """The context of a preset without any key; the same for everybody.

    TenSEAL makes no context without a key: this one's own is dropped, and never was anybody's.
    """
    import tenseal

    return tenseal.context_from(_without_key(_new_context(preset)), n_threads=1)


def _without_key(context: Any) -> bytes:
    return _serialise(context, secret=False)


def _serialise(context: Any, *, secret: bool) -> bytes:
    data: bytes = context.serialize(
        save_public_key=False,
        save_secret_key=secret,
        save_galois_keys=False,
        save_relin_keys=False,
    )
    return data


def _parse(context: Any, blob: bytes, preset: Preset) -> Any:
    """The ciphertext in a blob that came with a valid signature."""
    import tenseal

    try:
        vector = tenseal.ckks_vector_from(context, blob)
        (text,) = vector.ciphertext()
        found = (
            vector.size(),
            text.size(),
            text.poly_modulus_degree(),
            text.coeff_modulus_size(),
            text.scale,
            text.is_ntt_form(),
        )
    except (ValueError, RuntimeError, MemoryError, IndexError) as error:
        raise Malformed("an encrypted vector holds what is no ciphertext") from error
    if found != (preset.slots, 2, preset.degree, 1, 2.0**preset.scale_bits, True):
        raise Malformed(f"a ciphertext has other parameters than preset {preset.name!r}")
    return vector
