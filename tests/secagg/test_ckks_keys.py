"""The set-up of a shared key: the clients hold it, the server does not, and liars are refused."""

from __future__ import annotations

import gc

import pytest

from secagg import Mode, Stage, open_key_setup, run_key_setup
from secagg.ckks_client import CKKSClient
from secagg.ckks_key_server import KeyEpoch
from secagg.ckks_keys import KeyMembers, KeySetup
from secagg.ckks_presets import PRESETS
from secagg.ckks_scheme import SecretKey, library_version
from secagg.ckks_terms import KeyTerms
from secagg.digests import box_statement, key_statement, request_statement
from secagg.errors import (
    BadKey,
    BadSeal,
    BadSignature,
    ConfigurationError,
    Latched,
    Malformed,
    PolicyViolation,
    SecAggError,
    StaleState,
    TooFewClients,
    TooFewReplies,
    UnknownIdentity,
    UnsupportedSuite,
    ViewMismatch,
    WrongRound,
    WrongStage,
)
from secagg.messages import (
    BOX_BYTES,
    BoxRow,
    KeyAck,
    KeyAdvert,
    KeyBundle,
    KeyInstall,
    KeyLead,
    KeyOpen,
    Kind,
    decode,
    encode,
    from_table,
    read_header,
    to_table,
)
from secagg.roster import COORDINATOR_ID

LIMIT = 1 << 24


class World:
    """A set-up under way; `preset` is the smaller one, to be quick."""

    def __init__(self, federation, n=4, kind=CKKSClient, **options):
        self.federation = federation(n)
        self.ids = self.federation.ids
        self.policy = self.federation.policy(colluders=0)
        self.clients = {i: self.client(i, kind) for i in self.ids}
        self.server = open_key_setup(
            coordinator=self.federation.coordinator,
            roster=self.federation.roster,
            run_id=b"r" * 16,
            sequence=1,
            preset="wide",
            **options,
        )

    def client(self, client, kind=CKKSClient, **options):
        return kind(self.federation.participant(client, policy=self.policy, **options))

    def until(self, stage):
        requests = self.server.open()
        while self.server.stage is not stage:
            for client, request in requests.items():
                self.server.receive(client, self.clients[client].handle(request).message)
            requests = self.server.close_stage()
        return requests

    def resigned(self, request, message, stage=Stage.CONFIRM):
        """Another message in a request's place, signed by the coordinator as it likes."""
        return encode(message, params=read_header(request).params, sender=COORDINATOR_ID)


@pytest.fixture
def world(federation):
    return World(federation)


def test_all_clients_end_with_one_key_that_the_server_does_not_hold(world):
    epoch = run_key_setup(world.server, world.clients)
    assert epoch.holders == world.ids
    held = [client._held for client in world.clients.values()]
    assert {one.name for one in held} == {epoch.key}
    keys = {one.key.to_bytes() for one in held}
    assert len(keys) == 1
    (key,) = keys
    reachable = everything_below(world.server, epoch)
    assert len(reachable) > 10
    assert any(key[200:264] in data for data in everything_below(Keeping(key)))  # the control
    for data in reachable:
        assert key[200:264] not in data
        assert key[-264:-200] not in data


class Keeping:
    def __init__(self, key):
        self.deep = {"somewhere": [key]}


def everything_below(*roots):
    """All byte strings reachable from objects, modules and classes left out."""
    seen, found, todo = set(), [], list(roots)
    while todo:
        item = todo.pop()
        if id(item) in seen or isinstance(item, type) or type(item).__name__ == "module":
            continue
        seen.add(id(item))
        if isinstance(item, bytes | bytearray):
            found.append(bytes(item))
        elif type(item).__name__ not in ("function", "builtin_function_or_method"):
            todo += gc.get_referents(item)
    return found


def test_a_round_server_holds_no_key_either(federation):
    world = federation(3, mode=Mode.CKKS)
    key = world.held[10].key.to_bytes()
    server = world.server()
    world.run(server=server)
    assert not any(key[200:264] in data for data in everything_below(server))
    context = server._sum._sum[0].context()
    assert not context.is_private()


