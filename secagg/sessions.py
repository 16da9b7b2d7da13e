"""The doors of the package: sessions for a client, for a round, and for the set-up of a key."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection

from secagg.api import ClientSession, ServerSession
from secagg.ckks_client import CKKSClient
from secagg.ckks_key_server import KeySetupServer
from secagg.ckks_presets import preset_for, preset_named
from secagg.ckks_scheme import library_version
from secagg.ckks_server import CKKSServer
from secagg.ckks_terms import KeyTerms
from secagg.errors import UnknownIdentity
from secagg.keys import SignatureCache, SigningKey
from secagg.marks import Marks
from secagg.masking_client import MaskingClient
from secagg.masking_server import MaskingServer
from secagg.params import Mode, RoundParams
from secagg.participant import Participant
from secagg.plain import PlainClient, PlainServer
from secagg.policy import MIN_MASKED_CLIENTS, Policy
from secagg.roster import Identity, Roster
from secagg.secret import RandomSource

_CLIENTS: dict[Mode, type[PlainClient] | type[MaskingClient] | type[CKKSClient]] = {
    Mode.PLAIN: PlainClient,
    Mode.MASKING: MaskingClient,
    Mode.CKKS: CKKSClient,
}
_SERVERS: dict[Mode, type[PlainServer] | type[MaskingServer] | type[CKKSServer]] = {
    Mode.PLAIN: PlainServer,
    Mode.MASKING: MaskingServer,
    Mode.CKKS: CKKSServer,
}


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
    return _CLIENTS[mode](
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
    return _SERVERS[params.mode](params, coordinator, roster, cache=signature_cache)


def open_key_setup(
    *,
    coordinator: SigningKey,
    roster: Roster,
    run_id: bytes,
    sequence: int,
    invited: Collection[int] | None = None,
    preset: str | None = None,
    n_min: int = MIN_MASKED_CLIENTS,
    signature_cache: SignatureCache | None = None,
) -> KeySetupServer:
    """A session that leaves a fresh CKKS key with the clients and none of it with the server.

    Args:
        coordinator: the key that the roster names.
        roster: the same file the clients hold.
        run_id: of the run whose rounds will use the key.
        sequence: above every earlier one of the run, rounds included.
        invited: ids; everybody in the roster by default.
        preset: a name of `PRESETS`; by default the smallest that adds up all those invited.
        n_min: the fewest clients that must hold the key.
        signature_cache: for simulations only.

    Raises:
        ConfigurationError: no preset adds up so many clients, or there is none of that name.
        UnknownIdentity: `coordinator` is not the roster's.
    """
    chosen = roster.ids if invited is None else tuple(invited)
    terms = KeyTerms.for_key(
        roster=roster,
        preset=preset_for(len(chosen)) if preset is None else preset_named(preset),
        library=library_version(),
        sequence=sequence,
        run_id=run_id,
        invited=chosen,
        n_min=n_min,
    )
    return KeySetupServer(terms, coordinator, roster, cache=signature_cache)
