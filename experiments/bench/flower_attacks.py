"""What an active server, or a client on its side, tries on the nodes and the workflow of Flower's SecAgg+.

Every function runs one attack against Flower's own mod or workflow and returns whether it succeeded, and what was seen.
An attack on an update succeeded only if the victim's values were found, to within Flower's rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message_type import MessageType
from flwr.common import bytes_to_ndarray, ndarray_to_bytes
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import (
    decrypt,
    encrypt,
    generate_shared_key,
)
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.common.secure_aggregation.secaggplus_utils import (
    pseudo_rand_gen,
    share_keys_plaintext_concat,
    share_keys_plaintext_separate,
)
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    bytes_to_public_key,
    generate_key_pairs,
    public_key_to_bytes,
)

from experiments.bench.flower import MAX_WEIGHT, Client, Federation, node
from experiments.bench.rounds import Case, Clock

CLIP, STEPS, MODULUS = 8.0, 1 << 22, 1 << 32  # Flower's defaults
LENGTH = 50
VICTIM = 0
PAIRS = 64  # keys, hence 2,016 pairs
Outcome = tuple[bool, str]
Vectors = list[np.ndarray]


def request(client: int, stage: str, configs: Mapping[str, Any], *, group: str = "1") -> Message:
    """A message of the server to one node."""
    record = ConfigRecord({**configs, Key.STAGE: stage})
    content = RecordDict({RECORD_KEY_CONFIGS: record})
    return Message(
        content, dst_node_id=node(client), message_type=MessageType.TRAIN, group_id=group
    )


@dataclass
class Liar:
    """A server that sends what it likes; `clients` run Flower's mod."""

    count: int
    threshold: int
    clients: dict[int, Client] = field(init=False)
    keys: dict[int, tuple[bytes, bytes]] = field(init=False)
    uploads: dict[int, Vectors] = field(default_factory=dict)

    def __post_init__(self) -> None:
        case = Case(clients=self.count, length=LENGTH)
        self.inputs, clock = case.inputs(seed=1), Clock()
        self.clients = {i: Client(i, self.inputs[i], MAX_WEIGHT, clock) for i in range(self.count)}
        self.keys = {i: self.setup(i) for i in self.clients}

    def ask(self, client: int, stage: str, configs: Mapping[str, Any], **options: str) -> Any:
        """The record that a node answers with; raises what the mod raises."""
        reply = self.clients[client].handle(request(client, stage, configs, **options))
        return reply.content.config_records[RECORD_KEY_CONFIGS]

    def settings(self) -> dict[str, Any]:
        """What Flower's workflow sends at setup."""
        return {
            Key.SAMPLE_NUMBER: self.count,
            Key.SHARE_NUMBER: self.count,
            Key.THRESHOLD: self.threshold,
            Key.CLIPPING_RANGE: CLIP,
            Key.TARGET_RANGE: STEPS,
            Key.MOD_RANGE: MODULUS,
            Key.MAX_WEIGHT: float(MAX_WEIGHT),
        }

    def setup(self, client: int) -> tuple[bytes, bytes]:
        """Its two public keys."""
        record = self.ask(client, Stage.SETUP, self.settings())
        return record[Key.PUBLIC_KEY_1], record[Key.PUBLIC_KEY_2]

    def share(self, client: int, keys: Mapping[int, tuple[bytes, bytes]]) -> dict[int, bytes]:
        """{reader: sealed shares} that a node makes for the holders of `keys`."""
        record = self.ask(
            client, Stage.SHARE_KEYS, {str(node(i)): list(pair) for i, pair in keys.items()}
        )
        readers = [int(target) - node(0) for target in record[Key.DESTINATION_LIST]]
        return dict(zip(readers, record[Key.CIPHERTEXT_LIST], strict=True))

    def collect(self, client: int, sealed: Mapping[int, bytes], **options: str) -> Message:
        """Its reply with the masked vector, which is also kept."""
        configs = {
            Key.CIPHERTEXT_LIST: list(sealed.values()),
            Key.SOURCE_LIST: [node(i) for i in sealed],
        }
        message = request(client, Stage.COLLECT_MASKED_VECTORS, configs, **options)
        reply = self.clients[client].handle(message)
        vectors = reply.content.config_records[RECORD_KEY_CONFIGS][Key.MASKED_PARAMETERS]
        self.uploads[client] = [bytes_to_ndarray(one) for one in vectors]
        return reply

    def until_uploads(self) -> Liar:
        """Everything up to the uploads, honestly."""
        sealed = {i: self.share(i, self.keys) for i in self.clients}
        for reader in self.clients:
            self.collect(reader, {i: sealed[i][reader] for i in self.clients if i != reader})
        return self

    def unmask(self, client: int, active: Iterable[int], dead: Iterable[int]) -> list[Any]:
        """The (owner, share) pairs that a node answers with, in the order asked for."""
        record = self.ask(
            client,
            Stage.UNMASK,
            {
                Key.ACTIVE_NODE_ID_LIST: [node(i) for i in active],
                Key.DEAD_NODE_ID_LIST: [node(i) for i in dead],
            },
        )
        owners = [int(owner) - node(0) for owner in record[Key.NODE_ID_LIST]]
        return list(zip(owners, record[Key.SHARE_LIST], strict=True))

    def found(self, seed: bytes, agreed: Mapping[int, bytes]) -> bool:
        """Whether seed and pair secrets of the victim open its upload."""
        vectors = self.uploads[VICTIM]
        shapes = [vector.shape for vector in vectors]
        opened = _subtract(vectors, pseudo_rand_gen(seed, MODULUS, shapes))
        for other, secret in agreed.items():
            mask = pseudo_rand_gen(secret, MODULUS, shapes)
            added = mask if other < VICTIM else [-part for part in mask]
            opened = _subtract(opened, added)
        values = (opened[1] % MODULUS) * (2 * CLIP / STEPS) - CLIP
        return bool(np.abs(values - self.inputs[VICTIM]).max() < 2 * CLIP / STEPS * 2)

    def found_with(self, seed: bytes, private: bytes) -> bool:
        """Whether the victim's two secrets open its upload."""
        key = bytes_to_private_key(private)
        others = {i: pair[0] for i, pair in self.keys.items() if i != VICTIM}
        return self.found(
            seed,
            {i: generate_shared_key(key, bytes_to_public_key(pk)) for i, pk in others.items()},
        )


