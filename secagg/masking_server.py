"""The server of five-stage masking: it relays, adds, and opens the sum of the survivors.

It holds one accumulator, whatever the number of clients: an upload is verified, added and dropped.
It cannot be trusted with anything but availability; what keeps updates hidden is checked by the
clients. An honest server never aborts because of one bad message: its sender counts as absent.

Source: Bonawitz et al., CCS 2017, figure 4 (active adversary), with the differences that
`docs/secagg.md` lists.
"""

from __future__ import annotations

import hashlib
import hmac
import os

from secagg.aggregate import Aggregate, Transcript
from secagg.api import Requests
from secagg.digests import (
    advert_statement,
    commitment,
    confirm_statement,
    dealt_statement,
    opened_statement,
    opened_values,
    upload_digest,
    upload_statement,
)
from secagg.errors import (
    BadAdvert,
    CorruptState,
    Malformed,
    SecAggError,
    TooFewClients,
    TooFewReplies,
    TooFewSurvivors,
    ViewMismatch,
    WrongStage,
)
from secagg.keys import AgreementKey, SignatureCache, SigningKey
from secagg.masks import add_pair_mask, add_self_mask
from secagg.messages import (
    SEALED_BYTES,
    Advert,
    AdvertRow,
    Bundle,
    BundleRow,
    CohortRequest,
    Collect,
    Confirm,
    ConfirmRow,
    Kind,
    Message,
    Open,
    OpenedRow,
    Reveal,
    RevealRequest,
    ShareRow,
    SurvivorRow,
    SurvivorsRequest,
    Upload,
    decode,
    from_table,
    max_bytes,
    to_table,
)
from secagg.params import RoundParams, Stage
from secagg.recovery import recover
from secagg.roster import Roster
from secagg.round_server import StoredServer
from secagg.roundlog import RevealEntry, RoundLog
from secagg.server_snapshot import ServerSnapshot, ServerStore, freeze_lanes, thaw_lanes
from secagg.shamir import is_element
from secagg.turn import alone
from secagg.views import Cohort, Sharers, Survivors, known, share_kinds

_REPLY_OF_STAGE: dict[Stage, Kind] = {
    Stage.ADVERTISE: Kind.ADVERT,
    Stage.SHARE: Kind.BUNDLE,
    Stage.UPLOAD: Kind.UPLOAD,
    Stage.CONFIRM: Kind.CONFIRM,
    Stage.REVEAL: Kind.REVEAL,
}


