import json
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from secagg import prg
from secagg.errors import ConfigurationError
from secagg.keys import AgreementKey
from secagg.masks import pair_mask_key
from secagg.prg import add_keystream, keystream

VECTORS = Path(__file__).parent / "vectors"
KNOWN = json.loads((VECTORS / "known_answers.json").read_text())
STANDARDS = json.loads((VECTORS / "standards.json").read_text())
SEQ = bytes(range(32))


@pytest.mark.parametrize("case", STANDARDS["aes256_zero_block"]["cases"])
def test_the_first_block_is_the_nist_encryption_of_zero(case):
    assert keystream(bytes.fromhex(case["key"]), 32, 4).tobytes().hex() == case["block"]


def encrypted_numbers(key: bytes, start: int, count: int) -> bytes:
    """An oracle: counter mode written from SP 800-38A with single-block encryption."""
    ecb = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()  # noqa: S305 - an oracle
    return b"".join(ecb.update(k.to_bytes(16, "big")) for k in range(start, start + count))


def test_the_oracle_for_counter_mode_equals_nist():
    case = {k: bytes.fromhex(v) for k, v in STANDARDS["aes256_ctr"].items() if k != "source"}
    blocks = encrypted_numbers(case["key"], int.from_bytes(case["counter"], "big"), 4)
    encrypted = bytes(a ^ b for a, b in zip(blocks, case["plaintext"], strict=True))
    assert encrypted == case["ciphertext"]
    block = {k: bytes.fromhex(v) for k, v in STANDARDS["aes256_block"].items() if k != "source"}
    number = int.from_bytes(block["plaintext"], "big")
    assert encrypted_numbers(block["key"], number, 1) == block["ciphertext"]


def test_block_k_is_the_encryption_of_the_number_k():
    assert keystream(SEQ, 64, 600).tobytes() == encrypted_numbers(SEQ, 0, 300)


def test_keystreams_equal_the_known_answers():
    assert [f"{w:08x}" for w in keystream(SEQ, 32, 4)] == KNOWN["aes_ctr_seq_u32"]
    assert [f"{w:016x}" for w in keystream(SEQ, 64, 2)] == KNOWN["aes_ctr_seq_u64"]
    one, other = AgreementKey(bytes(range(1, 33))), AgreementKey(bytes(range(33, 65)))
    key = pair_mask_key(one.agree(other.public, peer_id=1), b"\x11" * 32, 3, 9, 32)
    assert [f"{w:08x}" for w in keystream(key, 32, 3)] == KNOWN["pair_mask_words_u32"]


@pytest.mark.parametrize("lane", [32, 64])
def test_a_long_keystream_does_not_depend_on_the_chunks_it_is_made_in(lane, monkeypatch):
    whole = keystream(SEQ, lane, 1000)
    monkeypatch.setattr(prg, "_CHUNK_BYTES", 48)
    assert np.array_equal(keystream(SEQ, lane, 1000), whole)


@given(st.binary(min_size=32, max_size=32), st.sampled_from([32, 64]), st.integers(1, 50))
def test_adding_and_subtracting_a_keystream_cancels(key, lane, length):
    words = keystream(SEQ, lane, length)
    before = words.copy()
    add_keystream(words, key)
    add_keystream(words, key, subtract=True)
    assert np.array_equal(words, before)


def test_more_bytes_than_a_key_may_give_are_refused(monkeypatch):
    monkeypatch.setattr(prg, "MAX_BYTES_PER_KEY", 16)
    with pytest.raises(ConfigurationError):
        keystream(SEQ, 32, 5)
