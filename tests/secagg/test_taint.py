"""No secret shows where it must not: every secret byte string of a round is marked and looked for.

Marked are all 32-byte draws of every client, the identity and coordinator seeds, the state keys, and
what is derived of them: shares, agreed secrets, keys of seals and masks. Looked at is everything that
is printed, logged, raised, stored or sent. A secret that the protocol opens is allowed in the reveal
that opens it, and from then on with the server.
"""

import base64
import io
import logging
import os
import traceback

import pytest

import secagg.dealing
import secagg.keys
import secagg.masks
import secagg.sealed_state
from secagg import Mode, SecAggError, Stage, open_client, open_restartable_server
from secagg.messages import HEADER, Reveal, ShareRow, decode, from_table
from secagg.roster import COORDINATOR_ID
from secagg.sealed_state import Vault

LIMIT = 1 << 20
SERVER_KEY = os.urandom(32)


class Taint:
    """Collects secrets while a round runs, and finds them in any form they could be written in."""

    def __init__(self):
        self.secrets = set()

    def mark(self, value):
        if len(value) == 32:
            self.secrets.add(bytes(value))
        return value

    def random(self, size):
        return self.mark(os.urandom(size))

    def found(self, text, among=None):
        """The secrets in `text`: raw, as hexadecimal, base64, a Python literal, or a number."""
        data = text.encode("utf-8", "replace") if isinstance(text, str) else bytes(text)
        return {s for s in (self.secrets if among is None else among) if self.shows(data, s)}

    @staticmethod
    def shows(data, secret):
        forms = (
            secret,
            secret.hex().encode(),
            secret[::-1].hex().encode(),
            base64.b64encode(secret),
            repr(secret)[2:-1].encode(),
            str(int.from_bytes(secret, "little")).encode(),
            str(int.from_bytes(secret, "big")).encode(),
        )
        return any(form in data for form in forms)


def mark_what_is_derived(taint, patch):
    """Marks agreed secrets, keys and shares as they are made, besides what is drawn."""

    def marking(module, name, parts=lambda result: [result]):
        real = getattr(module, name)

        def wrapped(*arguments, **options):
            result = real(*arguments, **options)
            for part in parts(result):
                taint.mark(part)
            return result

        patch.setattr(module, name, wrapped)

    marking(secagg.keys.AgreementKey, "agree")
    marking(secagg.dealing, "split", parts=list)
    for module in (secagg.dealing, secagg.masks, secagg.sealed_state):
        marking(module, "derive_key")


class Site:
    """A client with marked secrets; everything it stores is kept."""

    def __init__(self, world, client_id, taint, *, sealed):
        self.stored = []
        self.state_key = taint.random(32) if sealed else None
        self.session = open_client(
            Mode.MASKING,
            identity=world.identities[client_id],
            roster=world.roster,
            policy=world.policy(),
            save=self.stored.append,
            state_key=self.state_key,
            random=taint.random,
        )


def observed_round(world, taint, *, sealed):
    """A round with losses, repeats and refusals, and all that can be seen of it, by kind."""
    for key in (world.coordinator, *(one.key for one in world.identities.values())):
        taint.mark(key.seed())
    taint.mark(SERVER_KEY)
    sites = {client: Site(world, client, taint, sealed=sealed) for client in world.ids}
    snapshots = []
    server = open_restartable_server(
        world.params(),
        coordinator=world.coordinator,
        roster=world.roster,
        state_key=SERVER_KEY,
        save=snapshots.append,
    )
    seen = {"printed": set(), "raised": [], "replies": [], "reveals": [], "requests": []}
    lost = {50: Stage.UPLOAD, 60: Stage.REVEAL}
    step = server.open()
    while isinstance(step, dict):
        for client, request in step.items():
            session = sites[client].session
            seen["requests"].append(request)
            seen["raised"] += failures(world, session, server, client, request)
            answer = world.answer(session, request)
            seen["printed"] |= printed(session, sites[client])
            if lost.get(client, Stage.REVEAL + 1) > server.stage:
                seen["reveals" if server.stage is Stage.REVEAL else "replies"].append(answer)
                server.receive(client, answer)
            seen["printed"] |= printed(server)
        snapshots.append(server.snapshot())
        step = server.close_stage()
    assert step.survivors == (*world.ids[:4], 60)
    seen["printed"] |= printed(step)
    return sites, seen, snapshots


def failures(world, session, server, client, request):
    """What is raised and written down when things go wrong at this point."""
    raised = []
    attempts = [
        lambda: session.handle(request[:-1] + bytes([request[-1] ^ 1])),
        lambda: session.handle(request[: HEADER.size]),
        lambda: server.receive(client, request),
        lambda: server.receive(client + 1, request),
        lambda: session.submit(world.update(client), bytes(31)),
    ]
    if server.stage is Stage.UPLOAD:
        attempts.pop()  # there a wrong context would end the round
    for attempt in attempts:
        try:
            attempt()
        except SecAggError as error:
            raised += [str(error), repr(error), "".join(traceback.format_exception(error))]
    return raised


