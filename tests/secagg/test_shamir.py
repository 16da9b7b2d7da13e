import itertools
import json
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import errors
from secagg.shamir import PRIME, combine, evaluate, lagrange_at_zero, random_element, split

VECTORS = Path(__file__).parent / "vectors"
KNOWN = json.loads((VECTORS / "known_answers.json").read_text())
BAD = json.loads((VECTORS / "bad_inputs.json").read_text())
SEQ = bytes(range(32))
elements = st.integers(0, PRIME - 1).map(lambda value: value.to_bytes(32, "little"))


def test_shares_equal_the_known_answers():
    secret = int.from_bytes(SEQ, "little")
    for point, first in enumerate(KNOWN["shamir_seq_5_7_first_bytes_at_1_to_4"], start=1):
        share = evaluate([secret, 5, 7], point, PRIME).to_bytes(32, "little")
        assert share == bytes.fromhex(first) + SEQ[1:]


def test_shares_on_a_polynomial_that_wraps_around_equal_the_known_answers():
    drawn = iter([(PRIME - 1).to_bytes(32, "little"), (PRIME - 2).to_bytes(32, "little")])
    cases = KNOWN["shamir_seq_with_coefficients_p_minus_1_p_minus_2"]
    shares = split(SEQ, 3, [case["point"] for case in cases], lambda size: next(drawn))
    assert [share.hex() for share in shares] == [case["share"] for case in cases]
    known = {case["point"]: bytes.fromhex(case["share"]) for case in cases}
    assert combine({point: known[point] for point in (2, 3, 65_535)}) == SEQ


@settings(max_examples=60)
@given(elements, st.integers(1, 9), st.data())
def test_any_threshold_of_shares_gives_the_secret(secret, threshold, data):
    count = data.draw(st.integers(threshold, 12))
    points = data.draw(
        st.lists(st.integers(1, 65_535), min_size=count, max_size=count, unique=True)
    )
    shares = dict(zip(points, split(secret, threshold, points, os.urandom), strict=True))
    chosen = data.draw(st.permutations(points))[:threshold]
    assert combine({point: shares[point] for point in chosen}) == secret
    assert combine(shares) == secret


def test_one_share_short_of_the_threshold_does_not_give_the_secret():
    shares = dict(enumerate(split(SEQ, 4, range(1, 8), os.urandom), start=1))
    for chosen in itertools.combinations(shares, 3):
        assert combine({point: shares[point] for point in chosen}) != SEQ


@pytest.mark.parametrize(
    ("threshold", "points"), [(2, (1,)), (3, (1, 2)), (3, (2, 5)), (3, (1, 6))]
)
def test_fewer_shares_than_the_threshold_are_independent_of_the_secret(threshold, points):
    """All polynomials over GF(7): every share vector occurs equally often for every secret."""
    prime = 7
    for secret in range(prime):
        seen = Counter(
            tuple(evaluate([secret, *coefficients], x, prime) for x in points)
            for coefficients in itertools.product(range(prime), repeat=threshold - 1)
        )
        expected = prime ** (threshold - 1 - len(points))
        assert len(seen) == prime ** len(points)
        assert set(seen.values()) == {expected}


def test_lagrange_weights_read_the_constant_of_every_polynomial_in_a_small_field():
    points = (1, 3, 4)
    weights = lagrange_at_zero(points, 7)
    for polynomial in itertools.product(range(7), repeat=3):
        values = [evaluate(polynomial, x, 7) for x in points]
        assert sum(w * v for w, v in zip(weights, values, strict=True)) % 7 == polynomial[0]


@pytest.mark.parametrize("case", BAD["bad_shares"], ids=lambda case: case["why"])
def test_bad_shares_are_refused(case):
    values = [SEQ if value == "seq" else bytes.fromhex(value) for value in case["values"]]
    with pytest.raises(getattr(errors, case["error"])):
        combine(dict(zip(case["points"], values, strict=True)))


@pytest.mark.parametrize("case", BAD["bad_split_points"], ids=lambda case: case["why"])
def test_bad_points_are_refused(case):
    with pytest.raises(errors.Malformed):
        split(SEQ, 2, case["points"], os.urandom)


def test_a_secret_above_the_prime_is_refused():
    with pytest.raises(errors.Malformed):
        split(b"\xff" * 32, 2, [1, 2, 3], os.urandom)


def test_random_elements_are_redrawn_until_they_are_below_the_prime():
    draws = iter([b"\xff" * 32, PRIME.to_bytes(32, "little"), SEQ])
    assert random_element(lambda size: next(draws)) == SEQ
