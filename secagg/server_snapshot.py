"""The state of a server as bytes, and back: a round that outlives the process that began it.

The state is sealed like a client's: what is in it the server knows anyway, but whoever changes an
accumulator changes the sum, and whoever reads it learns seeds and shares that were opened to the
server alone. It is saved whenever a stage opens, before its requests leave: a coordinator that
forgot them would close the stage before over other replies and sign a second list, which is what
clients must take for equivocation. Uploads are in it as their running sum only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np

from secagg.attendance import Page
from secagg.errors import CorruptState, SecAggError
from secagg.keys import KEY_BYTES
from secagg.messages import Bundle
from secagg.params import RoundParams
from secagg.prg import LANE_TYPES
from secagg.ring import Lanes
from secagg.roundlog import RevealEntry
from secagg.sealed_state import Vault

_Key = Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
_Point = Annotated[int, msgspec.Meta(ge=1, lt=2**16)]


class ServerSnapshot(
    msgspec.Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True
):
    """A server in the middle of a stage.

    Attributes:
        params: the round's parameters.
        page: who is expected, who answered, who is gone.
        lanes: {lane: the accumulator as bytes}; empty while nothing was added.
        adverts: table of the cohort's keys; the views follow from it and what is below.
        bundles: {id: what it dealt}, until it is sent on.
        dealt: table of what was dealt, without the shares.
        uploads: table of the accepted uploads' digests.
        confirmations: table of the confirmations.
        reveals: what was opened, without the values.
        seeds: {id: its self-mask seed, as it revealed it}.
        opened: {owner: {evaluation point of the holder: the share it opened}}.
    """

    params: RoundParams
    page: Page
    lanes: dict[int, bytes]
    adverts: bytes = b""
    bundles: dict[int, Bundle] = {}
    dealt: bytes = b""
    uploads: bytes = b""
    confirmations: bytes = b""
    reveals: list[RevealEntry] = []
    seeds: dict[int, _Key] = {}
    opened: dict[int, dict[_Point, _Key]] = {}

    def __repr__(self) -> str:
        return "ServerSnapshot"


@dataclass(frozen=True, slots=True)
class ServerStore:
    """Where a server keeps its state: how it is sealed, and who makes it durable."""

    vault: Vault
    save: Callable[[bytes], None]

    def seal(self, snapshot: ServerSnapshot) -> bytes:
        """The state under seal.

        Raises:
            ConfigurationError: longer than one seal can be.
        """
        params = snapshot.params
        content = msgspec.msgpack.encode(snapshot)
        return self.vault.seal(content, run_id=params.run_id, sequence=params.sequence)


def unseal_server(vault: Vault, saved: bytes) -> ServerSnapshot:
    """What `ServerStore.seal` was given.

    Raises:
        CorruptState: not a server's state, or of an unknown version.
        BadSeal: changed, cut short, or sealed under another key.
    """
    opened = vault.unseal(saved)
    try:
        snapshot = msgspec.msgpack.decode(opened.content, type=ServerSnapshot)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, SecAggError) as error:
        raise CorruptState(f"the stored state does not decode: {error}") from error
    params = snapshot.params
    if (params.run_id, params.sequence) != (opened.run_id, opened.sequence):
        raise CorruptState("the stored state is labelled as another round than it holds")
    return snapshot


def freeze_lanes(lanes: Lanes, added: Sized) -> dict[int, bytes]:
    """The accumulators as bytes; none while nothing was `added` to them."""
    return {lane: words.tobytes() for lane, words in lanes.items()} if added else {}


def thaw_lanes(stored: Mapping[int, bytes], params: RoundParams, added: Sized) -> Lanes:
    """The accumulators that `freeze_lanes` was given, for a round with these parameters.

    Raises:
        CorruptState: they are of another length.
    """
    lanes = params.plan.zeros()
    expected = {lane: words.nbytes for lane, words in lanes.items()} if added else {}
    if {lane: len(words) for lane, words in stored.items()} != expected:
        raise CorruptState("the stored accumulators are not those of the round's layout")
    for lane, words in stored.items():
        lanes[lane][:] = np.frombuffer(words, LANE_TYPES[lane])
    return lanes
