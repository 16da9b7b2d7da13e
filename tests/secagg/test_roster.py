import pickle

import msgspec
import pytest

from secagg import Identity, Member, Roster, SigningKey
from secagg.errors import ConfigurationError, CorruptState, UnknownIdentity

COORDINATOR = SigningKey(b"c" * 32).public
MEMBERS = tuple(
    Member(id=i, key=SigningKey(bytes([i]) * 32).public, name=f"site {i}") for i in (1, 4, 9)
)
ROSTER = Roster(coordinator=COORDINATOR, members=MEMBERS)


def test_a_roster_survives_its_file():
    assert Roster.from_json(ROSTER.to_json()) == ROSTER
    assert Roster.from_json(ROSTER.to_json()).digest == ROSTER.digest


def test_names_are_for_people_and_do_not_change_the_digest():
    renamed = tuple(msgspec.structs.replace(m, name="x") for m in MEMBERS)
    assert Roster(coordinator=COORDINATOR, members=renamed).digest == ROSTER.digest


@pytest.mark.parametrize(
    "changed",
    [
        Roster(coordinator=SigningKey(b"d" * 32).public, members=MEMBERS),
        Roster(coordinator=COORDINATOR, members=MEMBERS[:2]),
        Roster(coordinator=COORDINATOR, members=MEMBERS, version=2),
        Roster(
            coordinator=COORDINATOR,
            members=(Member(id=1, key=b"k" * 32), *MEMBERS[1:]),
        ),
        Roster(
            coordinator=COORDINATOR,
            members=(msgspec.structs.replace(MEMBERS[0], id=2), *MEMBERS[1:]),
        ),
    ],
)
def test_any_other_change_changes_digest_and_fingerprint(changed):
    assert changed.digest != ROSTER.digest
    assert changed.fingerprint != ROSTER.fingerprint


def test_the_fingerprint_shows_the_first_128_bits():
    assert ROSTER.fingerprint.replace(" ", "") == ROSTER.digest.hex()[:32]


@pytest.mark.parametrize(
    "members",
    [
        (),
        MEMBERS[::-1],
        (MEMBERS[0], MEMBERS[0]),
        (MEMBERS[0], Member(id=5, key=MEMBERS[0].key)),
        (Member(id=1, key=b"short"),),
        (Member(id=1, key=COORDINATOR),),
        (Member(id=-1, key=b"k" * 32),),
        (Member(id=2**32 - 1, key=b"k" * 32),),
    ],
)
def test_a_roster_that_could_confuse_two_members_is_refused(members):
    with pytest.raises(ConfigurationError):
        Roster(coordinator=COORDINATOR, members=members)


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"[1]", b"\xff", b'{"coordinator": 3, "members": []}']
)
def test_a_file_that_is_no_roster_is_refused(text):
    with pytest.raises(CorruptState):
        Roster.from_json(text)


def test_a_stranger_has_no_key():
    with pytest.raises(UnknownIdentity, match="client 5"):
        ROSTER.key_of(5)


def test_an_identity_survives_its_file_and_hides_its_key():
    identity = Identity.generate(4)
    restored = Identity.from_text(identity.to_text())
    assert (restored.id, restored.key.public) == (4, identity.key.public)
    assert repr(identity) == "Identity(id=4)"
    with pytest.raises(TypeError):
        pickle.dumps(identity)


@pytest.mark.parametrize("text", ["", "4", "4 not-base64!", "x AAAA", "4 AAAA", "4 AAAA BBBB"])
def test_a_file_that_is_no_identity_is_refused_without_repeating_it(text):
    with pytest.raises(CorruptState, match=r"^not an identity file$"):
        Identity.from_text(text)
