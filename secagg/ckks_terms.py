"""The public terms under which the clients of a CKKS run come to share one key."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from typing import Annotated

import msgspec

from secagg.bitmap import from_bitmap, to_bitmap
from secagg.ckks_presets import Preset, preset_of
from secagg.digests import DIGEST_BYTES, enc, key_terms_digest, u8, u16, u64
from secagg.errors import ConfigurationError
from secagg.params import PROTOCOL_VERSION, RUN_ID_BYTES, SUITE
from secagg.roster import Roster

_U8 = Annotated[int, msgspec.Meta(ge=0, lt=2**8)]
_U16 = Annotated[int, msgspec.Meta(ge=0, lt=2**16)]
_U63 = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_MAX_LIBRARY = 32


class KeyTerms(msgspec.Struct, frozen=True, kw_only=True, array_like=True, dict=True):
    """The public terms of one key epoch of mode CKKS; `digest` is E.

    Attributes:
        run_id: of the run the key is for.
        roster_digest: the roster in force.
        sequence: of the set-up; shares its count with the run's rounds.
        invited: bitmap over the roster: who is to hold the key.
        preset: code of the CKKS parameters.
        library: version of TenSEAL, since keys and ciphertexts are not portable between versions.
        n_min: the fewest members a key is dealt to.
        version: of this structure and of the wire.
        suite: set of primitives.

    Raises:
        ConfigurationError: a field is out of range.
    """

    run_id: bytes
    roster_digest: bytes
    sequence: _U63
    invited: bytes
    preset: _U8
    library: str
    n_min: _U16 = 3
    version: _U8 = PROTOCOL_VERSION
    suite: _U16 = SUITE

    def __post_init__(self) -> None:
        preset = preset_of(self.preset)
        invited, most = int.from_bytes(self.invited, "little").bit_count(), preset.largest_cohort
        if invited > most:
            raise ConfigurationError(
                f"{invited} clients: CKKS preset {preset.name!r} adds up at most {most}"
            )
        sizes = (len(self.run_id), len(self.roster_digest))
        if sizes != (RUN_ID_BYTES, DIGEST_BYTES) or len(self.library) > _MAX_LIBRARY:
            raise ConfigurationError("run id, roster digest or library version of wrong length")

    @classmethod
    def for_key(
        cls,
        *,
        roster: Roster,
        preset: Preset,
        library: str,
        sequence: int,
        run_id: bytes,
        invited: Collection[int] | None = None,
        n_min: int = 3,
    ) -> KeyTerms:
        """Terms for a key of the invited clients, by default of everybody in the roster."""
        return cls(
            run_id=run_id,
            roster_digest=roster.digest,
            sequence=sequence,
            invited=to_bitmap(roster.ids, roster.ids if invited is None else tuple(invited)),
            preset=preset.code,
            library=library,
            n_min=n_min,
        )

    @cached_property
    def digest(self) -> bytes:
        """E: what every signature and box of the set-up is bound to."""
        return key_terms_digest(
            enc(
                "terms",
                u8(self.version),
                u16(self.suite),
                self.run_id,
                self.roster_digest,
                u64(self.sequence),
                self.invited,
                u8(self.preset),
                self.library.encode(),
                u16(self.n_min),
            )
        )

    def invited_ids(self, roster: Roster) -> tuple[int, ...]:
        """Ids of those who are to hold the key, ascending.

        Raises:
            Malformed: the bitmap does not fit this roster.
        """
        return from_bitmap(roster.ids, self.invited)
