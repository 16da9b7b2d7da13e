"""What an active server, or a client on its side, tries; each attack with a positive control.

The server here holds the coordinator's key and signs whatever it likes (`Liar`). A *control* is the
same attack against a client with one check taken out, which must succeed: it shows that the attack
is a real one and that this check is what stops it.
"""

import itertools
import os
from collections.abc import Iterable

import numpy as np
import pytest

import secagg.masking_client
from secagg import RoundAborted, Stage
from secagg.aead import unseal
from secagg.dealing import HeldShares, seal_key
from secagg.digests import (
    advert_statement,
    bundle_statement,
    commitment,
    confirm_statement,
    enc,
    u16,
    u32,
    upload_statement,
)
from secagg.errors import (
    BadAdvert,
    BadSignature,
    Equivocation,
    Latched,
    Malformed,
    NonCanonical,
    Oversized,
    ReconstructionFailed,
    SecAggError,
    SumOutOfRange,
    TooFewClients,
    TooFewReplies,
    TooFewSurvivors,
    UnknownIdentity,
    UnsupportedVersion,
    ViewMismatch,
    WrongRound,
    WrongStage,
)
from secagg.fixedpoint import encode_update
from secagg.keys import AgreementKey
from secagg.latch import Latches
from secagg.masking_client import MaskingClient
from secagg.masking_states import Uploaded
from secagg.masks import add_pair_mask, add_self_mask
from secagg.messages import (
    HEADER,
    Advert,
    AdvertRow,
    Bundle,
    Collect,
    Confirm,
    ConfirmRow,
    Reveal,
    RevealRequest,
    ShareRow,
    SurvivorRow,
    Upload,
    decode,
    encode,
    from_table,
)
from secagg.secret import Secret
from secagg.shamir import combine
from secagg.views import ShareKind

LIMIT = 1 << 20


def signature_of(message: bytes, kind: type) -> bytes:
    return decode(message, kind, limit=LIMIT).signature


def reveal_of(message: bytes) -> Reveal:
    return decode(message, Reveal, limit=LIMIT)


class Attack:
    """An honest run up to a stage, everything of it recorded, and then a liar takes over."""

    def __init__(self, world, liar, clients, *, silent: Iterable[int] = ()):
        self.world, self.clients = world, clients
        self.server = world.server()
        self.lie = liar(world, self.server.params)
        self.uploads: dict[int, bytes] = {}
        for client, request in world.run_until(Stage.UPLOAD, clients, self.server).items():
            message = world.answer(clients[client], request)
            self.uploads[client] = message
            if client not in silent:
                self.server.receive(client, message)
        self.server.close_stage()
        self.cohort, self.sharers = self.server.cohort, self.server.sharers
        self.rows = {
            client: SurvivorRow(
                client, clients[client]._round.state.upload, signature_of(message, Upload)
            )
            for client, message in self.uploads.items()
        }

    def confirm(self, client: int, survivors: Iterable[int]) -> bytes:
        _, request = self.lie.survivors(self.sharers, [self.rows[i] for i in survivors])
        return self.clients[client].handle(request).message

    def reveal(
        self, client: int, survivors: Iterable[int], signers: Iterable[ConfirmRow]
    ) -> Reveal:
        view, _ = self.lie.survivors(self.sharers, [self.rows[i] for i in survivors])
        return reveal_of(self.clients[client].handle(self.lie.reveal(view, signers)).message)

    def confirmed(self, client: int, survivors: Iterable[int]) -> ConfirmRow:
        return ConfirmRow(client, signature_of(self.confirm(client, survivors), Confirm))

    def secret(self, reveals: dict[int, Reveal], owner: int, kind: ShareKind) -> bytes:
        """The secret of `owner` rebuilt from every share of it that was revealed."""
        shares = {
            self.cohort.points[holder]: row.value
            for holder, reveal in reveals.items()
            for row in from_table(ShareRow, reveal.shares)
            if (row.client, row.kind) == (owner, kind)
        }
        assert len(shares) >= self.cohort.threshold
        chosen = dict(itertools.islice(shares.items(), self.cohort.threshold))
        return combine(chosen)

    def unmask(self, clients, seeds: dict[int, bytes], keys: dict[int, bytes]):
        """The sum over `clients`, given their seeds and the mask keys of all other sharers."""
        lanes = self.server.params.plan.zeros()
        for client in clients:
            upload = decode(self.uploads[client], Upload, limit=LIMIT)
            self.server.params.plan.add_body(lanes, upload.body)
            add_self_mask(lanes, seeds[client], self.sharers.digest, client, subtract=True)
        for other, private in keys.items():
            for client in clients:
                peer = self.cohort.adverts[client].mask_key
                agreed = AgreementKey(private).agree(peer, peer_id=client)
                add_pair_mask(lanes, agreed, self.sharers.digest, client, other, subtract=True)
        return self.server.params.plan.decode(lanes, len(list(clients)))

    def assert_found(self, sums, clients):
        for name, total in self.world.total(clients).items():
            assert np.array_equal(sums[name], total)


