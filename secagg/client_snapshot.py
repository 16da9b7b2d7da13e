"""The whole state of a masking client as bytes, and back: what lets its process be restarted.

A snapshot holds the marks and the one running round: parameters, views, secrets that are still
needed, and what was answered, with the last reply in full. The reply is in it because the identical
request must get the identical reply also after a restart; the upload is the only long one, and the
snapshot of the next stage no longer holds it. Nothing leaves while an update is awaited, so that
moment has no record: a client restarted then is back at the state before it.

What was sealed by this client is believed, but not blindly: a state that does not fit together is
refused here, and not found out about in the middle of a round.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec

from secagg.dealing import HeldShares
from secagg.digests import DIGEST_BYTES
from secagg.errors import CorruptState, SecAggError, StaleState
from secagg.keys import KEY_BYTES, AgreementKey
from secagg.latch import Answered, Latches
from secagg.marks import Marks
from secagg.masking_states import (
    Advertised,
    Collecting,
    Confirmed,
    Dealt,
    Ended,
    Round,
    State,
    Uploaded,
)
from secagg.messages import AdvertRow, from_table, to_table
from secagg.params import RoundParams
from secagg.sealed_state import Opened, Vault
from secagg.secret import Secret
from secagg.shamir import is_element
from secagg.views import Cohort, Sharers, Survivors

_Key = Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
_Digest = Annotated[bytes, msgspec.Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]


class _Hidden(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A record whose values are not for printing."""

    def __repr__(self) -> str:
        return type(self).__name__


class _Advertised(_Hidden, frozen=True, array_like=True, forbid_unknown_fields=True, tag=0):
    mask_key: _Key
    share_key: _Key