def _subtract(vectors: Vectors, other: Vectors) -> Vectors:
    return [one - two for one, two in zip(vectors, other, strict=True)]


def _refused(error: Exception) -> Outcome:
    return False, f"refused: {type(error).__name__}"


def both_shares() -> Outcome:
    """Name the victim among the active and among the dead in one request."""
    liar = Liar(9, 6).until_uploads()
    seeds, keys, others = [], [], range(1, 9)
    for client in others:
        answer = liar.unmask(client, range(9), [VICTIM])
        seeds.append(answer[VICTIM][1])
        keys.append(answer[-1][1])
    found = liar.found_with(combine_shares(seeds), combine_shares(keys))
    return found, f"{len(others)} of {len(others)} nodes give both; the victim's vector opens"


def split_view() -> Outcome:
    """Tell half the nodes that the victim is active, the others that it is dead."""
    liar = Liar(9, 4).until_uploads()
    seeds = [liar.unmask(i, range(9), [])[VICTIM][1] for i in range(1, 5)]
    keys = [liar.unmask(i, range(1, 9), [VICTIM])[-1][1] for i in range(5, 9)]
    found = liar.found_with(combine_shares(seeds), combine_shares(keys))
    return found, "each node is asked for one share; together they open the victim's vector"


def key_substitution() -> Outcome:
    """Show the victim keys of the server's own in the place of everybody else's."""
    liar = Liar(6, 4)
    own = {i: (generate_key_pairs(), generate_key_pairs()) for i in range(1, 6)}
    shown = {
        i: (public_key_to_bytes(first[1]), public_key_to_bytes(second[1]))
        for i, (first, second) in own.items()
    }
    sealed = liar.share(VICTIM, {VICTIM: liar.keys[VICTIM], **shown})
    victim_key = bytes_to_public_key(liar.keys[VICTIM][1])
    seeds, keys, back = [], [], {}
    for i, text in sealed.items():
        secret = generate_shared_key(own[i][1][0], victim_key)
        _, _, seed, key = share_keys_plaintext_separate(decrypt(secret, text))
        seeds.append(seed)
        keys.append(key)
        plain = share_keys_plaintext_concat(node(i), node(VICTIM), seed, key)
        back[i] = encrypt(secret, plain)
    liar.collect(VICTIM, back)
    liar.keys.update(shown)
    found = liar.found_with(combine_shares(seeds), combine_shares(keys))
    return found, "no key is signed; the victim's vector opens"