def printed(*things):
    """How objects and whatever hangs on them print, a few levels deep; plain bytes do print."""
    texts, level = set(), list(things)
    for _ in range(5):
        inner = []
        for thing in level:
            texts.add(repr(thing))
            if isinstance(thing, dict):
                inner += thing.values()
            inner += getattr(thing, "__dict__", {}).values()
            for kind in type(thing).__mro__:
                inner += [getattr(thing, name, None) for name in getattr(kind, "__slots__", ())]
        level = [
            one
            for one in inner
            if isinstance(one, dict) or type(one).__module__.startswith("secagg")
        ]
    return texts


@pytest.fixture(scope="module", params=[False, True], ids=["marks only", "sealed states"])
def observed(request, federation):
    world, taint, log = federation(6), Taint(), io.StringIO()
    handler = logging.StreamHandler(log)
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.DEBUG)
    with pytest.MonkeyPatch.context() as patch:
        mark_what_is_derived(taint, patch)
        sites, seen, snapshots = observed_round(world, taint, sealed=request.param)
    logging.getLogger().removeHandler(handler)
    logging.getLogger().setLevel(logging.WARNING)
    seen["printed"].add(log.getvalue())
    return sites, seen, snapshots, taint, world


def opened_by(seen):
    """The secrets that the reveals opened to the server: seeds, and one share of each client."""
    opened = set()
    for message in seen["reveals"]:
        reveal = decode(message, Reveal, limit=LIMIT)
        opened |= {reveal.seed, *(row.value for row in from_table(ShareRow, reveal.shares))}
    assert len(opened) == 4 * (1 + 5)
    return opened


def test_there_are_secrets_to_look_for_and_the_search_finds_them(observed):
    """The control: the bytes are where the protocol puts them, and every written form is known."""
    _, seen, _, taint, _ = observed
    assert len(taint.secrets) > 200
    assert opened_by(seen) <= taint.secrets
    one = next(iter(taint.secrets))
    number = int.from_bytes(one, "little")
    forms = (one, one.hex(), base64.b64encode(one), repr(one), f"key={number}", [one])
    for form in forms:
        assert taint.found(form if isinstance(form, bytes) else str(form)) == {one}


def test_no_secret_is_printed_logged_or_raised(observed):
    """The server's seeds and shares hang on it as plain bytes once they were opened to it."""
    _, seen, _, taint, _ = observed
    hidden = taint.secrets - opened_by(seen)
    assert len(seen["raised"]) > 100
    text = "\n".join(seen["printed"])
    for name in ("Advertised(", "Dealt(", "Uploaded(", "Confirmed(", "Answered(", "Transcript("):
        assert name in text
    assert not taint.found(text, hidden)
    assert not taint.found("\n".join(seen["raised"]))


def test_no_secret_is_sent_but_what_the_reveals_open(observed):
    _, seen, _, taint, _ = observed
    for message in (*seen["requests"], *seen["replies"]):
        assert not taint.found(message)
    hidden = taint.secrets - opened_by(seen)
    for message in seen["reveals"]:
        assert not taint.found(message, hidden)


def test_the_server_stores_no_secret_but_what_was_opened_to_it_and_that_only_sealed(observed):
    _, seen, snapshots, taint, _ = observed
    vault, hidden = Vault(SERVER_KEY, COORDINATOR_ID), taint.secrets - opened_by(seen)
    assert len(snapshots) == 2 * len(Stage)
    for saved in snapshots:
        assert not taint.found(saved)
        assert not taint.found(vault.unseal(saved).content, hidden)
    assert taint.found(vault.unseal(snapshots[-1]).content)  # the search is not blind


def test_a_client_stores_secrets_only_sealed(observed):
    sites, _, _, taint, _ = observed
    for client, site in sites.items():
        for saved in site.stored:
            assert not taint.found(saved)
        if site.state_key is None:
            assert len(site.stored) == 1
            continue
        inside = [
            taint.found(Vault(site.state_key, client).unseal(saved).content)
            for saved in site.stored[1:]
        ]
        assert len(inside) == len(Stage) or client == 50
        assert all(inside)


def test_state_and_identity_keys_are_in_no_state_sealed_or_not(observed):
    """A stolen state key opens a round; it must not open an identity, nor the next round."""
    sites, _, _, taint, world = observed
    lasting = {one.key.seed() for one in world.identities.values()}
    lasting |= {site.state_key for site in sites.values() if site.state_key}
    for client, site in sites.items():
        if site.state_key:
            for saved in site.stored[1:]:
                content = Vault(site.state_key, client).unseal(saved).content
                assert not taint.found(content, lasting)
