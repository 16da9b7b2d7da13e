"""Every byte string that this package hashes, signs or binds a key to.

`enc` is injective: a label and its parts can be read back from the result in one way only, so two
different statements never share a digest. Nothing here depends on how messages are serialised.
A digest chain commits everyone to one history: P (parameters) enters M (cohort), M enters V
(sharers), V enters every upload digest and R (survivors), and signatures cover the last link known.

Source: labels and values as listed in `docs/secagg.md`; the primitive is SHA-256 (FIPS 180-4).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from functools import cache

DIGEST_BYTES = 32
_DOMAIN = b"secagg/v1/"
_U8, _U16, _U32, _U64 = (struct.Struct(f"<{code}") for code in "BHIQ")


def u8(value: int) -> bytes:
    """One byte."""
    return _U8.pack(value)


def u16(value: int) -> bytes:
    """Two bytes, little-endian."""
    return _U16.pack(value)


def u32(value: int) -> bytes:
    """Four bytes, little-endian."""
    return _U32.pack(value)


def u64(value: int) -> bytes:
    """Eight bytes, little-endian."""
    return _U64.pack(value)


def f64(value: float) -> bytes:
    """Eight bytes, IEEE 754 binary64, little-endian."""
    return struct.pack("<d", value)


def length_prefixed(part: bytes) -> bytes:
    """`part` after its own length as u32."""
    return _U32.pack(len(part)) + part


@cache
def _prefixed_label(label: str) -> bytes:
    return length_prefixed(_DOMAIN + label.encode("ascii"))


def enc(label: str, *parts: bytes) -> bytes:
    """The injective encoding of a label and its parts."""
    return b"".join([_prefixed_label(label), *map(length_prefixed, parts)])


def digest(label: str, *parts: bytes) -> bytes:
    """SHA-256 of `enc(label, *parts)`; 32 bytes."""
    return hashlib.sha256(enc(label, *parts)).digest()


# The digest chain ---------------------------------------------------------------------------


def params_digest(canonical: bytes) -> bytes:
    """P: the round's public parameters."""
    return digest("params", canonical)


def cohort_digest(params: bytes, keys: Sequence[tuple[int, bytes, bytes]]) -> bytes:
    """M: who takes part, with (id, mask key, share key) in ascending order of id."""
    records = (u32(client) + mask + share for client, mask, share in keys)
    return digest("cohort", params, u16(len(keys)), *records)


def sharers_digest(cohort: bytes, bitmap: bytes) -> bytes:
    """V: which members of M dealt their shares, as a bitmap over the ranks in M."""
    return digest("sharers", cohort, bitmap)


def upload_digest(view: bytes, client: int, body: bytes) -> bytes:
    """h_i: one packed upload. `view` is V, or P in plain mode.

    `digest("upload", view, u32(client), body)`, without copying the body.
    """
    hashed = hashlib.sha256(enc("upload", view, u32(client)) + u32(len(body)))
    hashed.update(body)
    return hashed.digest()


def survivors_digest(view: bytes, uploads: Iterable[tuple[int, bytes]]) -> bytes:
    """R: whose uploads are in the sum, as (id, h_id) in ascending order of id."""
    records = [u32(client) + upload for client, upload in uploads]
    return digest("survivors", view, u16(len(records)), *records)


def decryption_digest(survivors: bytes, ciphertexts: bytes) -> bytes:
    """What the decryptors of CKKS are asked to decrypt, for which survivor list."""
    return asked_digest(survivors, hashlib.sha256(ciphertexts).digest())


def asked_digest(survivors: bytes, ciphertexts: bytes) -> bytes:
    """`decryption_digest`, from the SHA-256 of the ciphertexts."""
    return digest("decrypt", survivors, ciphertexts)


def decryptor_rank(survivors: bytes, client: int) -> bytes:
    """Survivors are asked to decrypt in ascending order of this, which nobody chooses."""
    return digest("decryptor", survivors, u32(client))


def key_terms_digest(canonical: bytes) -> bytes:
    """E: the public terms of one CKKS key epoch."""
    return digest("key-terms", canonical)


def key_members_digest(terms: bytes, keys: Sequence[tuple[int, bytes]]) -> bytes:
    """Who a CKKS key is dealt to, with (id, box key) in ascending order of id."""
    records = (u32(client) + box for client, box in keys)
    return digest("key-members", terms, u16(len(keys)), *records)


def key_fingerprint(members: bytes, leader: int, key: bytes) -> bytes:
    """What names a CKKS key: its terms, its members, its maker, and a digest of the key."""
    return digest("key-fingerprint", members, u32(leader), hashlib.sha256(key).digest())