def replay() -> Outcome:
    """Send the requests of a round again."""
    liar = Liar(4, 3).until_uploads()
    answered = []
    again: dict[str, Callable[[], Any]] = {
        "collect": lambda: liar.collect(VICTIM, {}),
        "unmask twice": lambda: [liar.unmask(VICTIM, range(4), []) for _ in range(2)],
        "setup": lambda: liar.setup(VICTIM),
        "share_keys": lambda: liar.share(VICTIM, liar.keys),
    }
    for name, act in again.items():
        try:
            act()
            answered.append(name)
        except (ValueError, KeyError):
            continue
    text = ", ".join(answered) or "nothing"
    harmless = answered == ["setup"]  # fresh keys, which stops the round and opens nothing
    return bool(answered) and not harmless, f"answered again: {text}; of {', '.join(again)}"


def threshold_one() -> Outcome:
    """Set a threshold of one, so that each share is the secret."""
    try:
        liar = Liar(4, 1).until_uploads()
        answer = liar.unmask(1, range(4), [VICTIM])
    except ValueError as error:
        return _refused(error)
    found = liar.found_with(combine_shares([answer[VICTIM][1]]), combine_shares([answer[-1][1]]))
    return found, "accepted; one node's shares open the victim's vector"


def single_survivor() -> Outcome:
    """Name the victim as the only survivor, as often as the threshold asks for."""
    liar = Liar(6, 4).until_uploads()
    others = range(1, 6)
    try:
        liar.unmask(VICTIM, [VICTIM], others)
        alone = "a list of one is accepted"
    except ValueError:
        alone = "a list of one is refused"
    answers = [liar.unmask(i, [VICTIM] * 4, others) for i in others]
    seed = combine_shares([answer[0][1] for answer in answers])
    victim_key = bytes_to_public_key(liar.keys[VICTIM][0])
    agreed = {}
    for place, other in enumerate(others):
        private = combine_shares([answer[4 + place][1] for answer in answers])
        agreed[other] = generate_shared_key(bytes_to_private_key(private), victim_key)
    return liar.found(seed, agreed), f"{alone}; one that repeats the victim opens its vector"


def seed_entropy() -> Outcome:
    """Count the bits that differ among the seeds that the generator is given."""
    keys = [generate_key_pairs() for _ in range(PAIRS)]
    seeds: list[int] = []
    original = np.random.RandomState

    def recording(seed: int) -> Any:
        seeds.append(seed)
        return original(seed)

    with patch.object(np.random, "RandomState", recording):
        for place, (private, _) in enumerate(keys):
            for _, public in keys[:place]:
                pseudo_rand_gen(generate_shared_key(private, public), MODULUS, [(1,)])
    free = (np.bitwise_or.reduce(seeds) & ~np.bitwise_and.reduce(seeds)).item().bit_count()
    return free < 128, f"{free} free bits over {len(seeds)} pair keys"


