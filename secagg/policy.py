"""What a client insists on, whatever the server asks.

The server proposes parameters; each client compares them with floors of its own before it sends
anything. Parameters may be stricter than the floors, never laxer.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from secagg.ckks_terms import KeyTerms
from secagg.errors import PolicyViolation, UnknownIdentity, UnsupportedSuite
from secagg.graph import COMPLETE_GRAPH, check_strength
from secagg.layout import FixedSegment, Layout
from secagg.params import PROTOCOL_VERSION, SUITE, KeyedParams, Mode, RoundParams
from secagg.roster import Roster
from secagg.threshold import default_colluders, threshold

MIN_MASKED_CLIENTS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """Floors of one client; `Policy.masking(layout)` and `Policy.plain(layout)` give the defaults.

    Attributes:
        layout: the only layout accepted, since it fixes clips, bits and what is released.
        modes: modes accepted.
        n_min: least acceptable `n_min`.
        survivors_min: least acceptable `survivors_min`.
        colluders: least acceptable `colluders`; None means just under a third of those invited.
        sparse: whether a ring is accepted; whatever the server asks, its window must be safe.
        bits: acceptable (least, most) bits of fixed segments.
        allow_sensitive: whether segments marked `sensitive` are accepted; no under DP.
        max_values: most values in a layout.
        max_rounds: most sequences of one run this client takes part in.
        invited: the only set of invited clients accepted; None accepts any subset of the roster.
        verify_sum: whether CKKS rounds are refused in which decryptors do not add up themselves.
    """

    layout: Layout
    modes: Collection[Mode]
    n_min: int
    survivors_min: int
    colluders: int | None = None
    sparse: bool = True
    bits: tuple[int, int] = (8, 24)
    allow_sensitive: bool = False
    max_values: int = 2**28
    max_rounds: int = 100_000
    invited: frozenset[int] | None = None
    verify_sum: bool = False

    @classmethod
    def masking(
        cls, layout: Layout, *, cohort: int | None = None, allow_sensitive: bool = False
    ) -> Policy:
        """The default floors: masking only, three clients or more, a third may collude.

        Args:
            layout: the only layout accepted.
            cohort: clients of a round as the client knows them from elsewhere. Colluders and survivors are then
                counted by it, however many the server invites: inviting few, among them all colluders, would
                otherwise lower both.
            allow_sensitive: whether segments marked `sensitive` are accepted.
        """
        colluders, survivors_min = None, MIN_MASKED_CLIENTS
        if cohort is not None:
            colluders = default_colluders(cohort)
            survivors_min = max(MIN_MASKED_CLIENTS, threshold(cohort, colluders))
        return cls(
            layout=layout,
            modes=(Mode.MASKING,),
            n_min=MIN_MASKED_CLIENTS,
            survivors_min=survivors_min,
            colluders=colluders,
            allow_sensitive=allow_sensitive,
        )

    @classmethod
    def ckks(
        cls, layout: Layout, *, allow_sensitive: bool = False, verify_sum: bool = False
    ) -> Policy:
        """Floors of CKKS: three clients or more, and none of them works with the server."""
        return cls(
            layout=layout,
            modes=(Mode.CKKS,),
            n_min=MIN_MASKED_CLIENTS,
            survivors_min=MIN_MASKED_CLIENTS,
            colluders=0,
            allow_sensitive=allow_sensitive,
            verify_sum=verify_sum,
        )

    @classmethod
    def plain(cls, layout: Layout, *, allow_sensitive: bool = False) -> Policy:
        """Floors of plain mode, where the server sees every update: there is nothing to keep."""
        return cls(
            layout=layout,
            modes=(Mode.PLAIN,),
            n_min=1,
            survivors_min=1,
            colluders=0,
            allow_sensitive=allow_sensitive,
        )

    def check(self, params: RoundParams, *, roster: Roster, client: int) -> None:
        """Returns if `client` may take part in a round with these parameters.

        Raises:
            UnsupportedSuite: version, suite or mode is not spoken or not allowed.
            PolicyViolation: a floor is not met, or the roster or layout is another.
            UnknownIdentity: the client is not invited.
        """
        invited = self._check_common(params, params.mode, roster=roster, client=client)
        if self.invited is not None and set(invited) != self.invited:
            raise PolicyViolation("the invited clients are not those of the published schedule")
        self._check_floors(params, len(invited))
        self._check_graph(params, len(invited))
        self._check_layout(params.layout)
        if self.verify_sum and isinstance(params, KeyedParams) and not params.verify_sum:
            raise PolicyViolation("verify_sum=False: this client requires verified sums")

    def check_key(self, terms: KeyTerms, *, roster: Roster, client: int) -> None:
        """Returns if `client` may take part in a key set-up under these terms.

        Raises:
            UnsupportedSuite: version or suite is not spoken, or CKKS is not allowed.
            PolicyViolation: the roster is another, or the key is for too few.
            UnknownIdentity: the client is not invited.
        """
        invited = self._check_common(terms, Mode.CKKS, roster=roster, client=client)
        if min(terms.n_min, len(invited)) < self.n_min:
            raise PolicyViolation(f"a key for {terms.n_min} clients: at least {self.n_min}")

    def _check_common(
        self, terms: RoundParams | KeyTerms, mode: Mode, *, roster: Roster, client: int
    ) -> tuple[int, ...]:
        """The invited ids, once protocol, mode, roster and invitation hold."""
        if terms.version != PROTOCOL_VERSION or terms.suite != SUITE:
            raise UnsupportedSuite(f"version {terms.version}, suite {terms.suite:#06x}")
        if mode not in self.modes:
            raise UnsupportedSuite(f"mode {mode.name} is not among those allowed here")
        if terms.roster_digest != roster.digest:
            raise PolicyViolation(
                "the round uses another roster: compare fingerprints with the coordinator"
            )
        invited = terms.invited_ids(roster)
        if client not in invited:
            raise UnknownIdentity(f"client {client} is not invited")
        return invited

    def _check_floors(self, params: RoundParams, invited: int) -> None:
        colluders = default_colluders(invited) if self.colluders is None else self.colluders
        for name, found, floor in (
            ("n_min", params.n_min, self.n_min),
            ("survivors_min", params.survivors_min, self.survivors_min),
            ("colluders", params.colluders, colluders),
        ):
            if found < floor:
                raise PolicyViolation(f"{name}={found}: this client requires at least {floor}")

    def _check_graph(self, params: RoundParams, invited: int) -> None:
        degree, window = params.graph_degree, params.graph_window
        if degree == COMPLETE_GRAPH:
            return
        if not self.sparse:
            raise PolicyViolation(
                f"graph_degree={degree}: this client joins no sparse graph; use 0"
            )
        check_strength(invited, params.colluders, degree=degree, window=window)

    def _check_layout(self, layout: Layout) -> None:
        if layout != self.layout:
            raise PolicyViolation("the layout differs from the one this client expects")
        if layout.size > self.max_values:
            raise PolicyViolation(f"{layout.size} values: at most {self.max_values}")
        least, most = self.bits
        for segment in layout.wire_segments:
            if isinstance(segment, FixedSegment) and not least <= segment.bits <= most:
                raise PolicyViolation(
                    f"{segment.name}: bits={segment.bits} must be in {least}..{most}"
                )
            if segment.sensitivity == "sensitive" and not self.allow_sensitive:
                raise PolicyViolation(f"segment {segment.name!r} is sensitive and not allowed here")
