import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secagg.digests import digest, enc, u16, u32

KNOWN = json.loads((Path(__file__).parent / "vectors/known_answers.json").read_text())
V = b"\x11" * 32


def test_digests_equal_the_known_answers():
    assert digest("params", b"").hex() == KNOWN["digest_params_empty"]
    assert digest("cohort", V, u32(7), u16(3)).hex() == KNOWN["digest_cohort_v_7_3"]


def read_back(encoded: bytes) -> list[bytes]:
    parts = []
    while encoded:
        length = int.from_bytes(encoded[:4], "little")
        parts.append(encoded[4 : 4 + length])
        encoded = encoded[4 + length :]
    return parts


@given(st.text("abc/", max_size=5), st.lists(st.binary(max_size=6), max_size=4))
def test_an_encoding_can_be_read_back_in_one_way_only(label, parts):
    assert read_back(enc(label, *parts)) == [b"secagg/v1/" + label.encode(), *parts]


@pytest.mark.parametrize(
    ("one", "other"), [((b"ab", b"c"), (b"a", b"bc")), ((b"ab",), (b"ab", b"")), ((), (b"",))]
)
def test_moving_a_boundary_between_parts_changes_the_digest(one, other):
    assert digest("x", *one) != digest("x", *other)


def test_the_label_separates_equal_contents():
    assert digest("sign/confirm", V) != digest("sign/upload", V)
