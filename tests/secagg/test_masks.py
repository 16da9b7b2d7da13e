import os

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg.keys import AgreementKey
from secagg.masks import add_pair_mask, add_self_mask, mask_upload, pair_mask_key, self_mask_key
from secagg.messages import AdvertRow
from secagg.views import Cohort, Sharers

LENGTHS = {32: 6, 64: 3}


def zeros():
    return {32: np.zeros(LENGTHS[32], np.uint32), 64: np.zeros(LENGTHS[64], np.uint64)}


def cohort_of(params, keys):
    rows = [AdvertRow(i, k.public, k.public, bytes(64)) for i, k in keys.items()]
    return Cohort.of(params, rows)


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 7), st.data())
def test_masks_of_any_survivors_cancel_once_seeds_and_lost_keys_are_known(federation, n, data):
    world = federation(n)
    keys = {i: AgreementKey.generate(os.urandom) for i in world.ids}
    seeds = {i: os.urandom(32) for i in world.ids}
    cohort = cohort_of(world.params(), keys)
    dealt = data.draw(st.sets(st.sampled_from(world.ids), min_size=1))
    alive = data.draw(st.sets(st.sampled_from(sorted(dealt))))
    sharers = Sharers.of(cohort, dealt)
    total = zeros()
    for i in alive:
        mask_upload(total, cohort, sharers, i, seed=seeds[i], mask_key=keys[i])
    for i in alive:
        add_self_mask(total, seeds[i], sharers.digest, i, subtract=True)
    for lost in dealt - alive:
        for i in alive:
            agreed = keys[lost].agree(keys[i].public, peer_id=i)
            add_pair_mask(total, agreed, sharers.digest, i, lost, subtract=True)
    for words in total.values():
        assert not words.any()


def test_one_upload_stays_masked_while_either_of_its_secrets_is_unknown(federation):
    world = federation(3)
    keys = {i: AgreementKey.generate(os.urandom) for i in world.ids}
    cohort = cohort_of(world.params(), keys)
    sharers = Sharers.of(cohort, world.ids)
    seed = os.urandom(32)
    for known in ("seed", "pairs"):
        lanes = zeros()
        mask_upload(lanes, cohort, sharers, 10, seed=seed, mask_key=keys[10])
        if known == "seed":
            add_self_mask(lanes, seed, sharers.digest, 10, subtract=True)
        else:
            for peer in (20, 30):
                agreed = keys[10].agree(keys[peer].public, peer_id=peer)
                add_pair_mask(lanes, agreed, sharers.digest, 10, peer, subtract=True)
        assert all(words.any() for words in lanes.values())


def test_mask_keys_differ_in_every_bound_value():
    secret, view, other = os.urandom(32), os.urandom(32), os.urandom(32)
    keys = [
        self_mask_key(secret, view, 1, 32),
        self_mask_key(secret, view, 1, 64),
        self_mask_key(secret, view, 2, 32),
        self_mask_key(secret, other, 1, 32),
        pair_mask_key(secret, view, 1, 2, 32),
        pair_mask_key(secret, view, 1, 3, 32),
        pair_mask_key(secret, view, 1, 2, 64),
        pair_mask_key(secret, other, 1, 2, 32),
    ]
    assert len(set(keys)) == len(keys)


def test_all_256_bits_of_a_pair_key_are_free():
    """Over 2,000 keys each bit is seen both set and clear: nothing truncates or encodes a seed."""
    one = AgreementKey.generate(os.urandom)
    ored, anded = 0, (1 << 256) - 1
    for _ in range(2000):
        agreed = one.agree(AgreementKey.generate(os.urandom).public, peer_id=2)
        key = int.from_bytes(pair_mask_key(agreed, bytes(32), 1, 2, 32), "little")
        ored, anded = ored | key, anded & key
    assert ored == (1 << 256) - 1
    assert anded == 0