class Forgetful(MaskingClient):
    """Without the latch: it can be taken back to the moment after its upload."""

    def rewind(self) -> None:
        running = self._round
        running.state = self.kept
        running.latches = Latches(keep_replies=False)
        self.remember()

    def remember(self) -> None:
        state = self._round.state
        held = {
            owner: HeldShares(Secret(one.seed.reveal()), Secret(one.mask_key.reveal()))
            for owner, one in state.held.items()
        }
        seed = Secret(state.seed.reveal())
        self.kept = Uploaded(state.cohort, seed, state.sharers, held, state.upload)


class Unconfirmed(MaskingClient):
    """Without the confirmation stage: it opens shares for any list it was shown."""

    def _check_confirmations(self, state, rows):
        pass


class Unlimited(Unconfirmed):
    """Without floors on the list of survivors either."""

    def _check_survivors(self, params, state, rows):
        pass


class Credulous(MaskingClient):
    """Without the check of adverts against the roster."""

    def _check_adverts(self, params, cohort):
        pass


class Unquestioning(MaskingClient):
    """Without the check that every upload was made under the same list of sharers."""

    def _check_uploads(self, view, rows):
        pass


class Unbound(MaskingClient):
    """Without the comparison of the model it received with the round's context."""

    def _check_context(self, params, context):
        pass


# Both secrets of one victim -----------------------------------------------------------------


def test_both_shares_control_a_client_without_latch_gives_away_its_neighbours_update(
    federation, liar
):
    world = federation(6)
    attack = Attack(world, liar, world.clients(Forgetful))
    victim, others = 10, world.ids[1:]
    reveals = {}
    for survivors in (world.ids, others):
        for client in others:
            attack.clients[client].remember()
        signers = [attack.confirmed(client, survivors) for client in others]
        for client in others:
            reveals[client, survivors] = attack.reveal(client, survivors, signers)
            attack.clients[client].rewind()
    first = {client: reveals[client, world.ids] for client in others}
    second = {client: reveals[client, others] for client in others}
    seed = attack.secret(first, victim, ShareKind.SEED)
    key = attack.secret(second, victim, ShareKind.MASK_KEY)
    lanes = attack.server.params.plan.zeros()
    attack.server.params.plan.add_body(
        lanes, decode(attack.uploads[victim], Upload, limit=LIMIT).body
    )
    add_self_mask(lanes, seed, attack.sharers.digest, victim, subtract=True)
    for peer in others:
        agreed = AgreementKey(key).agree(attack.cohort.adverts[peer].mask_key, peer_id=peer)
        add_pair_mask(lanes, agreed, attack.sharers.digest, victim, peer, subtract=True)
    attack.assert_found(attack.server.params.plan.decode(lanes, 1), [victim])


def test_both_shares_of_a_victim_are_never_opened(federation, liar):
    world = federation(6)
    attack = Attack(world, liar, world.clients())
    others = world.ids[1:]
    signers = [attack.confirmed(client, world.ids) for client in others]
    for client in others:
        reveal = attack.reveal(client, world.ids, signers)
        kinds = {row.client: row.kind for row in from_table(ShareRow, reveal.shares)}
        assert kinds[10] == ShareKind.SEED
        with pytest.raises(Equivocation):
            attack.confirm(client, others)
        with pytest.raises(SecAggError):
            attack.reveal(client, others, signers)


def test_no_request_can_name_a_share(federation):
    """The kind follows from the two lists; there is no field in which to ask for another."""
    assert RevealRequest.__struct_fields__ == ("confirmations", "signature")


# Split view of the survivors ----------------------------------------------------------------


def split_views(ids):
    """A list for each of 12 clients that leaves out 5, such that 8 are left out by 7 clients each.

    Every list has 7 members, as many as the threshold without colluders asks for, and yet only the
    four last clients are in enough of the lists.
    """
    outside, inside = ids[:8], ids[8:]
    views = {}
    for place, client in enumerate(outside):
        gone = {outside[(place + step) % 8] for step in range(1, 6)}
        views[client] = [i for i in ids if i not in gone]
    for place, client in enumerate(inside):
        gone = {outside[(2 * place + step) % 8] for step in range(5)}
        views[client] = [i for i in ids if i not in gone]
    return views, inside, outside