@pytest.mark.parametrize("gone", [(), (40,), (10,), (10, 20)])
def test_whoever_advertised_gets_the_key_and_the_lowest_of_them_makes_it(federation, gone):
    world = World(federation, 5)
    led = []
    world.server.open_, taken = world.server.open, world.server._take_bundle
    world.server._take_bundle = lambda client, bundle: led.append(client) or taken(client, bundle)
    epoch = run_key_setup(world.server, world.clients, lost=dict.fromkeys(gone, "advertise"))
    assert epoch.holders == tuple(i for i in world.ids if i not in gone)
    assert led == [epoch.holders[0]]


def test_losses_leave_fewer_holders_or_end_the_set_up(federation):
    epoch = run_key_setup(*pair(World(federation)), lost={40: "confirm"})
    assert epoch.holders == (10, 20, 30)
    with pytest.raises(TooFewReplies):
        run_key_setup(*pair(World(federation)), lost={30: "confirm", 40: "confirm"})
    with pytest.raises(TooFewClients):
        run_key_setup(*pair(World(federation)), lost={30: "advertise", 40: "advertise"})
    with pytest.raises(TooFewReplies):  # the leader
        run_key_setup(*pair(World(federation)), lost={10: "share"})


def pair(world):
    return world.server, world.clients


def test_a_replayed_or_lower_set_up_is_refused(world):
    saved = []
    client = world.client(10, save=saved.append)
    first = world.server.open()[10]
    client.handle(first)
    lower = KeyTerms.for_key(
        roster=world.federation.roster,
        preset=PRESETS["wide"],
        library=library_version(),
        sequence=0,
        run_id=b"r" * 16,
    )
    statement = request_statement(lower.digest, Stage.ADVERTISE, lower.digest)
    request = KeyOpen(lower, world.federation.coordinator.sign(statement))
    with pytest.raises(StaleState) as caught:
        client.handle(encode(request, params=lower.digest, sender=COORDINATOR_ID))
    assert caught.value.refusal is not None
    assert len(saved) == 1


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"library": "0.3.0"}, UnsupportedSuite),
        ({"n_min": 2}, PolicyViolation),
        ({"invited": (20, 30, 40)}, UnknownIdentity),
    ],
)
def test_terms_that_a_client_does_not_accept_are_refused(world, changes, error):
    options = {"library": library_version(), **changes}
    terms = KeyTerms.for_key(
        roster=world.federation.roster,
        preset=PRESETS["wide"],
        sequence=1,
        run_id=b"r" * 16,
        **options,
    )
    statement = request_statement(terms.digest, Stage.ADVERTISE, terms.digest)
    request = KeyOpen(terms, world.federation.coordinator.sign(statement))
    with pytest.raises(error):
        world.clients[10].handle(encode(request, params=terms.digest, sender=COORDINATOR_ID))


def test_terms_are_checked_when_they_are_made(federation):
    world = federation(32)
    options = {"roster": world.roster, "sequence": 1, "run_id": b"r" * 16, "library": "1"}
    with pytest.raises(ConfigurationError, match="at most 31"):
        KeyTerms.for_key(preset=PRESETS["compact"], **options)
    with pytest.raises(ConfigurationError, match="wrong length"):
        KeyTerms.for_key(preset=PRESETS["wide"], **{**options, "run_id": b""})


def test_unsigned_or_misnamed_openings_are_refused(world):
    request = world.server.open()[10]
    message = decode(request, KeyOpen, limit=LIMIT)
    forged = KeyOpen(message.terms, bytes(64))
    with pytest.raises(BadSignature):
        world.clients[10].handle(world.resigned(request, forged))
    moved = request[:8] + b"\x33" * 32 + request[40:]
    with pytest.raises(WrongRound):
        world.clients[10].handle(moved)


# The second and third request -------------------------------------------------------------------


def test_requests_without_or_of_another_set_up_are_refused(world):
    requests = world.until(Stage.CONFIRM)
    with pytest.raises(WrongRound):
        world.client(20).handle(requests[20])
    other = World(lambda n: world.federation)
    other.server = open_key_setup(
        coordinator=world.federation.coordinator,
        roster=world.federation.roster,
        run_id=b"r" * 16,
        sequence=2,
        preset="wide",
    )
    client = world.client(20)
    client.handle(other.server.open()[20])
    with pytest.raises(WrongRound):
        client.handle(requests[20])