def tampered_share() -> Outcome:
    """One node changes the first block of the share of a lost client's key."""
    lost = {2: Stage.COLLECT_MASKED_VECTORS}
    case = Case(clients=5, length=LENGTH, threshold=3, lost=lost)
    inputs = case.inputs(seed=2)
    world = Federation(case, inputs)
    traitor = world.clients[node(1)]
    honest = traitor.handle

    def tampering(message: Message) -> Message:
        reply = honest(message)
        record = reply.content.config_records[RECORD_KEY_CONFIGS]
        if Key.SHARE_LIST in record:
            shares = list(record[Key.SHARE_LIST])
            first = bytearray(shares[0])
            first[4] ^= 1  # after the index: the first byte of a share of a seed
            record[Key.SHARE_LIST] = [bytes(first), *shares[1:]]
        return reply

    traitor.handle = tampering  # type: ignore[method-assign]
    try:
        mean = world.run()
    except ValueError as error:
        return False, f"the round ends with {type(error).__name__}"
    if mean is None:
        return False, "the round is halted"
    wrong = float(np.abs(mean - np.mean([inputs[i] for i in (0, 1, 3, 4)], axis=0)).max())
    return wrong > 1e-3, f"the workflow returns a mean that is off by up to {wrong:.1f}"


def wrong_round() -> Outcome:
    """Continue a round of one number under another number."""
    liar = Liar(4, 3)
    sealed = {i: liar.share(i, liar.keys) for i in liar.clients}
    texts = {i: sealed[i][VICTIM] for i in liar.clients if i != VICTIM}
    try:
        liar.collect(VICTIM, texts, group="99")
    except ValueError as error:
        return _refused(error)
    return True, "a request that names round 99 is answered in round 1"


def malformed() -> Outcome:
    """One node sends a vector of another shape."""
    seen = []
    for shape in ((LENGTH + 1,), (1,)):
        case = Case(clients=5, length=LENGTH, threshold=3)
        inputs = case.inputs(seed=2)
        world = Federation(case, inputs)
        traitor = world.clients[node(1)]
        honest = traitor.handle

        def misshaping(message: Message, shape: Any = shape, honest: Any = honest) -> Message:
            reply = honest(message)
            record = reply.content.config_records[RECORD_KEY_CONFIGS]
            if Key.MASKED_PARAMETERS in record:
                first, _ = record[Key.MASKED_PARAMETERS]
                record[Key.MASKED_PARAMETERS] = [first, ndarray_to_bytes(np.zeros(shape, np.int64))]
            return reply

        traitor.handle = misshaping  # type: ignore[method-assign]
        try:
            mean = world.run()
            seen.append(f"shape {shape}: " + ("halted" if mean is None else "a wrong mean"))
        except ValueError as error:
            seen.append(f"shape {shape}: the workflow raises {type(error).__name__}")
    return any("halted" not in one for one in seen), "; ".join(seen)


def no_confirmation() -> Outcome:
    """Ask one node to open shares without showing that anybody else saw the same survivors."""
    liar = Liar(6, 4).until_uploads()
    answer = liar.unmask(1, range(4), [4, 5])
    return len(answer) == 6, "shares are opened for any list of enough survivors, unconfirmed"


def weight_in_clear() -> Outcome:
    """Read the number of examples, and a loss, beside the masked vector."""
    liar = Liar(4, 3)
    liar.clients[VICTIM].metrics = {"loss": 0.5}
    sealed = {i: liar.share(i, liar.keys) for i in liar.clients}
    reply = liar.collect(VICTIM, {i: sealed[i][VICTIM] for i in range(1, 4)})
    seen = [
        f"{name}/{key}"
        for name, record in reply.content.items()
        if name != RECORD_KEY_CONFIGS
        for key, value in record.items()
        if value in (MAX_WEIGHT, 0.5)
    ]
    return bool(seen), f"read from the reply: {', '.join(seen) or 'nothing'}"


def early_dropout() -> Outcome:
    """One node of ten vanishes at setup, or when keys are shared."""
    told = []
    for stage in (Stage.SETUP, Stage.SHARE_KEYS):
        case = Case(clients=10, length=LENGTH, threshold=7, lost={3: stage})
        world = Federation(case, case.inputs(seed=4))
        mean = world.run()
        errors = [error for _, _, error in world.grid.failures if isinstance(error, KeyError)]
        result = "no result" if mean is None else "a result"
        told.append(f"{stage}: {len(errors)} of 9 nodes raise KeyError, {result}")
    return any("no result" in one for one in told), "; ".join(told)