def test_split_survivors_control_without_confirmations_a_sum_below_the_threshold_opens(
    federation, liar
):
    world = federation(12, colluders=0)
    attack = Attack(world, liar, world.clients(Unconfirmed))
    views, inside, outside = split_views(world.ids)
    assert attack.cohort.threshold == 7
    reveals = {}
    for client, view in views.items():
        attack.confirm(client, view)
        reveals[client] = attack.reveal(client, view, [])
    seeds = {i: attack.secret(reveals, i, ShareKind.SEED) for i in inside}
    keys = {i: attack.secret(reveals, i, ShareKind.MASK_KEY) for i in outside}
    attack.assert_found(attack.unmask(inside, seeds, keys), inside)


def test_split_survivors_reach_no_quorum_and_open_nothing(federation, liar):
    world = federation(12, colluders=0)
    attack = Attack(world, liar, world.clients())
    views, _, _ = split_views(world.ids)
    signed = {client: attack.confirmed(client, view) for client, view in views.items()}
    for client, view in views.items():
        alike = [signed[i] for i, other in views.items() if other == view]
        with pytest.raises(TooFewReplies):
            attack.reveal(client, view, alike)


def test_confirmations_of_another_list_do_not_count(federation, liar):
    world = federation(12, colluders=0)
    attack = Attack(world, liar, world.clients())
    views, _, _ = split_views(world.ids)
    signed = {client: attack.confirmed(client, view) for client, view in views.items()}
    for client, view in views.items():
        with pytest.raises(BadSignature):
            attack.reveal(client, view, [signed[i] for i in view])


def test_one_confirmation_repeated_is_not_a_quorum(federation, liar):
    world = federation(6)
    attack = Attack(world, liar, world.clients())
    signed = attack.confirmed(10, world.ids)
    with pytest.raises(NonCanonical):
        attack.reveal(10, world.ids, [signed] * 4)


# A single survivor --------------------------------------------------------------------------


def test_single_survivor_control_without_floors_one_update_opens(federation, liar):
    world = federation(6)
    attack = Attack(world, liar, world.clients(Unlimited))
    victim, others = 10, world.ids[1:]
    reveals = {}
    for client in world.ids:
        attack.confirm(client, [victim])
        reveals[client] = attack.reveal(client, [victim], [])
    keys = {i: attack.secret(reveals, i, ShareKind.MASK_KEY) for i in others}
    sums = attack.unmask([victim], {victim: reveals[victim].seed}, keys)
    attack.assert_found(sums, [victim])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_list_of_fewer_survivors_than_the_threshold_is_refused(federation, liar, size):
    world = federation(6)
    attack = Attack(world, liar, world.clients())
    with pytest.raises(TooFewSurvivors):
        attack.confirm(10, world.ids[:size])


def test_a_list_of_survivors_without_oneself_is_refused(federation, liar):
    world = federation(6)
    attack = Attack(world, liar, world.clients())
    with pytest.raises(ViewMismatch):
        attack.confirm(10, world.ids[1:])


# Invented survivors and split view of the sharers -------------------------------------------


def invented(attack):
    """Client 20 never uploaded; the server lists it with a digest and signature of its own."""
    del attack.rows[20]
    forged = attack.lie.federation.coordinator.sign(b"anything")
    attack.rows[20] = SurvivorRow(20, b"h" * 32, forged)
    return attack


def test_invented_survivor_control_is_confirmed_when_uploads_are_not_checked(federation, liar):
    world = federation(6)
    attack = invented(Attack(world, liar, world.clients(Unquestioning), silent=[20]))
    for client in (10, 30, 40, 50, 60):
        attack.confirm(client, world.ids)


def test_invented_survivors_are_refused(federation, liar):
    world = federation(6)
    attack = invented(Attack(world, liar, world.clients(), silent=[20]))
    for client in (10, 30, 40, 50, 60):
        with pytest.raises(BadSignature, match="client 20"):
            attack.confirm(client, world.ids)


def test_an_upload_moved_to_another_client_is_refused(federation, liar):
    world = federation(6)
    attack = Attack(world, liar, world.clients())
    attack.rows[20] = attack.rows[30]._replace(client=20)
    with pytest.raises(BadSignature, match="client 20"):
        attack.confirm(10, world.ids)


def with_split_sharers(federation, liar, kind):
    """The victim is shown a list of sharers without client 60; everybody else the whole list."""
    world = federation(6)
    clients, server = world.clients(kind), world.server()
    requests = world.run_until(Stage.UPLOAD, clients, server)
    lie = liar(world, server.params)
    victim, seen = 10, world.ids[:-1]
    sealed = decode(requests[victim], Collect, limit=LIMIT).sealed[: 92 * 4]
    _, request = lie.collect(server.cohort, seen, sealed)
    rows = []
    for client in world.ids:
        message = world.answer(clients[client], request if client == victim else requests[client])
        upload = clients[client]._round.state.upload
        rows.append(SurvivorRow(client, upload, signature_of(message, Upload)))
    _, survivors = lie.survivors(server.sharers, rows)
    return world, clients, survivors


