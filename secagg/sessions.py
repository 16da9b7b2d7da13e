"""The doors of the package: sessions for a client, for a round, and for the set-up of a key."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection

from secagg.api import ClientSession, RestartableServer, ServerSession
from secagg.ckks_client import CKKSClient
from secagg.ckks_key_server import KeySetupServer
from secagg.ckks_presets import preset_for, preset_named
from secagg.ckks_scheme import library_version
from secagg.ckks_server import CKKSServer
from secagg.ckks_terms import KeyTerms
from secagg.client_snapshot import check_not_below, unseal_client
from secagg.errors import ConfigurationError, CorruptState, UnknownIdentity
from secagg.keys import SignatureCache, SigningKey
from secagg.marks import Marks
from secagg.masking_client import MaskingClient
from secagg.masking_server import MaskingServer
from secagg.masking_states import Round
from secagg.params import Mode, RoundParams
from secagg.participant import Participant
from secagg.plain import PlainClient, PlainServer
from secagg.policy import MIN_MASKED_CLIENTS, Policy
from secagg.roster import COORDINATOR_ID, Identity, Roster
from secagg.sealed_state import Vault, is_sealed
from secagg.secret import RandomSource
from secagg.server_snapshot import ServerStore, unseal_server

_SERVERS: dict[Mode, type[PlainServer] | type[MaskingServer] | type[CKKSServer]] = {
    Mode.PLAIN: PlainServer,
    Mode.MASKING: MaskingServer,
    Mode.CKKS: CKKSServer,
}
_RESTARTABLE: dict[Mode, type[MaskingServer] | type[PlainServer]] = {
    Mode.MASKING: MaskingServer,
    Mode.PLAIN: PlainServer,
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
    state_key: bytes | None = None,
    marks: bytes = b"",
) -> ClientSession:
    """A session for one client, good for all rounds of its process.

    Args:
        mode: how its updates are protected.
        identity: its id and signing key.
        roster: the trust anchor, obtained out of band.
        policy: its floors.
        save: makes bytes durable before it returns; called before keys of a new sequence leave
            and, with a `state_key`, before any reply does.
        saved: what `save` was last given, by this process or an earlier one; empty the first time.
            Never an older one, and never the same one to two sessions: `docs/secagg.md` says what
            that would give away.
        random: secret randomness; the operating system outside tests.
        signature_cache: for simulations only, where all clients run in one process.
        keep_replies: whether the last reply is kept for a repeated request. A simulation that
            loses no message turns it off and holds no upload in memory.
        state_key: 32 random bytes that this client keeps in a file only it can read. With them the
            whole state of a masked round is sealed and saved, so that another process can go on
            with it; without them a process that ends loses its round. The other modes seal nothing,
            and need them only to read what masking left.
        marks: `marks_of` an earlier state, kept in a second place: an older `saved` is refused.

    Raises:
        CorruptState: `saved` is not what `save` was given, or holds sealed state and there is no
            `state_key`.
        BadSeal: `saved` was changed or cut short, or sealed under another key.
        StaleState: `saved` holds a round below `marks`.
        ConfigurationError: `state_key` is not 32 bytes, or replies are not to be kept with it.
        UnknownIdentity: the identity is not in the roster, or has another key there.
    """
    if roster.key_of(identity.id) != identity.key.public:
        raise UnknownIdentity(f"client {identity.id}: the roster holds another key for it")
    participant = Participant(
        identity=identity, roster=roster, policy=policy, save=save, cache=signature_cache
    )
    vault = None if state_key is None else Vault(state_key, identity.id)
    known, restored = _read(saved, vault, identity.id)
    if marks:
        known = known.joined(Marks.from_bytes(marks))
    if mode is not Mode.MASKING:
        direct = CKKSClient if mode is Mode.CKKS else PlainClient
        return direct(participant, marks=known, random=random, keep_replies=keep_replies)
    if vault is not None and not keep_replies:
        raise ConfigurationError("a state key needs keep_replies: a restart must not lose a reply")
    if restored is not None:
        check_not_below(known, restored.params)
    return MaskingClient(
        participant,
        marks=known,
        random=random,
        keep_replies=keep_replies,
        vault=vault,
        restored=restored,
    )


def marks_of(saved: bytes, *, client_id: int, state_key: bytes | None = None) -> bytes:
    """The marks in what `save` was given: to keep in a second place, or to give a round up.

    Raises:
        CorruptState, BadSeal, StaleState, ConfigurationError: as `open_client`.
    """
    vault = None if state_key is None else Vault(state_key, client_id)
    return _read(saved, vault, client_id)[0].to_bytes()


def _read(saved: bytes, vault: Vault | None, client_id: int) -> tuple[Marks, Round | None]:
    if not saved:
        return Marks(), None
    if not is_sealed(saved):
        return Marks.from_bytes(saved), None
    if vault is None:
        raise CorruptState("the saved state is sealed: give the state key it was sealed with")
    return unseal_client(vault, saved, client_id)


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


def open_restartable_server(
    params: RoundParams,
    *,
    coordinator: SigningKey,
    roster: Roster,
    state_key: bytes,
    save: Callable[[bytes], None],
    signature_cache: SignatureCache | None = None,
) -> RestartableServer:
    """A session for one round that another process can go on with.

    Args:
        params: the round's parameters; its mode decides the protocol.
        coordinator: the key that the roster names.
        roster: the same file the clients hold.
        state_key: 32 random bytes that the coordinator keeps in a file only it can read.
        save: makes the sealed state durable before it returns; called before the requests of a
            stage leave, since a coordinator that forgot them would sign other ones.
        signature_cache: for simulations only.

    Raises:
        UnknownIdentity: `coordinator` is not the roster's.
        WrongRound: the parameters name another roster.
        ConfigurationError: `state_key` is not 32 bytes, or the mode is one that cannot be restarted.
    """
    store = ServerStore(Vault(state_key, COORDINATOR_ID), save)
    kind = _restartable(params.mode)
    return kind(params, coordinator, roster, cache=signature_cache, store=store)


def restore_server(
    saved: bytes,
    *,
    coordinator: SigningKey,
    roster: Roster,
    state_key: bytes,
    save: Callable[[bytes], None],
    signature_cache: SignatureCache | None = None,
) -> RestartableServer:
    """Goes on with a round from what `save` was last given, or from a `snapshot`.

    `pending()` of the result says what to send again, and to whom.

    Args:
        saved: the newest of those bytes.
        coordinator: as when the round was opened.
        roster: as when the round was opened.
        state_key: as when the round was opened.
        save: as when the round was opened.
        signature_cache: for simulations only.

    Raises:
        CorruptState: not a server's state, or of an unknown version.
        BadSeal: changed, cut short, or sealed under another key.
        UnknownIdentity, WrongRound: the coordinator's key or the roster is another.
        ConfigurationError: `state_key` is not 32 bytes.
    """
    store = ServerStore(Vault(state_key, COORDINATOR_ID), save)
    snapshot = unseal_server(store.vault, saved)
    kind = _restartable(snapshot.params.mode)
    server = kind(snapshot.params, coordinator, roster, cache=signature_cache, store=store)
    server.resume(snapshot)
    return server


def _restartable(mode: Mode) -> type[MaskingServer] | type[PlainServer]:
    kind = _RESTARTABLE.get(mode)
    if kind is None:
        raise ConfigurationError(f"a server of mode {mode.name} cannot be restarted: open_server")
    return kind


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
