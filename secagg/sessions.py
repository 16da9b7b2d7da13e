"""The two doors of the package: one session for a client, one for a round of the server."""

from __future__ import annotations

import os
from collections.abc import Callable

from secagg.api import ClientSession, ServerSession
from secagg.errors import UnknownIdentity
from secagg.keys import SignatureCache, SigningKey
from secagg.marks import Marks
from secagg.masking_client import MaskingClient
from secagg.masking_server import MaskingServer
from secagg.params import Mode, RoundParams
from secagg.participant import Participant
from secagg.plain import PlainClient, PlainServer
from secagg.policy import Policy
from secagg.roster import Identity, Roster
from secagg.secret import RandomSource


def open_client(
    mode: Mode,
    *,
    identity: Identity,
    roster: Roster,
    policy: Policy,
    save: Callable[[bytes], None],
    saved: bytes = b"",
    random: RandomSource = os.urandom,
    signature_cache: SignatureCache | None = None,
    keep_replies: bool = True,
) -> ClientSession:
    """A session for one client, good for all rounds of its process.

    Args:
        mode: how its updates are protected.
        identity: its id and signing key.
        roster: the trust anchor, obtained out of band.
        policy: its floors.
        save: makes bytes durable before it returns; called before keys of a new sequence leave.
        saved: what `save` was last given, by this process or an earlier one; empty the first time.
        random: secret randomness; the operating system outside tests.
        signature_cache: for simulations only, where all clients run in one process.
        keep_replies: whether the last reply is kept for a repeated request. A simulation that
            loses no message turns it off and holds no upload in memory.

    Raises:
        CorruptState: `saved` is not what `save` was given.
        UnknownIdentity: the identity is not in the roster, or has another key there.
    """
    if roster.key_of(identity.id) != identity.key.public:
        raise UnknownIdentity(f"client {identity.id}: the roster holds another key for it")
    participant = Participant(
        identity=identity, roster=roster, policy=policy, save=save, cache=signature_cache
    )
    kind = MaskingClient if mode is Mode.MASKING else PlainClient
    return kind(
        participant,
        marks=Marks.from_bytes(saved) if saved else Marks(),
        random=random,
        keep_replies=keep_replies,
    )


def open_server(
    params: RoundParams,
    *,
    coordinator: SigningKey,
    roster: Roster,
    signature_cache: SignatureCache | None = None,
) -> ServerSession:
    """A session for one round.

    Args:
        params: the round's parameters; its mode decides the protocol.
        coordinator: the key that the roster names.
        roster: the same file the clients hold.
        signature_cache: for simulations only.

    Raises:
        UnknownIdentity: `coordinator` is not the roster's.
        WrongRound: the parameters name another roster.
    """
    kind = MaskingServer if params.mode is Mode.MASKING else PlainServer
    return kind(params, coordinator, roster, cache=signature_cache)