def test_split_sharers_control_is_confirmed_when_uploads_are_not_checked(federation, liar):
    world, clients, survivors = with_split_sharers(federation, liar, Unquestioning)
    for client in world.ids[1:]:
        clients[client].handle(survivors)


def test_an_upload_made_under_another_list_of_sharers_is_refused(federation, liar):
    world, clients, survivors = with_split_sharers(federation, liar, None)
    for client in world.ids[1:]:
        with pytest.raises(BadSignature, match="client 10"):
            clients[client].handle(survivors)


def test_a_colluder_that_dealt_no_shares_cannot_be_added_to_the_survivors(federation, liar):
    """It signs an upload under the very list of sharers that it is not on."""
    world = federation(6)
    clients, server = world.clients(), world.server()
    requests = world.run_until(Stage.SHARE, clients, server)
    for client in world.ids[:-1]:
        server.receive(client, world.answer(clients[client], requests[client]))
    rows = []
    for client, request in server.close_stage().items():
        message = world.answer(clients[client], request)
        upload = clients[client]._round.state.upload
        rows.append(SurvivorRow(client, upload, signature_of(message, Upload)))
    statement = upload_statement(server.sharers.digest, 60, b"h" * 32)
    colluder = SurvivorRow(60, b"h" * 32, world.identities[60].key.sign(statement))
    lie = liar(world, server.params)
    _, request = lie.survivors(server.sharers, [*rows, colluder])
    with pytest.raises(ViewMismatch, match="60 dealt no shares"):
        clients[10].handle(request)


def test_a_colluder_outside_the_survivors_does_not_count_as_a_confirmation(federation, liar):
    world = federation(6)
    attack = Attack(world, liar, world.clients(), silent=[60])
    alive = world.ids[:-1]
    signers = [attack.confirmed(client, alive) for client in alive[:3]]
    view, _ = attack.lie.survivors(attack.sharers, [attack.rows[i] for i in alive])
    signature = world.identities[60].key.sign(confirm_statement(view.digest))
    assert attack.cohort.threshold == 4
    with pytest.raises(ViewMismatch, match="60 is not a survivor"):
        attack.reveal(10, alive, [*signers, ConfirmRow(60, signature)])


# The list of sharers ------------------------------------------------------------------------


@pytest.fixture
def before_upload(federation, liar):
    world = federation(6)
    clients, server = world.clients(), world.server()
    requests = world.run_until(Stage.UPLOAD, clients, server)
    return world, clients[10], server, requests[10], liar(world, server.params)


@pytest.mark.parametrize(
    ("sharers", "error"),
    [
        ((20, 30, 40, 50, 60), ViewMismatch),
        ((10, 20, 30), TooFewClients),
        ((10,), TooFewClients),
    ],
)
def test_a_list_of_sharers_without_oneself_or_with_too_few_is_refused(
    before_upload, sharers, error
):
    world, client, server, _, lie = before_upload
    texts = bytes(92 * len(set(sharers) - {10}))
    _, request = lie.collect(server.cohort, sharers, texts)
    with pytest.raises(error) as caught:
        client.handle(request)
    assert caught.value.refusal is not None
    with pytest.raises(WrongStage):
        client.submit(world.update(10), server.params.context)


@pytest.mark.parametrize("size", [0, 91, 92 * 4, 92 * 6, 92 * 5 + 1])
def test_shares_of_another_number_are_refused_and_change_nothing(before_upload, size):
    world, client, server, genuine, lie = before_upload
    _, request = lie.collect(server.cohort, world.ids, bytes(size))
    with pytest.raises((Malformed, Oversized)):
        client.handle(request)
    world.answer(client, genuine)


def test_a_second_list_of_sharers_before_the_upload_proves_equivocation(before_upload):
    world, client, server, genuine, lie = before_upload
    client.handle(genuine)
    _, second = lie.collect(server.cohort, world.ids[:-1], bytes(92 * 4))
    with pytest.raises(Equivocation):
        client.handle(second)
    with pytest.raises(WrongStage):
        client.submit(world.update(10), server.params.context)


def test_the_same_list_of_sharers_with_other_shares_is_refused_and_changes_nothing(before_upload):
    world, client, server, genuine, lie = before_upload
    client.handle(genuine)
    held = dict(client._round.state.held)
    _, second = lie.collect(server.cohort, world.ids, bytes(92 * 5))
    with pytest.raises(Latched):
        client.handle(second)
    assert client._round.state.held == held
    client.submit(world.update(10), server.params.context)