class _Dealt(_Hidden, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    mask_key: _Key
    seed: _Key
    read_keys: dict[int, _Key]


class _Uploaded(_Hidden, frozen=True, array_like=True, forbid_unknown_fields=True, tag=2):
    seed: _Key
    held: dict[int, tuple[_Key, _Key]]
    upload: _Digest


class _Confirmed(_Hidden, frozen=True, array_like=True, forbid_unknown_fields=True, tag=3):
    seed: _Key
    held: dict[int, tuple[_Key, _Key]]


class _Ended(_Hidden, frozen=True, array_like=True, forbid_unknown_fields=True, tag=4):
    pass


_Secrets: TypeAlias = _Advertised | _Dealt | _Uploaded | _Confirmed | _Ended


class _Snapshot(_Hidden, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Marks and running round; a view that is not fixed yet is nil."""

    marks: Marks
    params: RoundParams
    secrets: _Secrets
    answered: list[Answered]
    adverts: bytes | None
    sharers: bytes | None
    survivors: tuple[_Digest, tuple[int, ...]] | None


def seal_client(vault: Vault, marks: Marks, running: Round) -> bytes:
    """The state of a client, to be made durable before its reply leaves.

    Raises:
        ConfigurationError: longer than one seal can be.
    """
    cohort, sharers, survivors = running.cohort, running.sharers, running.survivors
    snapshot = _Snapshot(
        marks=marks,
        params=running.params,
        secrets=_freeze(running.state),
        answered=running.latches.answered,
        adverts=None if cohort is None else to_table(cohort.adverts.values()),
        sharers=None if sharers is None else sharers.bitmap,
        survivors=None if survivors is None else (survivors.digest, survivors.ids),
    )
    return vault.seal(
        msgspec.msgpack.encode(snapshot),
        run_id=running.params.run_id,
        sequence=running.params.sequence,
    )


def unseal_client(vault: Vault, saved: bytes, client: int) -> tuple[Marks, Round]:
    """What `seal_client` was given, for this client.

    Raises:
        CorruptState: not a client's state, of an unknown version, of another client, or one that
            does not fit together.
        BadSeal: changed, cut short, or sealed under another key.
        StaleState: its own marks are above its round.
    """
    opened = vault.unseal(saved)
    try:
        snapshot = msgspec.msgpack.decode(opened.content, type=_Snapshot)
        running = _thaw(snapshot, client)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, SecAggError) as error:
        raise CorruptState(f"the stored state does not decode: {error}") from error
    _check_header(snapshot.params, opened)
    check_not_below(snapshot.marks, running.params)
    return snapshot.marks, running


def check_not_below(marks: Marks, params: RoundParams) -> None:
    """Returns if a round is the newest one that its client began in that run.

    Raises:
        StaleState: the marks name a newer one.
        CorruptState: they do not know the round.
    """
    mark = marks.runs.get(params.run_id)
    if mark is None or mark.sequence < params.sequence:
        raise CorruptState(f"the stored round {params.sequence} was never marked as begun")
    if mark.sequence > params.sequence:
        raise StaleState(
            f"the stored round {params.sequence} is below {mark.sequence}, the last one begun: an "
            "old state was put back; give the newer marks as the saved state to go on without it"
        )


def _check_header(params: RoundParams, opened: Opened) -> None:
    if (params.run_id, params.sequence) != (opened.run_id, opened.sequence):
        raise CorruptState("the stored state is labelled as another round than it holds")


# Secrets ------------------------------------------------------------------------------------


def _freeze(state: State) -> _Secrets:
    match state:
        case Advertised():
            return _Advertised(state.mask_key.private(), state.share_key.private())
        case Dealt():
            read_keys = {peer: key.reveal() for peer, key in state.read_keys.items()}
            return _Dealt(state.mask_key.private(), state.seed.reveal(), read_keys)
        case Uploaded():
            return _Uploaded(state.seed.reveal(), _freeze_held(state.held), state.upload)
        case Confirmed():
            return _Confirmed(state.seed.reveal(), _freeze_held(state.held))
        case Ended():
            return _Ended()
        case Collecting():
            raise TypeError("nothing leaves while an update is awaited, so nothing is stored")


def _freeze_held(held: dict[int, HeldShares]) -> dict[int, tuple[bytes, bytes]]:
    return {peer: (one.seed.reveal(), one.mask_key.reveal()) for peer, one in held.items()}


def _thaw(snapshot: _Snapshot, client: int) -> Round:
    """The round of a snapshot, with its views computed anew from what they rest on."""
    params = snapshot.params
    cohort = sharers = survivors = None
    if snapshot.adverts is not None:
        cohort = Cohort.of(params, from_table(AdvertRow, snapshot.adverts))
        if client not in cohort.ids:
            raise CorruptState("the cohort does not hold this client")
    if cohort is not None and snapshot.sharers is not None:
        sharers = Sharers.from_bitmap(cohort, snapshot.sharers)
    if snapshot.survivors is not None:
        survivors = Survivors(*snapshot.survivors)
    running = Round(params, _thaw_state(snapshot, client, cohort, sharers, survivors))
    running.latches = Latches.of(snapshot.answered)
    running.cohort, running.sharers, running.survivors = cohort, sharers, survivors
    return running


def _thaw_state(
    snapshot: _Snapshot,
    client: int,
    cohort: Cohort | None,
    sharers: Sharers | None,
    survivors: Survivors | None,
) -> State:
    match snapshot.secrets:
        case _Advertised(mask_key, share_key) if cohort is None:
            return Advertised(AgreementKey(mask_key), AgreementKey(share_key))
        case _Dealt(mask_key, seed, read_keys) if cohort is not None and sharers is None:
            if set(read_keys) == set(cohort.neighbours(client)):
                readers = {peer: Secret(key) for peer, key in read_keys.items()}
                return Dealt(cohort, AgreementKey(mask_key), Secret(seed), readers)
        case _Uploaded(seed, held, upload) if cohort and sharers and survivors is None:
            shares = _thaw_held(held, cohort, sharers, client)
            return Uploaded(cohort, Secret(seed), sharers, shares, upload)
        case _Confirmed(seed, held) if cohort and sharers and survivors:
            shares = _thaw_held(held, cohort, sharers, client)
            return Confirmed(cohort, Secret(seed), sharers, shares, survivors)
        case _Ended():
            return Ended()
    raise CorruptState("secrets and views are of different stages")


def _thaw_held(
    held: dict[int, tuple[bytes, bytes]], cohort: Cohort, sharers: Sharers, client: int
) -> dict[int, HeldShares]:
    if not set(held) <= set(cohort.neighbours(client)) & set(sharers.ids):
        raise CorruptState("shares are held of clients that dealt none")
    if not all(is_element(value) for pair in held.values() for value in pair):
        raise CorruptState("something other than shares is held")
    return {peer: HeldShares(Secret(one), Secret(two)) for peer, (one, two) in held.items()}
