import os

import pytest

from secagg.aead import seal
from secagg.dealing import open_all, seal_all, seal_key
from secagg.digests import enc, u16, u32
from secagg.keys import AgreementKey
from secagg.messages import AdvertRow
from secagg.secret import Secret
from secagg.shamir import combine, random_element
from secagg.views import Cohort, ShareKind

IDS = (10, 20, 30, 40)


@pytest.fixture(scope="module")
def dealt(federation):
    """Every member's sealed texts and reading keys, and the two secrets of each."""
    keys = {i: AgreementKey.generate(os.urandom) for i in IDS}
    rows = [AdvertRow(i, keys[i].public, keys[i].public, bytes(64)) for i in IDS]
    cohort = Cohort.of(federation(4).params(), rows)
    secrets = {i: (random_element(os.urandom), random_element(os.urandom)) for i in IDS}
    sealed = {
        i: seal_all(
            cohort,
            i,
            share_key=keys[i],
            seed=secrets[i][0],
            mask_key=secrets[i][1],
            random=os.urandom,
        )
        for i in IDS
    }
    return cohort, secrets, sealed


def text_for(cohort, sealed, dealer, reader):
    place = cohort.neighbours(dealer).index(reader)
    return sealed[dealer][0][92 * place : 92 * (place + 1)]


def read(cohort, sealed, reader, dealers):
    texts = b"".join(text_for(cohort, sealed, dealer, reader) for dealer in dealers)
    return open_all(cohort, reader, dealers, sealed=texts, read_keys=sealed[reader][1])


def test_the_readers_together_hold_both_secrets_of_a_dealer(dealt):
    cohort, secrets, sealed = dealt
    held = {reader: read(cohort, sealed, reader, [10])[10] for reader in (20, 30, 40)}
    for kind in ShareKind:
        shares = {cohort.points[reader]: one.of(kind) for reader, one in held.items()}
        assert combine(shares) == secrets[10][kind]


def test_the_two_secrets_are_shared_by_independent_polynomials(dealt):
    """The difference of both shares is not the same for two readers, nor their shares equal."""
    cohort, _, sealed = dealt
    held = {reader: read(cohort, sealed, reader, [10])[10] for reader in (20, 30)}
    differences = {
        int.from_bytes(one.of(ShareKind.SEED), "little")
        - int.from_bytes(one.of(ShareKind.MASK_KEY), "little")
        for one in held.values()
    }
    assert len(differences) == 2


def test_a_text_for_another_reader_or_from_another_dealer_does_not_open(dealt):
    cohort, _, sealed = dealt
    swapped = text_for(cohort, sealed, 10, 30) + text_for(cohort, sealed, 40, 20)
    held = open_all(cohort, 20, [10, 40], sealed=swapped, read_keys=sealed[20][1])
    assert set(held) == {40}
    moved = text_for(cohort, sealed, 10, 20) + text_for(cohort, sealed, 10, 20)
    assert set(open_all(cohort, 20, [10, 40], sealed=moved, read_keys=sealed[20][1])) == {10}


@pytest.mark.parametrize(
    "content", [b"\xff" * 64, bytes(32) + b"\xff" * 32, bytes(63), bytes(65), b""]
)
def test_a_text_that_holds_no_two_field_elements_is_missing(dealt, content):
    cohort = dealt[0]
    agreed = os.urandom(32)
    key = seal_key(agreed, cohort, 10, 20)
    bound = enc("share-aad", cohort.digest, u32(10), u32(20), u16(cohort.points[20]))
    text = seal(key, content, bound, os.urandom)
    assert open_all(cohort, 20, [10], sealed=text, read_keys={10: Secret(key)}) == {}