# Keys of the server's own making ------------------------------------------------------------


def substituted(federation, liar, kind):
    """The victim is shown keys of the server in the place of everybody else's."""
    world = federation(6)
    clients, server = world.clients(kind), world.server()
    world.run_until(Stage.SHARE, clients, server)
    lie = liar(world, server.params)
    own = server.cohort.adverts[10]
    keys = {
        i: (AgreementKey(bytes([i]) * 32), AgreementKey(bytes([i + 1]) * 32)) for i in world.ids
    }
    rows = [own]
    for client, (mask, share) in keys.items():
        if client != 10:
            statement = advert_statement(server.params.digest, client, mask.public, share.public)
            signature = world.coordinator.sign(statement)
            rows.append(AdvertRow(client, mask.public, share.public, signature))
    cohort, request = lie.cohort(rows)
    return clients[10], cohort, request, keys


def test_key_substitution_control_without_roster_check_both_secrets_open(federation, liar):
    client, cohort, request, keys = substituted(federation, liar, Credulous)
    bundle = decode(client.handle(request).message, Bundle, limit=LIMIT)
    seeds, privates = {}, {}
    for place, reader in enumerate(cohort.neighbours(10)):
        text = bundle.sealed[92 * place : 92 * (place + 1)]
        agreed = keys[reader][1].agree(cohort.adverts[10].share_key, peer_id=10)
        bound = enc("share-aad", cohort.digest, u32(10), u32(reader), u16(cohort.points[reader]))
        shares = unseal(seal_key(agreed, cohort, 10, reader), text, bound)
        seeds[cohort.points[reader]], privates[cohort.points[reader]] = shares[:32], shares[32:]
    assert combine(seeds) == client._round.state.seed.reveal()
    assert AgreementKey(combine(privates)).public == cohort.adverts[10].mask_key


def test_keys_that_their_owners_did_not_sign_are_refused(federation, liar):
    client, _, request, _ = substituted(federation, liar, None)
    with pytest.raises(BadSignature, match="client 20"):
        client.handle(request)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda rows: rows[1:], ViewMismatch),
        (lambda rows: rows[:2], TooFewClients),
        (lambda rows: [rows[0]._replace(mask_key=b"m" * 32), *rows[1:]], ViewMismatch),
        (lambda rows: [*rows[:-1], rows[-1]._replace(client=70)], UnknownIdentity),
        (lambda rows: [*rows[:-1], rows[1]._replace(client=60)], BadAdvert),
    ],
    ids=["left out", "too few", "own key changed", "a stranger", "one key for two"],
)
def test_a_cohort_that_is_not_the_invited_clients_is_refused(federation, liar, change, error):
    world = federation(6)
    clients, server = world.clients(), world.server()
    world.run_until(Stage.SHARE, clients, server)
    rows = list(server.cohort.adverts.values())
    _, request = liar(world, server.params).cohort(change(rows))
    with pytest.raises(error):
        clients[10].handle(request)


def test_a_member_that_was_not_invited_is_refused_though_its_advert_is_genuine(federation, liar):
    world = federation(6)
    params = world.params(invited=world.ids[:-1])
    clients, server = world.clients(), world.server(params)
    world.run_until(Stage.SHARE, clients, server)
    mask, share = (AgreementKey(bytes([k]) * 32).public for k in (1, 2))
    statement = advert_statement(params.digest, 60, mask, share)
    friend = AdvertRow(60, mask, share, world.identities[60].key.sign(statement))
    rows = list(server.cohort.adverts.values())
    _, request = liar(world, params).cohort([*rows[:-1], friend])
    with pytest.raises(UnknownIdentity, match="client 60 was not invited"):
        clients[10].handle(request)


def test_an_advert_of_an_earlier_round_is_refused(federation, liar):
    world = federation(6)
    old = world.server(world.params(1))
    world.run_until(Stage.SHARE, world.clients(), old)
    clients, server = world.clients(), world.server(world.params(2))
    world.run_until(Stage.SHARE, clients, server)
    rows = {**server.cohort.adverts, 20: old.cohort.adverts[20]}
    _, request = liar(world, server.params).cohort(rows.values())
    with pytest.raises(BadSignature, match="client 20"):
        clients[10].handle(request)


# Split view of the adverts ------------------------------------------------------------------


