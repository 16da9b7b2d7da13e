"""The client of five-stage masking: it protects its own update whatever the server sends.

    ADVERTISE  fresh keys                  <- signed parameters
    SHARE      sealed shares of 2 secrets  <- everybody's signed keys
    UPLOAD     masked vector               <- who dealt shares, and the shares for this client
    CONFIRM    signature on the survivors  <- everybody's signed uploads
    REVEAL     one share of each neighbour <- a threshold of confirmations

The threat served is an active server that lies to different clients differently, with up to
`colluders` clients on its side. A request is authenticated by the coordinator's signature before it
can change anything, so a stranger cannot use up a client's answers; a check that fails after that
ends the round here. (What that signature does not cover, the signatures of other clients, whoever
sits on the wire can damage: that ends the round too, and nothing more.) One request of each stage
is answered, once. With a vault every answer is on disk, sealed, before it leaves.

Source: Bonawitz et al., CCS 2017, figure 4 (active adversary), with the differences that
`docs/secagg.md` lists.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from secagg.api import InputWanted, Reply
from secagg.client_snapshot import seal_client
from secagg.dealing import open_all, seal_all
from secagg.digests import (
    advert_statement,
    bundle_statement,
    commitment,
    confirm_statement,
    reveal_statement,
    upload_digest,
    upload_statement,
)
from secagg.errors import (
    BadAdvert,
    Equivocation,
    Latched,
    Malformed,
    SecAggError,
    TooFewClients,
    TooFewReplies,
    TooFewSurvivors,
    UnknownIdentity,
    ViewMismatch,
    WrongRound,
    WrongStage,
)
from secagg.fixedpoint import Update, encode_update
from secagg.keys import AgreementKey
from secagg.marks import Marks
from secagg.masking_states import (
    Advertised,
    Collecting,
    Confirmed,
    Dealt,
    Ended,
    Round,
    Uploaded,
)
from secagg.masks import mask_upload
from secagg.messages import (
    SEALED_BYTES,
    Advert,
    AdvertRow,
    Bundle,
    CohortRequest,
    Collect,
    Confirm,
    ConfirmRow,
    Kind,
    Message,
    Reveal,
    RevealRequest,
    ShareRow,
    SurvivorRow,
    SurvivorsRequest,
    Upload,
    decode,
    encode,
    from_table,
    max_bytes,
    read_header,
    to_table,
)
from secagg.params import RoundParams, Stage
from secagg.participant import STAGE_OF_REQUEST, Participant, SignedRequest
from secagg.sealed_state import Vault
from secagg.secret import RandomSource, Secret
from secagg.shamir import random_element
from secagg.threshold import guaranteed_honest
from secagg.turn import Turn, alone
from secagg.views import Cohort, Sharers, Survivors, known, share_kinds


class MaskingClient:
    """A client session of mode `masking`; see `secagg.api.ClientSession`.

    Args:
        participant: identity, roster, policy and durable storage.
        marks: the marks stored by an earlier process, if any.
        random: secret randomness.
        keep_replies: whether the last reply is kept for a repeated request.
        vault: seals the whole state for `participant.save` before a reply leaves; None stores
            marks only.
        restored: the round of an earlier process, if its whole state was stored.
    """

    def __init__(
        self,
        participant: Participant,
        *,
        marks: Marks | None = None,
        random: RandomSource = os.urandom,
        keep_replies: bool = True,
        vault: Vault | None = None,
        restored: Round | None = None,
    ) -> None:
        self._participant = participant
        self._marks = Marks() if marks is None else marks
        self._random = random
        self._keep_replies = keep_replies
        self._vault = vault
        self._round = restored
        self._turn = Turn()
        if restored is not None:
            self._check_restored(restored)

    @property
    def client_id(self) -> int:
        """The id of this client in the roster."""
        return self._participant.identity.id

    def _check_restored(self, restored: Round) -> None:
        """Ends a restored round that roster or policy, as they are now, would not let begin."""
        held = self._participant
        try:
            held.policy.check(restored.params, roster=held.roster, client=self.client_id)
        except SecAggError:
            restored.end()

    @alone
    def handle(self, request: bytes) -> Reply | InputWanted:
        """Answers one request of the server; see `secagg.api.ClientSession.handle`."""
        header = read_header(request)
        if header.kind is Kind.OPEN:
            return self._advertise(request)
        running = self._round
        if running is None or header.params != running.params.digest:
            raise WrongRound(f"{header.kind.name}: not of the round this client is in")
        if header.kind not in STAGE_OF_REQUEST:
            raise WrongStage(f"{header.kind.name} is not a request")
        kept = running.latches.repeated(STAGE_OF_REQUEST[header.kind], request)
        if kept is not None:
            return Reply(message=kept)
        limit = max_bytes(header.kind, running.params)
        match header.kind:
            case Kind.COHORT:
                return self._share(running, request, decode(request, CohortRequest, limit=limit))
            case Kind.COLLECT:
                return self._collect(running, request, decode(request, Collect, limit=limit))
            case Kind.SURVIVORS:
                survivors = decode(request, SurvivorsRequest, limit=limit)
                return self._confirm(running, request, survivors)
            case _:
                return self._reveal(running, request, decode(request, RevealRequest, limit=limit))

    @alone
    def abandon(self) -> None:
        """Ends the running round and erases its secrets."""
        self._leave()

    def _leave(self) -> None:
        if self._round is not None:
            self._round.end()
            self._store(self._round)

    # Stage 0: ADVERTISE ---------------------------------------------------------------------

    def _advertise(self, request: bytes) -> Reply:
        params, signed = self._participant.read_open(request)
        running = self._round
        if running is not None:
            kept = running.latches.repeated(Stage.ADVERTISE, request)
            if kept is not None:
                return Reply(message=kept)
            if (params.run_id, params.sequence) == (
                running.params.run_id,
                running.params.sequence,
            ):
                with self._ends_round_on_failure(running, Stage.ADVERTISE):
                    running.latches.check_open(Stage.ADVERTISE, signed)
        try:
            self._marks = self._participant.admit(params, self._marks)
        except SecAggError as error:
            error.refusal = self._participant.refusal(params.digest, Stage.ADVERTISE, error)
            raise
        if running is not None:
            running.end()
        mask_key = AgreementKey(random_element(self._random))
        share_key = AgreementKey.generate(self._random)
        running = Round(params, Advertised(mask_key, share_key), keep_replies=self._keep_replies)
        self._round = running
        statement = advert_statement(
            params.digest, self.client_id, mask_key.public, share_key.public
        )
        advert = Advert(mask_key.public, share_key.public, self._sign(statement))
        return self._answer(running, Stage.ADVERTISE, request, signed, advert)

    # Stage 1: SHARE -------------------------------------------------------------------------

    def _share(self, running: Round, request: bytes, message: CohortRequest) -> Reply:
        cohort = Cohort.of(running.params, from_table(AdvertRow, message.adverts))
        signed = self._authenticate(running, Stage.SHARE, cohort.digest, message.signature)
        with self._ends_round_on_failure(running, Stage.SHARE):
            running.latches.check_open(Stage.SHARE, signed)
            state = running.expect(Advertised)
            self._check_cohort(running.params, cohort, state)
            self._check_adverts(running.params, cohort)
            seed = random_element(self._random)
            bundle, read_keys = self._deal(cohort, state, seed)
        running.cohort = cohort
        running.state = Dealt(cohort, state.mask_key, Secret(seed), read_keys)
        return self._answer(running, Stage.SHARE, request, signed, bundle)

    def _check_cohort(self, params: RoundParams, cohort: Cohort, state: Advertised) -> None:
        own = cohort.adverts.get(self.client_id)
        mine = (state.mask_key.public, state.share_key.public)
        if own is None or (own.mask_key, own.share_key) != mine:
            raise ViewMismatch("SHARE: the cohort does not hold the keys this client advertised")
        strangers = set(cohort.ids) - set(params.invited_ids(self._participant.roster))
        if strangers:
            raise UnknownIdentity(f"SHARE: client {min(strangers)} was not invited")
        rows = cohort.adverts.values()
        keys = {row.mask_key for row in rows} | {row.share_key for row in rows}
        if len(keys) != 2 * len(rows):
            raise BadAdvert("SHARE: a key is advertised twice")
        cohort.check_size(params.n_min)

    def _check_adverts(self, params: RoundParams, cohort: Cohort) -> None:
        for row in cohort.adverts.values():
            if row.client != self.client_id:
                statement = advert_statement(params.digest, row.client, row.mask_key, row.share_key)
                self._participant.check_signature(row.client, row.signature, statement)

    def _deal(
        self, cohort: Cohort, state: Advertised, seed: bytes
    ) -> tuple[Bundle, dict[int, Secret]]:
        sealed, read_keys = seal_all(
            cohort,
            self.client_id,
            share_key=state.share_key,
            seed=seed,
            mask_key=state.mask_key.private(),
            random=self._random,
        )
        committed = commitment(cohort.digest, self.client_id, seed)
        statement = bundle_statement(cohort.digest, self.client_id, committed, sealed)
        return Bundle(sealed, committed, self._sign(statement)), read_keys

    # Stage 2: UPLOAD ------------------------------------------------------------------------

    def _collect(self, running: Round, request: bytes, message: Collect) -> InputWanted:
        if isinstance(running.state, Collecting) and running.state.request == request:
            return self._input_wanted(running.params, running.state)
        cohort = known(running.cohort)
        sharers = Sharers.from_bitmap(cohort, message.sharers)
        dealt = set(sharers.ids)
        peers = [peer for peer in cohort.neighbours(self.client_id) if peer in dealt]
        if len(message.sealed) != SEALED_BYTES * len(peers):
            raise Malformed(
                f"UPLOAD: {len(message.sealed)} bytes of shares, {len(peers)} texts expected"
            )
        signed = self._authenticate(running, Stage.UPLOAD, sharers.digest, message.signature)
        with self._ends_round_on_failure(running, Stage.UPLOAD):
            if isinstance(running.state, Collecting):
                self._check_same_collection(running.state, signed)
            running.latches.check_open(Stage.UPLOAD, signed)
            state = running.expect(Dealt)
            if self.client_id not in sharers.ids:
                raise ViewMismatch("UPLOAD: this client dealt shares and is left out")
            least = max(cohort.threshold, running.params.survivors_min)
            if len(sharers.ids) < least:
                raise TooFewClients(f"UPLOAD: {len(sharers.ids)} sharers, {least} required")
            self._check_windows(cohort, sharers.ids, "UPLOAD: sharers")
            held = open_all(
                cohort, self.client_id, peers, sealed=message.sealed, read_keys=state.read_keys
            )
        collecting = Collecting(cohort, state.mask_key, state.seed, sharers, held, request, signed)
        for key in state.read_keys.values():
            key.erase()
        running.sharers, running.state = sharers, collecting
        return self._input_wanted(running.params, collecting)

    def _check_same_collection(self, state: Collecting, signed: SignedRequest) -> None:
        if state.signed.digest != signed.digest:
            raise Equivocation(
                "UPLOAD: the coordinator signed two lists of sharers",
                (
                    state.signed.digest + state.signed.signature,
                    signed.digest + signed.signature,
                ),
            )
        raise Latched("UPLOAD: the request was answered with other shares in it")

    def _input_wanted(self, params: RoundParams, state: Collecting) -> InputWanted:
        return InputWanted(
            params=params,
            contributors=state.sharers.ids,
            threshold=state.cohort.threshold,
            guaranteed_honest=guaranteed_honest(
                len(state.cohort.ids), params.colluders, params.survivors_min
            ),
        )

    @alone
    def submit(self, update: Update, context: bytes) -> Reply:
        """Masks and signs the update; see `secagg.api.ClientSession.submit`."""
        running = self._round
        if running is None:
            raise WrongStage("UPLOAD: no round is running")
        if isinstance(running.state, Uploaded | Confirmed):
            raise Latched("UPLOAD: this sequence has its upload")
        state = running.expect(Collecting)
        params = running.params
        with self._ends_round_on_failure(running, Stage.UPLOAD):
            self._check_context(params, context)
        encoded = encode_update(update, params.layout, self._random)
        with self._ends_round_on_failure(running, Stage.UPLOAD):
            lanes = params.plan.to_lanes(encoded)
            mask_upload(
                lanes,
                state.cohort,
                state.sharers,
                self.client_id,
                seed=state.seed.reveal(),
                mask_key=state.mask_key,
            )
        body = params.plan.pack(lanes)
        upload = upload_digest(state.sharers.digest, self.client_id, body)
        statement = upload_statement(state.sharers.digest, self.client_id, upload)
        running.state = Uploaded(state.cohort, state.seed, state.sharers, state.held, upload)
        message = Upload(body, self._sign(statement))
        return self._answer(running, Stage.UPLOAD, state.request, state.signed, message)

    def _check_context(self, params: RoundParams, context: bytes) -> None:
        if not hmac.compare_digest(params.context, context):
            raise ViewMismatch(
                "UPLOAD: the model or plan received here is not the one the round is bound to"
            )

    # Stage 3: CONFIRM -----------------------------------------------------------------------

    def _confirm(self, running: Round, request: bytes, message: SurvivorsRequest) -> Reply:
        rows = from_table(SurvivorRow, message.uploads)
        view = known(running.sharers).digest
        survivors = Survivors.of(view, ((row.client, row.upload) for row in rows))
        signed = self._authenticate(running, Stage.CONFIRM, survivors.digest, message.signature)
        with self._ends_round_on_failure(running, Stage.CONFIRM):
            running.latches.check_open(Stage.CONFIRM, signed)
            state = running.expect(Uploaded)
            self._check_survivors(running.params, state, rows)
            self._check_windows(state.cohort, survivors.ids, "CONFIRM: survivors")
            self._check_uploads(view, rows)
        running.survivors = survivors
        running.state = Confirmed(state.cohort, state.seed, state.sharers, state.held, survivors)
        signature = self._sign(confirm_statement(survivors.digest))
        return self._answer(running, Stage.CONFIRM, request, signed, Confirm(signature))

    def _check_survivors(
        self, params: RoundParams, state: Uploaded, rows: list[SurvivorRow]
    ) -> None:
        uploads = {row.client: row.upload for row in rows}
        if uploads.get(self.client_id) != state.upload:
            raise ViewMismatch("CONFIRM: the survivors do not hold this client's upload")
        strangers = set(uploads) - set(state.sharers.ids)
        if strangers:
            raise ViewMismatch(f"CONFIRM: survivor {min(strangers)} dealt no shares")
        least = max(state.cohort.threshold, params.survivors_min)
        if len(rows) < least:
            raise TooFewSurvivors(f"CONFIRM: {len(rows)} survivors, {least} required")

    def _check_windows(self, cohort: Cohort, listed: Collection[int], what: str) -> None:
        """On a ring, nobody is cut off: no window was emptied of the clients of this list."""
        cohort.check_windows(listed, what)

    def _check_uploads(self, view: bytes, rows: list[SurvivorRow]) -> None:
        """Every survivor signed its upload under the list of sharers that this client saw."""
        for row in rows:
            if row.client != self.client_id:
                statement = upload_statement(view, row.client, row.upload)
                self._participant.check_signature(row.client, row.signature, statement)

    # Stage 4: REVEAL ------------------------------------------------------------------------

    def _reveal(self, running: Round, request: bytes, message: RevealRequest) -> Reply:
        rows = from_table(ConfirmRow, message.confirmations)
        survivors = known(running.survivors)
        signed = self._authenticate(running, Stage.REVEAL, survivors.digest, message.signature)
        with self._ends_round_on_failure(running, Stage.REVEAL):
            running.latches.check_open(Stage.REVEAL, signed)
            state = running.expect(Confirmed)
            self._check_confirmations(state, rows)
        kinds = share_kinds(state.cohort, state.sharers, survivors, self.client_id)
        shares = [
            ShareRow(owner, kind, state.held[owner].of(kind))
            for owner, kind in kinds.items()
            if owner in state.held
        ]
        reveal = self._signed_reveal(survivors, state.seed.reveal(), shares)
        state.erase()
        running.state = Ended()
        return self._answer(running, Stage.REVEAL, request, signed, reveal)

    def _check_confirmations(self, state: Confirmed, rows: list[ConfirmRow]) -> None:
        strangers = {row.client for row in rows} - set(state.survivors.ids)
        if strangers:
            raise ViewMismatch(f"REVEAL: client {min(strangers)} is not a survivor")
        if len(rows) < state.cohort.threshold:
            raise TooFewReplies(
                f"REVEAL: {len(rows)} confirmations, {state.cohort.threshold} required"
            )
        statement = confirm_statement(state.survivors.digest)
        for row in rows:
            self._participant.check_signature(row.client, row.signature, statement)

    def _signed_reveal(self, survivors: Survivors, seed: bytes, shares: list[ShareRow]) -> Reveal:
        statement = reveal_statement(survivors.digest, self.client_id, seed, shares)
        return Reveal(seed, to_table(shares), self._sign(statement))

    # Common to all stages -------------------------------------------------------------------

    def _authenticate(
        self, running: Round, stage: Stage, digest: bytes, signature: bytes
    ) -> SignedRequest:
        return self._participant.check_request(running.params.digest, stage, digest, signature)

    def _sign(self, statement: bytes) -> bytes:
        return self._participant.identity.key.sign(statement)

    def _answer(
        self,
        running: Round,
        stage: Stage,
        request: bytes,
        signed: SignedRequest,
        message: Message,
    ) -> Reply:
        reply = encode(message, params=running.params.digest, sender=self.client_id)
        running.latches.close(stage, request, signed, reply)
        self._store(running)
        return Reply(message=reply)

    def _store(self, running: Round) -> None:
        """Makes the whole state durable; if that fails the round ends, and nothing leaves."""
        if self._vault is None:
            return
        try:
            self._participant.save(seal_client(self._vault, self._marks, running))
        except BaseException:
            running.end()
            raise

    @contextmanager
    def _ends_round_on_failure(self, running: Round, stage: Stage) -> Iterator[None]:
        """Erases the round when a genuine request fails a check, and attaches the refusal."""
        try:
            yield
        except SecAggError as error:
            harmless = isinstance(error, Latched | WrongStage)
            if isinstance(error, Equivocation) or not harmless:
                error.refusal = self._participant.refusal(running.params.digest, stage, error)
                self._leave()
            raise