class MaskingServer(StoredServer):
    """A server session of mode `masking`; see `secagg.api.RestartableServer`.

    Args:
        params: the round's parameters.
        coordinator: signs the requests.
        roster: whose signatures count.
        cache: shared only by simulations in one process.
        store: keeps the state at the opening of every stage; None keeps nothing.
    """

    def __init__(
        self,
        params: RoundParams,
        coordinator: SigningKey,
        roster: Roster,
        *,
        cache: SignatureCache | None = None,
        store: ServerStore | None = None,
    ) -> None:
        super().__init__(params, coordinator, roster, cache=cache, stage=Stage.ADVERTISE)
        self._store = store
        self._probe = AgreementKey.generate(os.urandom)
        self._adverts: dict[int, AdvertRow] = {}
        self._bundles: dict[int, Bundle] = {}
        self._dealt: dict[int, BundleRow] = {}
        self._uploads: dict[int, SurvivorRow] = {}
        self._confirmations: dict[int, ConfirmRow] = {}
        self._reveals: dict[int, RevealEntry] = {}
        self._seeds: dict[int, bytes] = {}
        self._opened: dict[int, dict[int, bytes]] = {}
        self._lanes = params.plan.zeros()
        self._cohort: Cohort | None = None
        self._sharers: Sharers | None = None
        self._survivors: Survivors | None = None

    @property
    def cohort(self) -> Cohort:
        """M, once the first stage is closed."""
        return known(self._cohort)

    @property
    def sharers(self) -> Sharers:
        """V and U1, once the second stage is closed."""
        return known(self._sharers)

    @property
    def survivors(self) -> Survivors:
        """R and U, once the third stage is closed."""
        return known(self._survivors)

    @alone
    def open(self) -> Requests:
        """The signed parameters, for every invited client."""
        if self._book.running or self._cohort is not None:
            raise WrongStage("the round was opened before")
        digest = self.params.digest
        request = Open(self.params, self._book.sign_request(Stage.ADVERTISE, digest))
        requests = self._book.begin(Stage.ADVERTISE, dict.fromkeys(self._book.invited, request))
        self._keep()
        return requests

    @alone
    def receive(self, client_id: int, message: bytes) -> None:
        """Takes in one reply; see `secagg.api.ServerSession.receive`."""
        awaited = _REPLY_OF_STAGE[self.stage]
        if self._book.check_in(client_id, message, awaited) is None:
            return
        limit = max_bytes(awaited, self.params)
        match self.stage:
            case Stage.ADVERTISE:
                self._take_advert(client_id, decode(message, Advert, limit=limit))
            case Stage.SHARE:
                self._take_bundle(client_id, decode(message, Bundle, limit=limit))
            case Stage.UPLOAD:
                self._take_upload(client_id, decode(message, Upload, limit=limit))
            case Stage.CONFIRM:
                self._take_confirm(client_id, decode(message, Confirm, limit=limit))
            case Stage.REVEAL:
                self._take_reveal(client_id, decode(message, Reveal, limit=limit))
        self._book.accept(client_id, message)

    @alone
    def close_stage(self) -> Requests | Aggregate:
        """Ends the stage; see `secagg.api.ServerSession.close_stage`."""
        step = self._close(self._book.close())
        if self._book.running:
            self._keep()
        return step

    def _close(self, answered: tuple[int, ...]) -> Requests | Aggregate:
        match self.stage:
            case Stage.ADVERTISE:
                return self._send_cohort()
            case Stage.SHARE:
                return self._send_shares(answered)
            case Stage.UPLOAD:
                return self._send_survivors()
            case Stage.CONFIRM:
                return self._send_confirmations(answered)
            case Stage.REVEAL:
                return self._finish(answered)

    # Storage --------------------------------------------------------------------------------

    def _state(self) -> ServerSnapshot:
        return ServerSnapshot(
            params=self.params,
            page=self._book.page(),
            lanes=freeze_lanes(self._lanes, self._uploads),
            adverts=to_table(self._adverts[client] for client in sorted(self._adverts)),
            bundles=self._bundles,
            dealt=to_table(self._dealt[client] for client in sorted(self._dealt)),
            uploads=to_table(self._uploads[client] for client in sorted(self._uploads)),
            confirmations=to_table(
                self._confirmations[client] for client in sorted(self._confirmations)
            ),
            reveals=[self._reveals[client] for client in sorted(self._reveals)],
            seeds=self._seeds,
            opened=self._opened,
        )

    def resume(self, snapshot: ServerSnapshot) -> None:
        """Takes up a round where a snapshot left it.

        Raises:
            CorruptState: the snapshot does not fit together.
        """
        self._book.turn_to(snapshot.page)
        self._lanes = thaw_lanes(snapshot.lanes, self.params, snapshot.uploads)
        try:
            adverts = from_table(AdvertRow, snapshot.adverts)
            uploads = from_table(SurvivorRow, snapshot.uploads)
            confirmations = from_table(ConfirmRow, snapshot.confirmations)
            self._adverts = {row.client: row for row in adverts}
            self._bundles = dict(snapshot.bundles)
            self._dealt = {row.client: row for row in from_table(BundleRow, snapshot.dealt)}
            self._uploads = {row.client: row for row in uploads}
            self._confirmations = {row.client: row for row in confirmations}
            self._reveals = {entry.client: entry for entry in snapshot.reveals}
            self._seeds = dict(snapshot.seeds)
            self._opened = {owner: dict(shares) for owner, shares in snapshot.opened.items()}
            if self.stage > Stage.ADVERTISE:
                self._cohort = Cohort.of(self.params, adverts)
            if self.stage > Stage.SHARE:
                self._sharers = Sharers.of(self.cohort, self._dealt)
            if self.stage > Stage.UPLOAD:
                pairs = [(row.client, row.upload) for row in uploads]
                self._survivors = Survivors.of(self.sharers.digest, pairs)
        except SecAggError as error:
            raise CorruptState(f"the stored state does not fit together: {error}") from error

    # Stage 0: ADVERTISE ---------------------------------------------------------------------

    def _take_advert(self, client: int, advert: Advert) -> None:
        statement = advert_statement(self.params.digest, client, advert.mask_key, advert.share_key)
        self._book.check_signature(client, advert.signature, statement)
        taken = {row.mask_key for row in self._adverts.values()}
        taken |= {row.share_key for row in self._adverts.values()}
        if advert.mask_key == advert.share_key or {advert.mask_key, advert.share_key} & taken:
            raise BadAdvert(f"client {client} advertised a key twice, or that of another client")
        for key in (advert.mask_key, advert.share_key):
            self._probe.agree(key, peer_id=client)
        self._adverts[client] = AdvertRow(
            client, advert.mask_key, advert.share_key, advert.signature
        )

    def _send_cohort(self) -> Requests:
        adverts = [self._adverts[client] for client in sorted(self._adverts)]
        cohort = Cohort.of(self.params, adverts)
        least = max(self.params.n_min, cohort.threshold)
        self._book.require(len(adverts), least, "adverts", TooFewClients)
        cohort.check_size(self.params.n_min)
        self._cohort = cohort
        signature = self._book.sign_request(Stage.SHARE, cohort.digest)
        request = CohortRequest(to_table(adverts), signature)
        return self._book.begin(Stage.SHARE, dict.fromkeys(cohort.ids, request))

    # Stage 1: SHARE -------------------------------------------------------------------------

    def _take_bundle(self, client: int, bundle: Bundle) -> None:
        expected = SEALED_BYTES * len(self.cohort.neighbours(client))
        if len(bundle.sealed) != expected:
            raise Malformed(
                f"client {client}: {len(bundle.sealed)} bytes of shares, {expected} expected"
            )
        hashed = hashlib.sha256(bundle.sealed).digest()
        statement = dealt_statement(self.cohort.digest, client, bundle.commitment, hashed)
        self._book.check_signature(client, bundle.signature, statement)
        self._bundles[client] = bundle
        self._dealt[client] = BundleRow(client, bundle.commitment, hashed, bundle.signature)

    def _send_shares(self, answered: tuple[int, ...]) -> Requests:
        cohort = self.cohort
        least = max(cohort.threshold, self.params.survivors_min)
        self._book.require(len(answered), least, "bundles", TooFewClients)
        cohort.check_windows(answered, "SHARE: bundles")
        sharers = self._sharers = Sharers.of(cohort, answered)
        signature = self._book.sign_request(Stage.UPLOAD, sharers.digest)
        mail: dict[int, list[bytes]] = {client: [] for client in sharers.ids}
        for dealer in sharers.ids:
            sealed = self._bundles.pop(dealer).sealed  # not needed any more once it is sent on
            for place, reader in enumerate(cohort.neighbours(dealer)):
                if reader in mail:
                    mail[reader].append(sealed[place * SEALED_BYTES : (place + 1) * SEALED_BYTES])
        requests: dict[int, Message] = {
            client: Collect(sharers.bitmap, b"".join(texts), signature)
            for client, texts in mail.items()
        }
        return self._book.begin(Stage.UPLOAD, requests)

    # Stage 2: UPLOAD ------------------------------------------------------------------------

    def _take_upload(self, client: int, upload: Upload) -> None:
        view = self.sharers.digest
        self.params.plan.check_body(upload.body)
        hashed = upload_digest(view, client, upload.body)
        self._book.check_signature(client, upload.signature, upload_statement(view, client, hashed))
        with self._book.all_or_nothing():
            self.params.plan.add_body(self._lanes, upload.body)
        self._uploads[client] = SurvivorRow(client, hashed, upload.signature)

    def _send_survivors(self) -> Requests:
        rows = [self._uploads[client] for client in sorted(self._uploads)]
        least = max(self.cohort.threshold, self.params.survivors_min)
        self._book.require(len(rows), least, "uploads", TooFewSurvivors)
        self.cohort.check_windows(self._uploads, "UPLOAD: uploads")
        pairs = [(row.client, row.upload) for row in rows]
        survivors = self._survivors = Survivors.of(self.sharers.digest, pairs)
        signature = self._book.sign_request(Stage.CONFIRM, survivors.digest)
        request = SurvivorsRequest(to_table(rows), signature)
        return self._book.begin(Stage.CONFIRM, dict.fromkeys(survivors.ids, request))

    # Stage 3: CONFIRM -----------------------------------------------------------------------

    def _take_confirm(self, client: int, confirm: Confirm) -> None:
        statement = confirm_statement(self.survivors.digest)
        self._book.check_signature(client, confirm.signature, statement)
        self._confirmations[client] = ConfirmRow(client, confirm.signature)

    def _send_confirmations(self, answered: tuple[int, ...]) -> Requests:
        needed = self.cohort.threshold
        self._book.require(len(answered), needed, "confirmations", TooFewReplies)
        rows = [self._confirmations[client] for client in answered[:needed]]
        signature = self._book.sign_request(Stage.REVEAL, self.survivors.digest)
        request = RevealRequest(to_table(rows), signature)
        return self._book.begin(Stage.REVEAL, dict.fromkeys(answered, request))

    # Stage 4: REVEAL ------------------------------------------------------------------------

    def _take_reveal(self, client: int, reveal: Reveal) -> None:
        rows = from_table(ShareRow, reveal.shares)
        opened = to_table(OpenedRow(row.client, row.kind) for row in rows)
        values = opened_values(reveal.seed, rows)
        statement = opened_statement(self.survivors.digest, client, opened, values)
        self._book.check_signature(client, reveal.signature, statement)
        kinds = share_kinds(self.cohort, self.sharers, self.survivors, client)
        for row in rows:
            if kinds.get(row.client) != row.kind:
                raise ViewMismatch(f"client {client}: a share of client {row.client} not due")
            if not is_element(row.value):
                raise Malformed(f"client {client}: a share is not a field element")
        self._reveals[client] = RevealEntry(client, opened, values, reveal.signature)
        point = self.cohort.points[client]
        for row in rows:
            if row.client not in self._seeds:
                self._opened.setdefault(row.client, {})[point] = row.value
        if self._is_seed_of(client, reveal.seed):
            self._seeds[client] = reveal.seed
            self._opened.pop(client, None)  # its shares are only needed while it is silent

    def _is_seed_of(self, client: int, seed: bytes) -> bool:
        committed = self._dealt[client].commitment
        return hmac.compare_digest(commitment(self.cohort.digest, client, seed), committed)

    def _is_mask_key_of(self, client: int, private: bytes) -> bool:
        return AgreementKey(private).public == self.cohort.adverts[client].mask_key

    def _finish(self, answered: tuple[int, ...]) -> Aggregate:
        needed = self.cohort.threshold
        self._book.require(len(answered), needed, "replies", TooFewReplies)
        alive = self.survivors.ids
        lost = sorted(set(self.sharers.ids) - set(alive))
        for client in alive:
            self._take_away_self_mask(client)
        for client in lost:
            self._take_away_pair_masks(client)
        transcript = Transcript(
            params=self.params.digest,
            cohort=self.cohort.digest,
            sharers=self.sharers.digest,
            survivors=self.survivors.digest,
            threshold=needed,
            log=self._log().to_bytes(),
        )
        return self._book.aggregate(self._lanes, alive, transcript)

    def _log(self) -> RoundLog:
        """What was signed in this round, without any upload or share."""
        return RoundLog(
            params=self.params,
            requests=tuple(self._book.signed.values()),
            adverts=to_table(self.cohort.adverts.values()),
            bundles=to_table(self._dealt[client] for client in self.sharers.ids),
            uploads=to_table(self._uploads[client] for client in self.survivors.ids),
            confirmations=to_table(row for _, row in sorted(self._confirmations.items())),
            reveals=tuple(entry for _, entry in sorted(self._reveals.items())),
        )

    def _take_away_self_mask(self, client: int) -> None:
        seed = self._seeds.get(client)
        if seed is None:
            seed = recover(
                self._opened.get(client, {}),
                self.cohort.share_threshold,
                lambda candidate: self._is_seed_of(client, candidate),
                owner=client,
            )
        add_self_mask(self._lanes, seed, self.sharers.digest, client, subtract=True)

    def _take_away_pair_masks(self, lost: int) -> None:
        """Takes away what each survivor added for a client whose own upload never came."""
        private = recover(
            self._opened.get(lost, {}),
            self.cohort.share_threshold,
            lambda candidate: self._is_mask_key_of(lost, candidate),
            owner=lost,
        )
        key = AgreementKey(private)
        alive = set(self.survivors.ids)
        for peer in self.cohort.neighbours(lost):
            if peer in alive:
                agreed = key.agree(self.cohort.adverts[peer].mask_key, peer_id=peer)
                add_pair_mask(self._lanes, agreed, self.sharers.digest, peer, lost, subtract=True)