def test_clients_with_different_cohorts_cannot_open_each_others_shares(federation, liar):
    """Control: with one cohort for all, the same texts open."""
    world = federation(6)
    opened = {}
    for split in (False, True):
        clients, server = world.clients(), world.server()
        requests = world.run_until(Stage.SHARE, clients, server)
        rows = list(server.cohort.adverts.values())
        if split:
            _, requests[10] = liar(world, server.params).cohort(rows[:-1])
        bundles = {
            i: decode(world.answer(clients[i], request), Bundle, limit=LIMIT)
            for i, request in requests.items()
        }
        texts = [bundles[i].sealed[:92] for i in world.ids[1:5]]  # the text for client 10
        cohort = clients[10]._round.cohort
        _, request = liar(world, server.params).collect(cohort, world.ids[:5], b"".join(texts))
        clients[10].handle(request)
        opened[split] = len(clients[10]._round.state.held)
    assert opened == {False: 4, True: 0}


# Another model for the victim ---------------------------------------------------------------


def test_another_model_control_is_trained_on_when_the_context_is_not_compared(federation):
    world = federation(4)
    clients, server = world.clients(Unbound), world.server()
    request = world.run_until(Stage.UPLOAD, clients, server)[10]
    server.receive(10, world.answer(clients[10], request, context=b"another model".ljust(32)))


def test_a_client_that_received_another_model_ends_its_part(federation):
    world = federation(4)
    clients, server = world.clients(), world.server()
    request = world.run_until(Stage.UPLOAD, clients, server)[10]
    with pytest.raises(ViewMismatch) as caught:
        world.answer(clients[10], request, context=b"another model".ljust(32))
    server.receive(10, caught.value.refusal)
    with pytest.raises(WrongStage):
        world.answer(clients[10], request)


def test_rounds_for_different_models_share_no_digest(federation):
    """Told different contexts, clients are in different rounds and refuse each other's adverts."""
    world = federation(4)
    servers = [world.server(world.params(context=bytes([k]) * 32)) for k in (1, 2)]
    clients = world.clients()
    opens = [server.open() for server in servers]
    adverts = {i: clients[i].handle(opens[i == 10][i]).message for i in world.ids}
    with pytest.raises(WrongRound):
        servers[0].receive(10, adverts[10])


# Two-time pad -------------------------------------------------------------------------------


def test_two_time_pad_control_two_uploads_under_one_mask_give_the_difference(federation):
    world = federation(4)
    clients, server = world.clients(), world.server()
    clients[10].handle(world.run_until(Stage.UPLOAD, clients, server)[10])
    state, plan = clients[10]._round.state, server.params.plan
    bodies = []
    for client in (10, 20):  # the inputs of two clients, both masked by client 10
        clients[10]._round.state = state
        message = clients[10].submit(world.update(client), server.params.context).message
        bodies.append(decode(message, Upload, limit=LIMIT).body)
    lanes = [plan.zeros(), plan.zeros()]
    for accumulator, body in zip(lanes, bodies, strict=True):
        plan.add_body(accumulator, body)
    difference = {lane: lanes[1][lane] - lanes[0][lane] for lane in lanes[0]}
    found = plan.decode(difference, 4)
    for name, values in world.values(20).items():
        assert np.array_equal(found[name], values - world.values(10)[name])


def test_a_second_upload_under_one_mask_is_never_made(federation, liar):
    world = federation(4)
    clients, server = world.clients(), world.server()
    request = world.run_until(Stage.UPLOAD, clients, server)[10]
    first = world.answer(clients[10], request)
    assert clients[10].handle(request).message == first
    with pytest.raises(Latched):
        clients[10].submit(world.update(20), server.params.context)
    _, second = liar(world, server.params).collect(server.cohort, world.ids[:-1], bytes(92 * 2))
    with pytest.raises(Equivocation):
        clients[10].handle(second)


# A late upload of a client declared dropped -------------------------------------------------


def late_upload(federation, liar):
    """Client 10 is declared dropped, its mask key is opened, and then its upload arrives."""
    world = federation(6)
    attack = Attack(world, liar, world.clients(), silent=[10])
    others = world.ids[1:]
    signers = [attack.confirmed(client, others) for client in others]
    reveals = {client: attack.reveal(client, others, signers) for client in others}
    key = AgreementKey(attack.secret(reveals, 10, ShareKind.MASK_KEY))
    lanes = attack.server.params.plan.zeros()
    attack.server.params.plan.add_body(lanes, decode(attack.uploads[10], Upload, limit=LIMIT).body)
    for peer in others:
        agreed = key.agree(attack.cohort.adverts[peer].mask_key, peer_id=peer)
        add_pair_mask(lanes, agreed, attack.sharers.digest, 10, peer, subtract=True)
    return attack, lanes


def test_late_upload_control_without_self_mask_the_update_opens(federation, liar, monkeypatch):
    def only_pair_masks(lanes, cohort, sharers, client, *, seed, mask_key):
        for peer in cohort.neighbours(client):
            agreed = mask_key.agree(cohort.adverts[peer].mask_key, peer_id=peer)
            add_pair_mask(lanes, agreed, sharers.digest, client, peer)

    monkeypatch.setattr(secagg.masking_client, "mask_upload", only_pair_masks)
    attack, lanes = late_upload(federation, liar)
    attack.assert_found(attack.server.params.plan.decode(lanes, 1), [10])


