import json
from pathlib import Path

import pytest

from secagg.aead import seal, unseal
from secagg.errors import BadSeal

CASES = json.loads((Path(__file__).parent / "vectors/standards.json").read_text())[
    "chacha20_poly1305"
]["cases"]
FIELDS = ("key", "nonce", "associated", "plaintext", "ciphertext", "tag")
KEY, NONCE, ASSOCIATED, _, CIPHERTEXT, TAG = (bytes.fromhex(CASES[0][name]) for name in FIELDS)
SEALED = NONCE + CIPHERTEXT + TAG


@pytest.mark.parametrize("case", CASES)
def test_sealing_equals_rfc_8439(case):
    key, nonce, associated, plaintext, ciphertext, tag = (
        bytes.fromhex(case[name]) for name in FIELDS
    )
    sealed = nonce + ciphertext + tag
    assert seal(key, plaintext, associated, lambda size: nonce[:size]) == sealed
    assert unseal(key, sealed, associated) == plaintext


@pytest.mark.parametrize("place", [0, 11, 12, 60, len(SEALED) - 16, len(SEALED) - 1])
def test_a_sealed_text_with_one_bit_changed_does_not_open(place):
    broken = bytearray(SEALED)
    broken[place] ^= 1
    with pytest.raises(BadSeal):
        unseal(KEY, bytes(broken), ASSOCIATED)


@pytest.mark.parametrize("length", [0, 12, 27, len(SEALED) - 1])
def test_a_truncated_text_does_not_open(length):
    with pytest.raises(BadSeal):
        unseal(KEY, SEALED[:length], ASSOCIATED)


def test_another_key_or_other_associated_data_does_not_open():
    with pytest.raises(BadSeal):
        unseal(bytes(32), SEALED, ASSOCIATED)
    with pytest.raises(BadSeal):
        unseal(KEY, SEALED, b"another direction")
