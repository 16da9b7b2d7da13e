import os

import pytest

from secagg.errors import ReconstructionFailed
from secagg.recovery import recover
from secagg.shamir import split

SEQ = bytes(range(32))


def shares(count, threshold):
    return dict(enumerate(split(SEQ, threshold, range(1, count + 1), os.urandom), start=1))


def matches(candidate):
    return candidate == SEQ


def test_any_one_wrong_share_is_outvoted():
    for wrong in range(1, 7):
        opened = shares(6, 4)
        opened[wrong] = bytes(32)
        assert recover(opened, 4, matches, owner=9) == SEQ


def test_several_wrong_shares_are_outvoted_when_enough_are_right():
    opened = shares(9, 3)
    opened[1] = opened[2] = opened[3] = bytes(32)
    assert recover(opened, 3, matches, owner=9) == SEQ


def test_too_few_shares_name_the_dealer():
    with pytest.raises(ReconstructionFailed, match="client 9") as caught:
        recover(shares(3, 4), 4, matches, owner=9)
    assert caught.value.dealer == 9


def test_a_dealer_whose_shares_do_not_fit_its_commitment_is_named_after_a_bounded_search():
    tries = []

    def never(candidate):
        tries.append(candidate)
        return False

    with pytest.raises(ReconstructionFailed) as caught:
        recover(shares(12, 5), 5, never, owner=9)
    assert caught.value.dealer == 9
    assert len(tries) <= 64