def test_a_late_upload_stays_covered_by_the_self_mask(federation, liar):
    attack, lanes = late_upload(federation, liar)
    plan = attack.server.params.plan
    update = encode_update(attack.world.update(10), attack.world.layout, os.urandom)
    assert plan.pack(lanes) != plan.pack(plan.to_lanes(update))
    with pytest.raises(WrongStage):
        attack.server.receive(10, attack.uploads[10])


# Wrong shares, wrong dealers, wrong inputs of clients ---------------------------------------


class WrongSharer(MaskingClient):
    """Opens shares that are not those it was dealt, duly signed."""

    def _signed_reveal(self, survivors, seed, shares):
        return super()._signed_reveal(
            survivors, seed, [row._replace(value=b"\x07" * 32) for row in shares]
        )


class WrongDealer(MaskingClient):
    """Commits to another seed than the one it deals and masks with."""

    def _deal(self, cohort, state, seed):
        bundle, read_keys = super()._deal(cohort, state, seed)
        committed = commitment(cohort.digest, self.client_id, b"\x01" * 32)
        statement = bundle_statement(cohort.digest, self.client_id, committed, bundle.sealed)
        return Bundle(bundle.sealed, committed, self._sign(statement)), read_keys


def test_one_wrong_sharer_is_outvoted_and_the_sum_is_exact(federation):
    world = federation(8)
    clients = world.clients()
    clients[30] = world.client(30, WrongSharer)
    aggregate = world.run({10: "reveal"}, clients=clients)
    for name, total in world.total(world.ids).items():
        assert np.array_equal(aggregate.sums[name], total)


def test_without_a_share_to_spare_a_wrong_one_aborts_and_never_gives_a_wrong_sum(federation):
    world = federation(6)
    clients = world.clients()
    clients[30] = world.client(30, WrongSharer)
    with pytest.raises(ReconstructionFailed) as caught:
        world.run({10: "reveal", 20: "reveal"}, clients=clients)
    assert caught.value.dealer == 10


def test_a_dealer_of_a_false_commitment_is_named(federation):
    world = federation(6)
    clients = world.clients()
    clients[30] = world.client(30, WrongDealer)
    with pytest.raises(ReconstructionFailed) as caught:
        world.run(clients=clients)
    assert caught.value.dealer == 30


def test_shares_damaged_on_their_way_cost_nothing_while_enough_others_open(federation):
    world = federation(8)
    clients, server = world.clients(), world.server()
    requests = world.run_until(Stage.UPLOAD, clients, server)
    damaged = bytearray(requests[20])
    damaged[HEADER.size + 12] ^= 1  # inside the first sealed text, dealt by client 10
    requests[20] = bytes(damaged)
    for client, request in requests.items():
        if client != 10:
            server.receive(client, world.answer(clients[client], request))
    step = server.close_stage()
    assert 10 not in clients[20]._round.state.held
    for _ in (Stage.CONFIRM, Stage.REVEAL):
        for client, request in step.items():
            server.receive(client, world.answer(clients[client], request))
        step = server.close_stage()
    for name, total in world.total(world.ids[1:]).items():
        assert np.array_equal(step.sums[name], total)


def test_an_input_outside_its_bound_is_noticed_in_the_sum(federation, monkeypatch):
    world = federation(4)
    real = secagg.masking_client.encode_update

    def lying(update, layout, random):
        encoded = real(update, layout, random)
        if encoded["samples"][0] != world.values(20)["samples"][0]:
            return encoded
        return {**encoded, "samples": np.array([5 * 2**40], np.int64)}

    monkeypatch.setattr(secagg.masking_client, "encode_update", lying)
    with pytest.raises(SumOutOfRange, match="samples"):
        world.run()


def test_a_client_that_opens_a_share_not_due_is_refused(federation):
    class Traitor(MaskingClient):
        def _signed_reveal(self, survivors, seed, shares):
            swapped = [row._replace(kind=1 - row.kind) for row in shares]
            return super()._signed_reveal(survivors, seed, swapped)

    world, told = federation(6), []
    clients = world.clients()
    clients[30] = world.client(30, Traitor)
    aggregate = world.run(
        clients=clients, on_refusal=lambda client, error: told.append((client, type(error)))
    )
    assert told == [(30, ViewMismatch)]
    assert aggregate.survivors == world.ids