def test_only_the_lowest_member_makes_a_key_and_only_once(world):
    request = world.until(Stage.SHARE)[10]
    with pytest.raises(ViewMismatch, match="client 10"):
        world.clients[20].handle(request)
    world.clients[10].handle(request)
    with pytest.raises(Latched):
        world.clients[10].handle(request)


def test_box_keys_that_their_owners_did_not_sign_are_refused(world):
    """The server may not slip its own box key in: it would be sealed the shared key."""
    request = world.until(Stage.SHARE)[10]
    rows = from_table(BoxRow, decode(request, KeyLead, limit=LIMIT).adverts)
    with pytest.raises(BadSignature):
        world.clients[10].handle(
            lead(world, request, [rows[0], rows[1]._replace(box_key=b"k" * 32)])
        )
    stranger = BoxRow(99, b"k" * 32, bytes(64))
    with pytest.raises(UnknownIdentity):
        world.clients[10].handle(lead(world, request, [*rows[:3], stranger]))
    with pytest.raises(TooFewClients):
        world.clients[10].handle(lead(world, request, rows[:2]))
    with pytest.raises(ViewMismatch):
        world.clients[10].handle(lead(world, request, rows[1:]))


def lead(world, request, rows):
    terms = world.server._book.params
    members = KeyMembers.of(terms, rows)
    statement = request_statement(terms.digest, Stage.SHARE, members.digest)
    signature = world.federation.coordinator.sign(statement)
    return world.resigned(request, KeyLead(to_table(rows), signature))


def bundle_with(world, request, *, author=10, **changes):
    """An install request whose bundle was changed and signed again by `author`."""
    message = decode(request, KeyInstall, limit=LIMIT)
    fields = {name: getattr(message.bundle, name) for name in message.bundle.__struct_fields__}
    fields |= changes
    members = KeyMembers.of(world.server._book.params, from_table(BoxRow, message.adverts))
    statement = key_statement(
        members.digest,
        *(fields[name] for name in ("fingerprint", "ephemeral", "sealed", "boxes")),
    )
    if author is not None:
        fields["signature"] = world.federation.identities[author].key.sign(statement)
    changed = KeyInstall(message.adverts, KeyBundle(**fields), message.signature)
    return world.resigned(request, changed)


def test_a_bundle_of_a_client_that_is_not_the_leader_is_refused(world):
    request = world.until(Stage.CONFIRM)[20]
    with pytest.raises(BadSignature, match="client 10"):
        world.clients[20].handle(bundle_with(world, request, author=30))
    with pytest.raises(BadSignature):
        world.clients[20].handle(bundle_with(world, request, author=None, ephemeral=b"e" * 32))
    assert world.clients[20]._held is None


def test_a_box_for_another_client_does_not_open(world):
    request = world.until(Stage.CONFIRM)[20]
    boxes = decode(request, KeyInstall, limit=LIMIT).bundle.boxes
    swapped = boxes[:BOX_BYTES] + boxes[2 * BOX_BYTES : 3 * BOX_BYTES] * 2 + boxes[3 * BOX_BYTES :]
    with pytest.raises(BadSeal) as caught:
        world.clients[20].handle(bundle_with(world, request, boxes=swapped))
    assert caught.value.refusal is not None
    with pytest.raises(Malformed):
        world.clients[20].handle(bundle_with(world, request, boxes=boxes[:-1]))


def test_a_sealed_key_that_was_changed_or_is_not_the_one_named_is_refused(world):
    request = world.until(Stage.CONFIRM)[20]
    sealed = decode(request, KeyInstall, limit=LIMIT).bundle.sealed
    for changes in ({"sealed": sealed[:-1] + bytes([sealed[-1] ^ 1])}, {"fingerprint": b"f" * 32}):
        with pytest.raises(BadSeal):
            world.clients[20].handle(bundle_with(world, request, **changes))


class OfOtherParameters(KeySetup):
    """A leader whose key is of another preset than the terms say."""

    def _lead(self, request):
        generate = SecretKey.generate
        SecretKey.generate = lambda preset: generate(PRESETS["wide44"])
        try:
            return super()._lead(request)
        finally:
            SecretKey.generate = generate


