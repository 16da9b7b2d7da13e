"""Edits of public logs that the tests of every mode make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from hypothesis import strategies as st

from secagg.messages import from_table, to_table

NOISE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 2**40)
    | st.binary(max_size=70)
    | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=16),
    max_leaves=30,
)
"""Structures of the wrong kind."""


def rows_edit(field: str, kind: type, edit: Callable[[Any, list[Any]], Any]) -> Callable[..., Any]:
    """What changes the rows of one table: `edit(logged, rows)` returns those to put in place."""

    def apply(logged: Any) -> Any:
        rows = from_table(kind, getattr(logged.log, field))
        return msgspec.structs.replace(logged.log, **{field: to_table(edit(logged, rows))})

    return apply


def changed(rows: list[Any], place: int, **values: Any) -> list[Any]:
    """The rows with other values in one of them."""
    return [*rows[:place], rows[place]._replace(**values), *rows[place + 1 :]]


def with_noise(raw: bytes, data: Any) -> bytes:
    """A log of which one field, or one of its parameters, is replaced by something else."""
    fields = msgspec.msgpack.decode(raw[5:])
    target = data.draw(st.sampled_from([fields, fields[0]]))
    target[data.draw(st.integers(0, len(target) - 1))] = data.draw(NOISE)
    return raw[:5] + msgspec.msgpack.encode(fields)


def damaged(raw: bytes, data: Any, first: int) -> bytes:
    """A log with one to three bytes from `first` on changed, perhaps cut in half."""
    bad = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 3))):
        bad[data.draw(st.integers(first, len(bad) - 1))] ^= data.draw(st.integers(1, 255))
    return bytes(bad[: data.draw(st.sampled_from([len(bad), len(bad) // 2]))])