@pytest.mark.parametrize("key", [bytes(32), b"\x01" + bytes(31)])
def test_a_member_that_advertises_a_low_order_key_is_left_out(federation, key):
    world = federation(6)
    server = world.server()
    server.open()
    for order in (0, 1):
        good = AgreementKey(b"g" * 32).public
        mask, share = (key, good) if order else (good, key)
        statement = advert_statement(server.params.digest, 10, mask, share)
        advert = Advert(mask, share, world.identities[10].key.sign(statement))
        with pytest.raises(BadAdvert, match="client 10"):
            server.receive(10, encode(advert, params=server.params.digest, sender=10))


def test_a_low_order_key_that_reaches_a_client_ends_the_round_before_it_masks(federation, liar):
    """A member on the server's side signs a low-order mask key; the victim uploads nothing."""
    world = federation(4)
    clients, server = world.clients(), world.server()
    world.run_until(Stage.SHARE, clients, server)
    low = bytes(32)
    row = server.cohort.adverts[20]
    statement = advert_statement(server.params.digest, 20, low, row.share_key)
    forged = row._replace(mask_key=low, signature=world.identities[20].key.sign(statement))
    lie = liar(world, server.params)
    cohort, request = lie.cohort({**server.cohort.adverts, 20: forged}.values())
    clients[10].handle(request)
    _, collect = lie.collect(cohort, world.ids, bytes(92 * 3))
    with pytest.raises(BadAdvert, match="client 20"):
        world.answer(clients[10], collect)
    with pytest.raises(WrongStage):
        clients[10].submit(world.update(10), server.params.context)


# Malformed and oversized messages at the server ---------------------------------------------


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda m: b"", Malformed),
        (lambda m: m[:20], Malformed),
        (lambda m: m[:-1], Malformed),
        (lambda m: m + b"\x00", Malformed),
        (lambda m: m + bytes(10_000), Oversized),
        (lambda m: m[:4] + b"\x09" + m[5:], UnsupportedVersion),
        (lambda m: m[:8] + bytes(32) + m[40:], WrongRound),
        (lambda m: m[:-1] + bytes([m[-1] ^ 1]), BadSignature),
    ],
    ids=["empty", "header", "truncated", "longer", "oversized", "version", "round", "signature"],
)
@pytest.mark.parametrize("stage", list(Stage))
def test_a_bad_reply_is_refused_and_the_good_one_still_counts(federation, stage, damage, error):
    world = federation(4)
    clients, server = world.clients(), world.server()
    requests = world.run_until(stage, clients, server)
    replies = {i: world.answer(clients[i], request) for i, request in requests.items()}
    with pytest.raises(error):
        server.receive(10, damage(replies[10]))
    for client, reply in replies.items():
        server.receive(client, reply)
    assert server.close_stage() is not None


def test_replies_of_others_and_second_replies_are_refused(federation):
    world = federation(4)
    clients, server = world.clients(), world.server()
    requests = world.run_until(Stage.UPLOAD, clients, server)
    replies = {i: world.answer(clients[i], request) for i, request in requests.items()}
    with pytest.raises(BadSignature):
        server.receive(20, replies[10])
    with pytest.raises(UnknownIdentity):
        server.receive(11, replies[10])
    server.receive(10, replies[10])
    server.receive(10, replies[10])
    with pytest.raises(Latched):
        server.receive(10, replies[10][:-1] + bytes([replies[10][-1] ^ 1]))


def test_every_message_is_refused_at_every_other_stage(federation):
    """Control: each is accepted at its own stage, in this very run."""
    world = federation(4)
    clients, server = world.clients(), world.server()
    log, step = [], server.open()
    for stage in Stage:
        replies = {i: world.answer(clients[i], request) for i, request in step.items()}
        for past in log:
            with pytest.raises(WrongStage):
                server.receive(10, past)
        for client, reply in replies.items():
            server.receive(client, reply)
        log.append(replies[10])
        assert server.stage is stage
        step = server.close_stage()
    assert step.survivors == world.ids
    for past in log:
        with pytest.raises(WrongStage):
            server.receive(10, past)


def test_a_refusal_must_be_signed_by_its_sender(federation):
    world = federation(4)
    clients, server = world.clients(), world.server()
    request = world.run_until(Stage.UPLOAD, clients, server)[10]
    with pytest.raises(ViewMismatch) as caught:
        world.answer(clients[10], request, context=bytes(32))
    refusal = bytearray(caught.value.refusal)
    refusal[-1] ^= 1
    with pytest.raises(BadSignature):
        server.receive(10, bytes(refusal))


def test_an_aborted_round_stays_aborted(federation):
    world = federation(4)
    server = world.server()
    with pytest.raises(RoundAborted):
        world.run(dict.fromkeys(world.ids, "upload"), server=server)
    with pytest.raises(WrongStage):
        server.close_stage()
    with pytest.raises(WrongStage):
        server.open()
