"""A holder for secret bytes that never prints them and can be overwritten.

Python may have copied the bytes elsewhere (immutable `bytes`, OpenSSL objects, swapped pages), so
`erase` shortens the life of a secret and does not prove that it is gone.
"""

from __future__ import annotations

from collections.abc import Callable

RandomSource = Callable[[int], bytes]
"""Returns that many unpredictable bytes; `os.urandom` everywhere but in tests."""


class Secret:
    """Secret bytes; `reveal` reads them, `erase` overwrites them."""

    __slots__ = ("_buffer",)

    def __init__(self, value: bytes) -> None:
        self._buffer = bytearray(value)

    def reveal(self) -> bytes:
        """A copy of the bytes; empty after `erase`."""
        return bytes(self._buffer)

    def erase(self) -> None:
        """Overwrites and empties the buffer."""
        self._buffer[:] = bytes(len(self._buffer))
        self._buffer.clear()

    def __repr__(self) -> str:
        return "Secret"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a Secret cannot be pickled")
