import hmac
import json
import pickle
from pathlib import Path

import pytest

from secagg.digests import confirm_statement, enc, u8, u32
from secagg.errors import BadAdvert, BadSignature
from secagg.keys import AgreementKey, SignatureCache, SigningKey, derive_key, verify
from secagg.masks import pair_mask_key, self_mask_key

VECTORS = Path(__file__).parent / "vectors"
KNOWN = json.loads((VECTORS / "known_answers.json").read_text())
STANDARDS = json.loads((VECTORS / "standards.json").read_text())
BAD = json.loads((VECTORS / "bad_inputs.json").read_text())
SEQ = bytes(range(32))
V = b"\x11" * 32
A, B = AgreementKey(bytes(range(1, 33))), AgreementKey(bytes(range(33, 65)))


def hkdf_sha256(secret: bytes, info: bytes, length: int, salt: bytes = b"") -> bytes:
    """An oracle written from RFC 5869."""
    key = hmac.digest(salt or bytes(32), secret, "sha256")
    block, output = b"", b""
    for counter in range(1, -(-length // 32) + 1):
        block = hmac.digest(key, block + info + bytes([counter]), "sha256")
        output += block
    return output[:length]


def test_key_agreement_equals_rfc_7748():
    case = {k: bytes.fromhex(v) for k, v in STANDARDS["x25519"].items() if k != "source"}
    alice, bob = AgreementKey(case["alice_private"]), AgreementKey(case["bob_private"])
    assert alice.public == case["alice_public"]
    assert bob.public == case["bob_public"]
    assert alice.agree(bob.public, peer_id=2) == case["shared"]
    assert bob.agree(alice.public, peer_id=1) == case["shared"]


@pytest.mark.parametrize("case", STANDARDS["x25519_products"]["cases"])
def test_products_equal_rfc_7748(case):
    scalar, point = bytes.fromhex(case["scalar"]), bytes.fromhex(case["point"])
    assert AgreementKey(scalar).agree(point, peer_id=1).hex() == case["product"]


@pytest.mark.parametrize("case", STANDARDS["ed25519"]["cases"])
def test_signatures_equal_rfc_8032(case):
    key = SigningKey(bytes.fromhex(case["seed"]))
    message, signature = bytes.fromhex(case["message"]), bytes.fromhex(case["signature"])
    assert key.public.hex() == case["public"]
    assert key.sign(message) == signature
    verify(key.public, signature, message, author="the RFC")


@pytest.mark.parametrize("case", STANDARDS["hkdf_sha256"]["cases"])
def test_the_oracle_for_key_derivation_equals_rfc_5869(case):
    secret, salt, info = (bytes.fromhex(case[name]) for name in ("secret", "salt", "info"))
    assert hkdf_sha256(secret, info, case["length"], salt).hex() == case["output"]


def test_key_derivation_is_hkdf_with_the_label_in_its_info():
    expected = hkdf_sha256(SEQ, enc("self-mask", V, u32(7)), 32)
    assert derive_key(SEQ, "self-mask", V, u32(7)) == expected


def test_derived_keys_equal_the_known_answers():
    agreed = A.agree(B.public, peer_id=2)
    assert agreed.hex() == KNOWN["x25519_a_b"]
    assert (
        derive_key(SEQ, "self-mask", V, u32(7), u8(32)).hex() == KNOWN["self_mask_key_v_7_lane32"]
    )
    assert self_mask_key(SEQ, V, 7, 32).hex() == KNOWN["self_mask_key_v_7_lane32"]
    assert pair_mask_key(agreed, V, 3, 9, 32).hex() == KNOWN["pair_mask_key_v_3_9_lane32"]
    assert pair_mask_key(agreed, V, 9, 3, 32).hex() == KNOWN["pair_mask_key_v_3_9_lane32"]
    assert derive_key(agreed, "share-key", V, u32(3), u32(9)).hex() == KNOWN["share_key_v_3_9"]
    state_key = derive_key(SEQ, "state", b"r" * 16, u32(7), u8(1), V)
    assert state_key.hex() == KNOWN["state_key_r_7_version1_salt_v"]


def test_a_confirmation_signature_equals_the_known_answer():
    signature = SigningKey(SEQ).sign(confirm_statement(V))
    assert signature.hex() == KNOWN["confirm_signature_seed_seq_v"]


@pytest.mark.parametrize("key", BAD["bad_agreement_keys"]["keys"])
def test_a_key_of_low_order_is_refused_by_the_name_of_its_owner(key):
    with pytest.raises(BadAdvert, match="client 7 "):
        A.agree(bytes.fromhex(key), peer_id=7)


@pytest.mark.parametrize("bit", [0, 255, 511])
def test_a_signature_with_one_bit_changed_is_refused(bit):
    key = SigningKey(SEQ)
    broken = bytearray(key.sign(V))
    broken[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BadSignature, match="client 3"):
        verify(key.public, bytes(broken), V, author="client 3")


def test_a_signature_over_another_stage_is_refused():
    key = SigningKey(SEQ)
    with pytest.raises(BadSignature):
        verify(key.public, key.sign(confirm_statement(V)), V, author="client 3")


def test_the_cache_never_lets_a_false_signature_pass():
    key, cache = SigningKey(SEQ), SignatureCache()
    good = key.sign(V)
    verify(key.public, good, V, author="x", cache=cache)
    assert (key.public, good, V) in cache
    for signature, statement in ((good, SEQ), (bytes(64), V)):
        with pytest.raises(BadSignature):
            verify(key.public, signature, statement, author="x", cache=cache)
        assert (key.public, signature, statement) not in cache


@pytest.mark.parametrize("secret", [SigningKey(SEQ), A])
def test_keys_print_only_their_type_and_do_not_pickle(secret):
    assert repr(secret) == type(secret).__name__
    with pytest.raises(TypeError):
        pickle.dumps(secret)