class Misnaming(KeySetup):
    """A leader that seals another key than it names."""

    def _lead(self, request):
        to_bytes = SecretKey.to_bytes
        first = iter([b"another key"])
        SecretKey.to_bytes = lambda key: next(first)
        try:
            return super()._lead(request)
        finally:
            SecretKey.to_bytes = to_bytes


@pytest.mark.parametrize("kind", [OfOtherParameters, Misnaming])
def test_a_key_that_does_not_fit_its_terms_or_does_not_load_is_refused_by_all(federation, kind):
    world = World(federation)

    def leader(request):
        reply = CKKSClient.handle(world.clients[10], request)
        world.clients[10]._setup[1].__class__ = kind
        return reply

    world.clients[10].handle = leader
    told = []
    with pytest.raises(TooFewReplies, match="BadKey x4"):
        run_key_setup(*pair(world), on_refusal=lambda client, error: told.append(type(error)))
    assert told == [BadKey] * 4


# At the server ----------------------------------------------------------------------------------


def test_adverts_bundles_and_acknowledgements_of_others_are_refused(world):
    requests = world.server.open()
    advert = world.clients[10].handle(requests[10]).message
    with pytest.raises(BadSignature):
        world.server.receive(20, advert)
    terms = world.server._book.params
    forged = KeyAdvert(b"k" * 32, bytes(64))
    with pytest.raises(BadSignature):
        world.server.receive(20, encode(forged, params=terms.digest, sender=20))
    with pytest.raises(WrongStage):
        world.server.open()
    for client, request in requests.items():
        world.server.receive(client, world.clients[client].handle(request).message)
    request = world.server.close_stage()[10]
    reply = world.clients[10].handle(request).message
    bundle = decode(reply, KeyBundle, limit=LIMIT)
    fields = {name: getattr(bundle, name) for name in bundle.__struct_fields__}
    unsigned = KeyBundle(**{**fields, "ephemeral": b"e" * 32})
    with pytest.raises(BadSignature):
        world.server.receive(10, encode(unsigned, params=terms.digest, sender=10))
    world.server.receive(10, reply)
    requests = world.server.close_stage()
    ack = world.clients[20].handle(requests[20]).message
    with pytest.raises(BadSignature):
        world.server.receive(30, ack)
    own = decode(ack, KeyAck, limit=LIMIT)
    another = KeyAck(b"f" * 32, own.signature)
    with pytest.raises(ViewMismatch):
        world.server.receive(20, encode(another, params=terms.digest, sender=20))
    assert read_header(ack).kind is Kind.KEY_ACK


def test_a_signed_box_key_of_another_set_up_does_not_count(world):
    terms = world.server._book.params
    world.server.open()
    old = KeyTerms.for_key(
        roster=world.federation.roster,
        preset=PRESETS["wide"],
        library=library_version(),
        sequence=9,
        run_id=b"r" * 16,
    )
    signature = world.federation.identities[20].key.sign(box_statement(old.digest, 20, b"k" * 32))
    with pytest.raises(BadSignature):
        world.server.receive(
            20, encode(KeyAdvert(b"k" * 32, signature), params=terms.digest, sender=20)
        )


def test_damaged_requests_raise_only_errors_of_this_package(world):
    requests = world.until(Stage.CONFIRM)
    request = requests[20]
    for place in range(0, len(request), 977):
        damaged = bytearray(request)
        damaged[place] ^= 0x41
        with pytest.raises(SecAggError):
            world.clients[20].handle(bytes(damaged))
    for size in range(0, len(request), 4999):
        with pytest.raises(SecAggError):
            world.clients[20].handle(request[:size])
    world.server.receive(20, world.clients[20].handle(request).message)


def test_a_key_is_opened_once_in_a_set_up(world):
    requests = world.until(Stage.CONFIRM)
    client = world.clients[20]
    client.handle(requests[20])
    held = client._held
    with pytest.raises(Latched):
        client.handle(requests[20])
    assert client._held is held


def test_an_epoch_is_what_rounds_need(world):
    epoch = run_key_setup(world.server, world.clients)
    assert isinstance(epoch, KeyEpoch)
    assert epoch.key.preset == PRESETS["wide"].code
    assert set(epoch.bytes_up) == set(epoch.bytes_down) == set(world.ids)