def commitment(cohort: bytes, client: int, seed: bytes) -> bytes:
    """What binds a client to its self-mask seed; the seed has 256 bits, so it also hides it."""
    return digest("commit", cohort, u32(client), seed)


# What is signed -----------------------------------------------------------------------------


def request_statement(params: bytes, stage: int, stage_digest: bytes) -> bytes:
    """Signed by the coordinator: the request of this stage rests on this digest."""
    return digest("sign/request", params, u8(stage), stage_digest)


def advert_statement(params: bytes, client: int, mask_key: bytes, share_key: bytes) -> bytes:
    """Signed by a client: these are my keys of this round."""
    return digest("sign/advert", params, u32(client), mask_key, share_key)


def bundle_statement(cohort: bytes, client: int, seed_commitment: bytes, sealed: bytes) -> bytes:
    """Signed by a client: I dealt these sealed shares, of this seed."""
    return dealt_statement(cohort, client, seed_commitment, hashlib.sha256(sealed).digest())


def dealt_statement(cohort: bytes, client: int, seed_commitment: bytes, sealed: bytes) -> bytes:
    """`bundle_statement`, from the SHA-256 of the sealed shares."""
    return digest("sign/bundle", cohort, u32(client), seed_commitment, sealed)


def upload_statement(view: bytes, client: int, upload: bytes) -> bytes:
    """Signed by a client: this is my upload, made under this view."""
    return digest("sign/upload", view, u32(client), upload)


def confirm_statement(survivors: bytes) -> bytes:
    """Signed by a client, once: this is the survivor list I accept."""
    return digest("sign/confirm", survivors)


def reveal_statement(
    survivors: bytes, client: int, seed: bytes, shares: Sequence[tuple[int, int, bytes]]
) -> bytes:
    """Signed by a client: for this list I opened these (owner, kind) shares, with these values.

    The values enter as a digest, so the statement can be checked later without knowing them.
    """
    kinds = b"".join(u32(owner) + u8(kind) for owner, kind, _ in shares)
    return opened_statement(survivors, client, kinds, opened_values(seed, shares))


def opened_statement(survivors: bytes, client: int, kinds: bytes, values: bytes) -> bytes:
    """`reveal_statement`, from the (owner u32, kind u8) records and the digest of the values."""
    return digest("sign/reveal", survivors, u32(client), kinds, values)


def opened_values(seed: bytes, shares: Sequence[tuple[int, int, bytes]]) -> bytes:
    """SHA-256 of everything a client opens: its seed, then the shares in order."""
    return hashlib.sha256(b"".join((seed, *(value for _, _, value in shares)))).digest()


def refuse_statement(params: bytes, client: int, stage: int, code: int) -> bytes:
    """Signed by a client: I leave this round at this stage."""
    return digest("sign/refuse", params, u32(client), u8(stage), u16(code))


def sum_statement(request: bytes, client: int, body: bytes) -> bytes:
    """Signed by a decryptor: what I was asked to decrypt is these integers."""
    return decrypted_statement(request, client, hashlib.sha256(body).digest())


def decrypted_statement(request: bytes, client: int, body: bytes) -> bytes:
    """`sum_statement`, from the SHA-256 of the packed integers."""
    return digest("sign/sum", request, u32(client), body)


def box_statement(terms: bytes, client: int, box_key: bytes) -> bytes:
    """Signed by a client: the CKKS key of this epoch may be sealed to me under this key."""
    return digest("sign/box", terms, u32(client), box_key)


def key_statement(
    members: bytes, fingerprint: bytes, ephemeral: bytes, sealed: bytes, boxes: bytes
) -> bytes:
    """Signed by the leader: I made the key of this fingerprint and sealed it to these members."""
    hashes = (hashlib.sha256(part).digest() for part in (sealed, boxes))
    return key_made_statement(members, fingerprint, ephemeral, *hashes)


def key_made_statement(
    members: bytes, fingerprint: bytes, ephemeral: bytes, sealed: bytes, boxes: bytes
) -> bytes:
    """`key_statement`, from the SHA-256 of the sealed key and of the boxes."""
    return digest("sign/key", members, fingerprint, ephemeral, sealed, boxes)


def key_ack_statement(members: bytes, fingerprint: bytes, client: int) -> bytes:
    """Signed by a client: dealt to these members, I hold the key of this fingerprint."""
    return digest("sign/key-ack", members, fingerprint, u32(client))
